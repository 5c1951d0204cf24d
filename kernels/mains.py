"""Remove mains hum and pacemaker spikes, so that neither shifts the boundary of a wave.

Arrays are (samples, leads) at 500 Hz, as in `beats` and `waves`.
"""

import numpy as np

from ecgbyte_kernels import jit
from ecgbyte_kernels.beats import RATE, checked

# samples: x[i] - (x[i-5] + x[i+5]) / 2 amplifies 50 Hz by 2 and 60 Hz by 1.8, and removes slow changes
LAG = 5
HOP = 250  # samples from one window of the fit to the next; a window is twice as long
BEFORE, AFTER = 40, 45  # samples before and after an R peak that the fit ignores
SPIKE = 3  # samples from the peak of a pacing spike to either side, where it is over


def remove_mains(
    signal: np.ndarray, beats: np.ndarray, frequencies: tuple[float, ...] = (50.0, 60.0)
) -> np.ndarray:
    """Subtract the mains hum, fitted as a sinusoid in windows of one second that overlap by half.

    The fit uses only the signal between the QRS complexes, so the complexes keep their own content at 50 Hz. A
    notch filter would ring there. The windows follow a frequency that is off by 0.1 Hz and a changing amplitude.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), mV, at 500 Hz.
    beats : numpy.ndarray
        int64 (beats,): samples of the R peaks.
    frequencies : tuple of float
        Mains frequencies in Hz, above 0 and below 250.

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
def _remove_mains(x: np.ndarray, beats: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
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
    """Find pacemaker spikes by their width and height.

    A spike differs from the samples 6 ms before and after it by at least a fifth of the height of the QRS
    complexes (root sum of squares over the leads). It is the highest spike within 20 ms.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), mV, at 500 Hz.

    Returns
    -------
    numpy.ndarray
        int64 (spikes,): samples of the spikes.
    """
    return _find_spikes(checked(signal))


@jit
def _find_spikes(x: np.ndarray) -> np.ndarray:
    n, leads = x.shape
    height = np.zeros(n)  # squared
    for i in range(SPIKE, n - SPIKE):
        for lead in range(leads):
            before, after = x[i, lead] - x[i - SPIKE, lead], x[i, lead] - x[i + SPIKE, lead]
            if before * after > 0:
                height[i] += min(before * before, after * after)
    blocks = max(1, n // (3 * RATE // 2))
    size = n // blocks
    span = np.zeros(blocks)  # height of the complexes without narrow spikes, squared
    low, high = np.empty(leads), np.empty(leads)
    for k in range(blocks):
        low[:], high[:] = np.inf, -np.inf
        for i in range(max(k * size, SPIKE), min((k + 1) * size, n - SPIKE)):
            for lead in range(leads):
                # the median of three samples 6 ms apart
                u, v, w = x[i - SPIKE, lead], x[i, lead], x[i + SPIKE, lead]
                middle = max(min(u, v), min(max(u, v), w))
                low[lead], high[lead] = min(low[lead], middle), max(high[lead], middle)
        for lead in range(leads):
            span[k] += max(0.0, high[lead] - low[lead]) ** 2
    least = 0.2**2 * np.median(span)
    found: list[int] = []
    for i in range(n):
        if height[i] > max(least, 1e-12) and height[i] == height[max(0, i - 10) : i + 11].max():
            if not found or i - found[-1] > 10:
                found.append(i)
    return np.array(found, np.int64)


def blank(signal: np.ndarray, spikes: np.ndarray) -> np.ndarray:
    """Replace each spike by a straight line, from 10 ms before it to 14 ms after it.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads).
    spikes : numpy.ndarray
        int64 (spikes,): samples of the spikes.

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
