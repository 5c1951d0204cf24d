"""Scans of `merges`: passes over the whole text of a shard.

The first scans read one byte per letter, with a dense table of counts; later ones read cells of two or four bytes, with
hash tables of pairs. Gaps in a text are closed in place, and the new size is returned.
"""

from collections.abc import Callable
from itertools import repeat
from typing import Any

import numpy as np

from ecgbyte_kernels import jit

BATCH = 64  # the most merges applied in one go
BUCKET_BITS = 18  # a table of counts that stays in a core's own cache
Over = Callable[..., list[Any]]  # maps a kernel over the shards
MULTIPLY_LEFT, MULTIPLY_RIGHT = 0x9E3779B1, 0x85EBCA6B  # hash of a pair: golden ratio, and MurmurHash3's


# Letters -------------------------------------------------------------------------------------------------


@jit
def _cut_pieces(
    letters: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    text: np.ndarray,
    at: int,
    end: int,
    ends: bool,
) -> tuple[int, int]:
    largest = -1
    for i in range(len(starts)):
        for j in range(starts[i], starts[i] + lengths[i]):
            largest = max(largest, letters[j])
            text[at] = letters[j]
            at += 1
        if ends:
            text[at] = end
            at += 1
    return at, largest


@jit
def _count_value(text: np.ndarray, value: int) -> int:
    n = 0
    for x in text:
        n += x == value
    return n


@jit
def _count_letters(text: np.ndarray) -> np.ndarray:
    """Count pairs of bytes, at left * 256 + right; pairs with an end mean nothing."""
    counts = np.zeros(65536, np.int64)
    left = np.int64(text[0])
    for i in range(1, len(text)):
        right = np.int64(text[i])
        counts[left << 8 | right] += 1
        left = right
    return counts


def _scan(
    over: Over,
    texts: list[np.ndarray],
    sizes: list[int],
    counts: list[np.ndarray],
    pairs: np.ndarray,
    ids: np.ndarray,
) -> list[int]:
    """Apply merges that share no position, in one scan of every shard; return the new sizes."""
    table = np.zeros(65536, np.uint8)  # no id is 0: that is a letter
    table[pairs[:, 0] << 8 | pairs[:, 1]] = ids
    return over(_merge_letters, texts, sizes, counts, repeat(table))


@jit
def _merge_letters(text: np.ndarray, size: int, counts: np.ndarray, table: np.ndarray) -> int:
    """Replace the pairs in `table` (they share no position), close the gaps, and update `counts`."""
    i = o = 0
    fresh = False  # whether this scan created the token before,
    ended = np.int64(0)  # and the old token at its end
    token = np.int64(text[0])
    while i < size - 1:
        left, right = np.int64(text[i]), np.int64(text[i + 1])
        new = np.int64(table[left << 8 | right])
        if new == 0:
            if fresh:
                counts[ended << 8 | left] -= 1
                counts[token << 8 | left] += 1
                fresh = False
            text[o] = left
            i += 1
        else:
            # there is an end in front of every piece, so text[o - 1] is there
            before = np.int64(text[o - 1])
            counts[(ended if fresh else before) << 8 | left] -= 1
            counts[left << 8 | right] -= 1
            counts[before << 8 | new] += 1
            text[o] = new
            fresh, ended, token = True, right, new
            i += 2
        o += 1
    text[o] = text[size - 1]
    if fresh:
        counts[ended << 8 | text[o]] -= 1
        counts[token << 8 | text[o]] += 1
    return o + 1


@jit
def _pick_letters(
    counts: np.ndarray, ids: int, lengths: np.ndarray, limit: int, min_count: int, most: int
) -> np.ndarray:
    """Pick the next merges that can be applied in one go, from a dense table of counts: rows left, right, count."""
    rows = np.zeros((most, 3), np.int64)
    as_left, as_right = np.zeros(ids, np.bool_), np.zeros(ids, np.bool_)
    taken = np.zeros(65536, np.bool_)
    floor = 0
    n = 0
    while n < most:
        count, a, b = min_count - 1, -1, -1
        for left in range(ids):
            for right in range(ids):
                i = left << 8 | right
                if counts[i] > count and not taken[i] and lengths[left] + lengths[right] <= limit:
                    count, a, b = counts[i], left, right
        if a < 0 or as_right[a] or as_left[b] or 2 * count < floor:
            break
        if a == b:
            floor = max(floor, count)
        taken[a << 8 | b] = as_left[a] = as_right[b] = True
        rows[n] = a, b, count
        n += 1
    return rows[:n]


