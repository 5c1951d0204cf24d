"""The recording that every reader returns, and the checks that readers share.

Every file may be hostile. It is read or refused with a reason, and nothing is allocated before it is checked; the
bounds are in `limits`.
"""

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import BinaryIO

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import limits

STANDARD = {
    lead.lower(): lead for lead in ("I", "II", "III", "aVR", "aVL", "aVF", *(f"V{i}" for i in range(1, 7)))
}
DERIVED = ("III", "aVR", "aVL", "aVF")  # linear combinations of I and II
# case-folded, so that both micro signs are the same letter
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

    def about(self, name: str) -> str:
        """Return a sentence about the recording of a name; a reason such as "cannot be read: …" follows the name."""
        return f"{name} {'' if self.message.startswith('cannot be ') else 'cannot be used: '}{self.message}"


@dataclass
class Recording:
    """One recording.

    Attributes
    ----------
    signal : numpy.ndarray
        float32 (leads, samples), mV; NaN where the file has no valid sample. Of a long recording that is read in
        parts, a `StoredSignal`.
    fs : float
        Sampling rate, Hz.
    leads : list of str
        Names as in the file.
    name : str
        The record's name, without extension.
    path : str
        The path that it was read from.
    comments : list of str
    start : datetime or None
        None if the file has no valid start.
    identity : dict
        The patient's personal data in the file: `Patient` (the hospital's number), `Name`, `Birth date`, …. The
        comments do not repeat them.
    """

    signal: np.ndarray
    fs: float
    leads: list[str]
    name: str
    path: str
    comments: list[str] = field(default_factory=list)
    start: datetime | None = None
    identity: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Length of the recording, s."""
        return self.signal.shape[1] / self.fs

    def part(self, start: float, end: float | None = None) -> "Recording":
        """Return the part from `start` to `end` (s, or None: to the end of the recording)."""
        first = round(start * self.fs)
        return replace(self, signal=self.signal[:, first : None if end is None else round(end * self.fs)])

    def comment(self, key: str) -> str | None:
        """Return the text after "key:" in the comments, or None."""
        return next(self._texts(key), None)

    def all_comments(self, key: str) -> list[str]:
        """Return the texts after every "key:" in the comments."""
        return list(self._texts(key))

    def _texts(self, key: str) -> Iterator[str]:
        """Yield the text after each "key:" in the comments."""
        for line in self.comments:
            name, colon, text = line.partition(":")
            if colon and name.strip().lower() == key:
                yield text.strip()


@lru_cache(256)
def lead_name(name: str) -> str:
    """Return a lead's name in its usual spelling.

    "avr", "ECG aVR" and "Lead aVR (Goldberger)" are aVR, "DI" is I; other names are returned as they are.
    """
    bare = name.strip()
    if bare.endswith(")"):
        bare = bare.partition("(")[0].rstrip()
    bare = re.sub(r"^((lead|ecg|ekg)[\s_]+)*", "", bare, flags=re.IGNORECASE)
    key = bare.lower()
    return STANDARD.get(key[1:] if key in ("di", "dii", "diii") else key, bare)


@lru_cache(256)
def millivolts(unit: str) -> float | None:
    """Return a unit in mV; None if it is not a unit of voltage."""
    bare = unit.strip().casefold()
    return MILLIVOLTS.get(bare, MILLIVOLTS.get(bare.removesuffix("s")))


def common_rate(rates: list[int]) -> int:
    """Return the sampling rate that most leads share, the higher one of a tie."""
    return max(set(rates), key=lambda rate: (rates.count(rate), rate))


def text_of(data: bytes) -> str:
    """Decode the text of a header: UTF-8, else Latin-1, which older writers use."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a regular file to read its bytes, without waiting: opening a FIFO would block."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    try:
        check_regular(os.fstat(file.fileno()))
    except Unusable:
        file.close()
        raise
    return file


def read_regular(path: str | os.PathLike, most: int) -> bytes:
    """Return the bytes of a regular file; one of more than `most` bytes is refused."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        stamp = os.fstat(handle)
        check_regular(stamp)
        if stamp.st_size > most:
            raise Unusable(f"too large: {stamp.st_size} bytes of {most} at most")
        return os.read(handle, stamp.st_size)
    finally:
        os.close(handle)


def check_regular(stamp: os.stat_result) -> None:
    """Reject anything that is not a regular file."""
    kind = stat.S_IFMT(stamp.st_mode)
    if kind != stat.S_IFREG:
        raise Unusable(f"not a regular file: {KINDS.get(kind, 'something else')}")


def check_promise(leads: int, samples: int) -> None:
    """Reject a size that would not fit into memory, before anything is allocated."""
    if leads > limits.LEADS or leads * samples > limits.SAMPLES:
        raise Unusable(
            f"too large: {leads} leads of {samples} samples are promised, and {limits.SAMPLES:,} samples of all leads "
            "together are read at most: save a part of it, fewer leads, or a lower sampling rate"
        )


def check_times(times: np.ndarray, samples: int) -> None:
    """Reject sample times that have gaps or are not evenly spaced to half a sample.

    Parameters
    ----------
    times : numpy.ndarray
        A time per sample, in any unit; numbers or `datetime64`.
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


def need_fs(fs: float | None) -> float:
    """Return the sampling rate, or reject the recording if it is unknown."""
    if fs is None:
        raise Unusable("sampling rate unknown: give it with --input-fs")
    return float(fs)


def record_name(path: str) -> str:
    """Return the name of a record: the file's name without its extension."""
    return os.path.splitext(os.path.basename(path))[0]


def split_row(path: str) -> tuple[str, str | None]:
    """Split `exams.hdf5#3` into file and row; the row is None for other files and paths without one."""
    file, mark, row = path.rpartition("#")
    if mark and file.lower().endswith(HDF5) and row.isascii() and row.isdigit():
        return file, row
    return path, None


def array_recording(
    signal: np.ndarray, fs: float, names: list[str], units: str | np.ndarray | None, name: str, path: str
) -> Recording:
    """Return the recording of an array without a header.

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples).
    fs : float
        Hz.
    names : list of str
        Of the leads.
    units : str, array of str or None
        One for all leads or one per lead; mV by default. Leads whose unit is not a voltage are skipped.
    name, path : str
        Of the recording.
    """
    each = np.array("mV" if units is None else units).reshape(-1).tolist()
    if len(each) not in (1, len(names)):
        raise Unusable(f"header refused: {len(each)} units of {len(names)} leads")
    scales = [millivolts(str(unit)) for unit in each] * (len(names) // len(each))
    leads = [(i, scale) for i, scale in enumerate(scales) if scale is not None]
    scaled = np.empty((len(leads), signal.shape[1]), np.float32)
    for row, (i, scale) in zip(scaled, leads, strict=True):
        row[:] = signal[i] if scale == 1 else signal[i] * scale
    return Recording(scaled, fs, [names[i] for i, _ in leads], name, path)
