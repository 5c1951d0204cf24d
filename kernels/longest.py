"""The segmenter `longest`: the longest token that matches, from the left."""

import numpy as np

from ecgbyte_kernels import jit
from ecgbyte_kernels.tokens import _checked, _id_type, _trie, spell


def longest_tables(merges: np.ndarray, levels: int) -> tuple:
    """Build the tables of `longest` from merges (m, 2) and the number of letters."""
    text, starts = spell(merges, levels)
    lengths = np.diff(starts)
    return levels, lengths, _trie(text, starts, levels, np.ones(len(lengths), np.bool_))


def longest(letters: np.ndarray, bounds: np.ndarray, tables: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Cut pieces into the longest tokens that match, from the left.

    This is the encoder of the reference implementation (ECG-Byte, arXiv 2412.14373, section 3.1).

    Parameters
    ----------
    letters : numpy.ndarray
        uint8, (n,), each below the tokenizer's number of letters.
    bounds : numpy.ndarray
        int64, (pieces + 1,), from 0 to n.
    tables : tuple
        From `longest_tables`.

    Returns
    -------
    ids : numpy.ndarray
        uint16 (uint32 if the vocabulary needs it), the ids of all pieces end to end.
    counts : numpy.ndarray
        int64, (pieces,): number of ids of each piece.

    Raises
    ------
    ValueError
        If a letter is not below the number of letters, or the pieces do not hold all letters.
    """
    levels, lengths, child = tables
    letters, bounds, counts = _checked(letters, bounds, levels)
    # memory beyond the ids is never touched
    ids = np.empty(letters.size, _id_type(lengths.size))
    return ids[: _longest(letters, bounds, levels, lengths.size, child, ids, counts)].copy(), counts


# Every step through the trie waits for memory, so two pieces go side by side: one steps while the other waits.
# Each writes its ids at its letters' place, and at the end they are moved together.


@jit
def _longest(
    letters: np.ndarray,
    bounds: np.ndarray,
    levels: int,
    vocab: int,
    child: np.ndarray,
    ids: np.ndarray,
    counts: np.ndarray,
) -> int:
    nodes = len(child) // levels
    pieces = len(bounds) - 1
    half = pieces // 2
    for p in range(half):
        q = p + half
        first, stop, other_first, other_stop = bounds[p], bounds[p + 1], bounds[q], bounds[q + 1]
        n, other_n = first, other_first
        if first < stop and other_first < other_stop:
            i, node = first + 1, np.int64(letters[first])
            best, end = node, i
            other_i, other_node = other_first + 1, np.int64(letters[other_first])
            other_best, other_end = other_node, other_i
            while i < stop and other_i < other_stop:
                node = np.int64(child[node * levels + letters[i]])
                other_node = np.int64(child[other_node * levels + letters[other_i]])
                i += 1
                other_i += 1
                if node == nodes:
                    ids[n] = best
                    n += 1
                    first, i, node = end, end + 1, np.int64(letters[end])
                    best, end = node, i
                else:
                    end = i if node < vocab else end
                    best = node if node < vocab else best
                if other_node == nodes:
                    ids[other_n] = other_best
                    other_n += 1
                    other_first, other_i, other_node = other_end, other_end + 1, np.int64(letters[other_end])
                    other_best, other_end = other_node, other_i
                else:
                    other_end = other_i if other_node < vocab else other_end
                    other_best = other_node if other_node < vocab else other_best
        # one of them is at its end: start the current tokens again
        n = _longest_alone(letters, first, stop, levels, vocab, child, ids, n)
        other_n = _longest_alone(letters, other_first, other_stop, levels, vocab, child, ids, other_n)
        counts[p], counts[q] = n - bounds[p], other_n - bounds[q]
    if pieces % 2:
        first, stop = bounds[pieces - 1], bounds[pieces]
        n = _longest_alone(letters, first, stop, levels, vocab, child, ids, first)
        counts[pieces - 1] = n - first
    total = 0
    for p in range(pieces):
        for k in range(bounds[p], bounds[p] + counts[p]):
            ids[total] = ids[k]
            total += 1
    return total


@jit
def _longest_alone(
    letters: np.ndarray,
    i: int,
    stop: int,
    levels: int,
    vocab: int,
    child: np.ndarray,
    ids: np.ndarray,
    n: int,
) -> int:
    nodes = len(child) // levels
    while i < stop:
        # _longest_at of `fewest` inlined, so that the end of the match is known without the lengths
        node = np.int64(letters[i])
        best = node
        i += 1
        end = i
        while i < stop:
            node = np.int64(child[node * levels + letters[i]])
            if node == nodes:
                break
            i += 1
            end = i if node < vocab else end
            best = node if node < vocab else best
        ids[n] = best
        n += 1
        i = end
    return n
