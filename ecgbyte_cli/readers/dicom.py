"""DICOM waveforms."""

import io
import math
import os
import re
import struct
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

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
    record_name,
)

if TYPE_CHECKING:
    from pydicom import Dataset

AT_END, WITHIN = 0.01, 0.2  # s, the shortest run of the padding value that is padding
# the last part of a lead's code, in SCPECG (5.6.3-9-N) as in MDC (2:N)
CODES = {1: "I", 2: "II", 61: "III", 62: "aVR", 63: "aVL", 64: "aVF"} | {n + 2: f"V{n}" for n in range(1, 7)}

WAVEFORMS = "1.2.840.10008.5.1.4.1.1.9."  # begins the SOP classes of waveforms (PS3.6, A)
IMPLICIT, DEFLATED, BIG_ENDIAN = (
    f"1.2.840.10008.1.2{end}" for end in ("", ".1.99", ".2")
)  # transfer syntaxes
# value representations whose length takes four bytes (PS3.5, 7.1.2)
LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
SAMPLES = (0x5400, 0x1010)
# interpretation and bits of a sample to its type, in the byte order of the file (PS3.3, C.10.9.1.5)
TYPES = {
    ("SB", 8): "i1",
    ("UB", 8): "u1",
    ("SS", 16): "i2",
    ("US", 16): "u2",
    ("SL", 32): "i4",
    ("UL", 32): "u4",
}
BEAT = re.compile(r"beat|median|average|template", re.IGNORECASE)  # label of a group of representative beats
READ_GROUPS = (0x0008, 0x0010, 0x003A, 0x5400)  # element groups that the reader uses


@dataclass
class _Group:
    """A multiplex group: its channels share a rate, a length and a start.

    `begin` is in samples, None if the file does not state it. `leads` has (name, place, mV of the unit) of each
    channel in volts.
    """

    item: "Dataset"
    fs: float
    samples: int
    begin: int | None
    leads: list[tuple[str, int, float]]

    @property
    def key(self) -> tuple[float, int, int | None]:
        """The properties that the groups of one piece of the recording share."""
        return self.fs, self.samples, self.begin

    @property
    def names(self) -> set[str]:
        """The names of the leads in their usual spelling."""
        return {lead_name(name) for name, *_ in self.leads}


def is_dicom(head: bytes) -> bool:
    """Return whether the first bytes of a file are of DICOM (PS3.10, 7.1)."""
    return head[128:132] == b"DICM"


def read(path: str, fs: float | None, lead_names: list[str] | None, units: str | None) -> Recording:
    """Read DICOM waveforms (PS3.3 C.10.9) with pydicom, joining leads in several multiplex groups."""
    import pydicom

    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > limits.FILE_BYTES:
            raise Unusable(f"too large: {os.fstat(file.fileno()).st_size} bytes")
        content = file.read()
    _check_elements(content)
    try:
        data = pydicom.dcmread(io.BytesIO(content))
    except (EOFError, OSError) as error:  # the bytes are in memory: they end too early
        raise Unusable("damaged: the DICOM file is cut short") from error
    items = data.get("WaveformSequence") or []
    if not items and str(data.file_meta.get("MediaStorageSOPClassUID")).startswith(WAVEFORMS):
        raise Unusable("damaged: the DICOM file is cut short before its waveform")
    if not items:
        raise Unusable("not an ECG: the DICOM file contains no waveform")
    rhythm = [item for item in items if not BEAT.search(str(item.get("MultiplexGroupLabel") or ""))]
    if not rhythm:
        raise Unusable("not a recording: the DICOM file contains only representative beats")
    groups = _together([_group(item) for item in rhythm])
    order = "<" if data.original_encoding[1] else ">"
    leads, signal = _joined(groups, order)
    start = _start(data, min(group.begin or 0 for group in groups) / groups[0].fs)
    return Recording(
        signal, groups[0].fs, leads, record_name(path), path, _comments(data), start, identity=_identity(data)
    )


def _group(item: "Dataset") -> _Group:
    """Read the header of a multiplex group."""
    check_promise(item.NumberOfWaveformChannels, item.NumberOfWaveformSamples)
    fs, offset = _number(item.SamplingFrequency), item.get("MultiplexGroupTimeOffset")
    if fs <= 0:
        raise Unusable(f"header refused: a sampling rate of {fs:g} Hz")
    leads = []
    for place, channel in enumerate(item.ChannelDefinitionSequence):
        unit = channel.get("ChannelSensitivityUnitsSequence")
        scale = millivolts(unit[0].CodeValue) if unit else None
        if scale is not None:
            leads.append((_lead(channel), place, scale))
    begin = None if offset is None else round(_number(offset) / 1000 * fs)  # the file has ms
    return _Group(item, fs, int(item.NumberOfWaveformSamples), begin, leads)


