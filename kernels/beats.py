"""Find beats in all leads at once, sort them into classes by shape, and compute the median beat of a class.

Arrays are (samples, leads) at 500 Hz. `measure` resamples recordings with other rates. All thresholds are
relative to the recording itself, so scaling the signal does not change the result.
"""

import numpy as np

from ecgbyte_kernels import jit

RATE = 500  # samples per second
BEFORE, AFTER = 300, 400  # samples of a median beat before its R peak, and starting at the R peak
# detection, after Pan & Tompkins, "A real-time QRS detection algorithm", IEEE Trans. Biomed. Eng. 32 (1985) 230-236
SMOOTH = 45  # samples, about the length of a QRS complex
THRESHOLD = 0.30  # fraction of the usual maximum
SEARCH_BACK = 0.12  # the same, for beats missed between two others
NEIGHBOUR, REFRACTORY = 0.6, 180  # a peak below 0.6 of another within 180 samples (360 ms) is a T wave
REACH = RATE // 10  # samples: two beats are further apart
EDGE = 10  # samples at either end that are not searched for beats
CONTRAST = 2.5  # usual maximum over lower quartile; a lower ratio means noise
# classes
ALIKE = 0.90  # least correlation with the mean of a class
SHAPE_BEFORE, SHAPE_AFTER, LAG = 45, 65, 20  # samples
CLASSES = 12


def checked(signal: np.ndarray) -> np.ndarray:
    """Return a signal as a contiguous float64 array (samples, leads), or raise ValueError."""
    signal = np.ascontiguousarray(signal, float)
    if signal.ndim != 2 or 0 in signal.shape:
        raise ValueError(f"a signal of samples and leads is needed, not of shape {signal.shape}")
    return signal


