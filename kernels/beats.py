"""Beats over all leads at once, classes of beats by their shape, and the median beat of a class.

Arrays are (samples, leads) at 500 Hz: `measure` resamples recordings of other rates. All thresholds are
relative to the recording itself, so a gain changes nothing.
"""

import numpy as np

from ecgbyte_kernels import jit

RATE = 500  # samples per second
BEFORE, AFTER = 300, 400  # samples of a median beat, before its R peak and from it on
# detection, after Pan & Tompkins, "A real-time QRS detection algorithm", IEEE Trans. Biomed. Eng. 32 (1985) 230-236
SMOOTH = 45  # samples: about as long as a QRS complex
THRESHOLD = 0.30  # of the usual maximum
SEARCH_BACK = 0.12
NEIGHBOUR, REFRACTORY = 0.6, 180  # a T wave is lower than the QRS complex within 360 ms
EDGE = 10  # samples at either end where no beat is looked for
CONTRAST = 2.5  # of the usual maximum to the lower quartile: less is noise
# classes
ALIKE = 0.90
SHAPE_BEFORE, SHAPE_AFTER, LAG = 45, 65, 20  # samples
CLASSES = 12


def checked(signal: np.ndarray) -> np.ndarray:
    """A signal as the kernels need it, or ValueError."""
    signal = np.ascontiguousarray(signal, float)
    if signal.ndim != 2 or 0 in signal.shape:
        raise ValueError(f"a signal of samples and leads is needed, not of shape {signal.shape}")
    return signal


def detect_beats(band: np.ndarray) -> np.ndarray:
    """Find the QRS complexes by the slopes of all leads together.

    Slopes are clipped at three times each lead's usual maximum, so that an artefact counts no more than a
    complex, and joined as the root of their sum of squares.

    Parameters
    ----------
    band : numpy.ndarray
        float64 (samples, leads), mV, at 500 Hz, filtered to 6-28 Hz without a shift.

    Returns
    -------
    numpy.ndarray
        int64 (beats,), where the filtered leads together are highest within 70 ms of each complex. Empty
        where nothing stands out.

    Raises
    ------
    ValueError
        If the shape is wrong.
    """
    band = checked(band)
    if len(band) < 3:
        return np.empty(0, np.int64)
    return _detect_beats(band)


