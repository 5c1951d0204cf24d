"""The course of a training, on disk: CSV, a picture, and event files that TensorBoard reads."""

import csv
import math
import struct
import time
from pathlib import Path

from ecgbyte_cli.storage.files import atomic_write

COLUMNS = (
    *("step", "train_loss", "learning_rate", "val_loss"),
    *("train_ecg_loss", "val_ecg_loss", "val_ecg_perplexity", "val_bits_per_second"),
)


def log_row(step, rate, train):
    """Return what is kept of a step of a training, by `COLUMNS`; missing losses are left out.

    Parameters
    ----------
    step : int
    rate : float
        Learning rate.
    train : (float or None, float or None)
        Loss per token of text, and per ECG token.
    """
    values = {"step": step, "train_loss": train[0], "learning_rate": rate, "train_ecg_loss": train[1]}
    return _there(values)


def log_validation(val):
    """Return what is kept of a validation, by `COLUMNS`; missing losses are left out.

    Parameters
    ----------
    val : (float or None, float or None, float or None)
        Loss per token of text, loss per ECG token, and bits per second of signal and lead.
    """
    text, ecg, bits = val
    perplexity = ecg and math.exp(min(ecg, 700))
    return _there(
        {
            "val_loss": text,
            "val_ecg_loss": ecg,
            "val_ecg_perplexity": perplexity,
            "val_bits_per_second": bits,
        }
    )


def _there(values):
    return {name: value for name, value in values.items() if value is not None}


def write_loss_csv(path, rows):
    """Write the rows of a training."""
    with atomic_write(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


def plot_losses(path, rows, title):
    """Draw the losses over the steps as a PNG picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, positive = figure.subplots(), True
    for name, colours, what in (
        ("loss", ("tab:blue", "tab:orange"), ""),
        ("ecg_loss", ("tab:green", "tab:red"), "ECG, "),
    ):
        steps = [r["step"] for r in rows if f"train_{name}" in r]
        train = [r[f"train_{name}"] for r in rows if f"train_{name}" in r]
        if not steps:
            continue
        axes.plot(steps, train, color="0.75", linewidth=0.8, label=f"{what}training, each step")
        width = max(1, len(steps) // 100)
        smooth = [sum(train[i : i + width]) / len(train[i : i + width]) for i in range(0, len(train), width)]
        middle = [sum(steps[i : i + width]) / len(steps[i : i + width]) for i in range(0, len(steps), width)]
        axes.plot(middle, smooth, color=colours[0], label=f"{what}training, mean of {width}")
        points = [(r["step"], r[f"val_{name}"]) for r in rows if f"val_{name}" in r]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=colours[1], label=f"{what}validation")
        positive &= min(train) > 0
    axes.set(xlabel="step", ylabel="loss per token", title=title, yscale="log" if positive else "linear")
    axes.legend()
    with atomic_write(path) as beside:
        figure.savefig(beside, format="png", dpi=120)


class TensorBoardEvents:
    """A TensorBoard event file of scalars, without TensorBoard.

    The file is a row of records (TFRecord: length, masked CRC-32C of it, bytes, masked CRC-32C of them), each a
    protocol buffer of tensorflow/core/util/event.proto. A training that goes on opens a new file in the same
    folder, and TensorBoard drops what an earlier one says about the same steps.

    Parameters
    ----------
    folder : Path
    first_step : int
        The first step that will be written.
    """

    def __init__(self, folder, first_step):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**6:013d}.ecgbyte"
        self.file = open(Path(folder) / name, "wb")
        self._write(_text(3, "brain.Event:2"))
        self._write(_number(2, first_step) + _text(7, _number(1, 1)))  # a session starts here

    def scalars(self, step, values):
        """Write a dict of name to value."""
        summary = b"".join(
            _text(1, _text(1, name) + b"\x15" + struct.pack("<f", value)) for name, value in values.items()
        )
        self._write(_number(2, step) + _text(5, summary))

    def _write(self, fields):
        record = b"\x09" + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(record))
        self.file.write(length + _masked_crc(length) + record + _masked_crc(record))
        self.file.flush()

    def close(self):
        self.file.close()


def _varint(value):
    parts = bytearray()
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _text(field, value):
    value = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # CRC-32C (Castagnoli), bits reversed
        table.append(byte)
    return table


CRC_TABLE = _crc_table()


def _crc(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked_crc(data):
    crc = _crc(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
