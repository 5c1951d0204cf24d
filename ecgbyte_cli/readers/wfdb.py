"""WFDB: a header, and signal files in any storage format (signal(5) of the WFDB Applications Guide)."""

import os
from typing import BinaryIO

import numpy as np

from ecgbyte_cli.readers import wfdb_header
from ecgbyte_cli.readers.recording import (
    Recording,
    Unusable,
    check_promise,
    common_rate,
    millivolts,
    open_regular,
    record_name,
)
from ecgbyte_cli.readers.stored import is_long, stored_signal

# format to bits per sample; the 5xx are FLAC
BITS = {
    8: 8,
    16: 16,
    24: 24,
    32: 32,
    61: 16,
    80: 8,
    160: 16,
    212: 12,
    310: 10,
    311: 10,
    508: 8,
    516: 16,
    524: 24,
}
FLAC = {508: ("PCM_S8",), 516: ("PCM_S8", "PCM_16"), 524: ("PCM_S8", "PCM_16", "PCM_24")}
# format to (bytes, samples) of a packed group
PACKED = {212: (3, 2), 310: (4, 3), 311: (4, 3)}
STORED = {8: "i1", 16: "<i2", 24: "u1", 32: "<i4", 61: ">i2", 80: "u1", 160: "<u2"} | dict.fromkeys(
    PACKED, "u1"
)


def read(path: str, fs: float | None, lead_names: list[str] | None, units: str | None) -> Recording:
    """Read a WFDB record. If the sampling rates differ, only the leads at the most common rate are read."""
    header = wfdb_header.read_header(path)
    if header.segments is not None:
        return _read_segments(path, header, header.segments)
    leads, frame = _common_leads(header)
    stored = _stored(os.path.dirname(path), header)
    signal = np.empty((len(leads), stored[leads[0][0]].size), np.float32)
    for row, (place, line) in zip(signal, leads, strict=True):
        _scale(row, stored[place], line)
    return _recording(path, header, signal, leads, frame)


