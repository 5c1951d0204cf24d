"""The segmenter `bpe`: the merges in their order, each from the left.

Pairs wait in one list for each rank, and one pass goes through the ranks, upwards: a merge creates a new token, so its
new pairs have higher ranks. Equal neighbours are one run with a count, because most merges of an ECG join equal
neighbours: "aaaaa" becomes two "aa" and an "a" in one step.
"""

import numpy as np

from ecgbyte_kernels import jit
from ecgbyte_kernels.tokens import _checked, _id_type, spell


def bpe_tables(merges: np.ndarray, levels: int) -> tuple:
    """Build the tables of `bpe` from merges (m, 2) and the number of letters."""
    text, starts = spell(merges, levels)
    merges = np.asarray(merges, np.int64).reshape(-1, 2)
    # open addressing, at most a quarter full, so that few searches take a second look
    slots = np.full(1 << max(4, (4 * len(merges)).bit_length()), -1, np.int64)
    same = np.full(len(starts) - 1, -1, np.int32)
    _fill_pairs(merges, slots, same)
    return levels, merges, slots, same


# An entry is left id (20 bits), right id (20 bits), rank (23 bits): 8 bytes, so one cache miss at most.


@jit(inline="always")
def _first_slot(left: int, right: int, mask: int) -> int:
    # Fibonacci hashing: bits of the product that both ids have reached
    return (((left << 20 | right) * 0x9E3779B97F4A7C1) >> 36) & mask


@jit
def _fill_pairs(merges: np.ndarray, slots: np.ndarray, same: np.ndarray) -> None:
    mask = len(slots) - 1
    for k in range(len(merges)):
        left, right = merges[k, 0], merges[k, 1]
        at = _first_slot(left, right, mask)
        while slots[at] >= 0:
            at = (at + 1) & mask
        slots[at] = (left << 20 | right) << 23 | k
        if left == right:
            same[left] = k


@jit(inline="always")
def _rank(left: int, right: int, slots: np.ndarray) -> int:
    """Return the rank of a pair of ids, or -1."""
    mask = len(slots) - 1
    at = _first_slot(left, right, mask)
    while slots[at] >= 0:
        if slots[at] >> 23 == left << 20 | right:
            return slots[at] & 0x7FFFFF
        at = (at + 1) & mask
    return -1


@jit(inline="always")
def _lowest_bit(word: np.uint64) -> int:
    """Return the place of the lowest set bit."""
    bit, width, low = 0, 32, np.uint64(0xFFFFFFFF)
    while width:
        if not word & low:
            word >>= np.uint64(width)
            bit += width
        width >>= 1
        low >>= np.uint64(width)
    return bit


def bpe(letters: np.ndarray, bounds: np.ndarray, tables: tuple) -> tuple[np.ndarray, np.ndarray]:
    """Cut pieces into tokens by the merges in their order, as the `tokenizers` library does.

    Parameters and results are the same as for `longest`, with tables from `bpe_tables`.
    """
    levels, merges, slots, same = tables
    letters, bounds, counts = _checked(letters, bounds, levels)
    ids = np.empty(letters.size, _id_type(levels + len(merges)))
    return ids[: _bpe(letters, bounds, levels, merges, slots, same, ids, counts)].copy(), counts


@jit(inline="always")
def _find_runs(
    letters: np.ndarray,
    i: int,
    stop: int,
    token: np.ndarray,
    count: np.ndarray,
    after: np.ndarray,
    ahead: np.ndarray,
) -> int:
    """Write the runs of equal letters of a piece; return their number."""
    runs = 0
    while i < stop:
        letter = letters[i]
        j = i + 1
        while j < stop and letters[j] == letter:
            j += 1
        token[runs], count[runs] = letter, j - i
        after[runs], ahead[runs] = runs + 1, runs - 1
        runs += 1
        i = j
    if runs:
        after[runs - 1] = -1
    return runs


@jit(inline="always")
def _join_runs(
    middle: int,
    other: int,
    made: int,
    token: np.ndarray,
    count: np.ndarray,
    after: np.ndarray,
    ahead: np.ndarray,
) -> int:
    """Join the run of a new token with runs of the same token on either side; return the joint run."""
    beside = ahead[middle]
    if beside >= 0 and token[beside] == made:
        count[beside] += 1
        token[middle] = -1
        after[beside] = other
        if other >= 0:
            ahead[other] = beside
        middle = beside
    if other >= 0 and token[other] == made:
        count[middle] += count[other]
        token[other] = -1
        other = after[other]
        after[middle] = other
        if other >= 0:
            ahead[other] = middle
    return middle


@jit(inline="always")
def _write_runs(
    run: int, token: np.ndarray, count: np.ndarray, after: np.ndarray, ids: np.ndarray, n: int
) -> int:
    """Write the tokens of runs, starting at `run`, to `ids`, starting at `n`; return the index after them."""
    while run >= 0:
        for _ in range(count[run]):
            ids[n] = token[run]
            n += 1
        run = after[run]
    return n


