"""Sizes and times of files, to check that two machines see the same files."""

import os
from collections.abc import Iterable

from ecgbyte_cli.readers.recording import Unusable, open_regular

Files = Iterable[str | os.PathLike]
Stamps = dict[str, tuple[int, int] | None]  # of absolute paths: size and time (ns); None: cannot be opened


def file_stamps(files: Files) -> Stamps:
    """Return the size and the time (ns) of files, by their absolute paths; None for a file that cannot be opened."""
    return {os.path.abspath(file): _stamp(file) for file in dict.fromkeys(files)}


def _stamp(file: str | os.PathLike) -> tuple[int, int] | None:
    try:
        # a network file system may answer stat from its cache, but asks the server on open
        with open_regular(file) as opened:
            status = os.fstat(opened.fileno())
    except (OSError, ValueError, Unusable):
        return None
    return status.st_size, status.st_mtime_ns


def find_changed(files: Stamps) -> str | None:
    """Describe the first file that differs from its stamp; None if none differs."""
    for file, stamp in files.items():
        here = _stamp(file)
        if here == stamp:
            continue
        if here is None:
            difference = f"does not see {file}"
        else:
            difference = f"sees a different {file} than the command (other size or time)"
        folder = os.path.dirname(file)
        return (
            f"{difference}: the folder {folder} must be on storage shared by all workers, under the same path"
        )
    return None
