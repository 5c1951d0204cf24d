"""Letters from millivolts, millivolts from letters, and the corpus statistics that quantizers need.

Five quantizers, all of them described by a dict that travels in the settings and the tokenizer file:

paper   `lo`, `hi`: equal steps between two bounds, clipped (ECG-Byte, arXiv 2412.14373, section 3.1, takes
        the corpus' 1st percentile - 0.5 mV and 99th percentile + 0.5 mV).
minmax  equal steps between each segment's own extremes. With `margin` (mV; 0 if absent) the last step is wider by
        that much: floor(levels * ((x - min) / (max - min + margin))), at most levels - 1. ECG-Bench and ELM
        (github.com/willxxy/ECG-Bench, github.com/ELM-Research) take 1e-6, in units of mV.
mulaw   `mu`, `limit`: equal steps of sign(x) ln(1 + mu |x| / limit) / ln(1 + mu) (ITU-T G.711's law).
lloyd   `edges`, `centroids`: the levels of least mean squared error (Lloyd, IEEE Trans. Inf. Theory 28,
        1982; Max, IRE Trans. Inf. Theory 6, 1960), fitted to the corpus.
trellis `mu`, `limit`, `penalty`: companded steps of each segment's own RMS, `limit` of it to either side, and
        along a lead the letters of least squared error where each change of the letter costs `penalty`
        squares of the smallest step: fewer changes make longer tokens. Found by Viterbi's algorithm (Forney,
        Proc. IEEE 61, 1973), as video coders choose their coefficients (trellis quantization).
"""

import numpy as np

from ecgbyte_kernels import jit


def quantize(signal, quantizer):
    """Turn one segment into letters.

    Parameters
    ----------
    signal : numpy.ndarray
        float32 or float64, any shape, mV, finite.
    quantizer : dict
        `name`, `levels` (2 to 256) and what the quantizer needs (see the module's docstring).

    Returns
    -------
    letters : numpy.ndarray
        uint8, the shape of `signal`.
    lo, hi : float
        The range in mV that the letters stand for.

    Raises
    ------
    ValueError
        If the quantizer is unknown or its numbers make no sense.
    """
    name, levels = quantizer["name"], int(quantizer["levels"])
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be 2 to 256, not {levels}")
    values = np.ascontiguousarray(signal).reshape(-1)
    letters = np.empty(values.size, np.uint8)
    if name in ("mulaw", "lloyd"):
        edges = mulaw_edges(quantizer) if name == "mulaw" else np.asarray(quantizer["edges"], float)
        lo, hi = span(quantizer)
        _by_edges(values, edges[1:-1], letters)
    elif name == "trellis":
        size = float(np.sqrt(np.mean(np.square(values, dtype=float))))
        lo, hi = -quantizer["limit"] * size, quantizer["limit"] * size
        centres = values_of_levels(quantizer, lo, hi)
        cost = quantizer["penalty"] * np.diff(centres).min() ** 2
        leads = values.reshape(-1, np.shape(signal)[-1])
        _trellis(leads, centres, cost, letters.reshape(leads.shape))
    elif name in ("paper", "minmax"):
        lo, hi = span(quantizer) if name == "paper" else (float(values.min()), float(values.max()))
        if margin := _margin(quantizer):
            _with_margin(values, lo, hi - lo + margin, levels, letters)
        else:
            _uniform(values, lo, hi, levels, letters)
    else:
        raise ValueError(f"no quantizer is called {name!r}")
    return letters.reshape(np.shape(signal)), lo, hi


def dequantize(letters, quantizer, lo=None, hi=None):
    """Turn letters back into millivolts: the middle of the level, or its centroid for `lloyd`.

    For `trellis` the middles are smoothed over three samples (1/4, 1/2, 1/4) as far as each stays within its
    level, which takes off the corners of the steps; not beside steps of more than one level, for the peak of a
    QRS complex would lose height.

    Parameters
    ----------
    letters : numpy.ndarray
        uint8, any shape with time last, each below the quantizer's `levels`.
    quantizer : dict
        As in `quantize`.
    lo, hi : float, optional
        The segment's range in mV; needed for `minmax` and `trellis`.

    Returns
    -------
    numpy.ndarray
        float32, mV, the shape of `letters`.

    Raises
    ------
    ValueError
        If the quantizer is unknown, or is `minmax` or `trellis` and no range is given.
    """
    values = values_of_levels(quantizer, lo, hi).astype(np.float32)[letters]
    if quantizer["name"] == "trellis":
        edges = (hi * mulaw_edges({**quantizer, "limit": 1})).astype(np.float32)
        smooth = (values[..., :-2] + 2 * values[..., 1:-1] + values[..., 2:]) / 4
        steps = np.abs(np.diff(letters.astype(np.int16))) <= 1
        inner = letters[..., 1:-1].astype(np.intp)
        smooth = np.clip(smooth, edges[inner], edges[inner + 1])
        values[..., 1:-1] = np.where(steps[..., :-1] & steps[..., 1:], smooth, values[..., 1:-1])
    return values


