"""DICOM waveforms."""

import io
import math
import os
import re
import struct
from datetime import datetime

import numpy as np

from ecgbyte_cli.readers import limits
from ecgbyte_cli.readers.recording import (
    STANDARD,
    Recording,
    Unusable,
    check_promise,
    lead_name,
    millivolts,
    open_regular,
    stem,
)

AT_END, WITHIN = 0.01, 0.2  # s: stretches of the padding value are longer than this
# the last part of a lead's code, in SCPECG (5.6.3-9-N) as in MDC (2:N)
CODES = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {n + 2: f"V{n}" for n in range(1, 7)}

# value representations whose length takes four bytes (PS3.5, 7.1.2)
IMPLICIT, DEFLATED, BIG_ENDIAN = (
    f"1.2.840.10008.1.2{end}" for end in ("", ".1.99", ".2")
)  # transfer syntaxes
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
SAMPLES = (0x5400, 0x1010)
LOOKED_AT = (0x0008, 0x0010, 0x003A, 0x5400)  # the groups of what is read here


def read(path, fs, lead_names, units):
    """DICOM waveforms (PS3.3 C.10.9) through pydicom; of several groups the longest, in the time it covers."""
    import pydicom

    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limits.FILE_BYTES:
            raise Unusable(f"too large: {os.fstat(file.fileno()).st_size} bytes")
        content = file.read()
    _check_elements(content)
    data = pydicom.dcmread(io.BytesIO(content))
    groups = data.get("WaveformSequence") or []
    if not groups:
        raise Unusable("not an ECG: the DICOM file holds no waveform")
    seconds = [_number(g.NumberOfWaveformSamples) / _number(g.SamplingFrequency) for g in groups]
    index = int(np.argmax(seconds))
    group = groups[index]
    check_promise(group.NumberOfWaveformChannels, group.NumberOfWaveformSamples)
    if group.get("WaveformSampleInterpretation") in ("MB", "AB"):
        raise Unusable("not a known format: companded DICOM waveform")
    raw = pydicom.waveforms.multiplex_array(data, index, as_raw=True)
    padding = group.get("WaveformPaddingValue")
    fs = float(group.SamplingFrequency)
    rows, leads = [], []
    for values, channel in zip(raw.T, group.ChannelDefinitionSequence, strict=True):
        units = channel.get("ChannelSensitivityUnitsSequence")
        scale = millivolts(units[0].CodeValue) if units else None
        if scale is None:
            continue
        lead = _lead(channel)
        step = _calibration(channel, lead)
        row = ((values * step + _number(channel.get("ChannelBaseline") or 0)) * scale).astype(np.float32)
        if padding is not None:
            row[_padded(values == np.frombuffer(padding, raw.dtype)[0], fs)] = np.nan
        rows.append(row)
        leads.append(lead)
    signal = np.array(rows, np.float32).reshape(len(rows), raw.shape[0])
    return Recording(
        signal, fs, leads, stem(path), path, _comments(data), _start(data), identity=_identity(data)
    )


def _padded(same, fs):
    """Where samples that have the padding value are padding: bool (samples,).

    A signal passes through that value, too; padding is a stretch of it that reaches an end of the recording, or
    one in the middle that is longer than an ECG holds one value.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]])))
    padded = np.zeros(same.size, bool)
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        longest = AT_END if begin == 0 or end == same.size else WITHIN
        padded[begin:end] = end - begin > longest * fs
    return padded


def _lead(channel):
    """A channel's lead: by what its code means in words, else by the code."""
    source = channel.ChannelSourceSequence[0]
    words = str(source.get("CodeMeaning") or "")
    if lead_name(words) in STANDARD.values():
        return words
    number = re.search(r"[-:](\d{1,2})$", str(source.get("CodeValue") or ""))
    named = str(source.get("CodeValue") or "").removeprefix("MDC_ECG_LEAD_")
    code = CODES.get(int(number[1])) if number else named if lead_name(named) in STANDARD.values() else None
    return code or words


