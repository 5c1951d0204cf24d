"""Zero-phase filters, wavelet threshold and cubic resampling for all leads of a recording at once.

Arrays are (samples, leads) here, so that the innermost loop runs over the leads, and the processor works on several of
them in one instruction.
"""

import numpy as np

from ecgbyte_kernels import jit


def zero_phase(signal: np.ndarray, filters: list[tuple[np.ndarray, np.ndarray, int]]) -> np.ndarray:
    """Run filters forwards and backwards over all leads, one filter after the other.

    The same as `scipy.signal.sosfiltfilt` for each filter in turn, with odd extension at both ends.

    Parameters
    ----------
    signal : numpy.ndarray
        (samples, leads), any float type.
    filters : list of tuple
        For each filter: second-order sections float64 (sections, 6), their start values for a constant
        input of one (`scipy.signal.sosfilt_zi`, float64 (sections, 2)), and the number of samples to extend.

    Returns
    -------
    numpy.ndarray
        float64 (samples, leads).

    Raises
    ------
    ValueError
        If the signal is not longer than an extension.
    """
    samples, leads = signal.shape
    margin = max((pad for _, _, pad in filters), default=0)
    if samples <= margin:
        raise ValueError(f"{samples} samples are too few for these filters: they need {margin + 1}")
    work = np.empty((samples + 2 * margin, leads))
    work[margin : margin + samples] = signal
    for sos, start, pad in filters:
        _both_ways(work, margin - pad, margin, margin + samples, margin + samples + pad, sos, start)
    return work[margin : margin + samples]


@jit
def _both_ways(
    x: np.ndarray, outer: int, first: int, last: int, end: int, sos: np.ndarray, start: np.ndarray
) -> None:
    for i in range(1, first - outer + 1):
        for lead in range(x.shape[1]):
            x[first - i, lead] = 2 * x[first, lead] - x[first + i, lead]
            x[last - 1 + i, lead] = 2 * x[last - 1, lead] - x[last - 1 - i, lead]
    _one_way(x, outer, end, 1, sos, start)
    _one_way(x, end - 1, outer - 1, -1, sos, start)


@jit
def _one_way(x: np.ndarray, begin: int, end: int, step: int, sos: np.ndarray, start: np.ndarray) -> None:
    sections, leads = sos.shape[0], x.shape[1]
    z0, z1 = np.empty((sections, leads)), np.empty((sections, leads))
    for s in range(sections):
        for lead in range(leads):
            z0[s, lead] = start[s, 0] * x[begin, lead]
            z1[s, lead] = start[s, 1] * x[begin, lead]
    for i in range(begin, end, step):
        for s in range(sections):
            b0, b1, b2, a1, a2 = sos[s, 0], sos[s, 1], sos[s, 2], sos[s, 4], sos[s, 5]
            for lead in range(leads):
                # transposed direct form II
                u = x[i, lead]
                y = b0 * u + z0[s, lead]
                z0[s, lead] = b1 * u - a1 * y + z1[s, lead]
                z1[s, lead] = b2 * u - a2 * y
                x[i, lead] = y


def denoise(signal: np.ndarray, filters: tuple[np.ndarray, ...], levels: int) -> np.ndarray:
    """Apply a soft wavelet threshold: median|d| / 0.6745 of each lead's coarsest detail, for all its details.

    The discrete wavelet transform is `pywt.wavedec`'s with its mode "symmetric": the signal is mirrored at
    both ends, the first and last sample included.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads).
    filters : tuple of numpy.ndarray
        The wavelet's decomposition low and high pass and reconstruction low and high pass, float64, all of
        the same even length (`pywt.Wavelet.filter_bank`).
    levels : int
        At least 1.

    Returns
    -------
    numpy.ndarray
        float64 (samples, leads).

    Raises
    ------
    ValueError
        If a level has fewer samples than the filters have coefficients.
    """
    down_low, down_high, up_low, up_high = (np.asarray(f, float) for f in filters)
    approximation, details, sizes = np.ascontiguousarray(signal), [], []
    for _ in range(levels):
        if approximation.shape[0] < down_low.size:
            raise ValueError(f"{signal.shape[0]} samples are too few for {levels} levels")
        sizes.append(approximation.shape[0])
        approximation, detail = _analyse(approximation, down_low, down_high)
        details.append(detail)
    threshold = np.median(np.abs(details[-1]), axis=0) / 0.6745
    for size, detail in zip(sizes[::-1], details[::-1], strict=True):
        _shrink(detail, threshold)
        approximation = _synthesise(approximation, detail, up_low, up_high, size)
    return approximation


