"""Locks that let one run at a time write a folder, and the removal of files that killed runs left.

The system releases a lock when its process ends for any reason. So a temporary file without a lock is a leftover.
"""

import glob
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ecgbyte_cli.failure import Failure

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LEFTOVER = re.compile(r"\..+\.([0-9a-f]{12}|\d+)\.(part|old)", re.DOTALL)  # older versions used process ids


@contextmanager
def lock(path: Path, shared: bool = False) -> Iterator[None]:
    """Lock a file or folder: exclusively, or `shared` with other readers.

    The lock is a file next to `path`, removed by the last run that holds it. File systems that have no locks or are
    read-only are not locked.

    Raises
    ------
    Failure
        If another run holds the lock.
    """
    file = None
    if fcntl is not None:
        if not shared:
            path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path, path.with_name(f".{path.name}.lock"), shared)
    try:
        yield
    finally:
        if file is not None:
            with suppress(OSError):  # removed only if no other run holds it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(file.name)
            file.close()


def _locked(path: Path, lock_path: Path, shared: bool) -> IO[str] | None:
    """Return the open, locked file, or None if the file system does not allow it."""
    kind, started = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic()
    while True:
        try:
            file = open(lock_path, "a+")
        except OSError:
            return None
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock_path)):
                return file
        except FileNotFoundError:  # its last holder has just removed it
            pass
        except BlockingIOError:
            if time.monotonic() - started > 1:  # long enough for another run to finish ending
                file.close()
                raise Failure(
                    f"another run of ecgbyte is using {path}: wait until it has ended, or use another folder"
                ) from None
            time.sleep(0.05)
        except OSError:
            file.close()
            return None
        file.close()


def clear_leftovers(folder: Path) -> None:
    """Remove temporary files that killed runs left in a folder and next to it. The caller holds its lock."""
    restore_replaced(folder)
    beside = folder.parent.glob(f".{glob.escape(folder.name)}.*")
    for path in (*beside, *folder.rglob(".*")):
        if LEFTOVER.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def restore_replaced(folder: Path) -> None:
    """Restore a folder whose replacement was interrupted: the run left it under another name."""
    for before in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        if not folder.exists():
            os.replace(before, folder)


@contextmanager
def hold_folder(folder: Path) -> Iterator[bool]:
    """Lock a folder itself during the block, and yield whether this succeeded."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        alone = fcntl is not None
        if alone:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:  # held by another process, or a file system without locks
                alone = False
        yield alone
    finally:
        os.close(handle)
