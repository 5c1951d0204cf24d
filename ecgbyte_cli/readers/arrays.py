"""Arrays without a header of an ECG: CSV and TSV, NumPy, HDF5 as in CODE-15 %."""

import os
import zipfile
from functools import lru_cache

import numpy as np

from ecgbyte_cli.readers.recording import (
    MOST_LEADS,
    MOST_SAMPLES,
    STANDARD,
    Recording,
    Unusable,
    check_promise,
    need_fs,
    stem,
)

HDF5 = (".h5", ".hdf5")


def read(path, fs, lead_names):
    """Read a CSV, TSV, NumPy or HDF5 file."""
    extension = os.path.splitext(path.rpartition("#")[0] or path)[1].lower()
    form = _csv if extension in (".csv", ".tsv") else _numpy if extension in (".npy", ".npz") else _hdf5
    return form(path, fs, lead_names)


def _csv(path, fs, lead_names):
    """CSV and TSV in mV: a column for each lead under its name, a row for each sample."""
    import pyarrow
    import pyarrow.csv

    fs = need_fs(fs)
    if os.path.getsize(path) > 8 * MOST_SAMPLES:
        raise Unusable(f"too large: {os.path.getsize(path)} bytes")
    mark = "\t" if path.lower().endswith(".tsv") else ","
    with open(path, "rb") as file:
        columns = file.readline(2**16).count(mark.encode()) + 1
    if columns > MOST_LEADS:
        raise Unusable(f"too large: {columns} columns")
    data = pyarrow.csv.read_csv(
        path, pyarrow.csv.ReadOptions(use_threads=False), pyarrow.csv.ParseOptions(delimiter=mark)
    )
    check_promise(data.num_columns, data.num_rows)
    numeric = [
        (name, column)
        for name, column in zip(data.column_names, data.columns, strict=True)
        if pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)
    ]
    signal = np.array([column.to_numpy() for _, column in numeric], np.float32)
    signal = signal.reshape(len(numeric), data.num_rows)
    return Recording(signal, fs, [name for name, _ in numeric], stem(path), path)


def _numpy(path, fs, lead_names):
    """A .npy array in mV, or the array `signal` (or the only one) of an .npz file.

    An .npz file may also hold `fs` and `leads`; else `--input-fs` and `--lead-names` say them. The axis
    that is as long as the list of names is that of the leads.
    """
    names = lead_names
    if path.lower().endswith(".npz"):
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > 8 * MOST_SAMPLES:
            raise Unusable(f"too large: {unpacked} bytes unpacked")
        with np.load(path, allow_pickle=False) as arrays:
            fs = float(arrays["fs"]) if "fs" in arrays else fs
            names = [str(lead) for lead in arrays["leads"]] if "leads" in arrays else names
            keys = [key for key in arrays.files if key not in ("fs", "leads")]
            if "signal" not in keys and len(keys) != 1:
                raise Unusable("not a recording: the .npz file has no array called `signal`")
            array = arrays["signal" if "signal" in keys else keys[0]]
    else:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    fs, names = need_fs(fs), names or list(STANDARD.values())
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise Unusable(f"not a recording: an array of {array.ndim} dimensions of {array.dtype}")
    if len(names) not in array.shape:
        raise Unusable(
            f"leads unknown: no axis of {array.shape} has {len(names)}; name them with --lead-names"
        )
    signal = array if array.shape[0] == len(names) else array.T
    check_promise(*signal.shape)
    return Recording(np.array(signal, np.float32), fs, list(names), stem(path), path)


def _hdf5(path, fs, lead_names):
    """A row of an HDF5 file as CODE-15 % has them: `tracings` (exams, samples, 12), mV, 400 Hz.

    The data set's own description calls the scale both 1e-4 V and V / 1000; its R waves say mV. Exams
    shorter than the array have zeros on both sides, which are cut off.
    """
    path, mark, row = path.rpartition("#") if "#" in path else (path, "", "0")
    stamp = os.stat(path)
    file = _kept_hdf5(path, stamp.st_size, stamp.st_mtime_ns)
    tracings = tracings_of(file)
    if int(row) >= tracings.shape[0]:
        raise Unusable(f"no such row: {row} of {tracings.shape[0]}")
    check_promise(tracings.shape[2], tracings.shape[1])
    names = lead_names or list(STANDARD.values())
    if tracings.shape[2] != len(names):
        raise Unusable(f"leads unknown: there are {tracings.shape[2]}; name them with --lead-names")
    signal = np.ascontiguousarray(tracings[int(row)].T, np.float32)
    used = np.flatnonzero(signal.any(axis=0))
    signal = signal[:, used[0] : used[-1] + 1] if used.size else signal[:, :0]
    exam = file.get("exam_id")
    name = str(exam[int(row)]) if exam is not None else f"{stem(path)}_{row}"
    return Recording(signal, float(fs or 400), list(names), name, f"{path}#{row}" if mark else path)


def open_hdf5(path):
    import h5py

    return h5py.File(path, "r", rdcc_nbytes=2**25)


@lru_cache(maxsize=1)
def _kept_hdf5(path, size, changed):
    return open_hdf5(path)  # thousands of rows are read one after the other


def tracings_of(file):
    """The array of exams in an open HDF5 file, if its data is in the file itself."""
    import h5py

    if not isinstance(file.get("tracings", getlink=True), h5py.HardLink):
        raise Unusable("not a recording: the HDF5 file has no array `tracings`")
    data = file["tracings"]
    if not isinstance(data, h5py.Dataset) or data.ndim != 3 or data.dtype.kind not in "fiu":
        raise Unusable("not a recording: `tracings` must be (exams, samples, leads)")
    if data.external or data.is_virtual:
        raise Unusable("header refused: it points outside its file")
    if data.chunks and np.prod(data.chunks, dtype=float) * data.dtype.itemsize > 4 * MOST_SAMPLES:
        raise Unusable(f"too large: chunks of {data.chunks}")
    return data