@jit
def _analyse(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, leads = x.shape
    half = (n + low.size - 1) // 2
    a, d = np.zeros((half, leads)), np.zeros((half, leads))
    for k in range(half):
        # a[k] = sum over j of low[j] x[2k + 1 - j], d[k] likewise
        for j in range(low.size):
            i = 2 * k + 1 - j
            if i < 0:
                i = -1 - i
            elif i >= n:
                i = 2 * n - 1 - i
            p, q = low[j], high[j]
            for lead in range(leads):
                a[k, lead] += p * x[i, lead]
                d[k, lead] += q * x[i, lead]
    return a, d


@jit
def _shrink(d: np.ndarray, threshold: np.ndarray) -> None:
    for k in range(d.shape[0]):
        for lead in range(d.shape[1]):
            # sign(d) max(|d| - threshold, 0)
            t = threshold[lead]
            d[k, lead] -= min(max(d[k, lead], -t), t)


@jit
def _synthesise(a: np.ndarray, d: np.ndarray, low: np.ndarray, high: np.ndarray, size: int) -> np.ndarray:
    leads = a.shape[1]
    x = np.zeros((size, leads))
    for i in range(size):
        # x[i] = sum over k of low[j] a[k] + high[j] d[k], where j = i + length - 2 - 2k
        first = i // 2
        for k in range(first, min(first + low.size // 2, a.shape[0])):
            j = i + low.size - 2 - 2 * k
            p, q = low[j], high[j]
            for lead in range(leads):
                x[i, lead] += p * a[k, lead] + q * d[k, lead]
    return x


def cubic(signal: np.ndarray, samples: int) -> np.ndarray:
    """Resample all leads by the cubic spline through their samples (not-a-knot ends).

    The same as `scipy.interpolate.make_interp_spline(k=3)` on even grids that both run from the first
    sample to the last.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (n, leads), n at least 4.
    samples : int
        Number of samples to return, at least 2.

    Returns
    -------
    numpy.ndarray
        float32 (samples, leads).

    Raises
    ------
    ValueError
        If there are too few samples.
    """
    if signal.shape[0] < 4 or samples < 2:
        raise ValueError("a cubic spline needs at least 4 samples, and returns at least 2")
    out = np.empty((samples, signal.shape[1]), np.float32)
    _cubic(np.ascontiguousarray(signal), out)
    return out


@jit
def _cubic(y: np.ndarray, out: np.ndarray) -> None:
    n, leads = y.shape
    # The spline's second derivatives m, for samples at distance 1, solve
    #   m[i-1] + 4 m[i] + m[i+1] = 6 (y[i-1] - 2 y[i] + y[i+1]),   i = 1 .. n-2.
    # Not-a-knot means m[0] = 2 m[1] - m[2], so the first row is 6 m[1] = …, and the last one likewise.
    # Thomas' algorithm solves the rest.
    m = np.empty((n, leads))
    for i in range(1, n - 1):
        for lead in range(leads):
            m[i, lead] = 6 * (y[i - 1, lead] - 2 * y[i, lead] + y[i + 1, lead])
    for lead in range(leads):
        m[1, lead] /= 6
        m[n - 2, lead] /= 6
    upper = np.zeros(n)
    for i in range(2, n - 2):
        upper[i] = 1 / (4 - upper[i - 1])
        for lead in range(leads):
            m[i, lead] = (m[i, lead] - m[i - 1, lead]) * upper[i]
    for i in range(n - 3, 1, -1):
        for lead in range(leads):
            m[i, lead] -= upper[i] * m[i + 1, lead]
    for lead in range(leads):
        m[0, lead] = 2 * m[1, lead] - m[2, lead]
        m[n - 1, lead] = 2 * m[n - 2, lead] - m[n - 3, lead]
    for j in range(out.shape[0]):
        place = j * (n - 1) / (out.shape[0] - 1)
        i = min(int(place), n - 2)
        b = place - i
        a = 1 - b
        p, q = (a * a * a - a) / 6, (b * b * b - b) / 6
        for lead in range(leads):
            out[j, lead] = a * y[i, lead] + b * y[i + 1, lead] + p * m[i, lead] + q * m[i + 1, lead]
