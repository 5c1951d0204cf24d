"""Find the boundaries of the P wave, QRS complex and T wave on a median beat, from all leads together.

A median beat from `beats.median_beat` has the shape (700, leads) at 500 Hz, with its R peak at sample 300. All
thresholds are relative to the amplitude or noise of the beat itself, so scaling the signal does not change the
result. A boundary that is not found is -1.
"""

import numpy as np

from ecgbyte_kernels import jit
from ecgbyte_kernels.beats import AFTER, BEFORE, RATE, without_line

# QRS: fraction of the steepest slope, fraction of the amplitude (1/ms), multiple of the noise, samples in a row
ON_PEAK, ON_AMPLITUDE, ON_NOISE, ON_RUN = 0.02, 0.0013, 2.5, 4
OFF_PEAK, OFF_AMPLITUDE, OFF_NOISE, OFF_RUN = 0.03, 0.0036, 1.2, 8
SLOPE_REACH = 5  # samples on either side of the point where a slope is fitted
# T, in s at an RR interval of 1 s; they scale with the square root of the RR interval
T_CENTRE, T_SPREAD, T_LATEST, T_REACH = 0.30, 0.08, 0.62, 0.18
T_LEAST = 0.02  # fraction of the QRS amplitude; leads with a lower T wave are ignored
T_SHIFT = 2.5  # samples to add, because the mean of trapezium and tangent is early
# P, in samples
P_GAP, P_HOLD, P_BOX, P_FLANK = 9, 4, 7, 25
P_REACH_ON, P_REACH_OFF = 40, 27
COPY_HALF, COPY_NEAREST, COPY_FARTHEST = 30, 75, 145  # flutter: 207 to 400 waves a minute
P_LEAST = 0.3  # fraction of the highest P wave; leads with a lower P wave are ignored


def _checked(beat: np.ndarray) -> np.ndarray:
    """Return a median beat as a contiguous float64 array, or raise ValueError."""
    beat = np.ascontiguousarray(beat, float)
    if beat.ndim != 2 or beat.shape[0] != BEFORE + AFTER or not beat.shape[1]:
        raise ValueError(f"a median beat is ({BEFORE + AFTER}, leads), not {beat.shape}")
    if not np.isfinite(beat).all():
        raise ValueError("a median beat must be finite: fill its ends first")
    return beat


def qrs_bounds(beat: np.ndarray) -> tuple[int, int, float]:
    """Find the onset and offset of the QRS complex.

    The slope of each lead is fitted by least squares over eleven samples. The leads are combined as the root of
    the sum of their squared slopes. The search starts at the steepest sample and goes outwards. The onset is
    where the slope stays below a threshold for 8 ms, the offset where it does so for 16 ms.

    Parameters
    ----------
    beat : numpy.ndarray
        float64 (700, leads), mV.

    Returns
    -------
    onset, offset : int
        Samples of the beat, -1 if not found.
    amplitude : float
        Root sum of squares of the leads' peak-to-peak heights, mV.

    Raises
    ------
    ValueError
        If the shape is wrong or a value is not finite.
    """
    return _qrs_bounds(_checked(beat))


@jit
def _slope(x: np.ndarray) -> np.ndarray:
    """Return the root sum of squares of the leads' slopes, in mV/ms."""
    n, leads = x.shape
    norm = 0.0
    for k in range(1, SLOPE_REACH + 1):
        norm += 2.0 * k * k
    out = np.zeros(n)
    for i in range(n):
        for lead in range(leads):
            slope = 0.0
            for k in range(1, SLOPE_REACH + 1):
                slope += k * (x[min(i + k, n - 1), lead] - x[max(i - k, 0), lead])
            out[i] += (slope / norm * RATE / 1000) ** 2
        out[i] = np.sqrt(out[i])
    return out


@jit
def _quietest(v: np.ndarray, first: int, last: int, size: int) -> float:
    """Return the lowest mean of `size` values in a row."""
    lowest = np.inf
    for i in range(first, last - size + 1):
        lowest = min(lowest, v[i : i + size].mean())
    return lowest


@jit
def _first_below(v: np.ndarray, start: int, step: int, threshold: float, run: int) -> int:
    """Return the first of `run` values in a row below a threshold, walking from `start`, or -1."""
    i, count = start, 0
    while 0 <= i < v.size:
        count = count + 1 if v[i] < threshold else 0
        if count == run:
            return i - step * (run - 1)
        i += step
    return -1


