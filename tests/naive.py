"""The slow, obvious versions of the kernels, for comparison; only tests import this."""

from collections import Counter
from itertools import pairwise

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
