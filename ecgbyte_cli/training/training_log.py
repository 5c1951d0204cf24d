"""The log of a training run on disk: CSV, a plot, and event files for TensorBoard."""

import csv
import math
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ecgbyte_cli.storage.files import atomic_write

COLUMNS = (
    *("step", "train_loss", "learning_rate", "val_loss"),
    *("train_ecg_loss", "val_ecg_loss", "val_ecg_perplexity", "val_bits_per_second"),
)
TENSORBOARD = {
    "train_loss": "loss/training",
    "val_loss": "loss/validation",
    "learning_rate": "learning rate",
    "train_ecg_loss": "ECG loss/training",
    "val_ecg_loss": "ECG loss/validation",
    "val_ecg_perplexity": "ECG perplexity/validation",
    "val_bits_per_second": "bits per second and lead/validation",
    "reward": "reward/training",
    "val_reward": "reward/validation",
    "exact": "exact match/training",
    "answer_tokens": "tokens an answer",
    "kl": "KL to the model at the beginning",
}

Row = Mapping[str, Any]


def log_row(step: int, rate: float, train: tuple[float | None, float | None]) -> dict[str, Any]:
    """Return the log entries of a step, by `COLUMNS`, without missing losses.

    Parameters
    ----------
    step : int
    rate : float
        Learning rate.
    train : (float or None, float or None)
        Loss per text label, and per ECG token.
    """
    return _not_none(
        {"step": step, "train_loss": train[0], "learning_rate": rate, "train_ecg_loss": train[1]}
    )


def log_validation(val: tuple[float | None, float | None, float | None]) -> dict[str, Any]:
    """Return the log entries of a validation, by `COLUMNS`, without missing losses.

    Parameters
    ----------
    val : (float or None, float or None, float or None)
        Loss per text label, loss per ECG token, and bits per second of signal and lead.
    """
    text, ecg, bits = val
    return _not_none(
        {
            "val_loss": text,
            "val_ecg_loss": ecg,
            "val_ecg_perplexity": ecg and math.exp(min(ecg, 700)),
            "val_bits_per_second": bits,
        }
    )


def _not_none(values: Row) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def write_csv(path: Path, rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Write rows as CSV. Missing values are empty."""
    with atomic_write(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def write_loss_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write the losses of a run as CSV."""
    write_csv(path, rows, COLUMNS)


def block_means(values: Sequence[float], width: int) -> list[float]:
    """Return the means of consecutive blocks of values."""
    blocks = [values[i : i + width] for i in range(0, len(values), width)]
    return [sum(block) / len(block) for block in blocks]


def plot_losses(path: Path, rows: Sequence[Row], title: str) -> None:
    """Plot the losses by step as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, positive = figure.subplots(), True
    for name, colours, prefix in (
        ("loss", ("tab:blue", "tab:orange"), ""),
        ("ecg_loss", ("tab:green", "tab:red"), "ECG, "),
    ):
        steps = [r["step"] for r in rows if f"train_{name}" in r]
        train = [r[f"train_{name}"] for r in rows if f"train_{name}" in r]
        if not steps:
            continue
        axes.plot(steps, train, color="0.75", linewidth=0.8, label=f"{prefix}training, each step")
        width = max(1, len(steps) // 100)
        smooth, middle = block_means(train, width), block_means(steps, width)
        axes.plot(middle, smooth, color=colours[0], label=f"{prefix}training, mean of {width}")
        points = [(r["step"], r[f"val_{name}"]) for r in rows if f"val_{name}" in r]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colours[1], label=f"{prefix}validation")
        positive &= min(train) > 0
    axes.set(xlabel="step", ylabel="loss per token", title=title, yscale="log" if positive else "linear")
    axes.legend()
    with atomic_write(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


def plot_rewards(path: Path, rows: Sequence[Row]) -> None:
    """Plot reward, length and KL by step as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    steps = [row["step"] for row in rows]
    width = max(1, len(steps) // 20)
    names = {"reward": "reward", "answer_tokens": "tokens per answer", "kl": "KL to the initial model"}
    for axes, (name, label) in zip(figure.subplots(3, 1, sharex=True), names.items(), strict=True):
        values = [row[name] for row in rows]
        smooth, middle = block_means(values, width), block_means(steps, width)
        axes.plot(steps, values, color="0.8", linewidth=0.8, label="each step")
        axes.plot(middle, smooth, color="tab:blue", label=f"mean of {width}")
        points = [(row["step"], row["val_reward"]) for row in rows if "val_reward" in row]
        if name == "reward" and points:
            axes.plot(*zip(*points, strict=True), "o-", color="tab:orange", label="validation, greedy")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(loc="lower right", ncols=3, fontsize=8)
    figure.axes[-1].set_xlabel("step")
    with atomic_write(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


class TensorBoardEvents:
    """A TensorBoard event file of scalars, without TensorBoard.

    The file is a sequence of records (TFRecord: length, its masked CRC-32C, bytes, their masked CRC-32C), each a
    protocol buffer of tensorflow/core/util/event.proto. A resumed run opens a new file in the same folder, and
    TensorBoard drops an earlier file's values for the same steps.

    Parameters
    ----------
    folder : Path
    first_step : int
        The first step that will be written.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**6:013d}.ecgbyte"
        self.file = open(Path(folder) / name, "wb")
        self._write(_text(3, "brain.Event:2"))
        self._write(_number(2, first_step) + _text(7, _number(1, 1)))  # a session starts here

    def add_row(self, row: Row) -> None:
        """Write the log entries of a step under their names in TensorBoard."""
        self.scalars(row["step"], {TENSORBOARD[name]: row[name] for name in row if name != "step"})

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by name."""
        summary = b"".join(
            _text(1, _text(1, name) + b"\x15" + struct.pack("<f", value)) for name, value in values.items()
        )
        self._write(_number(2, step) + _text(5, summary))

    def _write(self, fields: bytes) -> None:
        record = b"\x09" + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(record))
        self.file.write(length + _masked_crc(length) + record + _masked_crc(record))
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str | bytes) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # CRC-32C (Castagnoli), bits reversed
        table.append(byte)
    return table


CRC_TABLE = _crc_table()


def _crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked_crc(data: bytes) -> bytes:
    crc = _crc(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
