"""EDF, EDF+ and BDF (www.edfplus.info): a header in plain text, and records of 16 or 24 bits a sample."""

import math
import os
import re
from datetime import datetime

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

# what a header says of each signal, and the width of each field
FIELDS = {"label": 16, "transducer": 80, "unit": 8, "physical_min": 8, "physical_max": 8}
FIELDS |= {"digital_min": 8, "digital_max": 8, "filters": 80, "samples": 8, "reserved": 32}


def read(path, fs, lead_names, units):
    """EDF, EDF+ and BDF. Of several sampling rates the one that most leads share is taken."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limits.FILE_BYTES:
            raise Unusable(f"too large: {size} bytes")
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
        starts = np.cumsum([0, *(signal["samples"] for signal in signals)])
        first, width = 256 * (count + 1), int(starts[-1])
        if not 0 < width <= limits.SAMPLES:
            raise Unusable(f"header refused: {width} samples in a record")
        if records == -1:  # not known when the header was written
            records = (size - first) // (wide * width)
        if records < 0 or size < first + records * width * wide:
            raise Unusable(f"signal file truncated: {size} of {first + records * width * wide} bytes")
        leads = [
            i for i, signal in enumerate(signals) if signal["millivolts"] is not None and signal["samples"]
        ]
        if not leads or not records:
            raise Unusable("no leads in volts" if records else "no samples")
        common = common_rate([signals[i]["samples"] for i in leads])
        leads = [i for i in leads if signals[i]["samples"] == common]
        check_promise(len(leads), records * common)
        data = np.fromfile(file, np.uint8, records * width * wide).reshape(records, width, wide)
    signal = np.empty((len(leads), records * common), np.float32)
    for row, i in zip(signal, leads, strict=True):
        gain, zero = _calibration(signals[i])
        digital = _integers(data[:, starts[i] : starts[i + 1]]).reshape(-1)
        physical = digital * gain
        physical += zero
        physical *= signals[i]["millivolts"]
        row[:] = physical
    # EDF+ 2.1.3.3: the hospital's number, sex, birth date, name; in plain EDF it may say anything
    words = text_of(head[8:88]).split()
    known = {}
    if text_of(head[192:236])[3:4] == "+":
        names = ("Patient", "Sex", "Birth date", "Name")
        known = {key: word for key, word in zip(names, words, strict=False) if word != "X"}
    sex = {"M": "Male", "F": "Female"}.get(known.pop("Sex", ""))
    comments = [f"Sex: {sex}"] if sex else []
    labels = [signals[i]["label"] for i in leads]
    return Recording(signal, common / seconds, labels, record_name(path), path, comments, _start(head), known)


def _signals(head, count):
    """What the header says of each signal: a field of all signals after the other."""
    if len(head) < 256 * count:
        raise Unusable("header refused: truncated")
    signals, at = [{} for _ in range(count)], 0
    for field, width in FIELDS.items():
        for signal in signals:
            signal[field] = head[at : at + width]
            at += width
    for signal in signals:
        signal["label"] = text_of(signal["label"]).strip(" \0")
        signal["millivolts"] = millivolts(text_of(signal["unit"]).strip(" \0"))
        signal["samples"] = _whole(signal["samples"], "samples in a record")
        if signal["samples"] < 0:
            raise Unusable(f"header refused: {signal['samples']} samples in a record")
    return signals


def _calibration(signal):
    """The gain and the zero that make physical values of digital ones."""
    low, high = (
        _number(signal[name], f"{name} of {signal['label']}") for name in ("physical_min", "physical_max")
    )
    first, last = (
        _number(signal[name], f"{name} of {signal['label']}") for name in ("digital_min", "digital_max")
    )
    if low == high or first == last:
        raise Unusable(f"header refused: no span to calibrate {signal['label']} by")
    gain = (high - low) / (last - first)
    return gain, low - gain * first


def _integers(data):
    """Samples of two or three bytes each as integers: (records, samples)."""
    if data.shape[-1] == 2:
        return np.ascontiguousarray(data).view("<i2")[..., 0]
    wide = np.zeros((*data.shape[:-1], 4), np.uint8)
    wide[..., 1:] = data
    return wide.view("<i4")[..., 0] >> 8


def _number(field, what):
    """A number of the header; some writers use a decimal comma."""
    text = text_of(field).strip(" \0")
    if not re.fullmatch(r"[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?", text, re.ASCII):
        raise Unusable(f"header refused: the {what} is no number ({text!r})")
    number = float(text.replace(",", "."))
    if not math.isfinite(number):
        raise Unusable(f"header refused: the {what} is out of range ({text!r})")
    return number


def _whole(field, what):
    number = _number(field, what)
    if number != int(number):
        raise Unusable(f"header refused: the {what} is no integer ({number:g})")
    return int(number)


def _start(head):
    """The start of a recording: the day of EDF+'s own field, else the one with two digits for the year."""
    clock, day = text_of(head[176:184]).strip(), text_of(head[168:176]).strip()
    named = re.match(r"Startdate (\d\d-[A-Za-z]{3}-\d{4})", text_of(head[88:168]))
    try:
        if named:
            return datetime.strptime(f"{named[1]} {clock}", "%d-%b-%Y %H.%M.%S")
        start = datetime.strptime(f"{day} {clock}", "%d.%m.%y %H.%M.%S")
    except ValueError:  # missing, or made unreadable to hide whose it is
        return None
    # 85 to 99 are of the last century, by the format's own rule; Python takes 69 to 84 for that too
    return start.replace(year=start.year + 100) if start.year < 1985 else start
