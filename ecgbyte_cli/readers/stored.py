"""The signal of a long recording, read from its file as far as it is asked for."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np

LONG_SECONDS, LONG_SAMPLES = 3600.0, 2**23  # of a recording that is not read as a whole; samples of all leads


class StoredSignal:
    """A signal that stays in its file: `signal[:, a:b]` and `signal[lead, a:b]` read a part as an array.

    Parameters
    ----------
    shape : (int, int)
        Leads and samples.
    read : callable
        Takes the first sample and the sample after the last; returns float32 (leads, samples) in mV.
    """

    dtype, ndim, nbytes = np.dtype(np.float32), 2, 0  # nothing of it is kept in memory

    def __init__(self, shape: tuple[int, int], read: Callable[[int, int], np.ndarray]):
        self.shape, self._read = shape, read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: tuple[Any, slice]) -> np.ndarray:
        """Return a part, float32.

        Raises
        ------
        Unusable
            If the file has become shorter, or the part is too large for memory.
        """
        leads, samples = index
        start, stop, step = samples.indices(self.shape[1])
        if start >= stop:
            return np.zeros((self.shape[0], 0), np.float32)[leads]
        return self._read(start, stop)[leads, ::step]


def stored_signal(leads: int, samples: int, read: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Return a `StoredSignal` as the signal of a `Recording`, for code that takes parts of it."""
    return cast(np.ndarray, StoredSignal((leads, samples), read))


def is_long(leads: int, samples: int, fs: float) -> bool:
    """Return whether a recording is so long that only parts of it are read."""
    return samples > LONG_SECONDS * fs or leads * samples > LONG_SAMPLES
