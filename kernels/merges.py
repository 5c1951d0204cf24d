"""Byte pair encoding merges of a corpus: the exact list, ties and runs included."""

import heapq

import numpy as np

from ecgbyte_kernels import jit


def learn_merges(text, end, levels, merges, min_count, max_length):
    """Learn byte pair encoding merges: at each step the most frequent pair becomes a new id.

    A pair's count is the number of adjacent positions that hold it inside a piece, overlaps included
    ("aaa" holds "aa" twice); a merge replaces from left to right without overlap. Ties go to the smaller
    (left id, right id). Sennrich et al. 2016, section 3.2, without their count of words.

    Parameters
    ----------
    text : numpy.ndarray of int32, 1-D
        Letters 0..levels-1, with `end` behind every piece. Overwritten: on return, the tokens.
    end : int
        The value that ends a piece; no token crosses it. Larger than any id.
    levels : int
        How many letters there are; merge k makes the id levels + k.
    merges : int
        How many merges to learn at most.
    min_count : int
        Stop when no pair is found this often.
    max_length : int
        No token becomes longer than this many letters (0: no limit).

    Yields
    ------
    left, right, count, tokens : int
        A merge, the count of its pair when it was made, and the tokens that are left after it.
    """
    length = np.ones(levels + merges, np.int64)
    size = len(text)
    pieces = int(np.count_nonzero(text == end))
    before = np.zeros(levels + merges, np.int64)
    behind = np.zeros(levels + merges, np.int64)
    counts = _count_pairs(text, end, levels)
    counts = {(int(a), int(b)): int(counts[a, b]) for a, b in np.argwhere(counts)}
    heap = [(-n, a, b) for (a, b), n in counts.items()]
    heapq.heapify(heap)
    made = 0
    while heap and made < merges:
        n, a, b = heapq.heappop(heap)
        n = -n
        if n < min_count:
            return
        if length[a] + length[b] > max_length > 0:
            continue
        true = counts[a, b]
        if true != n:  # counts only fall, so an old entry goes back at its true count
            if true > 0:
                heapq.heappush(heap, (-true, a, b))
            continue
        new = levels + made
        length[new] = length[a] + length[b]
        size = _merge(text, size, end, a, b, new, before, behind)
        # A replaced pair with y before it and z behind it: (y, a) and (b, z) go, (y, new) and (new, z) come.
        # In a run the y is a `new` made just before, and then (new, a) goes that has come with it.
        left, right = np.flatnonzero(before[: new + 1]), np.flatnonzero(behind[: new + 1])
        fresh = {(new, int(z)): int(behind[z]) for z in right}
        for y in left:
            fresh[int(y), new] = int(before[y])
            if y != new:
                counts[int(y), a] -= int(before[y])
        if before[new]:
            fresh[new, a] -= int(before[new])
        for z in right:
            counts[b, int(z)] -= int(behind[z])
        counts[a, b] = 0
        before[left], behind[right] = 0, 0
        for (y, z), n_fresh in fresh.items():
            if n_fresh >= min_count:
                heapq.heappush(heap, (-n_fresh, y, z))
        counts.update(fresh)
        made += 1
        yield a, b, n, size - pieces


@jit
def _count_pairs(text, end, levels):
    counts = np.zeros((levels, levels), np.int64)
    for i in range(1, len(text)):
        if text[i - 1] != end and text[i] != end:
            counts[text[i - 1], text[i]] += 1
    return counts


@jit
def _merge(text, size, end, a, b, new, before, behind):
    # One scan that replaces (a, b) by `new`, closes the gaps, and counts the neighbours.
    i = o = 0
    while i < size:
        if text[i] == a and i + 1 < size and text[i + 1] == b:
            if o > 0 and text[o - 1] != end:
                before[text[o - 1]] += 1
            if text[i + 2] != end:
                behind[text[i + 2]] += 1
            text[o] = new
            i += 2
        else:
            text[o] = text[i]
            i += 1
        o += 1
    return o
