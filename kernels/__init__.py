"""Numba functions on flat arrays: no files, no classes, no printing."""

import numba


def jit(function=None, **options):
    """`numba.njit` that releases the GIL and caches on disk, where the cache folder can be written."""

    def compile_lazily(function):
        try:
            return numba.njit(cache=True, nogil=True, **options)(function)
        except RuntimeError:  # numba: "cannot cache function: no locator available"
            return numba.njit(nogil=True, **options)(function)

    return compile_lazily if function is None else compile_lazily(function)
