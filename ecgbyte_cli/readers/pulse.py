"""Remove the calibration pulse that some recorders write before or after the ECG."""

from datetime import timedelta

import numpy as np

from ecgbyte_cli.readers.recording import DERIVED, Recording, lead_name

LONGEST = 2.0  # s, of a pulse
HELD, SAMPLES = 0.02, 5  # s and samples, the shortest stay at each of its two levels
LOWEST = 0.35  # mV; pulses are of 0.5, 1 or 2 mV
APART = 0.025  # mV, the largest difference between leads with the same pulse: five usual steps of 5 uV
LEVEL = 0.06  # tolerance around each level, as a share of the pulse's height
FLAT = 0.9  # share of the samples within the tolerance


def without_pulse(recording: Recording) -> Recording:
    """Cut off the calibration pulse at either end of a recording, if there is one.

    A pulse has two levels (0, 1 mV, 0) and is the same in all recorded leads. ECG leads differ unless all are flat. So
    a recording of a single lead stays as it is.
    """
    signal = recording.signal
    rows = [i for i, lead in enumerate(recording.leads) if lead_name(lead) not in DERIVED]
    if len(rows) < 2:
        rows = list(range(len(signal)))
    if len(rows) < 2:
        return recording
    # one sample longer than a pulse: leads that do not differ within it are copies of each other
    longest = int(LONGEST * recording.fs) + 1
    before = _pulse(signal[:, :longest][:, ::-1], rows, recording.fs)
    after = _pulse(signal[:, max(before, signal.shape[1] - longest) :], rows, recording.fs)
    if before and recording.start is not None:
        recording.start += timedelta(seconds=before / recording.fs)
    if before or after:
        recording.signal = np.ascontiguousarray(signal[:, before : signal.shape[1] - after])
    return recording


def _pulse(signal: np.ndarray, rows: list[int], fs: float) -> int:
    """Return the number of samples of a calibration pulse at the end of a short signal, in the leads `rows`.

    `signal` is (leads, samples).
    """
    held = max(int(HELD * fs), SAMPLES)
    if _differing(signal[rows, -2 * held :]).size:  # as in nearly every recording, which is quick to see
        return 0
    signal = signal[rows]
    differ = _differing(signal)
    if not differ.size:
        return 0
    course = np.median(signal[:, differ[-1] + 1 :], axis=0)
    height = np.ptp(course)
    high = course > course.min() + height / 2
    # the first may be shortened by ECG samples that happen to be equal
    lengths = np.diff([0, *np.flatnonzero(np.diff(high)) + 1, high.size])[1:]
    if height < LOWEST or lengths.size == 0 or lengths.min() < held:
        return 0
    for part in (course[high], course[~high]):
        near = np.abs(part - np.median(part)) <= LEVEL * height
        if part.size < held or near.mean() < FLAT:
            return 0
    return course.size


def _differing(signal: np.ndarray) -> np.ndarray:
    """Return the samples at which leads differ, or a value is missing; `signal` is (leads, samples)."""
    return np.flatnonzero(~(np.ptp(signal, axis=0) <= APART))
