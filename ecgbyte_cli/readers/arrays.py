"""Arrays without a header of an ECG: NumPy, HDF5 as in CODE-15 %."""

import os
import zipfile

import numpy as np

from ecgbyte_cli.readers import limits
from ecgbyte_cli.readers.recording import (
    HDF5,
    STANDARD,
    Recording,
    Unusable,
    check_promise,
    check_regular,
    check_times,
    millivolts,
    need_fs,
    open_regular,
    record_name,
    split_row,
    text_of,
)

TIMES = ("time", "times", "t", "timestamp", "timestamps")  # arrays of an .npz file that are not the signal


def read(path, fs, lead_names, units):
    """Read a NumPy or HDF5 file."""
    extension = os.path.splitext(split_row(path)[0])[1].lower()
    if extension in HDF5:
        return _hdf5(path, fs, lead_names, units)
    return _numpy(path, fs, lead_names, units)


def _numpy(path, fs, lead_names, units):
    """A .npy array, or the array `signal` (or the only one) of an .npz file.

    An .npz file may also hold `fs`, `leads` and `units` (one, or one for each lead); else `--input-fs`,
    `--lead-names` and `--units` say them. The axis that is as long as the list of names is that of the leads.
    A time for each sample, under one of the names in `TIMES`, must be evenly spaced.
    """
    names, times = lead_names, None
    with open_regular(path) as file:
        if path.lower().endswith(".npz"):
            _check_directory(file)
            with zipfile.ZipFile(file) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > limits.UNPACKED_BYTES:
                    raise Unusable("too large: its arrays, unpacked")
                keys = [name.removesuffix(".npy") for name in archive.namelist()]
                small = {
                    key: _array(archive, key, limits.SMALL_ARRAY)
                    for key in ("fs", "leads", "units", "unit")
                    if key in keys
                }
                stamps = next((key for key in keys if key.lower() in TIMES), None)
                times = _array(archive, stamps, limits.SAMPLES) if stamps else None
                keys = [key for key in keys if key not in small and key != stamps]
                if "signal" not in keys and len(keys) != 1:
                    raise Unusable("not a recording: the .npz file has no array called `signal`")
                array = _array(archive, "signal" if "signal" in keys else keys[0], limits.SAMPLES)
            fs = float(small["fs"]) if "fs" in small else fs
            names = [str(lead)[: limits.NAME] for lead in small["leads"]] if "leads" in small else names
            units = small.get("units", small.get("unit", units))
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
    return _scaled(signal, fs, names, units, record_name(path), path)


def _array(archive, key, most):
    """An array of an .npz file, of no more numbers than are sensible."""
    with archive.open(key + ".npy") as entry:
        _check_array(entry, most)
    with archive.open(key + ".npy") as entry:
        return np.lib.format.read_array(entry, allow_pickle=False)


def _check_array(file, most):
    """Refuse an array by its own header, before NumPy makes room for what it promises."""
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read_header = np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    numbers = np.prod([side or 1 for side in shape], dtype=float)  # 2^40 rows of nothing are a long loop
    if min(shape, default=0) < 0 or numbers > most or numbers * dtype.itemsize > 8 * max(most, 2**16):
        raise Unusable(f"too large: an array of {shape} of {str(dtype)[:30]}")


