"""Read WFDB headers (header(5) of the WFDB Applications Guide).

Unlike the package wfdb, this keeps the micro sign of units, accepts invalid dates, and takes linear time for any line.
"""

import os
import re
from datetime import datetime
from typing import NamedTuple

from ecgbyte_cli.readers import limits
from ecgbyte_cli.readers.recording import Unusable, read_regular, text_of

RATE = re.compile(r"(\d{1,9}(?:\.\d{0,20})?(?:[eE][+-]?\d{1,3})?)(?:/[^/]*)?")
FIRST_WORDS = re.compile(rb"^[ \t\f\v]*([^\s#]\S*)", re.MULTILINE)  # first words of lines other than comments
# file, format, samples in a frame, skew, offset; gain, baseline, unit; then optionally resolution, zero, initial value,
# checksum, block size, name. Every part is bounded or ends with the line, so that matching takes linear time.
INTEGER = r"(?:\s+([+-]?\d{1,12})(?!\S)%s)?+"
NOT_NAMES = (b".", b"..", b"~")  # "~" is a gap, or a signal without samples
SIGNAL = re.compile(
    r"(\S++)\s++(\d{1,3})(?:x(\d{1,6}))?(?::(\d{1,12}))?(?:\+(\d{1,12}))?(?!\S)"
    r"(?:\s++([+-]?(?:\d{1,30}\.?\d{0,30}|\.\d{1,30})(?:[eE][+-]?\d{1,3})?)?"
    r"(?:\(([+-]?\d{1,12})\))?(?:/(\S*+))?(?!\S)"
    + INTEGER % (INTEGER % (INTEGER % (INTEGER % (INTEGER % ""))))
    + r"(?:\s++(.*))?)?"
)


class Signal(NamedTuple):
    """A signal in a header; `gain` is in digital steps per `unit`."""

    file: str
    form: int
    frame: int  # samples in a frame
    skew: int  # frames
    offset: int  # bytes
    gain: float
    baseline: int
    unit: str
    initial: int
    name: str


class Header(NamedTuple):
    """A header; `samples` is the number of frames or None, `segments` is None for records of a single segment."""

    fs: float
    samples: int | None
    signals: list[Signal]
    segments: list[tuple[str, int]] | None
    comments: list[str]
    start: datetime | None


def read_header(path: str) -> Header:
    """Read the header of a record.

    Raises
    ------
    Unusable
        If the file is not a header, is too large, or points outside its folder.
    OSError
    """
    comments, lines = _lines(path)
    fields = [text_of(word) for word in lines[0].split()]
    name, slash, segments = fields[0].partition("/")
    count = _integer(fields[1]) if len(fields) > 1 else -1
    rate = RATE.fullmatch(fields[2]) if len(fields) > 2 else None
    samples = _integer(fields[3]) if len(fields) > 3 else 0
    if count < 0 or samples < 0 or (len(fields) > 2 and rate is None) or (slash and _integer(segments) < 1):
        raise Unusable("header refused: its first line cannot be read")
    listed = signals = None
    if slash:
        listed = [_segment(line) for line in lines[1:]]
        if len(listed) != _integer(segments) or (samples and samples != sum(n for _, n in listed)):
            raise Unusable("header refused: its segments are not as many or as long as it promises")
    else:
        signals = [_signal(line) for line in lines[1:]]
        if len(signals) != count:
            raise Unusable(f"header refused: it promises {count} leads and describes {len(signals)}")
    # WFDB's default rate
    fs = float(rate[1]) if rate else 250.0
    return Header(fs, samples or None, signals or [], listed, comments, _start(fields[4:6]))


def files_of(path: str) -> list[str]:
    """List all files of a record, its header first: signal files, segments. An unreadable header has no others."""
    several, names = _segments_of(path)
    folder = os.path.dirname(path)
    files = [path]
    for name in names:
        file = os.path.join(folder, name)
        # a segment has no segments
        files += (
            [file + ".hea", *(os.path.join(folder, own) for own in _segments_of(file + ".hea")[1])]
            if several
            else [file]
        )
    return list(dict.fromkeys(files))


def segment_names(path: str) -> list[str]:
    """Return the names of the segments of a multi-segment record; an empty list for any other file."""
    several, names = _segments_of(path)
    return names if several else []


def _segments_of(path: str) -> tuple[bool, list[str]]:
    """Return whether a record has several segments, and the names of its segments or signal files.

    This runs for each of a million records, so it parses nothing but names.
    """
    try:
        data = read_regular(path, limits.HEADER_BYTES)
    except (Unusable, OSError, ValueError):
        return False, []
    names = dict.fromkeys(FIRST_WORDS.findall(data.replace(b"\r", b"\n")))
    several = b"/" in next(iter(names), b"")
    return several, [os.fsdecode(name) for name in [*names][1:] if b"/" not in name and name not in NOT_NAMES]


def _lines(path: str) -> tuple[list[str], list[bytes]]:
    """Return a header's comments and its other lines; reject names of files outside its folder."""
    data = read_regular(path, limits.HEADER_BYTES)
    lines, comments = [], []
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
        line = line.strip()
        if line.startswith(b"#"):
            comments.append(text_of(line).strip(" \t#"))
        elif line:
            lines.append(line)
    if not lines:
        raise Unusable("header empty")
    if len(lines) > 1 + limits.SEGMENTS or max(map(len, lines)) > limits.LINE_BYTES:
        raise Unusable("header refused: more or longer lines than a header has")
    for line in lines[1:]:
        name = line.split(None, 1)[0]
        if b"/" in name or b"\\" in name or b"\0" in name or name in (b".", b".."):
            raise Unusable(f"header refused: it points outside its folder ({text_of(name)[:80]})")
    return comments, lines


def _file_name(line: bytes) -> str:
    """Return the first word of a line as a file name."""
    return os.fsdecode(line.split(None, 1)[0])


def _segment(line: bytes) -> tuple[str, int]:
    """Return the name and the length of a segment."""
    words = line.split()
    length = _integer(text_of(words[1])) if len(words) > 1 else -1
    if length < 0:
        raise Unusable(f"header refused: a segment without its length ({text_of(line)[:80]})")
    return os.fsdecode(words[0]), length


def _signal(line: bytes) -> Signal:
    """Parse the line of a signal."""
    text = text_of(line)
    match = SIGNAL.fullmatch(text)
    if match is None:
        raise Unusable(f"header refused: format or gain cannot be read ({text[:80]})")
    file, form, frame, skew, offset, gain, baseline, unit, _, zero, initial, _, _, name = match.groups()
    steps = float(gain or 0) or 200.0  # WFDB's default for a gain of 0 or a missing one
    if not 1e-12 < abs(steps) < 1e12:
        raise Unusable(f"header refused: a gain of {gain[:30]}")
    return Signal(
        file if line.isascii() else _file_name(line),
        int(form),
        int(frame or 1),
        int(skew or 0),
        int(offset or 0),
        steps,
        int(baseline or zero or 0),
        unit or "mV",
        int(initial or 0),
        (name or "")[: limits.NAME],
    )


def _integer(text: str) -> int:
    """Return the integer in a text, or -1."""
    return int(text) if len(text) <= 12 and text.isascii() and text.isdigit() else -1


def _start(fields: list[str]) -> datetime | None:
    """Return the start of a recording, None without a valid time and date."""
    try:
        clock, date = fields
        return datetime.strptime(f"{date} {clock.partition('.')[0]}", "%d/%m/%Y %H:%M:%S")
    except ValueError:  # missing, or removed to hide the patient's identity
        return None