@jit
def _qrs_bounds(x: np.ndarray) -> tuple[int, int, float]:
    v = _slope(x)
    square = 0.0
    for lead in range(x.shape[1]):
        part = x[BEFORE - 50 : BEFORE + 60, lead]
        square += (part.max() - part.min()) ** 2
    amplitude = np.sqrt(square)
    peak = BEFORE - 50 + int(np.argmax(v[BEFORE - 50 : BEFORE + 50]))
    before = _quietest(v, BEFORE - 120, BEFORE - 20, 20)
    after = _quietest(v, BEFORE + 40, BEFORE + 150, 20)
    threshold = max(ON_PEAK * v[peak], ON_AMPLITUDE * amplitude, ON_NOISE * before)
    onset = _first_below(v, peak, -1, threshold, ON_RUN)
    threshold = max(OFF_PEAK * v[peak], OFF_AMPLITUDE * amplitude, OFF_NOISE * after)
    offset = _first_below(v, peak, 1, threshold, OFF_RUN)
    return onset, offset, amplitude


@jit
def _end_by_trapezium(wave: np.ndarray) -> int:
    """Return the index of the end of a wave that begins at its peak, or -1.

    Let m be the steepest sample. The end is the sample i after m for which the trapezium with the corners
    (m, wave[m]), (i, wave[i]) and the last sample is largest: Vázquez-Seisdedos, Neto, Marañón Reyes, Klautau &
    Limão de Oliveira, "New approach for T-wave end detection on electrocardiogram: performance in noisy
    conditions", BioMed. Eng. OnLine 10 (2011) 77.
    """
    sign = 1.0 if wave[0] >= wave[-1] else -1.0
    steepest = _steepest(wave, sign)
    if steepest >= wave.size - 2:
        return -1
    best, end = -1.0, steepest
    for i in range(steepest, wave.size):
        area = 0.5 * sign * (wave[steepest] - wave[i]) * (2 * (wave.size - 1) - i - steepest)
        if area > best:
            best, end = area, i
    return end


@jit
def _steepest(wave: np.ndarray, sign: float) -> int:
    """Return the index where the wave falls most steeply."""
    best, place = -np.inf, 0
    for i in range(wave.size):
        a, b = max(i - 1, 0), min(i + 1, wave.size - 1)
        fall = -sign * (wave[b] - wave[a]) / (b - a)
        if fall > best:
            best, place = fall, i
    return place


@jit
def _end_by_tangent(wave: np.ndarray, base: float) -> float:
    """Return where the steepest tangent of a wave that begins at its peak meets the baseline, or -1."""
    sign = 1.0 if wave[0] >= base else -1.0
    m = _steepest(wave, sign)
    a, b = max(m - 1, 0), min(m + 1, wave.size - 1)
    fall = -sign * (wave[b] - wave[a]) / (b - a)
    if fall <= 0:
        return -1.0
    return min(max(m + sign * (wave[m] - base) / fall, float(m)), float(wave.size - 1))


def t_bounds(low: np.ndarray, offset: int, rr: float, last: int, amplitude: float) -> tuple[int, float]:
    """Find the peak and end of the T wave.

    The peak is where the leads together are farthest from their resting level. Samples near the expected peak,
    300 ms times the square root of the RR interval in s, weigh more. In each lead with a T wave, the end is the
    mean of the trapezium and tangent estimates. The result is the median over these leads plus 5 ms.

    Parameters
    ----------
    low : numpy.ndarray
        float64 (700, leads), the median beat after a zero-phase low-pass filter at 20 Hz.
    offset : int
        Offset of the QRS complex.
    rr : float
        Usual RR interval in samples.
    last : int
        Last measured sample of the beat.
    amplitude : float
        Amplitude of the QRS complex in mV, from `qrs_bounds`.

    Returns
    -------
    peak : int
        -1 if there is no room for a T wave.
    end : float
        -1 if no lead has a T wave.
    """
    if not (0 <= offset < BEFORE + AFTER and rr > 0 and 0 <= last < BEFORE + AFTER):
        raise ValueError(f"offset {offset}, RR interval {rr} and last sample {last} do not fit a median beat")
    return _t_bounds(_checked(low), offset, float(rr), last, amplitude)


