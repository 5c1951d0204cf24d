"""The slow, obvious versions of the kernels, for comparison; only tests import this."""

from collections import Counter
from itertools import pairwise, product

import numpy as np


def vcg(centres, before, after, vectors, fs, samples):
    """Sum of a * exp(-(t - c)^2 / 2 s^2) over all waves and all samples, nothing left out."""
    t = np.arange(samples) / fs
    out = np.zeros((3, samples))
    for centre, left, right, vector in zip(centres, before, after, vectors, strict=True):
        width = np.where(t < centre, left, right)
        out += np.outer(vector, np.exp(-((t - centre) ** 2) / (2 * width**2)))
    return out


def twelve_leads(sources, matrix, noise, gain):
    """Eight leads in whole steps by a matrix product, and four by the textbook formulas, rounded down."""
    one, two, *chest = np.clip(np.rint((np.asarray(matrix) @ sources + noise) * gain), -16000, 16000)
    limbs = [one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return np.floor(np.stack([*limbs, *chest], axis=1)).astype(int)


def learn_merges(pieces, levels, merges, min_count=2, max_length=0):
    """Byte pair encoding, all pairs counted again for each merge: list of (left, right, count), and the pieces."""
    pieces = [[int(letter) for letter in piece] for piece in pieces]
    length = [1] * levels
    made = []
    while len(made) < merges:
        counts = Counter(
            pair
            for piece in pieces
            for pair in pairwise(piece)
            if not max_length or length[pair[0]] + length[pair[1]] <= max_length
        )
        if not counts:
            break
        (a, b), count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        if count < min_count:
            break
        made.append((a, b, count))
        length.append(length[a] + length[b])
        pieces = [replace_pair(piece, a, b, len(length) - 1) for piece in pieces]
    return made, pieces


def replace_pair(piece, a, b, new):
    """Replace (a, b) by `new`, left to right without overlap."""
    out, i = [], 0
    while i < len(piece):
        if piece[i : i + 2] == [a, b]:
            out.append(new)
            i += 2
        else:
            out.append(piece[i])
            i += 1
    return out


def letters_by_steps(signal, lo, hi, levels):
    """Letters of equal steps between lo and hi, clipped: floor(levels (x - lo) / (hi - lo))."""
    if not hi > lo:
        return np.zeros(np.shape(signal), np.uint8)
    places = np.floor((np.asarray(signal, float) - lo) * (levels / (hi - lo)))
    return np.clip(places, 0, levels - 1).astype(np.uint8)


def letters_by_own_range(signal, levels, margin):
    """Letters of ECG-Bench and ELM: (x - min) / (max - min + margin), in equal steps."""
    x = np.asarray(signal, float)
    scaled = np.clip((x - x.min()) / (x.max() - x.min() + margin), 0, 1)
    return np.minimum(np.floor(scaled * levels), levels - 1).astype(np.uint8)


def elm_preprocessing(signal, fs, target):
    """Profile `elm` with scipy, a lead at a time, on grids in seconds: float64 (leads, made)."""
    from scipy import interpolate

    duration, made = signal.shape[1] / fs, int(signal.shape[1] * target / fs)
    before, after = np.linspace(0, duration, signal.shape[1]), np.linspace(0, duration, made)
    return np.stack([interpolate.interp1d(before, row, kind="cubic")(after) for row in signal.astype(float)])


def paper_preprocessing(signal, fs, target):
    """Profile `paper` with scipy and PyWavelets, a filter and a lead at a time: float64 (leads, made)."""
    import pywt
    from scipy import interpolate
    from scipy import signal as sps

    made = int(signal.shape[1] * target / fs)
    out = np.empty((len(signal), made))
    sections = [sps.tf2sos(*sps.iirnotch(f, 30, fs)) for f in (50, 60)]
    sections.append(sps.butter(4, [0.5, 100], "bandpass", fs=fs, output="sos"))
    sections.append(sps.butter(4, 0.05, "highpass", fs=fs, output="sos"))
    for lead, row in enumerate(signal.astype(float)):
        for sos in sections:
            row = sps.sosfiltfilt(sos, row)
        coarse, *details = pywt.wavedec(row, "db6", level=4)
        threshold = np.median(np.abs(details[0])) / 0.6745
        details = [pywt.threshold(d, threshold, "soft") if threshold else d for d in details]
        row = pywt.waverec([coarse, *details], "db6")[: signal.shape[1]]
        before, after = np.linspace(0, 1, signal.shape[1]), np.linspace(0, 1, made)
        out[lead] = interpolate.interp1d(before, row, kind="cubic")(after)
    return out


# Segmenters ------------------------------------------------------------------------------------------------


def spellings(merges, levels):
    """The letters of every token, as tuples, by id."""
    tokens = [(letter,) for letter in range(levels)]
    for left, right in merges:
        tokens.append(tokens[left] + tokens[right])
    return tokens


def longest(letters, merges, levels):
    """At each place the longest token that matches; of equal ones the one made first."""
    tokens, ids, i = {}, [], 0
    for k, spelled in enumerate(spellings(merges, levels)):
        tokens.setdefault(spelled, k)
    while i < len(letters):
        for n in range(len(letters) - i, 0, -1):
            if tuple(letters[i : i + n]) in tokens:
                ids.append(tokens[tuple(letters[i : i + n])])
                i += n
                break
    return ids


def bpe(letters, merges, levels):
    """The merges one after the other, each from left to right."""
    ids = list(letters)
    for k, (left, right) in enumerate(merges):
        ids = replace_pair(ids, left, right, levels + k)
    return ids


def fewest(letters, merges, levels):
    """How few tokens the letters can be cut into, by dynamic programming."""
    tokens = set(spellings(merges, levels))
    least = [0] + [10**9] * len(letters)
    for stop in range(1, len(letters) + 1):
        for start in range(stop):
            if tuple(letters[start:stop]) in tokens:
                least[stop] = min(least[stop], least[start] + 1)
    return least[-1]


# The quantizer `trellis` -------------------------------------------------------------------------------------


def cost_of_letters(signal, letters, centres, penalty):
    """Squared error of one lead's letters, and the penalty for each change of the letter."""
    error = sum((x - centres[letter]) ** 2 for x, letter in zip(signal, letters, strict=True))
    return error + penalty * sum(a != b for a, b in pairwise(letters))


def least_cost_of_letters(signal, centres, penalty):
    """The least such cost, of all ways to write a lead in letters."""
    ways = product(range(len(centres)), repeat=len(signal))
    return min(cost_of_letters(signal, letters, centres, penalty) for letters in ways)


def varied(letters, levels, random, strength):
    """Letters with a gain, an offset of each lead, and missing leads: ecgbyte_kernels.augment.varied."""
    leads, samples = letters.shape
    gain = float(np.exp(strength * random.uniform(-0.25, 0.25)))
    offsets = strength * 0.5 * random.standard_normal(leads)
    dropped = random.random(leads) < strength * 0.05
    out = np.zeros_like(letters)
    for lead in range(leads):
        centre = np.median(letters[lead])
        for i in range(samples):
            value = letters[lead, i] * gain + (centre * (1 - gain) + offsets[lead])
            rounded = int(centre) if dropped[lead] else int(np.floor(value + 0.5))
            out[lead, i] = min(max(rounded, 0), levels - 1)
    return out


def recorded_again(signal, gain, shift, slow, fast):
    """A signal between its samples, with gains, a high-pass and a low-pass: ecgbyte_kernels.augment."""
    out = np.zeros(signal.shape)
    for lead, row in enumerate(signal.astype(float)):
        last = len(row) - 1
        for i in range(len(row)):
            four = [row[min(max(i + k, 0), last)] for k in (-1, 0, 1, 2)]
            # the cubic through the four samples, at the fraction
            out[lead, i] = np.polyval(np.polyfit([-1, 0, 1, 2], four, 3), shift) * gain[lead]
        if slow < 1:
            level = out[lead, 0]
            for i in range(len(row)):
                level = slow * level + (1 - slow) * out[lead, i]
                out[lead, i] -= level
        for order in (range(len(row)), range(last, -1, -1)) if fast > 0 else ():
            level = out[lead, order[0]]
            for i in order:
                level = fast * level + (1 - fast) * out[lead, i]
                out[lead, i] = level
    return out


# Measurement on the median beat: (samples, leads) at 500 Hz. None stands for what is not found.


def remove_mains(signal, beats, frequencies=(50.0, 60.0)):
    """A sinusoid for each frequency by weighted least squares in Hann windows of 1 s, overlapping by half."""
    n = len(signal)
    quiet = np.ones(n)
    for beat in beats:
        quiet[max(0, beat - 40) : beat + 45] = 0
    ends = np.pad(signal, ((5, 5), (0, 0)), mode="edge")
    fast = signal - (ends[:n] + ends[10:]) / 2
    out = signal.copy()
    for f in frequencies:
        w = 2 * np.pi * f / 500
        waves = np.stack([np.cos(w * np.arange(n)), np.sin(w * np.arange(n))], axis=1)
        fitted, weight = np.zeros_like(signal), np.zeros((n, 1))
        starts = list(range(0, max(1, n - 499), 250))
        for start in starts:
            end = n if start == starts[-1] else start + 500
            taper = np.sin(np.pi * (np.arange(end - start) + 0.5) / (end - start)) ** 2
            here = quiet[start:end] if quiet[start:end].sum() >= 0.3 * (end - start) else 1
            part, root = waves[start:end], np.sqrt(taper * here)[:, None]
            factors = np.linalg.lstsq(root * part * (1 - np.cos(5 * w)), root * fast[start:end], rcond=None)[
                0
            ]
            fitted[start:end] += taper[:, None] * (part @ factors)
            weight[start:end] += taper[:, None]
        out -= fitted / weight
    return out


def find_spikes(signal):
    """Samples that stand out on both sides within 6 ms, in all leads together."""
    n = len(signal)
    before, after = signal[3:-3] - signal[:-6], signal[3:-3] - signal[6:]
    out = np.where(before * after > 0, np.minimum(before**2, after**2), 0)
    height = np.pad(out.sum(axis=1), 3)
    middle = np.median([signal[:-6], signal[3:-3], signal[6:]], axis=0)
    middle = np.pad(middle, ((3, 3), (0, 0)), constant_values=np.nan)
    blocks = max(1, n // 750)
    size = n // blocks
    parts = middle[: blocks * size].reshape(blocks, size, -1)
    spans = np.nansum((np.nanmax(parts, axis=1) - np.nanmin(parts, axis=1)) ** 2, axis=1)
    found = []
    for i in range(n):
        if (
            height[i] > max(0.04 * np.median(spans), 1e-12)
            and height[i] == height[max(0, i - 10) : i + 11].max()
        ):
            if not found or i - found[-1] > 10:
                found.append(i)
    return found


def usual_maximum(x, size):
    blocks = [x[k * size : (k + 1) * size].max(axis=0) for k in range(len(x) // size)]
    return np.median(blocks or [x.max(axis=0)], axis=0)


def detect_beats(band):
    """Peaks of the slopes of all leads together, and the highest place near each."""
    n = len(band)
    slopes = np.abs(np.gradient(band, axis=0))
    joined = np.sqrt((np.minimum(slopes, 3 * usual_maximum(slopes, 500)) ** 2).sum(axis=1))
    energy = np.convolve(joined, np.ones(45) / 45, mode="same")
    usual = usual_maximum(energy, 750)
    if usual <= 2.5 * np.percentile(energy, 25):
        return []
    peaks = [i for i in range(10, n - 10) if energy[i] == energy[max(0, i - 50) : i + 51].max()]
    peaks = [i for i in peaks if energy[i] > 0.12 * usual]
    high = [i for i in peaks if energy[i] > 0.30 * usual]
    kept = [i for i in high if all(abs(i - j) >= 180 or energy[i] >= 0.6 * energy[j] for j in high)]
    if len(kept) > 3:
        rr = np.median(np.diff(kept))
        for a, b in pairwise(list(kept)):
            between = [i for i in peaks if a + 180 < i < b - 180]
            if b - a > 1.66 * rr and between:
                kept.append(max(between, key=lambda i: energy[i]))
        kept.sort()
    least = 0.6 * np.median(energy[kept]) if kept else 0
    kept = [i for i in kept if 85 <= i < n - 85 or energy[i] >= least]
    square = (band**2).sum(axis=1)
    beats = [max(0, i - 35) + int(np.argmax(square[max(0, i - 35) : i + 36])) for i in kept]
    return [b for k, b in enumerate(beats) if not k or b - beats[k - 1] >= 50]


def correlation(a, b):
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((a * a).sum() * (b * b).sum())
    return (a * b).sum() / norm if norm > 0 else 0.0


def beat_classes(signal, beats):
    """Each beat to the class whose mean it resembles most, or to a new one; then once more."""
    classes, lags, means, sizes = np.full(len(beats), -1), np.zeros(len(beats), int), [], []
    for turn in range(2):
        for b, beat in enumerate(beats):
            if beat - 65 < 0 or beat + 85 > len(signal):
                continue
            tries = [
                (correlation(mean, signal[beat + lag - 45 : beat + lag + 65]), -lag, -k)
                for k, mean in enumerate(means)
                for lag in range(-20, 21)
            ]
            alike, lag, k = max(tries, default=(-1, 0, 0))
            if alike >= 0.9:
                classes[b], lags[b] = -k, -lag
                if not turn:
                    sizes[-k] += 1
                    means[-k] = (
                        means[-k] + (signal[beat - lag - 45 : beat - lag + 65] - means[-k]) / sizes[-k]
                    )
            elif not turn and len(means) < 12:
                classes[b] = len(means)
                means.append(signal[beat - 45 : beat + 65])
                sizes.append(1)
    return classes, lags


def median_beat(signal, centres, beats):
    """The median of what the members have, 600 ms before and 800 ms after, clear of their neighbours."""
    stack = np.full((len(centres), 700, signal.shape[1]), np.nan)
    for row, c in zip(stack, centres, strict=True):
        first = max([0, c - 300, *(b + 80 for b in beats if b < c - 50)])
        last = min([len(signal), c + 400, *(b - 60 for b in beats if b > c + 50)])
        if first < last:
            row[first - c + 300 : last - c + 300] = signal[first:last]
    enough = np.isfinite(stack).sum(axis=0) >= max(1, 0.34 * len(centres))
    out = np.full(stack.shape[1:], np.nan)
    out[enough] = np.nanmedian(stack[:, enough], axis=0)
    return out


def agreement(signal, centres, beat, first, last):
    """The median correlation of the beats with the median beat in a stretch, smoothed and without its slope."""

    def part(x, begin):
        rows = [x[max(0, i - 4) : i + 5].mean(axis=0) for i in range(begin, begin + last - first)]
        time = np.arange(last - first)
        return np.stack(
            [row - np.polyval(np.polyfit(time, row, 1), time) for row in np.transpose(rows)], axis=1
        )

    begins = [c - 300 + first for c in centres]
    found = [
        correlation(part(beat, first), part(signal, begin))
        for begin in begins
        if begin >= 0 and begin + last - first <= len(signal)
    ]
    return np.median(found) if found else 0.0


def first_below(v, start, step, threshold, run):
    count = 0
    i = start
    while 0 <= i < len(v):
        count = count + 1 if v[i] < threshold else 0
        if count == run:
            return i - step * (run - 1)
        i += step
    return -1


def qrs_bounds(beat):
    """Where the slopes of all leads together come to rest on both sides of the steepest place."""
    edged = np.pad(beat, ((5, 5), (0, 0)), mode="edge")
    weights = np.arange(-5, 6) / (np.arange(-5, 6) ** 2).sum()
    slopes = np.tensordot(weights, np.stack([edged[k : k + 700] for k in range(11)]), 1) / 2  # mV/ms
    v = np.sqrt((slopes**2).sum(axis=1))
    amplitude = np.sqrt((np.ptp(beat[250:360], axis=0) ** 2).sum())
    peak = 250 + int(np.argmax(v[250:350]))

    def quietest(first, last):
        return min(v[i : i + 20].mean() for i in range(first, last - 19))

    on = max(0.02 * v[peak], 0.0013 * amplitude, 2.5 * quietest(180, 280))
    off = max(0.03 * v[peak], 0.0036 * amplitude, 1.2 * quietest(340, 450))
    return first_below(v, peak, -1, on, 4), first_below(v, peak, 1, off, 8), amplitude


def steepest(wave, sign):
    return int(np.argmax(-sign * np.gradient(wave)))


def trapezium_end(wave):
    sign = 1 if wave[0] >= wave[-1] else -1
    m, last = steepest(wave, sign), len(wave) - 1
    if m >= last - 1:
        return -1
    i = np.arange(m, len(wave))
    return m + int(np.argmax(sign * (wave[m] - wave[i]) * (2 * last - i - m) / 2))


def tangent_end(wave, base):
    sign = 1 if wave[0] >= base else -1
    m = steepest(wave, sign)
    fall = -sign * np.gradient(wave)[m]
    return np.clip(m + sign * (wave[m] - base) / fall, m, len(wave) - 1) if fall > 0 else -1


def t_bounds(low, offset, rr, last, amplitude):
    """The highest place after the complex near its usual time, and the median end over the leads."""
    root = np.sqrt(rr / 500) * 500
    start, stop = offset + 20, int(min(last, 300 + 0.62 * root, 300 + 0.72 * rr))
    if stop - start < 40:
        return -1, -1
    i = np.arange(start, stop)
    height = np.sqrt(((low[start:stop] - low[stop - 15 : stop].mean(axis=0)) ** 2).sum(axis=1))
    peak = start + int(np.argmax(height * np.exp(-0.5 * ((i - 300 - 0.30 * root) / (0.08 * root)) ** 2)))
    stop = min(stop, peak + int(0.18 * root))
    ends = []
    for wave in low.T:
        base, near = wave[stop - 8 : stop + 1].mean(), wave[max(peak - 25, 0) : min(peak + 26, stop - 10)]
        if not near.size or np.abs(near - base).max() < 0.02 * amplitude:
            continue
        top = max(peak - 25, 0) + int(np.argmax(np.abs(near - base)))
        both = trapezium_end(wave[top : stop + 1]), tangent_end(wave[top : stop + 1], base)
        if min(both) >= 0:
            ends.append(top + sum(both) / 2)
    return peak, np.median(ends) + 2.5 if ends else -1


def p_bounds(low, onset, first):
    """The bump that sticks out most before the complex, and the medians of several ways to see its ends."""
    if onset - 15 - first - 12 < 12:
        return -1, -1, -1
    smooth = np.stack([low[max(0, i - 7) : i + 8].mean(axis=0) for i in range(len(low))])
    ends = np.pad(smooth, ((25, 25), (0, 0)), mode="edge")
    hats = smooth - (ends[:-50] + ends[50:]) / 2
    square = (hats**2).sum(axis=1)
    peak = first + 12 + int(np.argmax(square[first + 12 : onset - 15]))
    if square[peak] <= 0:
        return -1, -1, -1
    joined = low @ hats[peak] / np.sqrt(square[peak])
    begin = max(first, peak - 15)
    top = begin + int(np.argmax(joined[begin : min(onset - 6, peak + 16)]))
    earliest, latest = max(first, top - 40), min(onset - 2, top + 27)
    heights = low[top] - (low[earliest] + low[latest]) / 2

    def both_ends(wave, at):
        start = trapezium_end(wave[earliest : at + 1][::-1]) if at - earliest >= 5 else -1
        end = trapezium_end(wave[at : latest + 1]) if latest - at >= 5 else -1
        return at - start if start >= 0 else -1, at + end if end >= 0 else -1

    pairs = []
    for wave, height in zip(low.T, heights, strict=True):
        if abs(height) >= 0.3 * np.abs(heights).max():
            begin = max(earliest + 1, top - 12)
            sign = 1 if height >= 0 else -1
            pairs.append(both_ends(wave, begin + int(np.argmax(sign * wave[begin : min(latest, top + 13)]))))
    starts, stops = ([end for end in ends if end >= 0] for ends in zip(*pairs, strict=True))
    v = np.sqrt((((low[2:] - low[:-2]) / 2) ** 2).sum(axis=1))  # v[i - 1] at sample i
    velocity = -1
    if top - earliest >= 2:
        v = np.concatenate([[0], v])[:top]
        v[: max(1, earliest - 60)] = 0
        fastest = earliest + int(np.argmax(v[earliest:]))
        velocity = first_below(v, fastest, -1, 0.25 * v[fastest], 1)
    start, end = both_ends(joined, top)
    starts = [x for x in (np.median(starts) if starts else -1, start, velocity) if x >= 0]
    stops = [x for x in (np.median(stops) if stops else -1, end) if x >= 0]
    return peak, np.median(starts) if starts else -1, np.median(stops) if stops else -1


def earlier_copy(low, peak, first):
    """The best correlation of the P wave with what lies 150 to 290 ms before it and is about as high."""

    def part(begin):
        time = np.arange(60)
        lines = [np.polyval(np.polyfit(time, row, 1), time) for row in low[begin : begin + 60].T]
        return low[begin : begin + 60] - np.transpose(lines)

    if not 30 <= peak <= len(low) - 30:
        return -1
    wave, best = part(peak - 30), -1
    for lag in range(75, 145):
        if peak - lag - 30 < first:
            break
        other = part(peak - lag - 30)
        if 0.36 < (other**2).sum() / (wave**2).sum() < 2.56:
            best = max(best, (wave * other).sum() / np.sqrt((wave**2).sum() * (other**2).sum()))
    return best
