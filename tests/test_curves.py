"""The course of a training on disk."""

import csv
import math
import struct
import time

import pytest

from ecgbyte_cli.training import training_log


def records(path):
    """The records of a TFRecord file, with the masked CRCs that it holds."""
    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        record = data[place + 12 : place + 12 + length]
        crc = struct.unpack_from("<I", data, place + 12 + length)[0]
        yield record, crc
        place += length + 16


def test_crc_is_castagnolis():
    assert (
        training_log._crc(b"123456789") == 0xE3069283
    )  # RFC 3720, B.4 has others; this one is the usual check value
    assert training_log._crc(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4


def test_event_files_hold_the_scalars(tmp_path):
    """A reader of its own, for two of the fields: TensorBoard is no dependency."""
    events = training_log.TensorBoardEvents(tmp_path, 5)
    events.scalars(300, {"loss/training": 0.5})
    events.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    version, start, scalar = records(path)
    assert b"brain.Event:2" in version[0] and start[0][9:] == b"\x10\x05\x3a\x02\x08\x01"
    assert abs(struct.unpack_from("<d", scalar[0], 1)[0] - time.time()) < 600
    value = b"\x0a\x0dloss/training\x15" + struct.pack("<f", 0.5)
    assert scalar[0][9:] == b"\x10\xac\x02\x2a\x16\x0a\x14" + value
    for record, crc in (version, start, scalar):
        assert struct.unpack("<I", training_log._masked_crc(record))[0] == crc


def test_tensorboard_reads_them(tmp_path):
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not installed"
    )
    events = training_log.TensorBoardEvents(tmp_path, 1)
    for step in range(1, 8):
        events.scalars(step, {"loss": 1 / step})
    events.close()
    read = reader.EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [event.step for event in read] == list(range(1, 8))


def test_csv_and_picture(tmp_path):
    rows = [
        training_log.log_row(step, 1e-3, (1 / step, 3.0))
        | (training_log.log_validation((2 / step, 1.0, 20.0)) if step % 10 == 0 else {})
        for step in range(1, 31)
    ]
    training_log.write_loss_csv(tmp_path / "loss.csv", rows)
    with open(tmp_path / "loss.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert float(read[2]["train_loss"]) == 1 / 3 and read[2]["val_loss"] == ""
    assert float(read[9]["val_loss"]) == 0.2 and len(read) == 30
    assert (
        float(read[9]["val_ecg_perplexity"]) == pytest.approx(math.e) and read[9]["train_ecg_loss"] == "3.0"
    )
    training_log.plot_losses(tmp_path / "loss.png", rows, "a title")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