@jit
def _t_bounds(x: np.ndarray, offset: int, rr: float, last: int, amplitude: float) -> tuple[int, float]:
    leads = x.shape[1]
    root = np.sqrt(rr / RATE) * RATE
    start = offset + 20
    stop = int(min(float(last), BEFORE + T_LATEST * root, BEFORE + 0.72 * rr))
    if stop - start < 40:
        return -1, -1.0
    peak, highest = start, -1.0
    rest = np.empty(leads)
    for lead in range(leads):
        rest[lead] = x[stop - 15 : stop, lead].mean()
    for i in range(start, stop):
        square = 0.0
        for lead in range(leads):
            square += (x[i, lead] - rest[lead]) ** 2
        z = (i - BEFORE - T_CENTRE * root) / (T_SPREAD * root)
        height = np.sqrt(square) * np.exp(-0.5 * z * z)
        if height > highest:
            peak, highest = i, height
    stop = min(stop, peak + int(T_REACH * root))
    first, end = max(peak - 25, 0), min(peak + 26, stop - 10)
    ends, count = np.empty(leads), 0
    for lead in range(leads):
        base = x[stop - 8 : stop + 1, lead].mean()
        top = -1
        for i in range(first, end):
            if top < 0 or abs(x[i, lead] - base) > abs(x[top, lead] - base):
                top = i
        if top < 0 or abs(x[top, lead] - base) < T_LEAST * amplitude:
            continue
        wave = x[top : stop + 1, lead]
        one, two = _end_by_trapezium(wave), _end_by_tangent(wave, base)
        if one >= 0 and two >= 0:
            ends[count] = top + (one + two) / 2
            count += 1
    return peak, np.median(ends[:count]) + T_SHIFT if count else -1.0


def hold(beat: np.ndarray, onset: int) -> np.ndarray:
    """Replace the QRS complex and all that follows it by the level just before the onset.

    A low-pass filter then cannot smear the complex into the P wave.

    Parameters
    ----------
    beat : numpy.ndarray
        float64 (700, leads).
    onset : int
        Onset of the QRS complex, at least 10.

    Returns
    -------
    numpy.ndarray
        float64 (700, leads).
    """
    if not 10 <= onset < BEFORE + AFTER:
        raise ValueError(f"onset {onset} does not fit a median beat")
    held = _checked(beat).copy()
    at = onset - P_HOLD
    held[at:] = held[at - 2 : at + 1].mean(axis=0)
    return held


def p_bounds(low: np.ndarray, onset: int, first: int) -> tuple[int, float, float]:
    """Find the peak, onset and offset of the P wave.

    The search does not decide whether there is a P wave: see `beats.agreement`. The peak is where the leads
    together stand out most from the signal 50 ms before and after. The onset is the median of three estimates:

    1. the median over the leads of the trapezium estimate;
    2. the trapezium estimate on the sum of the leads, weighted by their heights at the peak;
    3. where the velocity of all leads falls below a quarter of its maximum.

    The offset is the mean of the first two estimates.

    Parameters
    ----------
    low : numpy.ndarray
        float64 (700, leads): the median beat after `hold` and a zero-phase low-pass filter at 25 Hz.
    onset : int
        Onset of the QRS complex.
    first : int
        Sample where the search begins, after the T wave of the previous beat.

    Returns
    -------
    peak : int
        -1 if there is no room for a P wave.
    start, end : float
        -1 if not found.
    """
    if not (0 <= first and onset < BEFORE + AFTER):
        raise ValueError(f"first {first} and onset {onset} do not fit a median beat")
    return _p_bounds(_checked(low), onset, first)


@jit
def _hats(x: np.ndarray) -> np.ndarray:
    """Return the mean of 15 samples minus the average of the means 50 ms before and after."""
    n, leads = x.shape
    smooth, out = np.empty((n, leads)), np.empty((n, leads))
    for lead in range(leads):
        total = np.zeros(n + 1)
        total[1:] = np.cumsum(x[:, lead])
        for i in range(n):
            a, b = max(0, i - P_BOX), min(n, i + P_BOX + 1)
            smooth[i, lead] = (total[b] - total[a]) / (b - a)
    for i in range(n):
        for lead in range(leads):
            flanks = smooth[max(i - P_FLANK, 0), lead] + smooth[min(i + P_FLANK, n - 1), lead]
            out[i, lead] = smooth[i, lead] - 0.5 * flanks
    return out


