"""Recordings in files: where they are, and what they hold, in millivolts.

Every file is taken for hostile: it is read or refused with a reason, and nothing is allocated on the word of
a header alone.
"""

import glob
import hashlib
import os
import re
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from ecgbyte_cli.console import Failure

MOST_SAMPLES = 2**25  # of all leads together; half an hour of 12 leads at 1000 Hz is 2**24.4
MOST_LEADS = 512
STANDARD = {
    lead.lower(): lead for lead in ("I", "II", "III", "aVR", "aVL", "aVF", *(f"V{i}" for i in range(1, 7)))
}
MILLIVOLTS = {"uv": 1e-3, "µv": 1e-3, "μv": 1e-3, "mv": 1.0, "v": 1e3}


class Unusable(Failure):
    """A recording that cannot be used: "reason" or "reason: detail", without the file's name."""


@dataclass
class Recording:
    """One recording.

    Attributes
    ----------
    signal : numpy.ndarray
        float32 (leads, samples), mV; NaN where the file has no valid sample.
    fs : float
        Sampling rate, Hz.
    leads : list of str
        Names as in the file.
    name : str
        The record's name, without extension.
    path : str
        What `read` was given.
    comments : list of str
    start : datetime or None
    """

    signal: np.ndarray
    fs: float
    leads: list
    name: str
    path: str
    comments: list = field(default_factory=list)
    start: datetime | None = None

    def comment(self, key):
        """The text behind "key:" in the comments, or None."""
        for line in self.comments:
            name, colon, text = line.partition(":")
            if colon and name.strip().lower() == key:
                return text.strip()
        return None


def lead_name(name):
    """A lead's name in its usual spelling: "avr" and "Lead aVR" are aVR, "DI" is I; others stay."""
    bare = re.sub(r"^(lead|ecg)[\s_]+", "", name.strip(), flags=re.IGNORECASE)
    key = bare.lower()
    return STANDARD.get(key) or (STANDARD.get(key[1:]) if key in ("di", "dii", "diii") else None) or bare


def split_of(patient):
    """The side a patient is on, by the hash of the name: train (80 %), val or test (10 % each)."""
    place = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8], "big") % 10
    return "train" if place < 8 else "val" if place == 8 else "test"


# Where recordings are ------------------------------------------------------------------------------------


def find(source):
    """List the recordings that a folder, a RECORDS file, a glob pattern or a record's name stands for.

    Parameters
    ----------
    source : str or Path

    Returns
    -------
    found : list of str
        Absolute paths, none twice.
    skipped : list of tuple
        (path, reason) of what is not to be read, such as a part of another record.

    Raises
    ------
    Failure
        If there is nothing at `source`.
    """
    source = str(source)
    if os.path.isdir(source):
        paths = list(_walk(source))
    elif os.path.basename(source) == "RECORDS" and os.path.isfile(source):
        paths = list(_follow(source))
    else:
        paths = [_one(source)]
        if paths == [None] and glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))
            paths = [p for m in matches for p in (_walk(m) if os.path.isdir(m) else [_one(m)]) if p]
        if not paths or paths == [None]:
            raise Failure(f"{source}: no such folder or recording")
    # the same record may be named twice, by links or by patterns that overlap
    paths = list(dict.fromkeys(os.path.realpath(path) for path in paths))
    if not paths:
        raise Failure(f"{source} holds no recordings ({', '.join(READERS)})")
    return _without_parts(paths)


def _walk(folder):
    """The recordings below a folder, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in READERS and not name.startswith("."):
                yield os.path.join(place, name)


def _follow(records):
    """The recordings that a RECORDS file lists: records, or folders with a RECORDS file or recordings."""
    base = os.path.dirname(records)
    with open(records, encoding="utf-8", errors="replace") as file:
        names = [line.strip() for line in file if line.strip()]
    for name in names:
        path = os.path.join(base, name)
        if os.path.isdir(path):
            listed = os.path.join(path, "RECORDS")
            yield from _follow(listed) if os.path.isfile(listed) else _walk(path)
        else:
            yield _one(path) or path + ".hea"


def _one(path):
    """The file of one recording, named with or without its extension; None if there is none."""
    header = path if path.endswith(".hea") else path + ".hea"
    if os.path.isfile(header):
        return header
    if os.path.isfile(os.path.splitext(path)[0] + ".hea"):  # the signal file was named
        return os.path.splitext(path)[0] + ".hea"
    return path if os.path.isfile(path) else None


def _without_parts(paths):
    """Take out the segments of multi-segment records, and PTB-XL's 100 Hz copies of 500 Hz records."""
    part_of = {}
    for path in paths:
        if not path.endswith(".hea"):
            continue
        for segment in _segment_names(path):
            part_of[os.path.join(os.path.dirname(path), segment + ".hea")] = f"part of another record: {path}"
    everything = set(paths)
    for path in paths:
        if path.endswith("_lr.hea"):
            other = path.replace("records100", "records500")[: -len("_lr.hea")] + "_hr.hea"
            if other in everything:
                part_of[path] = f"copy of another record: {other}"
    found = [path for path in paths if path not in part_of]
    return found, [(path, part_of[path]) for path in paths if path in part_of]