def _together(groups: list[_Group]) -> list[_Group]:
    """Choose the groups that form the recording.

    These are the groups of the same rate, length and start with the most leads in total; the longest ones of a tie. If
    other groups of that rate have further leads, they are added. A derived group (a beat, the excerpt of a report)
    counts only if it has the rate, length and start of an original.
    """
    original = {group.key for group in groups if group.item.get("WaveformOriginality") != "DERIVED"}
    groups = [group for group in groups if group.key in original or not original]
    pieces: dict[tuple, list[_Group]] = {}
    for group in groups:
        pieces.setdefault(group.key, []).append(group)
    best = max(pieces.values(), key=lambda piece: (_count(piece), piece[0].samples / piece[0].fs))
    alike = [group for group in groups if group.fs == best[0].fs]
    if _count(alike) == _count(best):
        return best
    if any(group.begin is None for group in alike):
        raise Unusable("header refused: the leads are in several groups that do not say when they begin")
    return alike


def _count(groups: list[_Group]) -> int:
    """Return the number of leads of several groups."""
    return len(set().union(*(group.names for group in groups)))


def _joined(groups: list[_Group], order: str) -> tuple[list[str], np.ndarray]:
    """Place the leads of several groups at their times.

    Returns
    -------
    names : list of str
    signal : numpy.ndarray
        float32 (leads, samples), mV, NaN where a lead was not recorded. A lead in several groups comes from the
        longest.
    """
    first = min(group.begin or 0 for group in groups)
    width = max((group.begin or 0) - first + group.samples for group in groups)
    check_promise(_count(groups), width)
    names: list[str] = []
    rows: list[np.ndarray] = []
    known: set[str] = set()
    for group in sorted(groups, key=lambda group: -group.samples):
        at, stored = (group.begin or 0) - first, _stored(group.item, order)
        padding = _padding(group.item, order)
        for name, place, scale in group.leads:
            if lead_name(name) in known:
                continue
            row = np.full(width, np.nan, np.float32)
            row[at : at + group.samples] = _scaled(group, name, place, scale, stored[:, place], padding)
            names.append(name)
            rows.append(row)
        known |= group.names
    return names, np.array(rows, np.float32).reshape(len(rows), width)


def _scaled(
    group: _Group, name: str, place: int, scale: float, values: np.ndarray, padding: int | None
) -> np.ndarray:
    """Return a channel in mV, NaN in padding."""
    channel = group.item.ChannelDefinitionSequence[place]
    step = _calibration(channel, name, group.fs)
    row = ((values * step + _number(channel.get("ChannelBaseline") or 0)) * scale).astype(np.float32)
    if padding is not None:
        row[_padded(values == padding, group.fs)] = np.nan
    return row


def _stored(item: "Dataset", order: str) -> np.ndarray:
    """Return the samples of a group as integers (samples, channels)."""
    kind, bits = str(item.WaveformSampleInterpretation), item.WaveformBitsAllocated
    if kind in ("MB", "AB"):
        raise Unusable("not a known format: companded DICOM waveform")
    if (kind, bits) not in TYPES:
        raise Unusable(f"header refused: samples of {bits} bits as {kind[:8]}")
    _check_words(item["WaveformData"], bits, order)
    shape = (item.NumberOfWaveformSamples, item.NumberOfWaveformChannels)
    if shape[1] != len(item.ChannelDefinitionSequence):
        raise Unusable(
            f"header refused: {len(item.ChannelDefinitionSequence)} of {shape[1]} channels are defined"
        )
    size = shape[0] * shape[1] * bits // 8
    # a padding byte makes the length even
    if not size <= len(item.WaveformData) <= size + size % 2:
        raise Unusable(f"signal truncated: {len(item.WaveformData)} of {size} bytes")
    return np.frombuffer(item.WaveformData[:size], order + TYPES[kind, bits]).reshape(shape)


