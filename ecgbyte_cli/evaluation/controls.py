"""Replacements for the signal, as controls for a score: none, another patient's, a flat line, noise."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_cli.readers import Recording
from ecgbyte_cli.signal.measure import measure
from ecgbyte_cli.signal.measured_lines import NOTHING, measured_line
from ecgbyte_cli.signal.segment_lines import segment_lines
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_array, read_table
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.sampling import recording_runs

if TYPE_CHECKING:
    from ecgbyte_cli.questions.question_file import Question

CONTROLS = ("no signal", "shuffled", "flat line", "noise")


class ControlInputs:
    """The ECG tokens for questions, from their own ECG and from each control.

    Parameters
    ----------
    work : WorkDir
    tokenizer : ECGTokenizer
    segmenter : str
        The segmenter used for the ids on disk.
    chosen : list of tuple
        Tuples that start with the question; the patient is the second to last element.
    seed : int
    measured : bool
        Whether the model reads the measured values of the ECG with each question.
    """

    def __init__(
        self,
        work: WorkDir,
        tokenizer: ECGTokenizer,
        segmenter: str,
        chosen: Sequence[tuple],
        seed: int,
        measured: bool = False,
    ) -> None:
        self.tokenizer, self.segmenter, self.chosen, self.seed = tokenizer, segmenter, chosen, seed
        self.tokens, self.places = read_array(work.tokens), read_table(work.token_segments)
        segments = read_table(work.symbol_segments)
        self.first_of, self.count_of = recording_runs(segments)
        self.lo, self.hi = segments["lo"], segments["hi"]
        self.flat = tokenizer.flat_line(segmenter)
        self.measured = segment_lines(work) if measured else None

    def own(self, segment: int) -> np.ndarray:
        """Return the ids of a segment."""
        begin = self.places["offset"][segment]
        return self.tokens[begin : begin + self.places["length"][segment]]

    def noise(self, segment: int) -> np.ndarray:
        """Return the ids of noise with the spectrum of a segment."""
        return self.tokenizer.encode(self._noise_signal(segment), self.segmenter)

    def _noise_signal(self, segment: int) -> np.ndarray:
        """Return noise with the spectrum of a segment: float32 (leads, samples), mV."""
        letters = self.tokenizer.decode(self.own(segment))
        signal = self.tokenizer.to_mv(letters, self.lo[segment], self.hi[segment])
        return spectrum_noise(signal, np.random.default_rng([self.seed, int(segment)]))

    def _noise_line(self, segment: int) -> str:
        """Return the line of values measured in the noise."""
        about = self.tokenizer.signal
        return measured_line(
            measure(Recording(self._noise_signal(segment), about["fs"], about["leads"], "noise", ""))
        )

    def parts(self, number: int, every: bool) -> int:
        """Return how often to ask a question: with `every`, about each segment of its only recording, else once."""
        question: Question = self.chosen[number][0]
        segments = question.segments
        return int(self.count_of[segments[0]]) if every and len(segments) == 1 else 1

    def of(self, name: str, part: int = 0) -> list[list[np.ndarray]]:
        """Return each question's list of ECG ids, for `signal` or a control.

        `part` is the index of the segment in its recording; shorter recordings use their last segment.
        """
        wanted = self._segments(name, part)
        if name == "no signal":
            return [[np.zeros(0, np.int32)] * len(segments) for segments in wanted]
        if name == "flat line":
            return [[self.flat] * len(segments) for segments in wanted]
        ids = {s: self.noise(s) if name == "noise" else self.own(s) for segments in wanted for s in segments}
        return [[ids[s] for s in segments] for segments in wanted]

    def lines(self, name: str, part: int = 0) -> list[list[str]]:
        """Return each question's lines of measured values, for the same ECGs as `of`; empty if not `measured`."""
        wanted, stored = self._segments(name, part), self.measured
        if stored is None:
            return [[] for _ in wanted]
        if name in ("no signal", "flat line"):
            return [[NOTHING] * len(segments) for segments in wanted]
        different = {s for segments in wanted for s in segments}
        lines = {s: self._noise_line(s) if name == "noise" else stored[s] for s in different}
        return [[lines[s] for s in segments] for segments in wanted]

    def _segments(self, name: str, part: int) -> list[list[int]]:
        """Return the segments that each question is asked about for a control."""
        wanted: list[tuple[int, ...]] = [question.segments for question, *_ in self.chosen]
        if name == "shuffled":
            wanted = other_patients([patient for *_, patient, _ in self.chosen], wanted, self.seed)
        return [[s + min(part, int(self.count_of[s]) - 1) for s in segments] for segments in wanted]


def other_patients(
    patients: Sequence[str], segments: Sequence[Sequence[int]], seed: int
) -> list[tuple[int, ...]]:
    """Draw for each question the segments of a question about another patient.

    The questions form a ring, patient by patient, and each one takes the segments a fixed number of places ahead: as
    many as the patient with the most questions has. So no patient gets their own segments, and each question is used
    once. If one patient has more than half of all questions, the questions left over draw another patient's at
    random. With a single patient each question keeps its own segments.
    """
    random, count = np.random.default_rng(seed), len(patients)
    names, number = np.unique(np.asarray(patients), return_inverse=True)
    most = np.bincount(number).max()
    # patients in random order, and each patient's questions too
    ring = random.permutation(count)
    ring = ring[np.argsort(random.permutation(len(names))[number[ring]], kind="stable")]
    partner = np.empty(count, np.int64)
    partner[ring] = np.roll(ring, -most)
    alone = np.flatnonzero(number[partner] == number)  # questions of the one patient with more than half
    if len(alone) and len(names) > 1:
        partner[alone] = random.choice(np.flatnonzero(number != number[alone[0]]), len(alone))
    drawn = []
    for own, other in zip(segments, partner, strict=True):
        # the other question may have fewer segments
        drawn.append(tuple(segments[int(other)][i % len(segments[int(other)])] for i in range(len(own))))
    return drawn


def spectrum_noise(signal: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return noise with a signal's spectrum: random phase shifts, equal in all leads.

    This keeps the power of each lead and the correlation between leads, but not the shape in time (Prichard and
    Theiler 1994, Generating surrogate data for time series with several simultaneously measured variables).

    Parameters
    ----------
    signal : numpy.ndarray
        (leads, samples), mV.
    random : numpy.random.Generator

    Returns
    -------
    numpy.ndarray
        float32 (leads, samples), mV; each lead keeps its mean.
    """
    spectrum, samples = np.fft.rfft(signal, axis=1), signal.shape[1]
    shift = np.exp(2j * np.pi * random.random(spectrum.shape[1]))
    shift[0] = 1
    if samples % 2 == 0:
        shift[-1] = 1  # the component at half the rate is real
    return np.fft.irfft(spectrum * shift, samples, axis=1).astype(np.float32)