def values_of_levels(quantizer, lo=None, hi=None):
    """The millivolts that each letter stands for: float64 (levels,)."""
    name, levels = quantizer["name"], int(quantizer["levels"])
    if name == "lloyd":
        return np.asarray(quantizer["centroids"], float)
    middles = (np.arange(levels) + 0.5) / levels
    if name == "mulaw":
        return _expand(2 * middles - 1, quantizer)
    if name == "paper":
        lo, hi = span(quantizer)
    elif name not in ("minmax", "trellis"):
        raise ValueError(f"no quantizer is called {name!r}")
    elif lo is None or hi is None:
        raise ValueError(f"{name} needs the segment's own range (lo, hi)")
    if name == "trellis":
        return hi * _expand(2 * middles - 1, {**quantizer, "limit": 1})
    return lo + (hi - lo + _margin(quantizer)) * middles


def _margin(quantizer: dict) -> float:
    return float(quantizer.get("margin", 0.0)) if quantizer["name"] == "minmax" else 0.0


def span(quantizer):
    """The range in mV of a quantizer whose range is the same for all segments."""
    if quantizer["name"] == "mulaw":
        lo, hi = -float(quantizer["limit"]), float(quantizer["limit"])
    elif quantizer["name"] == "lloyd":
        lo, hi = float(quantizer["edges"][0]), float(quantizer["edges"][-1])
    else:
        lo, hi = float(quantizer["lo"]), float(quantizer["hi"])
    if not (np.isfinite(lo) and np.isfinite(hi) and lo < hi):
        raise ValueError(f"the range {lo} to {hi} mV is none")
    return lo, hi


def mulaw_edges(quantizer):
    """The bounds of the companded levels in mV: float64 (levels + 1,)."""
    return _expand(np.linspace(-1, 1, int(quantizer["levels"]) + 1), quantizer)


def _expand(companded, quantizer):
    mu, limit = float(quantizer["mu"]), float(quantizer["limit"])
    return np.sign(companded) * limit * np.expm1(np.abs(companded) * np.log1p(mu)) / mu


@jit
def _uniform(values, lo, hi, levels, letters):
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
def _with_margin(values, lo, width, levels, letters):
    for i in range(values.size):
        # floor(levels * ((x - lo) / width)): in this order, as ECG-Bench and ELM round
        letters[i] = np.uint8(min(levels * ((float(values[i]) - lo) / width), levels - 1))


@jit
def _by_edges(values, edges, letters):
    for i in range(values.size):
        # how many edges are at or below x: searchsorted(edges, x, "right"), by halving
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
def _trellis(leads, centres, cost, letters):
    samples, levels = leads.shape[1], len(centres)
    error = np.empty(levels)  # of the best letters up to here that end in each level
    before = np.empty((samples, levels), np.uint8)
    for lead in range(len(leads)):
        error[:] = 0.0
        for t in range(samples):
            # error[l] = (x[t] - centre[l])**2 + min(error[l], min(error) + cost)
            best = 0
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


# Exact percentiles of a corpus that does not fit into memory. A float32's bits, turned so that they sort
# as its values do, are counted by their upper half while the corpus is written (65,536 counters); a second
# reading counts the lower half inside the few upper halves that hold the ranks asked for.


def count_upper(values, counts):
    """Add to `counts` (int64, (65536,)) the upper halves of float32 `values`, in the order of values."""
    _count(_bits(values), -1, counts)


def count_lower(values, upper, counts):
    """Add to `counts` (int64, (65536,)) the lower halves of those `values` whose upper half is `upper`."""
    _count(_bits(values), upper, counts)


def _bits(values):
    if values.dtype != np.float32:
        raise ValueError(f"values must be float32, not {values.dtype}")
    return np.ascontiguousarray(values).reshape(-1).view(np.uint32)


@jit
def _count(bits, upper, counts):
    for i in range(bits.size):
        b = np.int64(bits[i])
        # a negative number's bits sort backwards: turn them all; a positive one's sign bit goes up
        key = 0xFFFFFFFF - b if b >> 31 else b + 0x80000000
        if upper < 0:
            counts[key >> 16] += 1
        elif key >> 16 == upper:
            counts[key & 0xFFFF] += 1


def value_of(upper, lower):
    """The float32 values, as float64, that have these halves (scalars or arrays)."""
    key = np.asarray(upper, np.uint32) << np.uint32(16) | np.asarray(lower, np.uint32)
    bits = np.where(key >> 31, key ^ np.uint32(0x80000000), ~key)
    return bits.view(np.float32).astype(float)


def ranks_of(percent, size):
    """The two ranks (from 0) between which numpy's linear percentile lies, and how far along."""
    place = percent / 100 * (size - 1)
    below = int(np.floor(place))
    return below, min(below + 1, size - 1), place - below


def fit_lloyd(counts, levels):
    """The levels of least mean squared error for a corpus counted by `count_upper`.

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
