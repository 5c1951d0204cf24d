"""DICOM waveforms."""

import io
import math
import os
import struct

import numpy as np

from ecgbyte_cli.readers import limits
from ecgbyte_cli.readers.recording import Recording, Unusable, check_promise, millivolts, open_regular, stem

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
    rows, leads = [], []
    for values, channel in zip(raw.T, group.ChannelDefinitionSequence, strict=True):
        units = channel.get("ChannelSensitivityUnitsSequence")
        scale = millivolts(units[0].CodeValue) if units else None
        if scale is None:
            continue
        lead = str(channel.ChannelSourceSequence[0].CodeMeaning)
        step = _calibration(channel, lead)
        row = ((values * step + _number(channel.get("ChannelBaseline") or 0)) * scale).astype(np.float32)
        if padding is not None:
            row[values == np.frombuffer(padding, raw.dtype)[0]] = np.nan
        rows.append(row)
        leads.append(lead)
    comments = [f"Patient: {data.PatientID}"] if data.get("PatientID") else []
    signal = np.array(rows, np.float32).reshape(len(rows), raw.shape[0])
    return Recording(signal, float(group.SamplingFrequency), leads, stem(path), path, comments)


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
