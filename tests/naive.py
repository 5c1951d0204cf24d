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
