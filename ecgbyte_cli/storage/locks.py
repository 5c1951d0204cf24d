"""One run at a time in a folder, and what killed runs left there.

A lock goes with the process that holds it, however that ends: so what is locked is being written, and what is not
has been left.
"""

import glob
import os
import re
import shutil
import time
from contextlib import contextmanager, suppress

from ecgbyte_cli.failure import Failure

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LEFTOVER = re.compile(r"\..+\.([0-9a-f]{12}|\d+)\.(part|old)", re.DOTALL)  # older versions: a process id


@contextmanager
def lock(path, shared=False):
    """Hold a file or folder for this run: alone, or `shared` with others that only read it.

    The lock is a file beside it, gone when the last run leaves. Where the file system has no locks or cannot
    be written there is none.

    Raises
    ------
    Failure
        If another run holds it.
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
            with suppress(OSError):  # the last to leave is alone with it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(file.name)
            file.close()


def _locked(path, place, shared):
    """The open lock file, or None where there can be none."""
    kind, started = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, time.monotonic()
    while True:
        try:
            file = open(place, "a+")
        except OSError:
            return None
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(place)):
                return file
        except FileNotFoundError:  # who left took it away meanwhile
            pass
        except BlockingIOError:
            if time.monotonic() - started > 1:  # whoever is just leaving is gone by then
                file.close()
                raise Failure(
                    f"another run of ecgbyte is at work on {path}: wait until it has ended, or use another folder"
                ) from None
            time.sleep(0.05)
        except OSError:
            file.close()
            return None
        file.close()


def clear_leftovers(folder):
    """Remove what killed runs left of files and folders inside and of the folder itself, which nobody writes now."""
    restore_replaced(folder)
    beside = folder.parent.glob(f".{glob.escape(folder.name)}.*")
    for place in (*beside, *folder.rglob(".*")):
        if LEFTOVER.fullmatch(place.name):
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)


def restore_replaced(folder):
    """A run that was killed while it replaced the folder has left the one before under another name."""
    for before in folder.parent.glob(f".{glob.escape(folder.name)}.*.old"):
        if not folder.exists():
            os.replace(before, folder)


@contextmanager
def hold_folder(folder):
    """Hold a folder itself while the block runs; yields whether no other process does."""
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
            except OSError:  # held, or a file system without locks
                alone = False
        yield alone
    finally:
        os.close(handle)
