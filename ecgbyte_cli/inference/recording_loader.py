"""Read recordings with a model's own settings."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.conversation import ECG
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.long_recordings import StoredSegments, is_stored
from ecgbyte_cli.signal.tokenizer import ECGTokenizer


@dataclass
class RecordingLoader:
    """Read recordings with a model's own settings."""

    tokenizer: ECGTokenizer
    segmenter: str
    fs: float | None = None
    lead_names: list[str] | None = None
    units: str | None = None
    keep_identity: bool = False

    def read(self, path: str | os.PathLike) -> ECG:
        """Read, preprocess and encode a recording; return the ECG of its first segment."""
        try:
            recording = readers.read_recording(path, *self._options(), parts=True)
            if is_stored(recording):
                segments = StoredSegments(recording, self.tokenizer.signal)
                return self.segment(recording, segments, segments.first())
            return self.segment(recording, preprocess.segments(recording, self.tokenizer.signal), 0)
        except readers.Unusable as error:
            exists = error.message != "not a known format" or os.path.exists(path)
            reason = error if exists else readers.Unusable("no such recording")
            raise Failure(reason.about(os.fspath(path))) from error

    def _options(self) -> tuple[float | None, list[str] | None, str | None, bool]:
        return self.fs, self.lead_names, self.units, self.keep_identity

    def segments(self, path: str | os.PathLike) -> tuple[readers.Recording, list[tuple[float, np.ndarray]]]:
        """Read and preprocess a recording; return it with its segments, or raise Unusable with the reason alone."""
        recording = readers.read_recording(path, *self._options())
        return recording, preprocess.segments(recording, self.tokenizer.signal)

    def segment(
        self, recording: readers.Recording, segments: Sequence[tuple[float, np.ndarray]], number: int
    ) -> ECG:
        """Encode one segment of a recording."""
        tokens = self.tokenizer.encode(segments[number][1], self.segmenter)
        return ECG(recording, segments, number, tokens, self.tokenizer)
