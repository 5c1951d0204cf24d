"""The sizes and times of files, by which two machines tell whether they see the same ones."""

import os
from collections.abc import Iterable

from ecgbyte_cli.readers.recording import Unusable, open_regular

Files = Iterable[str | os.PathLike]
Stamps = dict[str, tuple[int, int] | None]  # of absolute paths: size and time (ns); None: cannot be opened


def file_stamps(files: Files) -> Stamps:
    """Return the size and the time (ns) of files, by their absolute paths; None for one that cannot be opened."""
    return {os.path.abspath(file): _stamp(file) for file in dict.fromkeys(files)}


def _stamp(file: str | os.PathLike) -> tuple[int, int] | None:
    try:
        # opened, because a network file system asks its server then, and may answer a bare stat from memory
        with open_regular(file) as opened:
            about = os.fstat(opened.fileno())
    except (OSError, ValueError, Unusable):
        return None
    return about.st_size, about.st_mtime_ns


def find_changed(files: Stamps) -> str | None:
    """Say how the first file that differs here from its stamp does so; None if none differs."""
    for file, stamp in files.items():
        found = _stamp(file)
        if found == stamp:
            continue
        if found is None:
            what = f"does not see {file}"
        else:
            what = f"sees another {file} than the command does (other size or time)"
        folder = os.path.dirname(file)
        return f"{what}: the folder {folder} must be on storage that all workers share, under the same path"
    return None