@jit
def _p_bounds(x: np.ndarray, onset: int, first: int) -> tuple[int, float, float]:
    leads = x.shape[1]
    begin, end = first + 12, onset - P_GAP - 6
    if end - begin < 12:
        return -1, -1.0, -1.0
    hats = _hats(x)
    peak, highest = begin, -1.0
    for i in range(begin, end):
        square = 0.0
        for lead in range(leads):
            square += hats[i, lead] ** 2
        if square > highest:
            peak, highest = i, square
    if highest <= 0:
        return -1, -1.0, -1.0
    joined = np.zeros(x.shape[0])
    for i in range(x.shape[0]):
        for lead in range(leads):
            joined[i] += x[i, lead] * hats[peak, lead] / np.sqrt(highest)
    a = max(first, peak - 15)
    top = a + int(np.argmax(joined[a : min(onset - 6, peak + 16)]))
    earliest, latest = max(first, top - P_REACH_ON), min(onset - 2, top + P_REACH_OFF)
    heights = np.empty(leads)
    for lead in range(leads):
        heights[lead] = x[top, lead] - 0.5 * (x[earliest, lead] + x[latest, lead])
    least = P_LEAST * np.abs(heights).max()
    starts, ends, begun, ended = np.empty(leads), np.empty(leads), 0, 0
    for lead in range(leads):
        if abs(heights[lead]) < least:
            continue
        sign = 1.0 if heights[lead] >= 0 else -1.0
        a = max(earliest + 1, top - 12)
        own = a + int(np.argmax(sign * x[a : min(latest, top + 13), lead]))
        start, stop = _both_ends(x[:, lead], own, earliest, latest)
        if start >= 0:
            starts[begun] = start
            begun += 1
        if stop >= 0:
            ends[ended] = stop
            ended += 1
    start, stop = _both_ends(joined, top, earliest, latest)
    return (
        peak,
        _together(starts[:begun], start, _velocity_start(x, earliest, top), True),
        _together(ends[:ended], stop, -1, False),
    )


@jit
def _both_ends(wave: np.ndarray, top: int, earliest: int, latest: int) -> tuple[int, int]:
    """Return the start and end of a wave by the trapezium, -1 if not found."""
    start = stop = -1
    if top - earliest >= 5:
        found = _end_by_trapezium(wave[earliest : top + 1][::-1])
        start = top - found if found >= 0 else -1
    if latest - top >= 5:
        found = _end_by_trapezium(wave[top : latest + 1])
        stop = top + found if found >= 0 else -1
    return start, stop


@jit
def _velocity_start(x: np.ndarray, earliest: int, top: int) -> int:
    """Return the last sample before the fastest rise with less than a quarter of its velocity, or -1."""
    v = np.zeros(top)
    for i in range(max(1, earliest - 60), top):
        for lead in range(x.shape[1]):
            v[i] += (0.5 * (x[i + 1, lead] - x[i - 1, lead])) ** 2
        v[i] = np.sqrt(v[i])
    if top - earliest < 2:
        return -1
    fastest = earliest + int(np.argmax(v[earliest:top]))
    return _first_below(v, fastest, -1, 0.25 * v[fastest], 1)


@jit
def _together(of_leads: np.ndarray, joined: int, velocity: int, middle: bool) -> float:
    """Return the median of the available estimates, or -1."""
    found, count = np.empty(3), 0
    if of_leads.size:
        found[count] = np.median(of_leads)
        count += 1
    if joined >= 0:
        found[count] = joined
        count += 1
    if velocity >= 0 and middle:
        found[count] = velocity
        count += 1
    return np.median(found[:count]) if count else -1.0


def earlier_copy(low: np.ndarray, peak: int, first: int) -> float:
    """Correlate the P wave with the signal 150 to 290 ms before it, to detect flutter waves.

    The correlation is over all leads and the 120 ms around the peak. The line of least squares of each lead is
    subtracted first. Only earlier waves of 0.6 to 1.6 times the height count.

    Parameters
    ----------
    low : numpy.ndarray
        float64 (700, leads), as for `p_bounds`.
    peak : int
        Peak of the P wave, from `p_bounds`.
    first : int
        First measured sample of the beat.

    Returns
    -------
    float
        The highest correlation, or -1 if there is no such wave.
    """
    if not 0 <= first <= peak < BEFORE + AFTER:
        raise ValueError(f"peak {peak} and first {first} do not fit a median beat")
    return _earlier_copy(_checked(low), peak, first)


@jit
def _earlier_copy(x: np.ndarray, peak: int, first: int) -> float:
    if peak - COPY_HALF < 0 or peak + COPY_HALF > x.shape[0]:
        return -1.0
    wave, square = without_line(x, peak - COPY_HALF, 2 * COPY_HALF)
    best = -1.0
    for lag in range(COPY_NEAREST, COPY_FARTHEST):
        begin = peak - lag - COPY_HALF
        if begin < first:
            break
        other, its = without_line(x, begin, 2 * COPY_HALF)
        if 0.36 * square < its < 2.56 * square:
            best = max(best, (wave * other).sum() / np.sqrt(square * its))
    return best
