"""Numba functions on flat arrays: no files, no classes, no printing."""

from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path

import numba

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def jit(function=None, **options):
    """`numba.njit` that releases the GIL and caches on disk, where the cache folder can be written."""

    def compile_lazily(function):
        try:
            return _one_at_a_time(numba.njit(cache=True, nogil=True, **options)(function))
        except RuntimeError:  # numba: "cannot cache function: no locator available"
            return numba.njit(nogil=True, **options)(function)

    return compile_lazily if function is None else compile_lazily(function)


@lru_cache
def _stamp_of_kernels():
    """A value that changes when a file of this folder does."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _one_at_a_time(compiled):
    """Let one process at a time use the cache of a function.

    Numba saves an entry in two steps, the index and then the code. Where two processes compile a function for
    different types at the same moment, the index can be left with the other's code for a type, for good.
    """
    file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if file is None or fcntl is None:  # NUMBA_DISABLE_JIT, or Windows
        return compiled
    path = Path(file._cache_path) / "ecgbyte.lock"
    # Numba looks at the function's own file alone, and a kernel may call those of the files beside it
    file._source_stamp = file._source_stamp, _stamp_of_kernels()

    def locked(call):
        def alone(*args):
            with ExitStack() as held:
                # no folder yet, none that can be written, or a file system without locks: goes on without
                with suppress(OSError):
                    fcntl.flock(held.enter_context(open(path, "w")), fcntl.LOCK_EX)
                return call(*args)

        return alone

    file.load, file.save = locked(file.load), locked(file.save)
    return compiled