@jit
def _bpe(
    letters: np.ndarray,
    bounds: np.ndarray,
    levels: int,
    merges: np.ndarray,
    slots: np.ndarray,
    same: np.ndarray,
    ids: np.ndarray,
    counts: np.ndarray,
) -> int:
    room = 0
    for p in range(len(bounds) - 1):
        room = max(room, bounds[p + 1] - bounds[p])
    # A run: its token, its count, the runs beside it (-1: none). A merge creates at most one more run.
    token, count = np.empty(2 * room, np.int32), np.empty(2 * room, np.int32)
    after, ahead = np.empty(2 * room, np.int32), np.empty(2 * room, np.int32)
    # The waiting pairs: entry e is the run entry_run[e], and the next entry of its rank is entry_next[e].
    # Entries whose run has changed are skipped. A merge adds at most four.
    entry_run, entry_next = np.empty(6 * room, np.int32), np.empty(6 * room, np.int32)
    head = np.full(len(merges), -1, np.int32)
    waiting = np.zeros(len(merges) // 64 + 1, np.uint64)  # a bit for each rank
    n = 0
    for p in range(len(bounds) - 1):
        before = n
        entries = 0
        runs = _find_runs(letters, bounds[p], bounds[p + 1], token, count, after, ahead)
        for run in range(runs):
            entries = _wait_same(run, token, count, same, head, entry_run, entry_next, entries, waiting)
            entries = _wait_next(run, token, after, slots, head, entry_run, entry_next, entries, waiting)
        for w in range(len(waiting)):
            while waiting[w]:
                rank = 64 * w + _lowest_bit(waiting[w])
                waiting[w] &= waiting[w] - np.uint64(1)
                left, right, made = merges[rank, 0], merges[rank, 1], levels + rank
                entry = head[rank]
                head[rank] = -1
                while entry >= 0:
                    run = entry_run[entry]
                    entry = entry_next[entry]
                    if token[run] != left:
                        continue
                    last = run  # behind it the neighbours do not change
                    if left == right:
                        if count[run] < 2:
                            continue
                        token[run] = made
                        if count[run] % 2:
                            last = runs
                            runs += 1
                            token[last], count[last] = left, 1
                            after[last], ahead[last] = after[run], run
                            if after[run] >= 0:
                                ahead[after[run]] = last
                            after[run] = last
                        count[run] //= 2
                    else:
                        other = after[run]
                        if other < 0 or token[other] != right:
                            continue
                        count[run] -= 1
                        count[other] -= 1
                        # the new token takes the place of a run that is used up, if there is one
                        if count[run] == 0:
                            middle = run
                        elif count[other] == 0:
                            middle = other
                        else:
                            middle = runs
                            runs += 1
                        if middle != run:
                            after[run], ahead[middle] = middle, run
                        if count[other] == 0:
                            token[other] = -1
                            other = after[other]
                        if other >= 0:
                            after[middle], ahead[other] = other, middle
                        else:
                            after[middle] = -1
                        token[middle], count[middle] = made, 1
                        middle = _join_runs(middle, other, made, token, count, after, ahead)
                        run = last = middle
                    entries = _wait_same(
                        run, token, count, same, head, entry_run, entry_next, entries, waiting
                    )
                    if ahead[run] >= 0:
                        entries = _wait_next(
                            ahead[run], token, after, slots, head, entry_run, entry_next, entries, waiting
                        )
                    entries = _wait_next(
                        run, token, after, slots, head, entry_run, entry_next, entries, waiting
                    )
                    if last != run:
                        entries = _wait_next(
                            last, token, after, slots, head, entry_run, entry_next, entries, waiting
                        )
        n = _write_runs(0 if runs else -1, token, count, after, ids, n)
        counts[p] = n - before
    return n


@jit(inline="always")
def _wait_same(
    run: int,
    token: np.ndarray,
    count: np.ndarray,
    same: np.ndarray,
    head: np.ndarray,
    entry_run: np.ndarray,
    entry_next: np.ndarray,
    entries: int,
    waiting: np.ndarray,
) -> int:
    """Queue the pairs within a run at their rank; return the number of entries."""
    if count[run] < 2 or same[token[run]] < 0:
        return entries
    return _wait(run, same[token[run]], head, entry_run, entry_next, entries, waiting)


@jit(inline="always")
def _wait_next(
    run: int,
    token: np.ndarray,
    after: np.ndarray,
    slots: np.ndarray,
    head: np.ndarray,
    entry_run: np.ndarray,
    entry_next: np.ndarray,
    entries: int,
    waiting: np.ndarray,
) -> int:
    """Queue the pair of a run's last token and the next run's first; return the number of entries."""
    if after[run] < 0:
        return entries
    rank = _rank(np.int64(token[run]), np.int64(token[after[run]]), slots)
    if rank < 0:
        return entries
    return _wait(run, rank, head, entry_run, entry_next, entries, waiting)


@jit(inline="always")
def _wait(
    run: int,
    rank: int,
    head: np.ndarray,
    entry_run: np.ndarray,
    entry_next: np.ndarray,
    entries: int,
    waiting: np.ndarray,
) -> int:
    entry_run[entries], entry_next[entries] = run, head[rank]
    head[rank] = entries
    waiting[rank >> 6] |= np.uint64(1) << np.uint64(rank & 63)
    return entries + 1
