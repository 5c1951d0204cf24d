"""What stands in the signal's place in the controls of a score: nothing, a stranger's, a flat line, noise."""

import numpy as np

from ecgbyte_cli.storage.files import read_array, read_table
from ecgbyte_cli.training.sampling import recording_runs

CONTROLS = ("no signal", "shuffled", "flat line", "noise")


class ControlInputs:
    """ECG tokens of questions: their own, and those of the controls.

    Parameters
    ----------
    work : WorkDir
    tokenizer : ECGTokenizer
    segmenter : str
        The one that made the ids on disk, which the model knows.
    chosen : list
        From `choose`.
    seed : int
    """

    def __init__(self, work, tokenizer, segmenter, chosen, seed):
        self.tokenizer, self.segmenter, self.chosen, self.seed = tokenizer, segmenter, chosen, seed
        self.tokens, self.places = read_array(work.tokens), read_table(work.token_segments)
        segments = read_table(work.symbol_segments)
        self.first_of, self.count_of = recording_runs(segments)
        self.lo, self.hi = segments["lo"], segments["hi"]
        self.flat = tokenizer.flat_line(segmenter)

    def own(self, segment):
        """The ids of a segment."""
        begin = self.places["offset"][segment]
        return self.tokens[begin : begin + self.places["length"][segment]]

    def noise(self, segment):
        """Noise with the spectrum of a segment, through quantizer and merges."""
        letters = self.tokenizer.decode(self.own(segment))
        signal = self.tokenizer.to_mv(letters, self.lo[segment], self.hi[segment])
        random = np.random.default_rng([self.seed, int(segment)])
        return self.tokenizer.encode(spectrum_noise(signal, random), self.segmenter)

    def parts(self, number, every):
        """How many segments a question is asked about: with `every`, all of its recording, if it is about one."""
        segments = self.chosen[number][0].segments
        return int(self.count_of[segments[0]]) if every and len(segments) == 1 else 1

    def of(self, name, part=0):
        """For each question the list of its ECGs' ids, under `signal` or the name of a control.

        With a `part` they are those of that segment of their recordings, or of the last one.
        """
        wanted = [question.segments for question, *_ in self.chosen]
        if name == "no signal":
            return [[np.zeros(0, np.int32)] * len(segments) for segments in wanted]
        if name == "flat line":
            return [[self.flat] * len(segments) for segments in wanted]
        if name == "shuffled":
            wanted = other_patients([patient for *_, patient, _ in self.chosen], wanted, self.seed)
        wanted = [[s + min(part, int(self.count_of[s]) - 1) for s in segments] for segments in wanted]
        made = {s: self.noise(s) if name == "noise" else self.own(s) for segments in wanted for s in segments}
        return [[made[s] for s in segments] for segments in wanted]


def other_patients(patients, segments, seed):
    """For each question the segments of a question about another patient, drawn by seed.

    The questions are laid in a ring, patient by patient, and each looks as far ahead as the patient with most
    questions has some: so no one meets its own patient and each is met once, unless one patient has more than
    half of all; then each draws a stranger of its own. With one patient alone, each gets its own segments.
    """
    random, count = np.random.default_rng(seed), len(patients)
    names, number = np.unique(np.asarray(patients), return_inverse=True)
    most = np.bincount(number).max()
    # patients in an order drawn by lot, and the questions of each too
    ring = random.permutation(count)
    ring = ring[np.argsort(random.permutation(len(names))[number[ring]], kind="stable")]
    met = np.empty(count, np.int64)
    met[ring] = np.roll(ring, -most)
    alone = np.flatnonzero(number[met] == number)  # of the one patient with more than half
    if len(alone) and len(names) > 1:
        met[alone] = random.choice(np.flatnonzero(number != number[alone[0]]), len(alone))
    drawn = []
    for own, other in zip(segments, met, strict=True):
        # a stranger's question may be about fewer segments than this one
        drawn.append(tuple(segments[other][i % len(segments[other])] for i in range(len(own))))
    return drawn


def spectrum_noise(signal, random):
    """Noise with a signal's spectrum: phases shifted at random, by the same angle in all leads.

    So the power of each lead and what the leads have in common stay, and all shape in time goes (Prichard and
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
    turned = np.exp(2j * np.pi * random.random(spectrum.shape[1]))
    turned[0] = 1
    if samples % 2 == 0:
        turned[-1] = 1  # the component at half the rate is real
    return np.fft.irfft(spectrum * turned, samples, axis=1).astype(np.float32)