def lead_contrast(band: np.ndarray) -> np.ndarray:
    """How far the complexes of each lead stand out: its usual steepest slope over its median slope.

    Parameters
    ----------
    band : numpy.ndarray
        float64 (samples, leads), as of `detect_beats`.

    Returns
    -------
    numpy.ndarray
        float64 (leads,). Noise alone has about 4 to 5, an ECG 10 and more; a flat lead has 0.
    """
    slopes = np.abs(np.diff(checked(band), axis=0))
    size = min(RATE, len(slopes))
    blocks = slopes[: len(slopes) // size * size].reshape(-1, size, slopes.shape[1])
    highest, middle = np.median(blocks.max(axis=1), axis=0), np.median(slopes, axis=0)
    return np.where(middle > 0, highest / np.where(middle > 0, middle, 1), 0.0)


@jit
def _usual_maximum(x, size):
    """The median of the maxima of blocks of a size."""
    blocks = max(1, x.size // size)
    size = min(size, x.size)
    return np.median(np.array([x[k * size : (k + 1) * size].max() for k in range(blocks)]))


@jit
def _energy(band):
    n, leads = band.shape
    squares = np.zeros(n)
    for lead in range(leads):
        slope = np.empty(n)
        for i in range(n):
            a, b = max(i - 1, 0), min(i + 1, n - 1)
            slope[i] = abs(band[b, lead] - band[a, lead]) / (b - a)
        most = 3 * _usual_maximum(slope, RATE)
        for i in range(n):
            squares[i] += min(slope[i], most) ** 2
    total = np.zeros(n + 1)
    total[1:] = np.cumsum(np.sqrt(squares))
    smooth = np.empty(n)
    for i in range(n):
        a, b = max(0, i - SMOOTH // 2), min(n, i + SMOOTH // 2 + 1)
        smooth[i] = (total[b] - total[a]) / SMOOTH  # so that what is cut by an end counts less
    return smooth


@jit
def _detect_beats(band):
    n, leads = band.shape
    energy = _energy(band)
    usual = _usual_maximum(energy, 3 * RATE // 2)
    if usual <= CONTRAST * np.percentile(energy, 25) or usual <= 0:
        return np.empty(0, np.int64)
    reach = RATE // 10
    peaks = [
        i
        for i in range(EDGE, n - EDGE)
        if energy[i] > SEARCH_BACK * usual and energy[i] == energy[max(0, i - reach) : i + reach + 1].max()
    ]
    high = [i for i in peaks if energy[i] > THRESHOLD * usual]
    kept = [0 for _ in range(0)]
    begin = 0
    for i in high:
        while high[begin] <= i - REFRACTORY:
            begin += 1
        alone, j = True, begin
        while alone and j < len(high) and high[j] < i + REFRACTORY:
            alone = energy[i] >= NEIGHBOUR * energy[high[j]]
            j += 1
        if alone:
            kept.append(i)
    if len(kept) > 3:
        usual_rr = np.median(np.diff(np.array(kept)))
        missed, at = [0 for _ in range(0)], 0
        for k in range(len(kept) - 1):
            best = -1
            while at < len(peaks) and peaks[at] < kept[k + 1]:
                i = peaks[at]
                inside = kept[k] + REFRACTORY < i < kept[k + 1] - REFRACTORY
                if (
                    inside
                    and kept[k + 1] - kept[k] > 1.66 * usual_rr
                    and (best < 0 or energy[i] > energy[best])
                ):
                    best = i
                at += 1
            if best >= 0:
                missed.append(best)
        kept = sorted(kept + missed)
    if kept:  # what is cut by an end must be as strong as the rest, or it is an artefact of the end
        least = NEIGHBOUR * np.median(energy[np.array(kept)])
        kept = [i for i in kept if SHAPE_AFTER + LAG <= i < n - SHAPE_AFTER - LAG or energy[i] >= least]
    beats = np.empty(len(kept), np.int64)
    for k in range(len(kept)):
        beats[k], highest = kept[k], -1.0
        for i in range(max(0, kept[k] - 35), min(n, kept[k] + 36)):
            square = 0.0
            for lead in range(leads):
                square += band[i, lead] ** 2
            if square > highest:
                highest, beats[k] = square, i
    apart = np.ones(beats.size, np.bool_)
    for k in range(1, beats.size):  # two may have moved to the same place
        apart[k] = beats[k] - beats[k - 1] >= reach
    return beats[apart]


def beat_classes(signal: np.ndarray, beats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort beats into classes of one shape.

    A beat belongs to the class whose mean it correlates with best over all leads, from 90 ms before the R peak
    to 130 ms after it, if that is 0.90 at least with the beat moved by up to 40 ms. Else it begins a class.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), filtered to 1.5-40 Hz without a shift, at 500 Hz.
    beats : numpy.ndarray
        int64 (beats,), samples.

    Returns
    -------
    classes : numpy.ndarray
        int64 (beats,): the class, or -1 at the ends of the recording and beyond twelve classes.
    lags : numpy.ndarray
        int64 (beats,): samples to add to a beat so that its class lies on one another.
    """
    return _beat_classes(checked(signal), np.asarray(beats, np.int64))


@jit
def _cut(x, first, shape):
    for i in range(shape.shape[0]):
        for lead in range(x.shape[1]):
            shape[i, lead] = x[first + i, lead]


@jit
def _centred(shape):
    """Take each lead's mean off, and return the sum of squares."""
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
def _best_match(x, beat, means, squares, count):
    """The class and the lag of the highest correlation, and the correlation."""
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
def _beat_classes(x, beats):
    n, leads = x.shape
    size = SHAPE_BEFORE + SHAPE_AFTER
    classes, lags = np.full(beats.size, -1), np.zeros(beats.size, np.int64)
    means, squares = np.empty((CLASSES, size, leads)), np.empty(CLASSES)
    sizes, count = np.zeros(CLASSES), 0
    shape = np.empty((size, leads))
    for turn in range(2):  # the second time with what the classes have become
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
    """The median of some beats, sample by sample and lead by lead.

    Of a beat, what lies within 160 ms after the beat before it or within 120 ms before the next one is left
    out. Where fewer than a third of the beats are left there is no value.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), at 500 Hz.
    centres : numpy.ndarray
        int64 (members,): the samples to lay on one another.
    beats : numpy.ndarray
        int64 (beats,): all beats of the recording, in order.

    Returns
    -------
    numpy.ndarray
        float64 (700, leads): 600 ms before the centre, and 800 ms from it on. NaN where there is no value.

    Raises
    ------
    ValueError
        If there are no centres, or one lies outside of the signal.
    """
    signal, centres = checked(signal), np.asarray(centres, np.int64)
    if not centres.size or centres.min() < 0 or centres.max() >= len(signal):
        raise ValueError("centres must lie in the signal, one at least")
    return _median_beat(signal, centres, np.asarray(beats, np.int64))


@jit
def _median_beat(x, centres, beats):
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
    """How alike single beats are to the median beat in a stretch of it, such as around the P wave.

    Parameters
    ----------
    signal : numpy.ndarray
        float64 (samples, leads), at 500 Hz.
    centres : numpy.ndarray
        int64 (members,), as of `median_beat`.
    beat : numpy.ndarray
        float64 (700, leads), the median beat.
    first, last : int
        The stretch in samples of the median beat, `last` not included.

    Returns
    -------
    float
        Median over the beats of their correlation with the median beat over all leads, each lead's straight
        line taken off and smoothed over 18 ms; 0 if no beat has the whole stretch.

    Raises
    ------
    ValueError
        If the stretch does not lie in the beat.
    """
    if not 0 <= first < last - 2 or last > len(beat):
        raise ValueError(f"samples {first} to {last} are no stretch of the median beat")
    return float(_agreement(checked(signal), np.asarray(centres, np.int64), checked(beat), first, last))


@jit
def _smoothed(x, first, size):
    """A stretch of the means of nine samples."""
    out = np.empty((size, x.shape[1]))
    for i in range(size):
        a, b = max(0, first + i - 4), min(x.shape[0], first + i + 5)
        for lead in range(x.shape[1]):
            out[i, lead] = x[a:b, lead].mean()
    return out


@jit
def without_line(x, begin, size):
    """A stretch with each lead's line of least squares taken off, and its sum of squares."""
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
def _agreement(x, centres, beat, first, last):
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
