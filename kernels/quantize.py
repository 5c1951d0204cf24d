"""Letters from millivolts, millivolts from letters, and the corpus statistics that quantizers need.

The five quantizers of `ecgbyte_cli.signal.quantizers` and their settings:

paper   `lo`, `hi`: equal steps between two bounds, clipped (ECG-Byte, arXiv 2412.14373, section 3.1: the
        corpus' 1st percentile - 0.5 mV and 99th percentile + 0.5 mV).
minmax  equal steps between each segment's own extremes. With `margin` (mV; 0 if absent) the last step is wider:
        floor(levels * ((x - min) / (max - min + margin))), at most levels - 1. ECG-Bench and ELM
        (github.com/willxxy/ECG-Bench, github.com/ELM-Research) use 1e-6, in units of mV.
mulaw   `mu`, `limit`: equal steps of sign(x) ln(1 + mu |x| / limit) / ln(1 + mu) (ITU-T G.711's law).
lloyd   `edges`, `centroids`: the levels of least mean squared error (Lloyd, IEEE Trans. Inf. Theory 28,
        1982; Max, IRE Trans. Inf. Theory 6, 1960), fitted to the corpus.
trellis `mu`, `limit`, `penalty`: companded steps up to `limit` times each segment's own RMS. Along a lead the
        letters have the least squared error where each change of the letter costs `penalty` squares of the
        smallest step: fewer changes make longer tokens. Found by Viterbi's algorithm (Forney, Proc. IEEE 61,
        1973), as video coders choose their coefficients (trellis quantization).
"""

import numpy as np
import numpy.typing as npt

from ecgbyte_kernels import jit


def equal_steps(signal: np.ndarray, lo: float, hi: float, levels: int, margin: float = 0.0) -> np.ndarray:
    """Return the letters of equal steps from `lo` to `hi`, clipped.

    Parameters
    ----------
    signal : numpy.ndarray
        float32 or float64, any shape, mV, finite.
    lo, hi : float
        mV.
    levels : int
        2 to 256.
    margin : float
        mV that the last step is wider; then no value may lie outside of `lo` to `hi`.

    Returns
    -------
    numpy.ndarray
        uint8, the shape of `signal`.
    """
    values = np.ascontiguousarray(signal).reshape(-1)
    letters = np.empty(values.size, np.uint8)
    if margin:
        _with_margin(values, lo, hi - lo + margin, levels, letters)
    else:
        _uniform(values, lo, hi, levels, letters)
    return letters.reshape(np.shape(signal))


