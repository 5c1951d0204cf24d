"""Twins of a recording: the same recording with a part of its information replaced, as controls for any model."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np

from ecgbyte_cli.evaluation.controls import spectrum_noise
from ecgbyte_cli.signal.preprocess import LEADS

SIGNAL, OTHER = "signal", "other-patient"
STRETCH = 0.25  # share of a recording that `stretch-flat` flattens

Made = tuple[np.ndarray, str]  # float32 (leads, samples) in mV, and how it was made


def _flat_line(signal: np.ndarray, random: np.random.Generator) -> Made:
    return np.zeros_like(signal), "0 mV in all leads"


def _noise(signal: np.ndarray, random: np.random.Generator) -> Made:
    return spectrum_noise(signal, random), "noise with the spectrum of each lead"


def _leads_shuffled(signal: np.ndarray, random: np.random.Generator) -> Made:
    order = np.arange(len(signal))
    while (order == np.arange(len(signal))).any():  # no lead keeps its place
        order = random.permutation(len(signal))
    return signal[order], f"leads in the order {' '.join(LEADS[i] for i in order)}"


def _stretch_flat(signal: np.ndarray, random: np.random.Generator) -> Made:
    samples = signal.shape[1]
    length = max(1, round(STRETCH * samples))
    start = int(random.integers(samples - length + 1))
    flat = signal.copy()
    flat[:, start : start + length] = np.median(signal, axis=1, keepdims=True)
    return flat, f"each lead at its median from sample {start} to {start + length}"


MAKERS: dict[str, Callable[[np.ndarray, np.random.Generator], Made]] = {
    "flat-line": _flat_line,
    "noise": _noise,
    "leads-shuffled": _leads_shuffled,
    "stretch-flat": _stretch_flat,
}
# twins without the patient's own ECG: answers to these count as controls
ABSENT = ("flat-line", "noise", OTHER)
# twins with a part of it: answers to these show how much a model depends on the leads and on the whole recording
PARTIAL = ("leads-shuffled", "stretch-flat")
CONTROLS = (SIGNAL, *ABSENT, *PARTIAL)


def make_twin(control: str, signal: np.ndarray, seed: Sequence[int]) -> Made:
    """Return a twin of a recording, and a description of how it was made.

    Parameters
    ----------
    control : str
        `signal` (the recording itself) or a key of `MAKERS`.
    signal : numpy.ndarray
        float32 (12, samples), mV, in the order of `LEADS`.
    seed : sequence of int
        Seed of this recording, from `recording_seed`; each control derives its own.
    """
    if control == SIGNAL:
        return signal, "the recording itself"
    random = np.random.default_rng([*seed, CONTROLS.index(control)])
    return MAKERS[control](signal, random)


def recording_seed(seed: int, name: str) -> list[int]:
    """Return the seed of a recording, which depends only on the general seed and the recording's name."""
    return [seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])]
