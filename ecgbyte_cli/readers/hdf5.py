"""HDF5 as in CODE-15 %: an array of exams, each of which is a recording."""

import math
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ecgbyte_cli.readers import limits
from ecgbyte_cli.readers.recording import (
    STANDARD,
    Recording,
    Unusable,
    array_recording,
    check_promise,
    check_regular,
    check_times,
    record_name,
    split_row,
    text_of,
)

if TYPE_CHECKING:
    import h5py


class _Exams(NamedTuple):
    """The checked arrays of an open file."""

    tracings: "h5py.Dataset"  # (exams, samples, leads)
    names: "h5py.Dataset | None"
    unit: str | None


def read(path: str, fs: float | None, lead_names: list[str] | None, units: str | None) -> Recording:
    """Read one row of the array `tracings` (exams, samples, leads), in mV at 400 Hz.

    The data set's own description calls the scale both 1e-4 V and V / 1000; its R waves say mV. An attribute `units`
    of the array takes precedence. Exams shorter than the array are padded with zeros on both sides, which are cut off.
    """
    file, row = split_row(path)
    exams, number = _open_exams(file), int(row or 0)
    tracings = exams.tracings
    if number >= tracings.shape[0]:
        raise Unusable(f"no such row: {number} of {tracings.shape[0]}")
    names = lead_names or list(STANDARD.values())
    if tracings.shape[2] != len(names):
        raise Unusable(f"leads unknown: there are {tracings.shape[2]}; name them with --lead-names")
    signal = np.ascontiguousarray(tracings[number].T, np.float32)
    used = np.flatnonzero(signal.any(axis=0))
    signal = signal[:, used[0] : used[-1] + 1] if used.size else signal[:, :0]
    name = _exam_name(exams.names, number) or f"{record_name(file)}_{number}"
    return array_recording(signal, float(fs or 400), names, exams.unit or units, name, path)


def row_paths(path: str) -> list[str]:
    """Return a path for each row of a file; the file's own path if it cannot be read, so that `read` says why."""
    try:
        with open_hdf5(path) as file:
            return [f"{path}#{row}" for row in range(_tracings_of(file).shape[0])]
    except Exception:  # a damaged file may raise anything; `read` reports the reason
        return [path]


def open_hdf5(path: str) -> "h5py.File":
    """Open a regular HDF5 file; the library opens it by name, so its kind is checked first."""
    import h5py

    while _cache:  # else the library would return the old data of a file that has been rewritten
        _cache.popitem()[1].tracings.file.close()
    check_regular(os.stat(path))
    return h5py.File(path, "r", rdcc_nbytes=limits.CHUNK_BYTES)


# the arrays of the last file, of which thousands of rows are read one by one
_cache: dict[tuple[str, int, int], _Exams] = {}


def _open_exams(path: str) -> _Exams:
    """Open a file and check its arrays."""
    stamp = os.stat(path)
    key = (path, stamp.st_size, stamp.st_mtime_ns)
    if key not in _cache:
        file = open_hdf5(path)
        try:
            tracings = _tracings_of(file)
            try:
                names = _dataset(file, "exam_id")
            except Unusable:  # the signals can do without names, which must not come from outside the file
                names = None
            unit = _text_attribute(tracings, "units") or _text_attribute(tracings, "unit")
            times = _dataset(file, "time")
            if times is not None and times.ndim == 1:
                check_promise(1, times.shape[0])
                check_times(times[:], tracings.shape[1])
        except BaseException:
            file.close()
            raise
        _cache[key] = _Exams(tracings, names, unit)
    return _cache[key]


def _tracings_of(file: "h5py.File") -> "h5py.Dataset":
    """Return the array of exams of an open file."""
    data = _dataset(file, "tracings")
    if data is None:
        raise Unusable("not a recording: the HDF5 file has no array `tracings`")
    if data.ndim != 3 or data.dtype.kind not in "fiu":
        raise Unusable("not a recording: `tracings` must be (exams, samples, leads)")
    check_promise(data.shape[2], data.shape[1])
    return data


def _dataset(file: "h5py.File", name: str) -> "h5py.Dataset | None":
    """Return an array at the root of a file, or None. Its data must be in the file itself, in chunks of sane size."""
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        return None
    data = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise Unusable(f"header refused: `{name}` is not an array, or points outside its file")
    if not data.shape or not all(data.shape):
        raise Unusable("no samples")
    rows, stored = data.shape[0], data.id.get_storage_size()
    if not stored:
        raise Unusable("no samples")
    if rows > limits.ROWS or rows > stored:
        raise Unusable(f"too large: {rows} rows of `{name}` are promised")
    if data.chunks:
        sizes = zip(data.shape[1:], data.chunks[1:], strict=True)
        chunks_per_row = math.prod(float(-(-length // chunk)) for length, chunk in sizes)
        chunk_bytes = math.prod(map(float, data.chunks)) * data.dtype.itemsize
        if (
            chunks_per_row > limits.CHUNKS_OF_A_ROW
            or chunk_bytes > limits.CHUNK_BYTES
            or chunks_per_row * chunk_bytes > 2 * limits.CHUNK_BYTES
        ):
            raise Unusable(f"too large: `{name}` in chunks of {data.chunks}")
    return data


def _exam_name(names: "h5py.Dataset | None", row: int) -> str | None:
    """Return the name of an exam from `exam_id`, if that has a number or a text for each row."""
    if names is None or names.ndim != 1 or row >= names.shape[0] or names.dtype.itemsize > limits.NAME:
        return None
    if names.dtype.kind in "iu":
        return str(names[row])
    return _short_text(names[row]) if names.dtype.kind in "SO" else None


def _text_attribute(data: "h5py.Dataset", name: str) -> str | None:
    """Return an attribute that is a single text, or None."""
    if name not in data.attrs or data.attrs.get_id(name).shape not in ((), (1,)):
        return None
    return _short_text(np.array(data.attrs[name]).reshape(-1)[0])


def _short_text(value: object) -> str | None:
    """Return a text, cut to the length of a name; None for any other value."""
    text = text_of(value) if isinstance(value, bytes) else value
    return text[: limits.NAME] if isinstance(text, str) else None
