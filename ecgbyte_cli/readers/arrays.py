"""NumPy arrays: .npy and .npz files."""

import math
import os
import zipfile
from typing import IO, BinaryIO

import numpy as np

from ecgbyte_cli.readers import limits
from ecgbyte_cli.readers.recording import (
    STANDARD,
    Recording,
    Unusable,
    array_recording,
    check_promise,
    check_times,
    need_fs,
    open_regular,
    record_name,
)

TIMES = ("time", "times", "t", "timestamp", "timestamps")  # names of an array of sample times in an .npz file


def read(path: str, fs: float | None, lead_names: list[str] | None, units: str | None) -> Recording:
    """Read a .npy array, or the array `signal` (or the only one) of an .npz file.

    An .npz file may also hold `fs`, `leads` and `units` (one, or one per lead), which take precedence over the
    arguments. The axis whose length is the number of lead names is the axis of the leads. An array of sample times,
    under one of the names in `TIMES`, must be evenly spaced.
    """
    names = lead_names
    times: np.ndarray | None = None
    unit: str | np.ndarray | None = units
    with open_regular(path) as file:
        if path.lower().endswith(".npz"):
            array, times, small = _read_npz(file)
            fs = float(small["fs"]) if "fs" in small else fs
            names = [str(lead)[: limits.NAME] for lead in small["leads"]] if "leads" in small else names
            unit = small.get("units", small.get("unit", unit))
        else:
            _check_array(file, limits.SAMPLES)
            file.seek(0)
            array = np.load(file, allow_pickle=False)
    fs, names = need_fs(fs), names or list(STANDARD.values())
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise Unusable(f"not a recording: an array of {array.ndim} dimensions of {array.dtype}")
    if len(names) not in array.shape:
        raise Unusable(
            f"leads unknown: no axis of {array.shape} has {len(names)}; name them with --lead-names"
        )
    signal = array if array.shape[0] == len(names) else array.T
    check_promise(*signal.shape)
    if times is not None:
        check_times(times, signal.shape[1])
    return array_recording(signal, fs, names, unit, record_name(path), path)


def _read_npz(file: BinaryIO) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
    """Return the signal of an .npz file, its sample times if it has any, and its small arrays by name."""
    _check_directory(file)
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > limits.UNPACKED_BYTES:
            raise Unusable("too large: its arrays, unpacked")
        keys = [name.removesuffix(".npy") for name in archive.namelist()]
        small: dict[str, np.ndarray] = {
            key: _read_array(archive, key, limits.SMALL_ARRAY)
            for key in ("fs", "leads", "units", "unit")
            if key in keys
        }
        times_key = next((key for key in keys if key.lower() in TIMES), None)
        times = _read_array(archive, times_key, limits.SAMPLES) if times_key else None
        keys = [key for key in keys if key not in small and key != times_key]
        if "signal" not in keys and len(keys) != 1:
            raise Unusable("not a recording: the .npz file has no array called `signal`")
        return _read_array(archive, "signal" if "signal" in keys else keys[0], limits.SAMPLES), times, small


def _read_array(archive: zipfile.ZipFile, key: str, most: int) -> np.ndarray:
    """Read an array of an .npz file that holds at most `most` numbers."""
    with archive.open(key + ".npy") as entry:
        _check_array(entry, most)
    with archive.open(key + ".npy") as entry:
        return np.lib.format.read_array(entry, allow_pickle=False)


def _check_array(file: IO[bytes], most: int) -> None:
    """Reject an array by its header, before NumPy allocates memory for it."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    numbers = math.prod(float(length or 1) for length in shape)  # 2**40 empty rows are a long loop, too
    if min(shape, default=0) < 0 or numbers > most or numbers * dtype.itemsize > 8 * max(most, 2**16):
        raise Unusable(f"too large: an array of {shape} of {str(dtype)[:30]}")


def _check_directory(file: BinaryIO) -> None:
    """Reject an archive with millions of entries: `zipfile` reads all of them at once."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 2**16 - 42, 0))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")  # the end record; a large archive has another one before it
    large = tail[max(at - 20, 0) : at].startswith(b"PK\6\7")
    if at >= 0 and (
        large or int.from_bytes(tail[at + 12 : at + 16], "little") > limits.ARCHIVE_DIRECTORY_BYTES
    ):
        raise Unusable("too large: an archive of more arrays than a recording has")