def _pairs_of_letters(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return keys and counts from a dense table, like `_count_pairs`."""
    here = np.flatnonzero(counts)
    here = here[(here >> 8 < 255) & (here & 255 < 255)]
    return here >> 8 << 32 | here & 255, counts[here]


# Hash table of pairs -------------------------------------------------------------------------------------


def _hash_table(left: np.ndarray, right: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Build a hash table from pair to value, at most a quarter full: keys and values."""
    bits = max(4, int(len(left) * 4 - 1).bit_length())
    key, slot = np.full(1 << bits, -1, np.int64), np.zeros(1 << bits, np.int64)
    _insert_all(key, slot, np.asarray(left), np.asarray(right), np.asarray(values))
    return key, slot


@jit
def _hash(left: int, right: int, mask: int) -> np.int64:
    mixed = (np.int64(left) & 0xFFFFFF) * MULTIPLY_LEFT + (np.int64(right) & 0xFFFFFF) * MULTIPLY_RIGHT
    return (mixed ^ (mixed >> 17)) & mask


@jit
def _find(key: np.ndarray, slot: np.ndarray, left: int, right: int) -> np.int64:
    """Return the value of a pair in a hash table with linear probing; -1 if it is not there."""
    mask = len(key) - 1
    wanted = np.int64(left) << 32 | np.int64(right)
    i = _hash(left, right, mask)
    while key[i] != wanted:
        if key[i] < 0:
            return np.int64(-1)
        i = (i + 1) & mask
    return slot[i]


@jit
def _insert(key: np.ndarray, slot: np.ndarray, left: int, right: int, value: int) -> None:
    mask = len(key) - 1
    i = _hash(left, right, mask)
    while key[i] >= 0:
        i = (i + 1) & mask
    key[i] = np.int64(left) << 32 | np.int64(right)
    slot[i] = value


@jit
def _insert_all(
    key: np.ndarray, slot: np.ndarray, left: np.ndarray, right: np.ndarray, values: np.ndarray
) -> None:
    for i in range(len(left)):
        _insert(key, slot, left[i], right[i], values[i])


# Cells ---------------------------------------------------------------------------------------------------


@jit
def _widen(text: np.ndarray, size: int, end: int, like: np.generic, wide_end: int) -> np.ndarray:
    """Copy a text to cells of the type of `like`, with another end of pieces."""
    cells = np.full(size, like)
    for i in range(size):
        cells[i] = wide_end if text[i] == end else text[i]
    return cells


@jit
def _replay(cells: np.ndarray, size: int, table: tuple[np.ndarray, np.ndarray]) -> int:
    """Replace the pairs in a hash table (they share no position), and close the gaps."""
    i = o = 0
    while i < size - 1:
        new = _find(table[0], table[1], cells[i], cells[i + 1])
        if new < 0:
            cells[o] = cells[i]
            i += 1
        else:
            cells[o] = new
            i += 2
        o += 1
    cells[o] = cells[size - 1]
    return o + 1


@jit
def _count_buckets(cells: np.ndarray, size: int, end: int) -> np.ndarray:
    """Count pairs by a hash: no pair occurs more often than its bucket."""
    buckets = np.zeros(1 << BUCKET_BITS, np.int64)
    left = cells[0]
    for i in range(1, size):
        right = cells[i]
        if left != end and right != end:
            buckets[_hash(left, right, (1 << BUCKET_BITS) - 1)] += 1
        left = right
    return buckets


@jit
def _count_pairs(cells: np.ndarray, size: int, end: int, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return keys (left << 32 | right) and counts of all pairs in the `wanted` buckets."""
    key, number = np.full(1 << 12, -1, np.int64), np.zeros(1 << 12, np.int64)
    used = 0
    left = cells[0]
    for i in range(1, size):
        right = cells[i]
        if left != end and right != end and wanted[_hash(left, right, (1 << BUCKET_BITS) - 1)]:
            mask = len(key) - 1
            pair = np.int64(left) << 32 | np.int64(right)
            j = _hash(left, right, mask)
            while key[j] != pair and key[j] >= 0:
                j = (j + 1) & mask
            if key[j] < 0:
                key[j] = pair
                used += 1
            number[j] += 1
            if 3 * used > len(key):
                old, old_number = key, number
                key, number = np.full(4 * len(old), -1, np.int64), np.zeros(4 * len(old), np.int64)
                for k in range(len(old)):
                    if old[k] >= 0:
                        _insert(key, number, old[k] >> 32, old[k] & 0xFFFFFFFF, old_number[k])
        left = right
    here = np.flatnonzero(key >= 0)
    return key[here], number[here]
