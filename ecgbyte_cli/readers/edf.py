"""EDF, EDF+ and BDF (www.edfplus.info): a header in plain text, and records of 16-bit or 24-bit samples."""

import math
import os
import re
from datetime import datetime
from typing import BinaryIO, NamedTuple

import numpy as np

from ecgbyte_cli.readers import limits
from ecgbyte_cli.readers.recording import (
    Recording,
    Unusable,
    check_promise,
    common_rate,
    millivolts,
    open_regular,
    record_name,
    text_of,
)
from ecgbyte_cli.readers.stored import is_long, stored_signal

# the fields of each signal in the header, and their widths
FIELDS = {"label": 16, "transducer": 80, "unit": 8, "physical_min": 8, "physical_max": 8}
FIELDS |= {"digital_min": 8, "digital_max": 8, "filters": 80, "samples": 8, "reserved": 32}


class _Signal(NamedTuple):
    """A signal in the header."""

    fields: dict[str, bytes]  # as in the file
    label: str
    millivolts: float  # mV per unit, 0 if the unit is not a voltage
    samples: int  # number of samples in a data record
    start: int  # its first sample in a record


class _Layout(NamedTuple):
    """What the header of a file says about its records."""

    head: bytes  # the first 256 bytes
    wide: int  # bytes of a sample
    first: int  # the byte that the records begin at
    width: int  # samples in a record
    records: int
    seconds: float  # length of a data record
    leads: list[_Signal]  # signals at the most common rate
    common: int  # samples of each in a record


def read(path: str, fs: float | None, lead_names: list[str] | None, units: str | None) -> Recording:
    """Read EDF, EDF+ and BDF. If the sampling rates differ, only the leads at the most common rate are read."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limits.FILE_BYTES:
            raise Unusable(f"too large: {size} bytes")
        layout = _layout(file, size)
        check_promise(len(layout.leads), layout.records * layout.common)
        signal = _read_records(file, layout, 0, layout.records)
    return _recording(path, layout, signal)


def open_long(path: str) -> Recording | None:
    """Open a long recording without reading its signal; None for others, which `read` reads."""
    with open_regular(path) as file:
        layout = _layout(file, os.fstat(file.fileno()).st_size)
    common, samples = layout.common, layout.records * layout.common
    if not is_long(len(layout.leads), samples, common / layout.seconds):
        return None

    def read_part(start: int, stop: int) -> np.ndarray:
        first, last = start // common, -(-stop // common)
        check_promise(1, (last - first) * layout.width)
        with open_regular(path) as file:
            part = _read_records(file, layout, first, last)
        return part[:, start - first * common : stop - first * common]

    return _recording(path, layout, stored_signal(len(layout.leads), samples, read_part))


def _layout(file: BinaryIO, size: int) -> _Layout:
    """Read the header of a file of `size` bytes."""
    head = file.read(256)
    if head[:8] not in (b"0       ", b"\xffBIOSEMI") or len(head) < 256:
        raise Unusable("header refused: not that of an EDF or BDF file")
    wide = 3 if head[0] == 0xFF else 2
    if text_of(head[192:236])[3:5] == "+D":
        raise Unusable("samples missing: the recording is discontinuous (EDF+D)")
    records, count = (
        _whole(head[236:244], "number of records"),
        _whole(head[252:256], "number of signals"),
    )
    seconds = _number(head[244:252], "duration of a record")
    if not 0 < count <= 2 * limits.LEADS or seconds <= 0:
        raise Unusable(f"header refused: {count} signals in records of {seconds:g} s")
    signals = _signals(file.read(256 * count), count)
    first, width = 256 * (count + 1), signals[-1].start + signals[-1].samples
    if not 0 < width <= limits.SAMPLES:
        raise Unusable(f"header refused: {width} samples in a record")
    if records == -1:  # unknown when the header was written
        records = (size - first) // (wide * width)
    if records < 0 or size < first + records * width * wide:
        raise Unusable(f"signal file truncated: {size} of {first + records * width * wide} bytes")
    leads = [signal for signal in signals if signal.millivolts and signal.samples]
    if not leads or not records:
        raise Unusable("no leads in volts" if records else "no samples")
    common = common_rate([lead.samples for lead in leads])
    leads = [lead for lead in leads if lead.samples == common]
    return _Layout(head, wide, first, width, records, seconds, leads, common)


def _read_records(file: BinaryIO, layout: _Layout, first: int, last: int) -> np.ndarray:
    """Read the records from `first` to before `last`: float32 (leads, samples), mV."""
    count, width, wide = last - first, layout.width, layout.wide
    file.seek(layout.first + first * width * wide)
    data = np.fromfile(file, np.uint8, count * width * wide)
    if data.size < count * width * wide:
        raise Unusable("signal file truncated")
    data = data.reshape(count, width, wide)
    signal = np.empty((len(layout.leads), count * layout.common), np.float32)
    for row, lead in zip(signal, layout.leads, strict=True):
        row[:] = _physical(lead, data[:, lead.start : lead.start + layout.common])
    return signal


def _recording(path: str, layout: _Layout, signal: np.ndarray) -> Recording:
    comments, identity = _patient(layout.head)
    labels = [lead.label for lead in layout.leads]
    fs, start = layout.common / layout.seconds, _start(layout.head)
    return Recording(signal, fs, labels, record_name(path), path, comments, start, identity)


def _patient(head: bytes) -> tuple[list[str], dict[str, str]]:
    """Return the sex as a comment, and the patient's personal data (EDF+ 2.1.3.3); plain EDF has no such fields."""
    identity = {}
    if text_of(head[192:236])[3:4] == "+":
        names = ("Patient", "Sex", "Birth date", "Name")
        words = text_of(head[8:88]).split()
        identity = {key: word for key, word in zip(names, words, strict=False) if word != "X"}
    sex = {"M": "Male", "F": "Female"}.get(identity.pop("Sex", ""))
    return [f"Sex: {sex}"] if sex else [], identity