def _comments(data):
    """Age and sex, under the names that WFDB headers use."""
    age, sex = str(data.get("PatientAge") or ""), str(data.get("PatientSex") or "")
    lines = [f"Age: {int(age[:-1])}"] if re.fullmatch(r"\d{3}Y", age) else []
    return lines + ([f"Sex: {'Male' if sex == 'M' else 'Female'}"] if sex in ("M", "F") else [])


def _identity(data):
    keys = {"Patient": "PatientID", "Name": "PatientName", "Birth date": "PatientBirthDate"}
    known = {key: str(data.get(keyword) or "").strip() for key, keyword in keys.items()}
    return {key: text for key, text in known.items() if text}


def _start(data):
    """The start of the recording, where the file says one that there was."""
    text = str(data.get("AcquisitionDateTime") or "")
    if not text and data.get("AcquisitionDate") and data.get("AcquisitionTime"):
        text = f"{data.AcquisitionDate}{data.AcquisitionTime}"
    try:
        return datetime.strptime(text[:14], "%Y%m%d%H%M%S")
    except ValueError:
        return None


def _calibration(channel, lead):
    """The units that a step of a channel stands for (PS3.3 C.10.9.1.4.1)."""
    if channel.get("ChannelSensitivity") is None:
        raise Unusable(f"header refused: lead {lead} has no sensitivity")
    step = _number(channel.ChannelSensitivity)
    # the standard's own default: without a correction there is none
    correction = channel.get("ChannelSensitivityCorrectionFactor")
    step *= 1.0 if correction is None else _number(correction)
    if not step:
        raise Unusable(f"header refused: the sensitivity of lead {lead} is 0")
    if abs(_number(channel.get("ChannelSampleSkew") or 0)) >= 1:
        raise Unusable(f"header refused: lead {lead} is skewed by {channel.ChannelSampleSkew} samples")
    return step


def _number(value):
    number = float(value)
    if not math.isfinite(number):
        raise Unusable(f"header refused: {value} is no number to calibrate by")
    return number


def _check_elements(data):
    """Refuse a file of more or longer elements than a recording has, by a walk from one length to the next.

    Sequences and their items are stepped into, so that elements count however deep they lie.
    """
    if data[128:132] != b"DICM":
        raise Unusable("not a known format: no DICOM file")
    count, at, syntax = 0, 132, ""
    order, explicit, meta = "<", True, True
    while at + 8 <= len(data):
        count += 1
        if count > limits.DICOM_ELEMENTS:
            raise Unusable(f"too large: more than {limits.DICOM_ELEMENTS} elements")
        if meta and data[at : at + 2] != b"\2\0":  # the syntax said there is for what follows
            if syntax == DEFLATED:  # its size is not known beforehand
                raise Unusable("not a known format: deflated DICOM")
            order, explicit, meta = ">" if syntax == BIG_ENDIAN else "<", syntax != IMPLICIT, False
        group, element, _, length = struct.unpack_from(order + "HHHH", data, at)
        kind, head = data[at + 4 : at + 6], 8
        if group == 0xFFFE or not explicit:
            (length,) = struct.unpack_from(order + "I", data, at + 4)
        elif kind in LONG and at + 12 <= len(data):
            (length,), head = struct.unpack_from(order + "I", data, at + 8), 12
        at += head
        if group == 0xFFFE or length == 0xFFFFFFFF or (explicit and kind == b"SQ"):
            continue
        if data[at : at + 4] == struct.pack(order + "HH", 0xFFFE, 0xE000):  # a sequence, by what it holds
            continue
        if length > limits.DICOM_VALUE_BYTES and group in LOOKED_AT and (group, element) != SAMPLES:
            raise Unusable(f"too large: {length} bytes of element ({group:04x},{element:04x})")
        if meta and element == 0x0010:
            syntax = data[at : at + length].decode("ascii", "replace").strip(" \0")
        at += length
