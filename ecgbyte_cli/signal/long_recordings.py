"""The segments of a long recording: each is read and preprocessed on demand."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ecgbyte_cli.readers.recording import Recording, Unusable
from ecgbyte_cli.readers.stored import StoredSignal
from ecgbyte_cli.signal import preprocess

MARGIN = 2  # neighbouring segments that are filtered together with it, on each side
TRIED = 60  # segments from the start that are searched for the first usable one


def is_stored(recording: Recording) -> bool:
    """Return whether the signal of a recording stays in its file."""
    return isinstance(recording.signal, StoredSignal)


class StoredSegments(Sequence[tuple[float, np.ndarray]]):
    """The segments of a long recording, with the same interface as the result of `preprocess.segments`.

    A segment is filtered together with two neighbours on each side, instead of the whole recording.

    Parameters
    ----------
    recording : Recording
    settings : dict
        See `preprocess.segments`.

    Raises
    ------
    Unusable
        If a requested segment cannot be used.
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
        """Return the index of the first usable segment: electrodes may be attached late."""
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
        except Unusable:  # perhaps because of a neighbouring segment
            return number * seconds, self._cut(number, number + 1, seconds)[0][1]

    def _cut(self, first: int, end: int, seconds: float) -> list[tuple[float, np.ndarray]]:
        slack = 2 / self.recording.fs  # the ends are rounded to whole samples
        part = self.recording.part(first * seconds, end * seconds + slack)
        segments = preprocess.segments(part, self.settings)
        if len(segments) < end - first:
            raise Unusable("shorter than a segment")
        return segments
