"""Numba functions on flat arrays: no files, no classes, no printing."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


# The result is Any for the type checker: Numba passes its integers where Python's are declared.
def jit(function: Callable | None = None, **options: Any) -> Any:
    """Compile lazily with `numba.njit`, without the GIL, cached on disk if the cache folder can be written."""

    def compile_lazily(function: Callable) -> Any:
        try:
            return _one_at_a_time(numba.njit(cache=True, nogil=True, **options)(function))
        except RuntimeError:  # numba: "cannot cache function: no locator available"
            return numba.njit(nogil=True, **options)(function)

    return compile_lazily if function is None else compile_lazily(function)


@lru_cache
def _stamp_of_kernels() -> tuple[tuple[str, int, int], ...]:
    """Return a value that changes when a file of this folder does."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _one_at_a_time(compiled: Any) -> Any:
    """Let one process at a time use the cache of a function.

    Numba saves an entry in two steps, the index and then the code. If two processes compile a function for different
    types at the same moment, the index can keep the other's code for a type, for good.
    """
    file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if file is None or fcntl is None:  # NUMBA_DISABLE_JIT, or Windows
        return compiled
    path = Path(file._cache_path) / "ecgbyte.lock"
    # Numba checks only the function's own file, and a kernel may call kernels of other files
    file._source_stamp = file._source_stamp, _stamp_of_kernels()

    def locked(call: Callable) -> Callable:
        def alone(*args: Any) -> Any:
            with ExitStack() as stack:
                # no folder yet, a read-only one, or a file system without locks: continue without
                with suppress(OSError):
                    fcntl.flock(stack.enter_context(open(path, "w")), fcntl.LOCK_EX)
                return call(*args)

        return alone

    file.load, file.save = locked(file.load), locked(file.save)
    return compiled
