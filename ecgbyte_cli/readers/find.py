"""Where recordings are: folders, RECORDS files, patterns, single records."""

import glob
import hashlib
import os

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.arrays import HDF5, open_hdf5, tracings_of
from ecgbyte_cli.readers.formats import FORMATS, file_of, without_row


def find(
    source: str | os.PathLike, without: str | os.PathLike | None = None
) -> tuple[list[str], list[tuple[str, str]]]:
    """List the recordings that a folder, a RECORDS file, a glob pattern or a record's name stands for.

    Parameters
    ----------
    source : str or Path
    without : str or Path, optional
        A folder to leave out: the work folder, if it lies among the data.

    Returns
    -------
    found : list of str
        Absolute paths, none twice. A row of an HDF5 file is the file's path, "#" and the row.
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
        paths = [file_of(source)]
        if paths == [None] and glob.has_magic(source):
            matches = sorted(glob.glob(source, recursive=True))
            paths = [p for m in matches for p in (_walk(m) if os.path.isdir(m) else [file_of(m)]) if p]
        if not paths or paths == [None]:
            raise Failure(f"{source}: no such folder or recording")
    # the same record may be named twice, by links or by patterns that overlap
    paths = list(dict.fromkeys(os.path.realpath(path) for path in paths))
    if without is not None:
        outside = os.path.join(os.path.realpath(without), "")
        paths = [path for path in paths if not path.startswith(outside)]
    if not paths:
        raise Failure(f"{source} holds no recordings ({', '.join(FORMATS)})")
    found, skipped = _without_parts(paths)
    return [row for path in found for row in _rows(path)], skipped


def _rows(path):
    """The recordings in a file: one, or the rows of an HDF5 file."""
    if os.path.splitext(path)[1].lower() not in HDF5:
        return [path]
    try:
        with open_hdf5(path) as file:
            return [f"{path}#{row}" for row in range(tracings_of(file).shape[0])]
    except Exception:  # `read` says what is wrong with it
        return [path]


def _walk(folder):
    """The recordings below a folder, in the order of their names."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in FORMATS and not name.startswith("."):
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
            yield file_of(path) or path + ".hea"


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


def fingerprint(found):
    """A hash of the inputs' names, sizes and times, which changes when the data does."""
    base = os.path.commonpath([os.path.dirname(path) for path in found]) if found else ""
    digest = hashlib.sha256()
    file = stamp = None
    for path in found:
        if file != without_row(path):  # the rows of an HDF5 file share one
            file = without_row(path)
            try:
                stamp = f"{os.stat(file).st_size} {os.stat(file).st_mtime_ns}"
            except OSError:
                stamp = "missing"
        digest.update(f"{os.path.relpath(path, base)} {stamp}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
