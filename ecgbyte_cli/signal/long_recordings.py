"""The segments of a long recording: each is read and preprocessed when it is asked for."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecgbyte_cli.readers.recording import Recording, Unusable
from ecgbyte_cli.readers.stored import StoredSignal
from ecgbyte_cli.signal import preprocess

MARGIN = 2  # segments on each side that the filters see too
TRIED = 60  # segments from the start, among which the first that can be used is sought


def is_stored(recording: Recording) -> bool:
    """Return whether the signal of a recording stays in its file."""
    return isinstance(recording.signal, StoredSignal)


class StoredSegments(Sequence[tuple[float, np.ndarray]]):
    """The segments of a long recording, as `preprocess.segments` returns those of others.

    The filters see two segments on each side of the one that is asked for, instead of the whole recording.

    Parameters
    ----------
    recording : Recording
    settings : dict
        See `preprocess.segments`.

    Raises
    ------
    Unusable
        If a segment that is asked for cannot be used.
    """

    def __init__(self, recording: Recording, settings: dict[str, Any]):
        self.recording, self.settings = recording, settings
        made = preprocess.samples_made(recording.signal.shape[1], recording.fs, settings["fs"])
        self._count = made // settings["samples"]
        self._last: tuple[int, tuple[float, np.ndarray]] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        """Return start (s) and signal (float32 (leads, samples), mV) of a segment."""
        if not 0 <= number < self._count:
            raise IndexError(number)
        last = self._last  # another thread may replace it
        if last is None or last[0] != number:
            self._last = last = number, self._made(number)
        return last[1]

    def first(self) -> int:
        """Return the number of the first segment that can be used: electrodes may come late."""
        for number in range(min(TRIED, self._count)):
            try:
                _ = self[number]
            except Unusable:
                continue
            return number
        _ = self[0]
        return 0

    def _made(self, number: int) -> tuple[float, np.ndarray]:
        seconds = self.settings["samples"] / self.settings["fs"]
        first, end = max(0, number - MARGIN), min(self._count, number + 1 + MARGIN)
        try:
            return number * seconds, self._cut(first, end, seconds)[number - first][1]
        except Unusable:  # perhaps because of what is beside it
            return number * seconds, self._cut(number, number + 1, seconds)[0][1]

    def _cut(self, first: int, end: int, seconds: float) -> list[tuple[float, np.ndarray]]:
        slack = 2 / self.recording.fs  # the ends are rounded to samples
        part = self.recording.part(first * seconds, end * seconds + slack)
        segments = preprocess.segments(part, self.settings)
        if len(segments) < end - first:
            raise Unusable("shorter than a segment")
        return segments
