"""Find recordings: folders, RECORDS files, patterns, single records. Links keep their own names."""

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import limits, wfdb_header
from ecgbyte_cli.readers.delimited import is_list
from ecgbyte_cli.readers.formats import EXTENSIONS, SHARED_EXTENSIONS, TRIED, file_of, format_of_content
from ecgbyte_cli.readers.hdf5 import row_paths
from ecgbyte_cli.readers.recording import HDF5, Unusable, open_regular, split_row


def find(
    source: str | os.PathLike | Iterable[str | os.PathLike], without: str | os.PathLike | None = None
) -> tuple[list[str], list[tuple[str, str]]]:
    """List the recordings in a folder, in a RECORDS file, of a glob pattern or of a record's name.

    Parameters
    ----------
    source : str or Path, or several
    without : str or Path, optional
        A folder to leave out: the work folder, if it lies among the data.

    Returns
    -------
    found : list of str
        Absolute paths without duplicates; links are not resolved. A row of an HDF5 file is the file's path, "#" and
        the row.
    skipped : list of tuple
        (path, reason) of each file that is left out, such as a part of another record. Bytes of a name that are
        not UTF-8 are shown as \\xNN.

    Raises
    ------
    Failure
        If a source is missing or there are no recordings.
    """
    sources = [os.fspath(one) for one in ([source] if isinstance(source, str | os.PathLike) else source)]
    skipped: list[tuple[str, str]] = []
    paths = [os.path.abspath(path) for one in sources for path in _paths(one, skipped)]
    paths = list(dict.fromkeys(paths))  # patterns overlap
    if without is not None:
        outside = os.path.join(os.path.realpath(without), "")
        inside = {folder: os.path.realpath(folder) for folder in {os.path.dirname(path) for path in paths}}
        paths = [path for path in paths if not (inside[os.path.dirname(path)] + os.sep).startswith(outside)]
    left_out = _unreadable_names(paths) | _parts(paths) | _same_files(paths) | _lists(paths)
    skipped += [(_shown(path), left_out[path]) for path in paths if path in left_out]
    found = [row for path in paths if path not in left_out for row in _recordings_in(path)]
    if not found:
        why = f"; {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise Failure(f"{_shown(', '.join(sources))} contains no recordings ({', '.join(TRIED)}){why}")
    return found, skipped


def _paths(source: str, skipped: list[tuple[str, str]]) -> list[str]:
    """List the files of one source."""
    if os.path.isdir(source):
        return list(_walk(source, set()))
    if os.path.basename(source) == "RECORDS" and os.path.isfile(source):
        return list(_follow(source, skipped, set()))
    matches = [source]
    if file_of(source) is None and glob.has_magic(source):
        matches = sorted(glob.glob(source, recursive=True))
    paths = [p for m in matches for p in (_walk(m, set()) if os.path.isdir(m) else [file_of(m)]) if p]
    if not paths:
        raise Failure(f"{source}: no such folder or recording")
    return paths


def _recordings_in(path: str) -> list[str]:
    """List the recordings in a file: one, or the rows of an HDF5 file."""
    return row_paths(path) if os.path.splitext(path)[1].lower() in HDF5 else [path]


def _walk(folder: str, seen: set[tuple[int, int]]) -> Iterator[str]:
    """Yield the recordings below a folder in the order of their names. Links to folders are followed once."""
    for place, folders, files in os.walk(folder, followlinks=True):
        stamp = os.stat(place)
        if (stamp.st_dev, stamp.st_ino) in seen:
            folders[:] = []
            continue
        seen.add((stamp.st_dev, stamp.st_ino))
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        here = set(files)
        for name in sorted(files):
            if not name.startswith(".") and _is_recording(place, name, here):
                yield os.path.join(place, name)


def _is_recording(folder: str, name: str, files: set[str]) -> bool:
    """Return whether a file is a recording by its ending, else by its content."""
    stem, extension = os.path.splitext(name)
    if extension.lower() in EXTENSIONS:
        return True
    # the signal file of a WFDB record is not a separate recording
    if extension.lower() not in SHARED_EXTENSIONS or stem + ".hea" in files:
        return False
    try:
        return format_of_content(os.path.join(folder, name)) is not None
    except (Unusable, OSError):
        return False


def _follow(records: str, skipped: list[tuple[str, str]], seen: set[str]) -> Iterator[str]:
    """Yield the recordings that a RECORDS file lists: records, and folders with a RECORDS file or recordings."""
    base = os.path.dirname(records)
    if os.path.abspath(records) in seen:
        return
    seen.add(os.path.abspath(records))
    for name, path in _listed(records):
        if path is None:
            skipped.append(
                (
                    _shown(os.path.join(base, name)),
                    f"refused: {os.path.basename(records)} names it outside its folder",
                )
            )
        elif os.path.isdir(path):
            listed = os.path.join(path, "RECORDS")
            yield from _follow(listed, skipped, seen) if os.path.isfile(listed) else _walk(path, set())
        else:
            yield file_of(path) or path + ".hea"