def _padding(item: "Dataset", order: str) -> int | None:
    """Return the value of missing samples, or None."""
    value: Any = item.get("WaveformPaddingValue")
    if value is None or isinstance(value, int):
        return value
    kind, bits = str(item.WaveformSampleInterpretation), item.WaveformBitsAllocated
    _check_words(item["WaveformPaddingValue"], bits, order)
    if len(value) < bits // 8:
        raise Unusable("header refused: the padding value is shorter than a sample")
    return int(np.frombuffer(value[: bits // 8], order + TYPES[kind, bits])[0])


def _check_words(element: Any, bits: int, order: str) -> None:
    """Reject bytes in big-endian words: some writers swap them, some do not."""
    if bits == 8 and order == ">" and element.VR != "OB":
        raise Unusable("not a known format: samples of 8 bits in big-endian words")


def _padded(same: np.ndarray, fs: float) -> np.ndarray:
    """Return which of the samples that have the padding value are padding: bool (samples,).

    A signal may pass through that value. Padding is a run of it that reaches an end of the recording, or is longer
    than any run of one value in an ECG.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], same, [False]])))
    padded = np.zeros(same.size, bool)
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        longest = AT_END if begin == 0 or end == same.size else WITHIN
        padded[begin:end] = end - begin > longest * fs
    return padded


def _lead(channel: "Dataset") -> str:
    """Return a channel's lead: from the meaning of its code, else from the code."""
    source = channel.ChannelSourceSequence[0]
    words = str(source.get("CodeMeaning") or "")
    if lead_name(words) in STANDARD.values():
        return words
    number = re.search(r"[-:](\d{1,2})$", str(source.get("CodeValue") or ""))
    if number:
        return CODES.get(int(number[1])) or words
    bare = str(source.get("CodeValue") or "").removeprefix("MDC_ECG_LEAD_")
    return bare if lead_name(bare) in STANDARD.values() else words


def _comments(data: "Dataset") -> list[str]:
    """Return age and sex, under the names in WFDB headers."""
    age, sex = str(data.get("PatientAge") or ""), str(data.get("PatientSex") or "")
    lines = [f"Age: {int(age[:-1])}"] if re.fullmatch(r"\d{3}Y", age) else []
    return lines + ([f"Sex: {'Male' if sex == 'M' else 'Female'}"] if sex in ("M", "F") else [])


def _identity(data: "Dataset") -> dict[str, str]:
    """Return the patient's personal data; see `Recording.identity`."""
    keys = {"Patient": "PatientID", "Name": "PatientName", "Birth date": "PatientBirthDate"}
    known = {key: str(data.get(keyword) or "").strip() for key, keyword in keys.items()}
    return {key: text for key, text in known.items() if text}


def _start(data: "Dataset", seconds: float) -> datetime | None:
    """Return the start of the recording, `seconds` after the file's own; None if the file has no valid one."""
    text = str(data.get("AcquisitionDateTime") or "")
    if not text and data.get("AcquisitionDate") and data.get("AcquisitionTime"):
        text = f"{data.AcquisitionDate}{data.AcquisitionTime}"
    try:
        return datetime.strptime(text[:14], "%Y%m%d%H%M%S") + timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        return None


def _calibration(channel: "Dataset", lead: str, fs: float) -> float:
    """Return the size of a channel's step in its unit (PS3.3 C.10.9.1.4.1); reject a channel with a skew."""
    if channel.get("ChannelSensitivity") is None:
        raise Unusable(f"header refused: lead {lead} has no sensitivity")
    step = _number(channel.ChannelSensitivity)
    # the standard's default: no correction
    correction = channel.get("ChannelSensitivityCorrectionFactor")
    step *= 1.0 if correction is None else _number(correction)
    if not step:
        raise Unusable(f"header refused: the sensitivity of lead {lead} is 0")
    # in samples or in seconds
    late = _number(channel.get("ChannelSampleSkew") or 0)
    late = late or _number(channel.get("ChannelTimeSkew") or 0) * fs
    if abs(late) >= 1:
        raise Unusable(f"header refused: lead {lead} is skewed by {late:g} samples")
    return step


def _number(value: Any) -> float:
    """Return a finite number of the header."""
    number = float(value)
    if not math.isfinite(number):
        raise Unusable(f"header refused: {value} is not a calibration factor")
    return number


def _check_elements(data: bytes) -> None:
    """Reject a file with more or longer elements than a recording has.

    This walks from length to length, into sequences and their items, so that nested elements count, too.
    """
    if not is_dicom(data):
        raise Unusable("not a known format: no DICOM file")
    count, at, syntax = 0, 132, ""
    order, explicit, meta = "<", True, True
    while at + 8 <= len(data):
        count += 1
        if count > limits.DICOM_ELEMENTS:
            raise Unusable(f"too large: more than {limits.DICOM_ELEMENTS} elements")
        if meta and data[at : at + 2] != b"\2\0":  # the transfer syntax holds from here on
            if syntax == DEFLATED:  # its inflated size is unknown
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
        if data[at : at + 4] == struct.pack(
            order + "HH", 0xFFFE, 0xE000
        ):  # a sequence, recognised by its first item
            continue
        if length > limits.DICOM_VALUE_BYTES and group in READ_GROUPS and (group, element) != SAMPLES:
            raise Unusable(f"too large: {length} bytes of element ({group:04x},{element:04x})")
        if meta and element == 0x0010:
            syntax = data[at : at + length].decode("ascii", "replace").strip(" \0")
        at += length