def open_long(path: str) -> Recording | None:
    """Open a long record of a single segment without reading its signal; None for others, which `read` reads."""
    header = wfdb_header.read_header(path)
    if header.segments is not None or any(line.skew or line.form in (8, *FLAC) for line in header.signals):
        return None
    leads, frame = _common_leads(header)
    folder = os.path.dirname(path)
    frames = header.samples or _frames_of(folder, header)
    if not is_long(len(leads), frames * frame, header.fs * frame):
        return None
    _stored(folder, header, frames - 1, 1)  # the files are there, and as long as promised

    def read_part(start: int, stop: int) -> np.ndarray:
        first = start // frame
        stored = _stored(folder, header, first, -(-stop // frame) - first)
        part = np.empty((len(leads), stored[leads[0][0]].size), np.float32)
        for row, (place, line) in zip(part, leads, strict=True):
            _scale(row, stored[place], line)
        return part[:, start - first * frame : stop - first * frame]

    return _recording(path, header, stored_signal(len(leads), frames * frame, read_part), leads, frame)


def _common_leads(header: wfdb_header.Header) -> tuple[list[tuple[int, wfdb_header.Signal]], int]:
    """Return the leads at the most common rate, as `_leads` does, and their samples in a frame."""
    leads = _leads(header)
    if not leads:
        raise Unusable("no leads in volts")
    frame = common_rate([line.frame for _, line in leads])
    return [(place, line) for place, line in leads if line.frame == frame], frame


def _recording(
    path: str,
    header: wfdb_header.Header,
    signal: np.ndarray,
    leads: list[tuple[int, wfdb_header.Signal]],
    frame: int,
) -> Recording:
    names = [line.name for _, line in leads]
    return Recording(signal, header.fs * frame, names, record_name(path), path, header.comments, header.start)


def _read_segments(path: str, header: wfdb_header.Header, segments: list[tuple[str, int]]) -> Recording:
    """Read a record of several segments, with leads by position, or by name if the layout varies."""
    folder = os.path.dirname(path)
    whole = sum(length for _, length in segments)
    check_promise(1, whole)
    varies = segments[0][1] == 0  # the first segment is then the layout, which lists all leads
    parts: dict[str, wfdb_header.Header] = {}
    rows: dict[str | int, tuple[wfdb_header.Signal, np.ndarray]] = {}
    promised, at = 0, 0
    for name, length in segments:
        if name != "~" and length:  # "~" is a gap
            if name not in parts:
                parts[name] = wfdb_header.read_header(os.path.join(folder, name + ".hea"))
            part = parts[name]
            if part.segments is not None or part.fs != header.fs or part.samples != length:
                raise Unusable(f"header refused: segment {name[:80]} does not match its header")
            promised += length * sum(line.frame for line in part.signals)
            check_promise(1, promised)
            stored = _stored(folder, part)
            for place, line in _leads(part):
                key = line.name if varies else place
                if key not in rows:
                    check_promise(len(rows) + 1, whole * line.frame)
                    rows[key] = (line, np.full(whole * line.frame, np.nan, np.float32))
                first, row = rows[key]
                if first.frame != line.frame:
                    raise Unusable(f"header refused: segment {name[:80]} is at another rate")
                _scale(row[at * line.frame : (at + length) * line.frame], stored[place], line)
        at += length
    if not rows:
        raise Unusable("no leads in volts")
    frame = common_rate([line.frame for line, _ in rows.values()])
    leads = [(line.name, row) for line, row in rows.values() if line.frame == frame]
    signal = np.array([row for _, row in leads])
    names = [name for name, _ in leads]
    return Recording(signal, header.fs * frame, names, record_name(path), path, header.comments, header.start)


def _leads(header: wfdb_header.Header) -> list[tuple[int, wfdb_header.Signal]]:
    """Return (place, signal) of each signal of a record in volts; the file "~" is none."""
    return [
        (place, line)
        for place, line in enumerate(header.signals)
        if line.file != "~" and millivolts(line.unit) is not None
    ]


def _scale(row: np.ndarray, stored: np.ndarray, line: wfdb_header.Signal) -> None:
    """Fill a row with a signal in mV, NaN for missing samples.

    A skewed signal is that many frames late: it is moved forward, and the frames at its end are missing.
    """
    values = stored.reshape(-1)
    if line.skew:
        late = line.skew * line.frame
        if line.skew >= len(stored):
            raise Unusable(f"header refused: a skew of {line.skew} of {len(stored)} frames")
        row[-late:] = np.nan
        row, values = row[:-late], values[late:]
    scaled = values - float(line.baseline)
    scaled *= (millivolts(line.unit) or np.nan) / line.gain
    row[:] = scaled
    if line.form != 8:  # the lowest value marks a missing sample, except in format 8 (differences)
        row[values == -(1 << (BITS[line.form] - 1))] = np.nan


def _files(header: wfdb_header.Header) -> dict[str, list[int]]:
    """Return the places of the signals in each signal file."""
    files: dict[str, list[int]] = {}
    for place, line in enumerate(header.signals):
        if line.file != "~":
            files.setdefault(line.file, []).append(place)
    return files


def _frames_of(folder: str, header: wfdb_header.Header) -> int:
    """Return the length in frames of a record whose header does not state it, by its shortest file."""
    return min(
        _frames_in(os.path.getsize(os.path.join(folder, file)), [header.signals[i] for i in places])
        for file, places in _files(header).items()
    )


def _frames_in(size: int, lines: list[wfdb_header.Signal]) -> int:
    """Return the number of frames in a signal file of `size` bytes."""
    stored, together = PACKED.get(lines[0].form, (BITS.get(lines[0].form, 8) // 8, 1))
    width = max(sum(line.frame for line in lines), 1)
    return max(size - lines[0].offset, 0) * together // stored // width


def _stored(
    folder: str, header: wfdb_header.Header, first: int = 0, frames: int | None = None
) -> dict[int, np.ndarray]:
    """Return the samples of each signal of a single segment by its place: integers (frames, samples in a frame).

    `first` and `frames` are a part of it; by default, the whole.
    """
    stored = {}
    frames = header.samples if frames is None else frames
    for file, places in _files(header).items():
        lines = [header.signals[i] for i in places]
        digital = _digital(os.path.join(folder, file), lines, frames, first)
        digital = np.asfortranarray(digital)  # contiguous signals are faster below
        start = 0
        for place in places:
            end = start + header.signals[place].frame
            stored[place] = digital[:, start:end]
            start = end
    if len({len(digital) for digital in stored.values()}) > 1:
        raise Unusable("header refused: it does not state the length of the record, and its files differ")
    return stored


def _digital(path: str, lines: list[wfdb_header.Signal], frames: int | None, first: int = 0) -> np.ndarray:
    """Return the samples of a signal file from frame `first`: integers (frames, samples of all signals in one)."""
    form, offset, width = lines[0].form, lines[0].offset, sum(line.frame for line in lines)
    if form not in BITS or any((line.form, line.offset) != (form, offset) for line in lines) or not width:
        raise Unusable(f"header refused: signals of format {form} are not supported")
    check_promise(len(lines), frames or 0)
    check_promise(1, width * (frames or 0))
    try:
        file = open_regular(path)
    except FileNotFoundError as error:
        raise Unusable(f"signal file missing: {os.path.basename(path)}") from error
    with file:
        if form in FLAC:
            return _flac(file, form, lines, frames)
        size = os.fstat(file.fileno()).st_size
        stored, together = PACKED.get(form, (BITS[form] // 8, 1))
        if frames is None:
            frames = _frames_in(size, lines)
            check_promise(1, width * frames)
        before = first * width % together  # samples of the packed group that the part begins in
        begin = offset + (first * width - before) * stored // together
        count = before + frames * width
        needed = -(-count * stored // together)
        if size < begin + needed:
            raise Unusable(f"signal file truncated: {size} of {begin + needed} bytes")
        file.seek(begin)
        groups = -(-count // together) * stored  # bytes: a sample may have bits in all of its group
        data = np.fromfile(file, STORED[form], groups if STORED[form] == "u1" else count)
    return _unpacked(data, form, count, lines)[before:].reshape(frames, width)


def _unpacked(data: np.ndarray, form: int, count: int, lines: list[wfdb_header.Signal]) -> np.ndarray:
    """Return stored samples as integers."""
    if form == 8:  # differences, from the initial value of each signal
        steps = data.reshape(-1, sum(line.frame for line in lines)).astype(np.int32)
        start = 0
        for line in lines:
            own = steps[:, start : start + line.frame]
            own[:] = (own.cumsum(dtype=np.int32) + np.int32(line.initial)).reshape(own.shape)
            start += line.frame
        return steps
    if form == 24:
        wide = np.empty((count, 4), np.uint8)
        wide[:, 1:] = data.reshape(count, 3)
        wide[:, 0] = 0
        return wide.view("<i4")[:, 0] >> 8
    if form == 80:
        return data.astype(np.int16) - 128
    if form == 160:
        return (data.astype(np.int32) - 32768).astype(np.int16)
    if form not in PACKED:
        return data
    size, together = PACKED[form]
    data = np.concatenate([data, np.zeros(-len(data) % size, np.uint8)])
    a, b, c, *d = data.reshape(-1, size).T.astype(np.int16)
    if form == 212:  # the second byte has the high bits of both samples
        columns = [a | (b & 15) << 8, c | (b >> 4) << 8]
    elif form == 310:  # two samples of 7 + 3 bits, and one of the remaining 5 + 5
        columns = [a >> 1 | (b & 7) << 7, c >> 1 | (d[0] & 7) << 7, b >> 3 | (d[0] >> 3) << 5]
    else:
        columns = [a | (b & 3) << 8, b >> 2 | (c & 15) << 6, c >> 4 | (d[0] & 63) << 4]
    half = 1 << (BITS[form] - 1)
    return ((np.stack(columns, 1).reshape(-1)[:count] + half) & (2 * half - 1)) - half


def _flac(file: BinaryIO, form: int, lines: list[wfdb_header.Signal], frames: int | None) -> np.ndarray:
    """Return the samples of a FLAC file, which has a channel per signal: (frames, samples of all signals)."""
    import soundfile  # type: ignore[import-untyped]  # comes with wfdb

    frame, offset = lines[0].frame, lines[0].offset
    if any(line.frame != frame for line in lines):
        raise Unusable("header refused: a FLAC file's signals must have as many samples a frame")
    with soundfile.SoundFile(file) as sound:
        if sound.format != "FLAC" or sound.subtype not in FLAC[form] or sound.channels != len(lines):
            raise Unusable(
                f"not the FLAC file that the header describes: {sound.subtype}, {sound.channels} channels"
            )
        frames = (sound.frames - offset) // frame if frames is None else frames
        check_promise(len(lines), frames * frame)
        if sound.frames < offset + frames * frame:
            raise Unusable(f"signal file truncated: {sound.frames} of {offset + frames * frame} samples")
        sound.seek(offset)
        kind = "int32" if sound.subtype == "PCM_24" else "int16"
        data = np.zeros((frames * frame, len(lines)), kind)
        for at in range(0, len(data), 2**15):  # libsndfile reads at most 2**24 samples at once
            if len(sound.read(out=data[at : at + 2**15])) < len(data[at : at + 2**15]):
                raise Unusable("signal file truncated")
        if sound.subtype != "PCM_16":  # the library shifts the others by 8 bits
            data >>= 8
    # a frame contains all samples of the first signal, then all of the second
    return data.reshape(frames, frame, len(lines)).transpose(0, 2, 1).reshape(frames, -1)