def by_edges(signal: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the letters of levels between rising `edges`, float64 (levels + 1,), mV; the outer two do not count."""
    values = np.ascontiguousarray(signal).reshape(-1)
    letters = np.empty(values.size, np.uint8)
    _by_edges(values, edges[1:-1], letters)
    return letters.reshape(np.shape(signal))


def with_few_changes(signal: np.ndarray, centres: np.ndarray, cost: float) -> np.ndarray:
    """Return the letters of least squared error along each lead, where each change of the letter costs `cost`.

    Parameters
    ----------
    signal : numpy.ndarray
        float32 or float64, any shape with time last, mV.
    centres : numpy.ndarray
        float64 (levels,), mV.
    cost : float
        mV^2.

    Returns
    -------
    numpy.ndarray
        uint8, the shape of `signal`.
    """
    leads = np.ascontiguousarray(signal).reshape(-1, np.shape(signal)[-1])
    letters = np.empty(leads.shape, np.uint8)
    _trellis(leads, centres, cost, letters)
    return letters.reshape(np.shape(signal))


def smooth_steps(values: np.ndarray, letters: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Take the corners off single steps: average three samples (1/4, 1/2, 1/4), each kept within its level.

    Samples beside a step of more than one level stay, or the peak of a QRS complex would lose height.

    Parameters
    ----------
    values : numpy.ndarray
        float32, any shape with time last, mV: the value of each letter. Changed in place and returned.
    letters : numpy.ndarray
        uint8, the shape of `values`.
    edges : numpy.ndarray
        float32 (levels + 1,), mV.
    """
    smooth = (values[..., :-2] + 2 * values[..., 1:-1] + values[..., 2:]) / 4
    small = np.abs(np.diff(letters.astype(np.int16))) <= 1
    inner = letters[..., 1:-1].astype(np.intp)
    smooth = np.clip(smooth, edges[inner], edges[inner + 1])
    values[..., 1:-1] = np.where(small[..., :-1] & small[..., 1:], smooth, values[..., 1:-1])
    return values


def middles(levels: int) -> np.ndarray:
    """Return the middles of equal steps from 0 to 1: float64 (levels,)."""
    return (np.arange(levels) + 0.5) / levels


def companded_edges(levels: int, mu: float, limit: float) -> np.ndarray:
    """Return the edges of companded levels from -limit to limit mV: float64 (levels + 1,)."""
    return _expand(np.linspace(-1, 1, levels + 1), mu, limit)


def companded_middles(levels: int, mu: float, limit: float) -> np.ndarray:
    """Return the middles of companded levels from -limit to limit mV: float64 (levels,)."""
    return _expand(2 * middles(levels) - 1, mu, limit)


def _expand(companded: np.ndarray, mu: float, limit: float) -> np.ndarray:
    mu, limit = float(mu), float(limit)
    return np.sign(companded) * limit * np.expm1(np.abs(companded) * np.log1p(mu)) / mu


@jit
def _uniform(values: np.ndarray, lo: float, hi: float, levels: int, letters: np.ndarray) -> None:
    scale = levels / (hi - lo) if hi > lo else 0.0
    for i in range(values.size):
        # floor(levels * (x - lo) / (hi - lo)), kept within 0 .. levels - 1
        level = (float(values[i]) - lo) * scale  # in double precision, without JIT too
        if level >= levels:
            letters[i] = levels - 1
        elif level > 0:
            letters[i] = np.uint8(level)
        else:
            letters[i] = 0


@jit
def _with_margin(values: np.ndarray, lo: float, width: float, levels: int, letters: np.ndarray) -> None:
    for i in range(values.size):
        # floor(levels * ((x - lo) / width)): in this order, as ECG-Bench and ELM round
        letters[i] = np.uint8(min(levels * ((float(values[i]) - lo) / width), levels - 1))


@jit
def _by_edges(values: np.ndarray, edges: np.ndarray, letters: np.ndarray) -> None:
    for i in range(values.size):
        # searchsorted(edges, x, "right"), by halving: how many edges are at or below x
        first, count = 0, edges.size
        while count > 0:
            half = count // 2
            if edges[first + half] <= values[i]:
                first += half + 1
                count -= half + 1
            else:
                count = half
        letters[i] = first


@jit
def _trellis(leads: np.ndarray, centres: np.ndarray, cost: float, letters: np.ndarray) -> None:
    samples, levels = leads.shape[1], len(centres)
    error = np.empty(levels)  # of the best letters up to here that end in each level
    before = np.empty((samples, levels), np.uint8)
    for lead in range(len(leads)):
        error[:] = 0.0
        for t in range(samples):
            # error[l] = (x[t] - centre[l])**2 + min(error[l], min(error) + cost)
            best: int | np.int64 = 0
            for level in range(1, levels):
                if error[level] < error[best]:
                    best = level
            change = error[best] + cost
            for level in range(levels):
                before[t, level] = level if error[level] <= change else best
                error[level] = min(error[level], change) + (leads[lead, t] - centres[level]) ** 2
        best = 0
        for level in range(1, levels):
            if error[level] < error[best]:
                best = level
        for t in range(samples - 1, -1, -1):
            letters[lead, t] = best
            best = np.int64(before[t, best])


# Exact percentiles of a corpus that does not fit into memory. A float32's bits, turned so that they sort like
# its values, are counted by their upper half while the corpus is written (65,536 counters). A second pass
# counts the lower half inside the few upper halves that hold the wanted ranks.


def count_upper(values: np.ndarray, counts: np.ndarray) -> None:
    """Add to `counts` (int64, (65536,)) the upper halves of float32 `values`, in the order of values."""
    _count(_bits(values), -1, counts)


def count_lower(values: np.ndarray, upper: int, counts: np.ndarray) -> None:
    """Add to `counts` (int64, (65536,)) the lower halves of those `values` whose upper half is `upper`."""
    _count(_bits(values), upper, counts)


def _bits(values: np.ndarray) -> np.ndarray:
    if values.dtype != np.float32:
        raise ValueError(f"values must be float32, not {values.dtype}")
    return np.ascontiguousarray(values).reshape(-1).view(np.uint32)


@jit
def _count(bits: np.ndarray, upper: int, counts: np.ndarray) -> None:
    for i in range(bits.size):
        b = np.int64(bits[i])
        # a negative number's bits sort backwards: turn them all; a positive one's sign bit goes up
        key = 0xFFFFFFFF - b if b >> 31 else b + 0x80000000
        if upper < 0:
            counts[key >> 16] += 1
        elif key >> 16 == upper:
            counts[key & 0xFFFF] += 1


def value_of(upper: npt.ArrayLike, lower: npt.ArrayLike) -> np.ndarray:
    """Return the float32 values, as float64, that have these halves (scalars or arrays)."""
    key = np.asarray(upper, np.uint32) << np.uint32(16) | np.asarray(lower, np.uint32)
    bits = np.where(key >> 31, key ^ np.uint32(0x80000000), ~key)
    return bits.view(np.float32).astype(float)


def ranks_of(percent: float, size: int) -> tuple[int, int, float]:
    """Return the two ranks (from 0) between which numpy's linear percentile lies, and how far along."""
    place = percent / 100 * (size - 1)
    below = int(np.floor(place))
    return below, min(below + 1, size - 1), place - below


def fit_lloyd(counts: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit the levels of least mean squared error to a corpus counted by `count_upper`.

    The values of one counter lie within 0.8 % of each other; each counts as their middle.

    Parameters
    ----------
    counts : numpy.ndarray
        int64, (65536,).
    levels : int
        2 to 256.

    Returns
    -------
    edges : numpy.ndarray
        float64, (levels + 1,), mV, rising; the outer two are the corpus' extremes.
    centroids : numpy.ndarray
        float64, (levels,), mV.

    Raises
    ------
    ValueError
        If the corpus has fewer distinct values than `levels`.
    """
    used = np.flatnonzero(counts)
    if used.size < levels:
        raise ValueError(f"{used.size} distinct values are too few for {levels} levels")
    points, weights = value_of(used, 0x8000), counts[used].astype(float)
    low, high = value_of(used[0], 0), value_of(used[-1], 0xFFFF)
    mass = np.concatenate([[0.0], np.cumsum(weights)])
    moment = np.concatenate([[0.0], np.cumsum(weights * points)])
    # start from levels as dense as the cube root of the density, the limit of many levels
    # (Panter and Dite, Proc. IRE 39, 1951)
    width = np.gradient(points)
    dense = np.cumsum(np.cbrt(weights / width) * width)
    picks = np.searchsorted(dense, dense[-1] * (np.arange(levels) + 0.5) / levels)
    centroids = points[np.clip(picks, 0, used.size - 1)]
    for _ in range(10000):
        cuts = np.searchsorted(points, (centroids[:-1] + centroids[1:]) / 2)
        bounds = np.concatenate([[0], cuts, [points.size]])
        # a level that lost all its points takes the nearest one
        for k in range(levels):
            bounds[k + 1] = max(bounds[k + 1], bounds[k] + 1)
        for k in range(levels, 0, -1):
            bounds[k] = min(bounds[k], points.size - (levels - k))
        better = np.diff(moment[bounds]) / np.diff(mass[bounds])
        if np.allclose(better, centroids, rtol=0, atol=1e-9):
            break
        centroids = better
    inner = (centroids[:-1] + centroids[1:]) / 2
    return np.concatenate([[low], inner, [high]]), centroids