def _check_directory(file):
    """Refuse an archive of millions of entries, all of which would be read before the first is used."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - 2**16 - 42, 0))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")  # the end of the directory; before it stands one more if it is a large one
    large = tail[max(at - 20, 0) : at].startswith(b"PK\6\7")
    if at >= 0 and (
        large or int.from_bytes(tail[at + 12 : at + 16], "little") > limits.ARCHIVE_DIRECTORY_BYTES
    ):
        raise Unusable("too large: an archive of more arrays than a recording has")


def _scaled(signal, fs, names, units, name, path):
    """A recording of an array in the unit given, one or one for each lead; what is in no volts is no lead."""
    units = np.array("mV" if units is None else units).reshape(-1).tolist()
    if len(units) not in (1, len(names)):
        raise Unusable(f"header refused: {len(units)} units of {len(names)} leads")
    scales = [millivolts(str(unit)) for unit in units] * (len(names) // len(units))
    keep = [i for i, scale in enumerate(scales) if scale is not None]
    made = np.empty((len(keep), signal.shape[1]), np.float32)
    for row, i in zip(made, keep, strict=True):
        row[:] = signal[i] if scales[i] == 1 else signal[i] * scales[i]
    return Recording(made, fs, [names[i] for i in keep], name, path)


def _hdf5(path, fs, lead_names, units):
    """A row of an HDF5 file as CODE-15 % has them: `tracings` (exams, samples, 12), mV, 400 Hz.

    The data set's own description calls the scale both 1e-4 V and V / 1000; its R waves say mV. Where the
    array has an attribute `units`, that is believed. Exams shorter than the array have zeros on both sides,
    which are cut off.
    """
    inside, row = split_row(path)
    tracings, exams, stated = _hdf5_info(inside)
    number = int(row or 0)
    if number >= tracings.shape[0]:
        raise Unusable(f"no such row: {number} of {tracings.shape[0]}")
    names = lead_names or list(STANDARD.values())
    if tracings.shape[2] != len(names):
        raise Unusable(f"leads unknown: there are {tracings.shape[2]}; name them with --lead-names")
    signal = np.ascontiguousarray(tracings[number].T, np.float32)
    used = np.flatnonzero(signal.any(axis=0))
    signal = signal[:, used[0] : used[-1] + 1] if used.size else signal[:, :0]
    name = _exam(exams, number) or f"{record_name(inside)}_{number}"
    return _scaled(signal, float(fs or 400), names, stated or units, name, path)


def open_hdf5(path):
    """Open an HDF5 file, which the library does by itself: so what it is must be known before."""
    import h5py

    while _kept:  # or the library would go on with the old data of a file that was written anew
        _kept.popitem()[1][0].file.close()
    check_regular(os.stat(path))
    return h5py.File(path, "r", rdcc_nbytes=limits.CHUNK_BYTES)


_kept: dict[
    tuple, tuple
] = {}  # the checked arrays of one file, of which thousands of rows are read one by one


def _hdf5_info(path):
    """The exams, their names if there are any, and the unit if one is said."""
    stamp = os.stat(path)
    key = (path, stamp.st_size, stamp.st_mtime_ns)
    if key not in _kept:
        file = open_hdf5(path)
        try:
            tracings = tracings_of(file)
            try:
                exams = _data_set(file, "exam_id")
            except Unusable:  # the signals can do without names, which must not come from elsewhere
                exams = None
            unit = _attribute(tracings, "units") or _attribute(tracings, "unit")
            times = _data_set(file, "time")
            if times is not None and times.ndim == 1:
                check_promise(1, times.shape[0])
                check_times(times[:], tracings.shape[1])
        except BaseException:
            file.close()
            raise
        _kept[key] = (tracings, exams, unit)
    return _kept[key]


def tracings_of(file):
    """The array of exams in an open HDF5 file."""
    data = _data_set(file, "tracings")
    if data is None:
        raise Unusable("not a recording: the HDF5 file has no array `tracings`")
    if data.ndim != 3 or data.dtype.kind not in "fiu":
        raise Unusable("not a recording: `tracings` must be (exams, samples, leads)")
    check_promise(data.shape[2], data.shape[1])
    return data


def _data_set(file, name):
    """An array at the root of an open HDF5 file, or None; its data must be in the file itself, in sensible pieces."""
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        return None
    data = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(data, h5py.Dataset) or data.external or data.is_virtual:
        raise Unusable(f"header refused: `{name}` is no array, or points outside its file")
    if not data.shape or not all(data.shape):
        raise Unusable("no samples")
    rows, stored = data.shape[0], data.id.get_storage_size()
    if not stored:
        raise Unusable("no samples")
    if rows > limits.ROWS or rows > stored:
        raise Unusable(f"too large: {rows} rows of `{name}` are promised")
    if data.chunks:
        sizes = zip(data.shape[1:], data.chunks[1:], strict=True)
        pieces = np.prod([-(-length // chunk) for length, chunk in sizes], dtype=float)
        whole = np.prod(data.chunks, dtype=float) * data.dtype.itemsize
        if (
            pieces > limits.CHUNKS_OF_A_ROW
            or whole > limits.CHUNK_BYTES
            or pieces * whole > 2 * limits.CHUNK_BYTES
        ):
            raise Unusable(f"too large: `{name}` in chunks of {data.chunks}")
    return data


def _exam(exams, row):
    """The name of an exam: what `exam_id` says, if it is a number or a text for each row."""
    if exams is None or exams.ndim != 1 or row >= exams.shape[0] or exams.dtype.itemsize > limits.NAME:
        return None
    if exams.dtype.kind in "iu":
        return str(exams[row])
    value = exams[row] if exams.dtype.kind in "SO" else None
    return _text(value) if isinstance(value, (bytes, str)) else None


def _attribute(data, name):
    """An attribute that is one text, or None."""
    if name not in data.attrs or data.attrs.get_id(name).shape not in ((), (1,)):
        return None
    value = np.array(data.attrs[name]).reshape(-1)[0]
    return _text(value) if isinstance(value, (bytes, str)) else None


def _text(value):
    return (text_of(value) if isinstance(value, bytes) else value)[: limits.NAME]