def _segment_names(header):
    """The names of a multi-segment record's segments; none for other records."""
    try:
        with open(header, "rb") as file:
            first = b"#"
            while first.startswith(b"#") or (first and not first.strip()):
                first = file.readline(500)
            if b"/" not in first.split(b" ", 1)[0]:
                return []
            lines = file.read(2**20).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    return [line.split()[0] for line in lines if line.split() and line[0] not in "#~"]


# What they hold ------------------------------------------------------------------------------------------


def read(path, fs=None, lead_names=None):
    """Read one recording of any known format.

    Parameters
    ----------
    path : str or Path
        The recording's file; for WFDB its header, or the record's name without extension.
    fs : float, optional
        Sampling rate in Hz, for formats that do not say it.
    lead_names : list of str, optional
        For formats that do not say them.

    Returns
    -------
    Recording

    Raises
    ------
    Unusable
        If it cannot be read; the reason does not repeat the path.
    """
    path = _one(str(path)) or str(path)
    reader = READERS.get(os.path.splitext(path)[1].lower())
    if reader is None:
        raise Unusable("not a known format")
    try:
        recording = reader(path, fs, lead_names)
    except Failure:
        raise
    except FileNotFoundError as error:
        raise Unusable(f"file missing: {os.path.basename(error.filename or path)}") from error
    except ImportError as error:
        raise Unusable(f"package missing: {error.name}; pip install ecgbyte[formats]") from error
    except Exception as error:  # libraries raise whatever a broken file makes them raise
        text = " ".join(str(error).split())[:200]
        raise Unusable(f"cannot be read: {text or type(error).__name__}") from error
    if not recording.leads:
        raise Unusable("no leads in volts")
    if recording.signal.shape[1] == 0:
        raise Unusable("no samples")
    return recording


# A line of a plain header: one sample a frame, no skew; anything else is left to wfdb
PLAIN_SIGNAL = re.compile(
    r"(?P<file>[^\s/\\:]+)[ \t]+16(?:x1)?(?:\+(?P<offset>\d{1,9}))?"
    r"(?:[ \t]+(?P<gain>-?\d+\.?\d*(?:[eE][+-]?\d+)?)(?:\((?P<baseline>-?\d{1,9})\))?(?:/(?P<unit>\S+))?)"
    r"[ \t]+\d+[ \t]+(?P<zero>-?\d{1,9})[ \t]+-?\d+[ \t]+-?\d+[ \t]+\d+(?:[ \t]+(?P<name>\S[^\t\r\n\f\v]*?))?\s*"
)
PLAIN_RECORD = re.compile(
    r"(?P<name>[-\w]+)[ \t]+(?P<leads>\d{1,4})[ \t]+(?P<fs>\d+\.?\d*)[ \t]+(?P<samples>\d{1,10})\s*"
)


