"""One recording in millivolts: what every reader returns, and what all of them share.

Every file is taken for hostile: it is read or refused with a reason, and nothing is allocated on the word of
a header alone. The bounds are in `limits`.
"""

import os
import re
import stat
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import limits

STANDARD = {
    lead.lower(): lead for lead in ("I", "II", "III", "aVR", "aVL", "aVF", *(f"V{i}" for i in range(1, 7)))
}
DERIVED = ("III", "aVR", "aVL", "aVF")  # what I and II determine
# case-folded, which makes one letter of both signs for micro
MILLIVOLTS = {"v": 1e3, "mv": 1.0, "uv": 1e-3, "μv": 1e-3, "nv": 1e-6}
MILLIVOLTS |= {"volt": 1e3, "millivolt": 1.0, "microvolt": 1e-3, "nanovolt": 1e-6}
HDF5 = (".h5", ".hdf5")
KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


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
        None where the file says none, or none that a calendar has.
    identity : dict
        What the file says of whose recording it is: `Patient` (the hospital's number), `Name`, `Birth date`, ….
        None of it is among the comments.
    """

    signal: np.ndarray
    fs: float
    leads: list[str]
    name: str
    path: str
    comments: list[str] = field(default_factory=list)
    start: datetime | None = None
    identity: dict[str, str] = field(default_factory=dict)

    def comment(self, key: str) -> str | None:
        """The text behind "key:" in the comments, or None."""
        return next(iter(self.all_comments(key)), None)

    def all_comments(self, key: str) -> list[str]:
        """The texts behind every "key:" in the comments."""
        parts = (line.partition(":") for line in self.comments)
        return [text.strip() for name, colon, text in parts if colon and name.strip().lower() == key]


@lru_cache(256)
def lead_name(name: str) -> str:
    """A lead's name in its usual spelling.

    "avr", "ECG aVR" and "Lead aVR (Goldberger)" are aVR, "DI" is I; what is no standard lead stays.
    """
    bare = name.strip()
    if bare.endswith(")"):
        bare = bare.partition("(")[0].rstrip()
    bare = re.sub(r"^((lead|ecg|ekg)[\s_]+)*", "", bare, flags=re.IGNORECASE)
    key = bare.lower()
    return STANDARD.get(key[1:] if key in ("di", "dii", "diii") else key, bare)


@lru_cache(256)
def millivolts(unit: str) -> float | None:
    """How many mV a unit is; None if it is not one of voltage."""
    bare = unit.strip().casefold()
    return MILLIVOLTS.get(bare, MILLIVOLTS.get(bare.removesuffix("s")))


def common_rate(rates):
    """Of several sampling rates the one that most leads share, of two the higher."""
    return max(set(rates), key=lambda rate: (rates.count(rate), rate))


def text_of(data: bytes) -> str:
    """The text of a header: UTF-8, else Latin-1, which is what the older writers use."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def open_regular(path):
    """Open a file to read its bytes; what is no regular file is refused, as opening it could wait for ever."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    try:
        check_regular(os.fstat(file.fileno()))
    except Unusable:
        file.close()
        raise
    return file


def read_regular(path, most):
    """The bytes of a small regular file; of a larger one than `most`, nothing."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        stamp = os.fstat(handle)
        check_regular(stamp)
        if stamp.st_size > most:
            raise Unusable(f"too large: {stamp.st_size} bytes of {most} at most")
        return os.read(handle, stamp.st_size)
    finally:
        os.close(handle)


def check_regular(stamp):
    """Refuse what is a FIFO, a device, a socket or a folder, by its `os.stat`."""
    kind = stat.S_IFMT(stamp.st_mode)
    if kind != stat.S_IFREG:
        raise Unusable(f"not a regular file: {KINDS.get(kind, 'something else')}")


def check_promise(leads, samples):
    """Refuse what would not fit into memory, before anything is allocated."""
    if leads > limits.LEADS or leads * samples > limits.SAMPLES:
        raise Unusable(f"too large: {leads} leads of {samples} samples are promised")


def check_times(times: np.ndarray, samples: int) -> None:
    """Refuse a signal whose own times have gaps, or are not evenly spaced to half a sample.

    Parameters
    ----------
    times : numpy.ndarray
        One of each sample, in any unit; numbers or `datetime64`.
    samples : int
    """
    if times.shape != (samples,) or times.dtype.kind not in "fiuM":
        raise Unusable(f"header refused: times of shape {times.shape} for {samples} samples")
    stamps = times.astype("int64" if times.dtype.kind == "M" else float)
    steps = np.diff(stamps)
    if not steps.size:
        return
    step = float((stamps[-1] - stamps[0]) / steps.size)
    off = np.abs(stamps - stamps[0] - step * np.arange(samples)).max()
    if not (step > 0 and np.abs(steps - step).max() <= step / 2 and off <= step):
        raise Unusable(
            f"samples missing: the file's own times have steps of {steps.min():g} to {steps.max():g}"
        )


def need_fs(fs):
    if fs is None:
        raise Unusable("sampling rate unknown: give it with --input-fs")
    return float(fs)


def record_name(path):
    return os.path.splitext(os.path.basename(path))[0]


def split_row(path):
    """The file that a recording is in, and its row if that is an HDF5 file and the path names one, else None."""
    file, mark, row = path.rpartition("#")
    if mark and file.lower().endswith(HDF5) and row.isascii() and row.isdigit():
        return file, row
    return path, None