def _listed(records: str) -> Iterator[tuple[str, str | None]]:
    """Yield the name in each line of a RECORDS file, and its path; None for a path outside the folder."""
    with open_regular(records) as file:
        data = file.read(limits.RECORDS_BYTES + 1)
    if len(data) > limits.RECORDS_BYTES:
        raise Failure(f"{_shown(records)} is larger than {limits.RECORDS_BYTES} bytes")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # written by PowerShell
        data = data.decode("utf-16", "replace").encode()
    for line in data.removeprefix(b"\xef\xbb\xbf").splitlines():
        name = os.fsdecode(line.strip())
        if not name:
            continue
        # the name itself, with the separators of Windows, in Latin-1: the first that exists
        spellings = dict.fromkeys([name, name.replace("\\", "/"), line.strip().decode("latin-1")])
        inside = [os.path.join(os.path.dirname(records), each) for each in spellings if _stays_inside(each)]
        existing = next((path for path in inside if os.path.isdir(path) or file_of(path)), None)
        if existing is None and name.startswith("#"):
            continue
        yield name, existing or (inside[0] if len(inside) == len(spellings) else None)


def _stays_inside(name: str) -> bool:
    """Return whether a name in a RECORDS file stays inside its folder."""
    parts = name.replace("\\", "/").split("/")
    return not (parts[0].endswith(":") or parts[0] == "" or ".." in parts or "\0" in name)


def _unreadable_names(paths: list[str]) -> dict[str, str]:
    """Return the files whose names are not UTF-8, with the reason: tables cannot store such names."""
    return {path: "file name is not UTF-8: rename it" for path in paths if not _is_text(path)}


def _lists(paths: list[str]) -> dict[str, str]:
    """Return tables that are not recordings, such as tables of labels, with the reason for skipping them."""
    tables = (path for path in paths if os.path.splitext(path)[1].lower() in (".csv", ".tsv"))
    return {path: "a table of words: no column is a lead" for path in tables if is_list(path)}


def _parts(paths: list[str]) -> dict[str, str]:
    """Return the segments of multi-segment records and PTB-XL's 100 Hz copies, with the reason for skipping them."""
    parts, everything = {}, set(paths)
    for path in paths:
        if path.endswith(".hea"):
            for segment in wfdb_header.segment_names(path):
                part = os.path.join(os.path.dirname(path), segment + ".hea")
                if part in everything and part != path:
                    parts[part] = f"part of another record: {_shown(path)}"
        if path.endswith("_lr.hea"):
            other = path.replace("records100", "records500")[: -len("_lr.hea")] + "_hr.hea"
            if other in everything:
                parts[path] = f"copy of another record: {other}"
    return parts


def _same_files(paths: list[str]) -> dict[str, str]:
    """Return the recordings whose files all belong to another one, through links, with the reason."""
    if not any(os.path.islink(path) for path in paths):
        return {}
    first: dict[tuple[str, ...], str] = {}
    duplicates = {}
    for path in paths:
        files = tuple(sorted(os.path.realpath(file) for file in _files_of(path)))
        other = first.setdefault(files, path)
        if other != path:
            duplicates[path] = f"same files as another record: {_shown(other)}"
    return duplicates


def files_of(paths: Iterable[str]) -> list[str]:
    """List all files of recordings, without duplicates; the main file of each recording comes first."""
    return list(dict.fromkeys(file for path in paths for file in _files_of(path)))


def _files_of(path: str) -> list[str]:
    """List the files of one recording."""
    return wfdb_header.files_of(path) if path.endswith(".hea") else [split_row(path)[0]]


def _is_text(path: str) -> bool:
    """Return whether a path is UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(path: str) -> str:
    """Return a path for messages: bytes that are not UTF-8 as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def fingerprint(found: list[str]) -> str:
    """Return a hash of the names, sizes and times of all files of the recordings: it changes when the data does."""
    base = os.path.commonpath({os.path.dirname(path) for path in found}) if found else ""
    digest = hashlib.sha256()
    last, stamps = None, ""
    for path in found:
        file = split_row(path)[0]
        if file != last:  # the rows of an HDF5 file share it
            stamps = " ".join(map(_stamp, _files_of(path)))
        last = file
        digest.update(f"{path[len(base) :]} {stamps}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _stamp(file: str) -> str:
    """Return the name, size and time of a file."""
    name = file.rpartition("/")[2]
    try:
        stamp = os.stat(file)
    except (OSError, ValueError):
        return f"{name} missing"
    return f"{name} {stamp.st_size} {stamp.st_mtime_ns}"