def _wfdb(path, fs, lead_names):
    """WFDB: plain format 16 directly, which is most of what there is; everything else through wfdb."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read(2**22).splitlines()
    comments = [line.strip(" \t#") for line in lines if line.startswith("#")]
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    if not lines:
        raise Unusable("header empty")
    record = PLAIN_RECORD.fullmatch(lines[0])
    signals = [PLAIN_SIGNAL.fullmatch(line) for line in lines[1:]] if record else []
    if (
        not signals
        or not all(signals)
        or len(signals) != int(record["leads"])
        or len({(s["file"], s["offset"]) for s in signals}) != 1
    ):
        return _wfdb_any(path, comments)

    count, samples, offset = len(signals), int(record["samples"]), int(signals[0]["offset"] or 0)
    data = os.path.join(os.path.dirname(path), signals[0]["file"])
    _check_promise(count, samples)
    _check_length(data, offset + 2 * count * samples)
    digital = np.fromfile(data, "<i2", count * samples, offset=offset).reshape(samples, count)
    zero = [int(s["zero"] if s["baseline"] is None else s["baseline"]) for s in signals]
    gain = [float(s["gain"]) or 200.0 for s in signals]
    scales = [MILLIVOLTS.get((s["unit"] or "mV").lower()) for s in signals]
    keep = [i for i, scale in enumerate(scales) if scale is not None]
    signal = np.empty((len(keep), samples), np.float32)
    for row, i in zip(signal, keep, strict=True):
        row[:] = (digital[:, i] - float(zero[i])) * (scales[i] / gain[i])
        row[digital[:, i] == -32768] = np.nan  # the format's mark of a missing sample
    return Recording(
        signal, float(record["fs"]), [signals[i]["name"] or "" for i in keep], _stem(path), path, comments
    )


def _wfdb_any(path, comments):
    """WFDB in any form that the wfdb package reads, once its promises are checked."""
    import wfdb

    stem = path[: -len(".hea")]
    header = _wfdb_header(stem)
    if isinstance(header, wfdb.MultiRecord):
        _check_promise(header.n_sig, header.sig_len)
        for name in header.seg_name:
            if name == "~":
                continue
            part = _wfdb_header(os.path.join(os.path.dirname(path), _inside(name)))
            if isinstance(part, wfdb.MultiRecord):
                raise Unusable("header refused: a segment has segments")
    # from the local disk alone: without pn_dir, wfdb asks no server
    record = wfdb.rdrecord(stem, return_res=32)
    scales = [MILLIVOLTS.get((unit or "mV").lower()) for unit in record.units]
    keep = [i for i, scale in enumerate(scales) if scale is not None]
    signal = np.empty((len(keep), record.sig_len), np.float32)
    for row, i in zip(signal, keep, strict=True):
        row[:] = record.p_signal[:, i] * scales[i]
    leads = [record.sig_name[i] or "" for i in keep]
    return Recording(
        signal, float(record.fs), leads, _stem(path), path, comments, getattr(record, "base_datetime", None)
    )


def _wfdb_header(stem):
    """Read a header with wfdb, and check what it promises against the files that are there."""
    import wfdb
    from wfdb.io._signal import BYTES_PER_SAMPLE

    if os.path.getsize(stem + ".hea") > 2**22:
        raise Unusable("header refused: larger than 4 MB")
    header = wfdb.rdheader(stem)
    if isinstance(header, wfdb.MultiRecord) or not header.n_sig:
        return header
    if len(header.file_name or []) != header.n_sig:
        raise Unusable(f"header refused: it promises {header.n_sig} leads and names others")
    needed = {}
    for name, form, frame, offset in zip(
        header.file_name, header.fmt, header.samps_per_frame, header.byte_offset, strict=True
    ):
        path = os.path.join(os.path.dirname(stem), _inside(name))
        size = BYTES_PER_SAMPLE.get(form, 0) * frame * (header.sig_len or 0)
        needed[path] = needed.get(path, offset or 0) + size
        _check_promise(header.n_sig * frame, header.sig_len or os.path.getsize(path))
    for path, size in needed.items():
        _check_length(path, int(size))
    return header


def _inside(name):
    """Return a file name that a header gives, if it names a file beside the header."""
    if name != os.path.basename(name) or re.search(r"[/\\:]", name) or name in ("", ".", ".."):
        raise Unusable(f"header refused: it points outside its folder ({name[:80]})")
    return name


def _check_promise(leads, samples):
    """Refuse what would not fit into memory, before anything is allocated."""
    if leads > MOST_LEADS or leads * samples > MOST_SAMPLES:
        raise Unusable(f"too large: {leads} leads of {samples} samples are promised")


def _check_length(path, needed):
    """Refuse a signal file that is shorter than its header says."""
    if not os.path.isfile(path):
        raise Unusable(f"signal file missing: {os.path.basename(path)}")
    if os.path.getsize(path) < needed:
        raise Unusable(f"signal file truncated: {os.path.getsize(path)} of {needed} bytes")


def _stem(path):
    return os.path.splitext(os.path.basename(path))[0]


READERS = {".hea": _wfdb}
