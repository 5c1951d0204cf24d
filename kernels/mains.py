"""Mains hum taken off, and the spikes of a pacemaker blanked, so that neither moves a boundary.

Arrays are (samples, leads) at 500 Hz, as in `beats` and `waves`.
"""

import numpy as np

from ecgbyte_kernels import jit
from ecgbyte_kernels.beats import RATE, checked

LAG = 5  # samples: x[i] - (x[i-5] + x[i+5]) / 2 doubles 50 Hz, takes 1.8 times 60 Hz, and drops what is slow
HOP = 250  # samples between the windows of the fit, which are twice as long
BEFORE, AFTER = 40, 45  # samples around a beat that the fit leaves out
SPIKE = 3  # samples: a pacing spike has come and gone within three on either side


def remove_mains(
    signal: np.ndarray, beats: np.ndarray, frequencies: tuple[float, ...] = (50.0, 60.0)
) -> np.ndarray:
    """Subtract the mains hum, fitted as a sinusoid in windows of one second that overlap by half.

    The fit looks between the QRS complexes alone, so their own content at 50 Hz stays. A notch filter rings
    there instead. The frequency may be off by 0.1 Hz and the hum may swell: the windows follow.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), mV, at 500 Hz.
    beats : numpy.ndarray
        int64 (beats,), the samples of the R peaks.
    frequencies : tuple of float
        Hz, below 250.

    Returns
    -------
    numpy.ndarray
        float64 (samples, leads), mV.

    Raises
    ------
    ValueError
        If the shape or a frequency is wrong.
    """
    signal = checked(signal)
    if not all(0 < f < RATE / 2 for f in frequencies):
        raise ValueError(f"mains frequencies {frequencies}: between 0 and {RATE / 2:g} Hz")
    return _remove_mains(signal, np.asarray(beats, np.int64), np.asarray(frequencies, float))


@jit
def _remove_mains(x, beats, frequencies):
    n, leads = x.shape
    quiet = np.ones(n)
    for beat in beats:
        quiet[max(0, beat - BEFORE) : max(0, beat + AFTER)] = 0
    y = np.empty((n, leads))
    for i in range(n):
        for lead in range(leads):
            y[i, lead] = x[i, lead] - 0.5 * (x[max(i - LAG, 0), lead] + x[min(i + LAG, n - 1), lead])
    out = x.copy()
    windows = max(1, (n - 2 * HOP) // HOP + 1)
    for f in frequencies:
        w = 2 * np.pi * f / RATE
        gain = 1 - np.cos(w * LAG)
        cosine, sine = np.cos(w * np.arange(n)), np.sin(w * np.arange(n))
        fitted, weight = np.zeros((n, leads)), np.zeros(n)
        a, b = np.empty(leads), np.empty(leads)
        for k in range(windows):
            begin = k * HOP
            end = n if k == windows - 1 else begin + 2 * HOP
            size = end - begin
            taper = np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2
            masked = quiet[begin:end].sum() >= 0.3 * size
            cc = cs = ss = 0.0
            a[:] = 0
            b[:] = 0
            for i in range(begin, end):
                t = taper[i - begin] * (quiet[i] if masked else 1.0)
                cc += t * cosine[i] * cosine[i]
                cs += t * cosine[i] * sine[i]
                ss += t * sine[i] * sine[i]
                p, q = t * cosine[i], t * sine[i]
                for lead in range(leads):
                    a[lead] += p * y[i, lead]
                    b[lead] += q * y[i, lead]
            # least squares: [cc cs; cs ss] (a, b) = gain^-1 (sum of t cos y, sum of t sin y)
            det = gain * (cc * ss - cs * cs)
            for lead in range(leads):
                u, v = a[lead], b[lead]
                a[lead], b[lead] = (ss * u - cs * v) / det, (cc * v - cs * u) / det
            for i in range(begin, end):
                t = taper[i - begin]
                weight[i] += t
                for lead in range(leads):
                    fitted[i, lead] += t * (a[lead] * cosine[i] + b[lead] * sine[i])
        for i in range(n):
            for lead in range(leads):
                out[i, lead] -= fitted[i, lead] / weight[i]
    return out


def find_spikes(signal: np.ndarray) -> np.ndarray:
    """Find what is as narrow and as high as a pacemaker's spike.

    A spike stands out from the samples 6 ms before it and 6 ms after it by a fifth of the complexes' height at
    least (root sum of squares over the leads), and is the highest within 20 ms.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), mV, at 500 Hz.

    Returns
    -------
    numpy.ndarray
        int64 (spikes,), samples.
    """
    return _find_spikes(checked(signal))


@jit
def _find_spikes(x):
    n, leads = x.shape
    height = np.zeros(n)  # squared
    for i in range(SPIKE, n - SPIKE):
        for lead in range(leads):
            before, after = x[i, lead] - x[i - SPIKE, lead], x[i, lead] - x[i + SPIKE, lead]
            if before * after > 0:
                height[i] += min(before * before, after * after)
    blocks = max(1, n // (3 * RATE // 2))
    size = n // blocks
    span = np.zeros(blocks)  # of the complexes without what is narrow, squared
    low, high = np.empty(leads), np.empty(leads)
    for k in range(blocks):
        low[:], high[:] = np.inf, -np.inf
        for i in range(max(k * size, SPIKE), min((k + 1) * size, n - SPIKE)):
            for lead in range(leads):
                # the middle of three samples, 6 ms apart
                u, v, w = x[i - SPIKE, lead], x[i, lead], x[i + SPIKE, lead]
                middle = max(min(u, v), min(max(u, v), w))
                low[lead], high[lead] = min(low[lead], middle), max(high[lead], middle)
        for lead in range(leads):
            span[k] += max(0.0, high[lead] - low[lead]) ** 2
    least = 0.2**2 * np.median(span)
    found = []
    for i in range(n):
        if height[i] > max(least, 1e-12) and height[i] == height[max(0, i - 10) : i + 11].max():
            if not found or i - found[-1] > 10:
                found.append(i)
    return np.array(found, np.int64)


def blank(signal: np.ndarray, spikes: np.ndarray) -> np.ndarray:
    """Replace spikes by straight lines, from 10 ms before each to 14 ms after it.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads).
    spikes : numpy.ndarray
        int64 (spikes,), samples.

    Returns
    -------
    numpy.ndarray
        float64 (samples, leads).
    """
    out = checked(signal).copy()
    for spike in spikes:
        first, last = max(0, int(spike) - 5), min(len(out) - 1, int(spike) + 7)
        part = np.linspace(0, 1, last - first + 1)[:, None]
        out[first : last + 1] = out[first] * (1 - part) + out[last] * part
    return out