def _signals(head: bytes, count: int) -> list[_Signal]:
    """Read the headers of all signals: each field for all signals, then the next field."""
    if len(head) < 256 * count:
        raise Unusable("header refused: truncated")
    each: list[dict[str, bytes]] = [{} for _ in range(count)]
    at = 0
    for field, width in FIELDS.items():
        for fields in each:
            fields[field] = head[at : at + width]
            at += width
    signals, start = [], 0
    for fields in each:
        samples = _whole(fields["samples"], "samples in a record")
        if samples < 0:
            raise Unusable(f"header refused: {samples} samples in a record")
        label, unit = (text_of(fields[field]).strip(" \0") for field in ("label", "unit"))
        signals.append(_Signal(fields, label, millivolts(unit) or 0.0, samples, start))
        start += samples
    return signals


def _physical(signal: _Signal, data: np.ndarray) -> np.ndarray:
    """Return the samples of a signal in mV, from its bytes: float64 (records * samples,)."""
    gain, zero = _calibration(signal)
    physical = _integers(data).reshape(-1) * gain
    physical += zero
    physical *= signal.millivolts
    return physical


def _calibration(signal: _Signal) -> tuple[float, float]:
    """Return the gain and the zero of a signal: physical = gain * digital + zero."""
    low, high, first, last = (
        _number(signal.fields[name], f"{name} of {signal.label}")
        for name in ("physical_min", "physical_max", "digital_min", "digital_max")
    )
    if low == high or first == last:
        raise Unusable(f"header refused: no span to calibrate {signal.label} by")
    gain = (high - low) / (last - first)
    return gain, low - gain * first


def _integers(data: np.ndarray) -> np.ndarray:
    """Return samples of two or three bytes as integers (records, samples)."""
    if data.shape[-1] == 2:
        return np.ascontiguousarray(data).view("<i2")[..., 0]
    wide = np.zeros((*data.shape[:-1], 4), np.uint8)
    wide[..., 1:] = data
    return wide.view("<i4")[..., 0] >> 8


def _number(field: bytes, name: str) -> float:
    """Return a number of the header; some writers use a decimal comma."""
    text = text_of(field).strip(" \0")
    if not re.fullmatch(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?", text, re.ASCII):
        raise Unusable(f"header refused: the {name} is not a number ({text!r})")
    number = float(text.replace(",", "."))
    if not math.isfinite(number):
        raise Unusable(f"header refused: the {name} is out of range ({text!r})")
    return number


def _whole(field: bytes, name: str) -> int:
    """Return an integer of the header."""
    number = _number(field, name)
    if number != int(number):
        raise Unusable(f"header refused: the {name} is not an integer ({number:g})")
    return int(number)


def _start(head: bytes) -> datetime | None:
    """Return the start of a recording, with the date of EDF+, else the date with a two-digit year."""
    clock, day = text_of(head[176:184]).strip(), text_of(head[168:176]).strip()
    plus = re.match(r"Startdate (\d\d-[A-Za-z]{3}-\d{4})", text_of(head[88:168]))
    try:
        if plus:
            return datetime.strptime(f"{plus[1]} {clock}", "%d-%b-%Y %H.%M.%S")
        start = datetime.strptime(f"{day} {clock}", "%d.%m.%y %H.%M.%S")
    except ValueError:  # missing, or removed to hide the patient's identity
        return None
    # the format's years 85 to 99 are 1985 to 1999; Python also takes 69 to 84 for the last century
    return start.replace(year=start.year + 100) if start.year < 1985 else start
