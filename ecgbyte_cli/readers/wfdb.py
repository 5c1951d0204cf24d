"""WFDB: a header, and signal files in any storage format."""

import os
import re
from datetime import datetime

import numpy as np

from ecgbyte_cli.readers.recording import MILLIVOLTS, Recording, Unusable, check_promise, stem

# A line of a plain header: one sample a frame, no skew; anything else is left to wfdb
PLAIN_SIGNAL = re.compile(
    r"(?P<file>[^\s/\\:]+)[ \t]+16(?:x1)?(?:\+(?P<offset>\d{1,9}))?"
    r"(?:[ \t]+(?P<gain>-?\d+\.?\d*(?:[eE][+-]?\d+)?)(?:\((?P<baseline>-?\d{1,9})\))?(?:/(?P<unit>\S+))?)"
    r"[ \t]+\d+[ \t]+(?P<zero>-?\d{1,9})[ \t]+-?\d+[ \t]+-?\d+[ \t]+\d+(?:[ \t]+(?P<name>\S[^\t\r\n\f\v]*?))?\s*"
)
PLAIN_RECORD = re.compile(
    r"(?P<name>[-\w]+)[ \t]+(?P<leads>\d{1,4})[ \t]+(?P<fs>\d+\.?\d*)[ \t]+(?P<samples>\d{1,10})"
    r"(?:[ \t]+(?P<time>\d{1,2}:\d\d:\d\d)(?:\.\d*)?[ \t]+(?P<date>\d{1,2}/\d{1,2}/\d{4}))?\s*"
)


def read(path, fs, lead_names):
    """WFDB: plain format 16 directly, which is most of what there is; everything else through wfdb."""
    comments, lines = _header_lines(path)
    record = PLAIN_RECORD.fullmatch(lines[0])
    signals = [PLAIN_SIGNAL.fullmatch(line) for line in lines[1:]] if record else []
    if (
        not signals
        or not all(signals)
        or len(signals) != int(record["leads"])
        or len({(s["file"], s["offset"]) for s in signals}) != 1
    ):
        return _any_form(path, comments)

    count, samples, offset = len(signals), int(record["samples"]), int(signals[0]["offset"] or 0)
    data = os.path.join(os.path.dirname(path), signals[0]["file"])
    check_promise(count, samples)
    check_length(data, offset + 2 * count * samples)
    digital = np.fromfile(data, "<i2", count * samples, offset=offset).reshape(samples, count)
    zero = [int(s["zero"] if s["baseline"] is None else s["baseline"]) for s in signals]
    gain = [float(s["gain"]) or 200.0 for s in signals]
    scales = [MILLIVOLTS.get((s["unit"] or "mV").lower()) for s in signals]
    keep = [i for i, scale in enumerate(scales) if scale is not None]
    signal = np.empty((len(keep), samples), np.float32)
    for row, i in zip(signal, keep, strict=True):
        row[:] = (digital[:, i] - float(zero[i])) * (scales[i] / gain[i])
        row[digital[:, i] == -32768] = np.nan  # the format's mark of a missing sample
    start = None
    if record["date"]:
        start = datetime.strptime(f"{record['date']} {record['time']}", "%d/%m/%Y %H:%M:%S")
    leads = [signals[i]["name"] or "" for i in keep]
    return Recording(signal, float(record["fs"]), leads, stem(path), path, comments, start)


def _header_lines(path):
    """A header's comments, and its other lines, none of which names a file outside the header's folder."""
    if os.path.getsize(path) > 2**22:
        raise Unusable("header refused: larger than 4 MB")
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    comments = [line.strip(" \t#") for line in lines if line.startswith("#")]
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if not lines:
        raise Unusable("header empty")
    for line in lines[1:]:
        name = line.split()[0]
        if re.search(r"[/\\:]", name) or name in (".", ".."):
            raise Unusable(f"header refused: it points outside its folder ({name[:80]})")
    return comments, lines


def _any_form(path, comments):
    """WFDB in any form that the wfdb package reads, once its promises are checked."""
    import wfdb

    record_name = path[: -len(".hea")]
    header = _header(record_name)
    if isinstance(header, wfdb.MultiRecord):
        check_promise(header.n_sig, header.sig_len)
        if header.n_seg != len(header.seg_name) or header.sig_len != sum(header.seg_len):
            raise Unusable("header refused: its segments are not as many or as long as it promises")
        for name, length in zip(header.seg_name, header.seg_len, strict=True):
            if name == "~":  # a gap
                continue
            part = _header(os.path.join(os.path.dirname(path), name))
            if isinstance(part, wfdb.MultiRecord) or part.sig_len != length:
                raise Unusable(f"header refused: segment {name[:80]} is not what it promises")
    # from the local disk alone: without pn_dir, wfdb asks no server
    record = wfdb.rdrecord(record_name, return_res=32)
    scales = [MILLIVOLTS.get((unit or "mV").lower()) for unit in record.units]
    keep = [i for i, scale in enumerate(scales) if scale is not None]
    signal = np.empty((len(keep), record.sig_len), np.float32)
    for row, i in zip(signal, keep, strict=True):
        row[:] = record.p_signal[:, i] * scales[i]
    leads = [record.sig_name[i] or "" for i in keep]
    return Recording(
        signal, float(record.fs), leads, stem(path), path, comments, getattr(record, "base_datetime", None)
    )


def _header(record):
    """Read a header with wfdb, and check what it promises against the files that are there."""
    import wfdb
    from wfdb.io._signal import BYTES_PER_SAMPLE

    _header_lines(record + ".hea")
    header = wfdb.rdheader(record)
    if isinstance(header, wfdb.MultiRecord) or not header.n_sig:
        return header
    if len(header.file_name or []) != header.n_sig:
        raise Unusable(f"header refused: it promises {header.n_sig} leads and names others")
    needed = {}
    for name, form, frame, offset in zip(
        header.file_name, header.fmt, header.samps_per_frame, header.byte_offset, strict=True
    ):
        if name == "~":  # the layout of a record whose segments differ: it has no samples
            continue
        path = os.path.join(os.path.dirname(record), name)
        size = BYTES_PER_SAMPLE.get(form, 0) * frame * (header.sig_len or 0)
        needed[path] = needed.get(path, offset or 0) + size
        check_promise(header.n_sig * frame, header.sig_len or os.path.getsize(path))
    for path, size in needed.items():
        check_length(path, int(size))
    return header


def check_length(path, needed):
    """Refuse a signal file that is shorter than its header says."""
    if not os.path.isfile(path):
        raise Unusable(f"signal file missing: {os.path.basename(path)}")
    if os.path.getsize(path) < needed:
        raise Unusable(f"signal file truncated: {os.path.getsize(path)} of {needed} bytes")