def detect_beats(band: np.ndarray) -> np.ndarray:
    """Find the QRS complexes by the slopes of all leads together.

    Slopes are clipped at three times each lead's usual maximum, to limit the weight of artefacts. The leads are
    combined as the root of the sum of their squared slopes.

    Parameters
    ----------
    band : numpy.ndarray
        float64 (samples, leads), mV, at 500 Hz, filtered to 6-28 Hz with zero phase.

    Returns
    -------
    numpy.ndarray
        int64 (beats,): the sample of each complex, where the sum of squares of the filtered leads is highest
        within 70 ms. Empty if no complex stands out from the noise.

    Raises
    ------
    ValueError
        If the shape is wrong.
    """
    band = checked(band)
    if len(band) < 3:
        return np.empty(0, np.int64)
    slopes = _slopes(band)
    energy = _energy(slopes, np.array([3 * _usual_maximum(slope, RATE) for slope in slopes]))
    usual = _usual_maximum(energy, 3 * RATE // 2)
    if usual <= CONTRAST * np.percentile(energy, 25) or usual <= 0:
        return np.empty(0, np.int64)
    peaks = _peaks(energy, SEARCH_BACK * usual)
    heights = energy[peaks]
    high = heights > THRESHOLD * usual
    kept = peaks[high][_tallest_around(peaks[high], heights[high])]
    if len(kept) > 3:
        kept = np.sort(np.concatenate([kept, _missed(peaks, heights, kept)]))
    if len(kept):  # a beat cut by an end must be as strong as the others, or it is a filter artefact
        inside = (kept >= SHAPE_AFTER + LAG) & (kept < len(band) - SHAPE_AFTER - LAG)
        kept = kept[inside | (energy[kept] >= NEIGHBOUR * np.median(energy[kept]))]
    beats = _strongest_near(band, kept)
    # two beats may have moved to the same peak
    return beats[np.diff(beats, prepend=-REACH) >= REACH]


def lead_contrast(band: np.ndarray) -> np.ndarray:
    """Compute the ratio of each lead's usual steepest slope to its median slope.

    The ratio shows how clearly the QRS complexes stand out in a lead.

    Parameters
    ----------
    band : numpy.ndarray
        float64 (samples, leads), filtered as for `detect_beats`.

    Returns
    -------
    numpy.ndarray
        float64 (leads,): about 4 to 5 for noise, 10 or more for an ECG, 0 for a flat lead.
    """
    slopes = np.abs(np.diff(checked(band), axis=0))
    size = min(RATE, len(slopes))
    blocks = slopes[: len(slopes) // size * size].reshape(-1, size, slopes.shape[1])
    highest, middle = np.median(blocks.max(axis=1), axis=0), np.median(slopes, axis=0)
    return np.where(middle > 0, highest / np.where(middle > 0, middle, 1), 0.0)


def _usual_maximum(x: np.ndarray, size: int) -> float:
    """Return the median of the maxima of blocks of `size` samples."""
    size = min(size, x.size)
    return float(np.median(x[: x.size // size * size].reshape(-1, size).max(axis=1)))


@jit
def _slopes(band: np.ndarray) -> np.ndarray:
    """Return the size of the slope of each lead at each sample, (leads, samples)."""
    n, leads = band.shape
    slopes = np.empty((leads, n))
    for lead in range(leads):
        for i in range(n):
            a, b = max(i - 1, 0), min(i + 1, n - 1)
            slopes[lead, i] = abs(band[b, lead] - band[a, lead]) / (b - a)
    return slopes


@jit
def _energy(slopes: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Combine the slopes of all leads, each clipped at `most`, and smooth them."""
    leads, n = slopes.shape
    total = np.zeros(n + 1)
    for i in range(n):
        square = 0.0
        for lead in range(leads):
            square += min(slopes[lead, i], most[lead]) ** 2
        total[i + 1] = total[i] + np.sqrt(square)
    smooth = np.empty(n)
    for i in range(n):
        a, b = max(0, i - SMOOTH // 2), min(n, i + SMOOTH // 2 + 1)
        smooth[i] = (total[b] - total[a]) / SMOOTH  # fixed divisor: a complex cut by an end counts less
    return smooth


@jit
def _peaks(energy: np.ndarray, least: float) -> np.ndarray:
    """Return the samples above `least` that are the highest within `REACH`."""
    found, count = np.empty(energy.size, np.int64), 0
    for i in range(EDGE, energy.size - EDGE):
        highest = energy[i] > least
        for j in range(max(0, i - REACH), min(energy.size, i + REACH + 1)):
            if not highest:
                break
            highest = energy[j] <= energy[i]
        if highest:
            found[count] = i
            count += 1
    return found[:count]


@jit
def _tallest_around(peaks: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """Return which peaks are not T waves: no peak within `REFRACTORY` is much higher."""
    kept, begin = np.ones(peaks.size, np.bool_), 0
    for k in range(peaks.size):
        while peaks[begin] <= peaks[k] - REFRACTORY:
            begin += 1
        j = begin
        while kept[k] and j < peaks.size and peaks[j] < peaks[k] + REFRACTORY:
            kept[k] = heights[k] >= NEIGHBOUR * heights[j]
            j += 1
    return kept


def _missed(peaks: np.ndarray, heights: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Return the highest peak in each gap between beats that is long enough for one more."""
    usual_rr, missed = np.median(np.diff(kept)), []
    for begin, end in zip(kept[:-1], kept[1:], strict=True):
        if end - begin > 1.66 * usual_rr:
            inside = (peaks > begin + REFRACTORY) & (peaks < end - REFRACTORY)
            if inside.any():
                missed.append(peaks[inside][heights[inside].argmax()])
    return np.array(missed, np.int64)


@jit
def _strongest_near(band: np.ndarray, beats: np.ndarray) -> np.ndarray:
    """Move each beat to where the sum of squares of the leads is highest within 70 ms."""
    moved = np.empty(beats.size, np.int64)
    for k in range(beats.size):
        highest = -1.0
        for i in range(max(0, beats[k] - 35), min(band.shape[0], beats[k] + 36)):
            square = 0.0
            for lead in range(band.shape[1]):
                square += band[i, lead] ** 2
            if square > highest:
                highest, moved[k] = square, i
    return moved


def beat_classes(signal: np.ndarray, beats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort beats into classes of one shape.

    Each beat is correlated with the mean of each class over all leads, from 90 ms before the R peak to 130 ms
    after it. The beat may move by up to 40 ms to fit. It joins the class with the highest correlation if that
    is at least 0.90; otherwise it starts a new class.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), filtered to 1.5-40 Hz with zero phase, at 500 Hz.
    beats : numpy.ndarray
        int64 (beats,): samples of the R peaks.

    Returns
    -------
    classes : numpy.ndarray
        int64 (beats,): the class, or -1 for a beat too close to an end or beyond the twelfth class.
    lags : numpy.ndarray
        int64 (beats,): samples to add to each beat to align it with its class.
    """
    return _beat_classes(checked(signal), np.asarray(beats, np.int64))


@jit
def _cut(x: np.ndarray, first: int, shape: np.ndarray) -> None:
    """Copy samples into `shape`, starting at `first`."""
    for i in range(shape.shape[0]):
        for lead in range(x.shape[1]):
            shape[i, lead] = x[first + i, lead]


@jit
def _centred(shape: np.ndarray) -> float:
    """Subtract each lead's mean in place and return the sum of squares."""
    square = 0.0
    for lead in range(shape.shape[1]):
        mean = 0.0
        for i in range(shape.shape[0]):
            mean += shape[i, lead]
        mean /= shape.shape[0]
        for i in range(shape.shape[0]):
            shape[i, lead] -= mean
            square += shape[i, lead] ** 2
    return square


@jit
def _best_match(
    x: np.ndarray, beat: int, means: np.ndarray, squares: np.ndarray, count: int
) -> tuple[float, int, int]:
    """Return the highest correlation, its class and its lag."""
    size, leads = means.shape[1], x.shape[1]
    best, its_class, its_lag = -1.0, 0, 0
    shape = np.empty((size, leads))
    for lag in range(-LAG, LAG + 1):
        _cut(x, beat + lag - SHAPE_BEFORE, shape)
        square = _centred(shape)
        for k in range(count):
            product = 0.0
            for i in range(size):
                for lead in range(leads):
                    product += means[k, i, lead] * shape[i, lead]
            norm = np.sqrt(square * squares[k])
            alike = product / norm if norm > 0 else 0.0
            if alike > best:
                best, its_class, its_lag = alike, k, lag
    return best, its_class, its_lag


@jit
def _beat_classes(x: np.ndarray, beats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, leads = x.shape
    size = SHAPE_BEFORE + SHAPE_AFTER
    classes, lags = np.full(beats.size, -1), np.zeros(beats.size, np.int64)
    means, squares = np.empty((CLASSES, size, leads)), np.empty(CLASSES)
    sizes, count = np.zeros(CLASSES), 0
    shape = np.empty((size, leads))
    for turn in range(2):  # the second turn uses the final means of the classes
        for b in range(beats.size):
            if beats[b] - SHAPE_BEFORE - LAG < 0 or beats[b] + SHAPE_AFTER + LAG > n:
                continue
            best, k, lag = _best_match(x, beats[b], means, squares, count)
            if best >= ALIKE:
                classes[b], lags[b] = k, lag
                if turn == 0:
                    _cut(x, beats[b] + lag - SHAPE_BEFORE, shape)
                    _centred(shape)
                    sizes[k] += 1
                    squares[k] = 0.0
                    for i in range(size):
                        for lead in range(leads):
                            means[k, i, lead] += (shape[i, lead] - means[k, i, lead]) / sizes[k]
                            squares[k] += means[k, i, lead] ** 2
            elif turn == 0 and count < CLASSES:
                _cut(x, beats[b] - SHAPE_BEFORE, means[count])
                squares[count] = _centred(means[count])
                sizes[count] = 1
                classes[b], lags[b] = count, 0
                count += 1
    return classes, lags


def median_beat(signal: np.ndarray, centres: np.ndarray, beats: np.ndarray) -> np.ndarray:
    """Compute the median of several beats, sample by sample and lead by lead.

    Samples within 160 ms after the previous beat or within 120 ms before the next beat are skipped. The
    result is NaN where fewer than a third of the beats remain.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), at 500 Hz.
    centres : numpy.ndarray
        int64 (members,): the samples at which to align the beats.
    beats : numpy.ndarray
        int64 (beats,): all beats of the recording, in order.

    Returns
    -------
    numpy.ndarray
        float64 (700, leads): 600 ms before the centre and 800 ms after it.

    Raises
    ------
    ValueError
        If there are no centres, or one lies outside the signal.
    """
    signal, centres = checked(signal), np.asarray(centres, np.int64)
    if not centres.size or centres.min() < 0 or centres.max() >= len(signal):
        raise ValueError("centres must lie in the signal, one at least")
    return _median_beat(signal, centres, np.asarray(beats, np.int64))


@jit
def _median_beat(x: np.ndarray, centres: np.ndarray, beats: np.ndarray) -> np.ndarray:
    n, leads = x.shape
    first, last = np.empty(centres.size, np.int64), np.empty(centres.size, np.int64)
    for m in range(centres.size):
        c = centres[m]
        first[m], last[m] = max(0, c - BEFORE), min(n, c + AFTER)
        for beat in beats:
            if beat < c - 50:
                first[m] = max(first[m], beat + 80)
            elif beat > c + 50:
                last[m] = min(last[m], beat - 60)
    out = np.full((BEFORE + AFTER, leads), np.nan)
    values = np.empty(centres.size)
    least = max(1.0, 0.34 * centres.size)
    for i in range(BEFORE + AFTER):
        for lead in range(leads):
            count = 0
            for m in range(centres.size):
                at = centres[m] - BEFORE + i
                if first[m] <= at < last[m]:
                    values[count] = x[at, lead]
                    count += 1
            if count >= least:
                out[i, lead] = np.median(values[:count])
    return out


def agreement(signal: np.ndarray, centres: np.ndarray, beat: np.ndarray, first: int, last: int) -> float:
    """Correlate single beats with the median beat in a range of samples, such as around the P wave.

    Both are smoothed over 18 ms, and the line of least squares of each lead is subtracted.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), at 500 Hz.
    centres : numpy.ndarray
        int64 (members,), as for `median_beat`.
    beat : numpy.ndarray
        float64 (700, leads), the median beat.
    first, last : int
        The range, in samples of the median beat. `last` is not included.

    Returns
    -------
    float
        Median over the beats of the correlation over all leads, or 0 if no beat covers the whole range.

    Raises
    ------
    ValueError
        If the range does not lie in the median beat.
    """
    if not 0 <= first < last - 2 or last > len(beat):
        raise ValueError(f"samples {first} to {last} are not a part of the median beat")
    return float(_agreement(checked(signal), np.asarray(centres, np.int64), checked(beat), first, last))


@jit
def _smoothed(x: np.ndarray, first: int, size: int) -> np.ndarray:
    """Return `size` moving averages over nine samples, starting at `first`."""
    out = np.empty((size, x.shape[1]))
    for i in range(size):
        a, b = max(0, first + i - 4), min(x.shape[0], first + i + 5)
        for lead in range(x.shape[1]):
            out[i, lead] = x[a:b, lead].mean()
    return out


@jit
def without_line(x: np.ndarray, begin: int, size: int) -> tuple[np.ndarray, float]:
    """Subtract each lead's line of least squares from `size` samples; also return the sum of squares."""
    out, middle, spread, square = np.empty((size, x.shape[1])), (size - 1) / 2, 0.0, 0.0
    for i in range(size):
        spread += (i - middle) ** 2
    for lead in range(x.shape[1]):
        mean = slope = 0.0
        for i in range(size):
            mean += x[begin + i, lead] / size
            slope += (i - middle) * x[begin + i, lead] / spread
        for i in range(size):
            out[i, lead] = x[begin + i, lead] - mean - slope * (i - middle)
            square += out[i, lead] ** 2
    return out, square


@jit
def _agreement(x: np.ndarray, centres: np.ndarray, beat: np.ndarray, first: int, last: int) -> float:
    size = last - first
    model, square = without_line(_smoothed(beat, first, size), 0, size)
    found, count = np.empty(centres.size), 0
    for centre in centres:
        begin = centre - BEFORE + first
        if begin < 0 or begin + size > x.shape[0]:
            continue
        part, own = without_line(_smoothed(x, begin, size), 0, size)
        norm = np.sqrt(square * own)
        found[count] = (model * part).sum() / norm if norm > 0 else 0.0
        count += 1
    return np.median(found[:count]) if count else 0.0
