"""The frequent pairs of a generation of `merges`, in a hash table and a heap, and the choice of the next merges."""

from typing import NamedTuple

import numpy as np

from ecgbyte_kernels import jit
from ecgbyte_kernels.merge_scans import _insert

SPARE = 65536  # room for new pairs, even where few are frequent


class Pairs(NamedTuple):
    """The pairs at or above a generation's threshold."""

    left: np.ndarray  # ids
    right: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count
    origin: (
        np.ndarray
    )  # the merge that created the pair, or -1: together with `side` it leads to the pair's list
    side: np.ndarray  # 0: before the merge's new token, 1: behind it
    key: np.ndarray  # with `slot` a hash table from pair to its number
    slot: np.ndarray
    heap_count: np.ndarray  # with `heap_pair` a heap; counts may be old
    heap_pair: np.ndarray
    state: np.ndarray  # pairs and heap entries in use, and 1 if a pair did not fit


def _frequent(
    found: list[tuple[np.ndarray, np.ndarray]], threshold: int, lengths: np.ndarray, limit: int, room: int
) -> tuple[int, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Select the pairs of a generation from each shard's keys and counts.

    Returns
    -------
    threshold : int
        Raised, if the pairs that reach it have more than `room` positions.
    pairs : tuple of numpy.ndarray
        Left and right ids, counts, and counts in each shard (shards, pairs).
    """
    keys, place = np.unique(np.concatenate([key for key, _ in found]), return_inverse=True)
    local = np.zeros((len(found), len(keys)), np.int64)
    ends = np.cumsum([0] + [len(key) for key, _ in found])
    for shard, (_, number) in enumerate(found):
        local[shard, place[ends[shard] : ends[shard + 1]]] = number
    left, right, count = keys >> 32, keys & 0xFFFFFFFF, local.sum(axis=0)
    keep = (count >= threshold) & (lengths[left] + lengths[right] <= limit)
    largest = np.sort(count[keep])[::-1]
    fitting = int(np.searchsorted(np.cumsum(largest), room, side="right"))
    if fitting < len(largest):
        threshold = int(largest[max(0, fitting - 1)])
        keep &= count >= threshold
    return threshold, (left[keep], right[keep], count[keep], local[:, keep])


def pairs_of(left: np.ndarray, right: np.ndarray, count: np.ndarray) -> Pairs:
    """Put pairs in a heap, with room for those that merges will create."""
    room = 2 * len(left) + SPARE
    bits = int(2 * room - 1).bit_length()
    table = np.full(1 << bits, -1, np.int64), np.zeros(1 << bits, np.int64)
    columns = [np.zeros(room, np.int64) for _ in range(7)]
    pairs = Pairs._make([*columns[:5], *table, *columns[5:], np.zeros(3, np.int64)])
    _add_all(pairs, left, right, count)
    return pairs


@jit
def _above(pairs: Pairs, i: int, j: int) -> bool:
    """Return whether entry i of the heap comes before entry j: larger count, or smaller ids."""
    if pairs.heap_count[i] != pairs.heap_count[j]:
        return pairs.heap_count[i] > pairs.heap_count[j]
    a, b = pairs.heap_pair[i], pairs.heap_pair[j]
    if pairs.left[a] != pairs.left[b]:
        return pairs.left[a] < pairs.left[b]
    return pairs.right[a] < pairs.right[b]


@jit
def _swap(pairs: Pairs, i: int, j: int) -> None:
    count, pair = pairs.heap_count[i], pairs.heap_pair[i]
    pairs.heap_count[i], pairs.heap_pair[i] = pairs.heap_count[j], pairs.heap_pair[j]
    pairs.heap_count[j], pairs.heap_pair[j] = count, pair


@jit
def _sink(pairs: Pairs, size: int) -> None:
    """Sink the first entry of the heap to its place."""
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _above(pairs, child + 1, child):
            child += 1
        if not _above(pairs, child, i):
            return
        _swap(pairs, i, child)
        i = child


@jit
def _add(pairs: Pairs, left: int, right: int, count: int, origin: int, side: int) -> None:
    """Add a pair to the table and the heap; set the state if there is no room."""
    n = pairs.state[0]
    if n == len(pairs.left):
        pairs.state[2] = 1
        return
    pairs.left[n], pairs.right[n], pairs.count[n] = left, right, count
    pairs.origin[n], pairs.side[n] = origin, side
    pairs.state[0] = n + 1
    _insert(pairs.key, pairs.slot, left, right, n)
    i = pairs.state[1]
    pairs.heap_count[i], pairs.heap_pair[i] = count, n
    pairs.state[1] = i + 1
    while i > 0 and _above(pairs, i, (i - 1) // 2):
        _swap(pairs, i, (i - 1) // 2)
        i = (i - 1) // 2


@jit
def _add_all(pairs: Pairs, left: np.ndarray, right: np.ndarray, count: np.ndarray) -> None:
    for i in range(len(left)):
        _add(pairs, left[i], right[i], count[i], -1, 0)


@jit
def _drop_first(pairs: Pairs) -> None:
    size = pairs.state[1] - 1
    pairs.state[1] = size
    pairs.heap_count[0], pairs.heap_pair[0] = pairs.heap_count[size], pairs.heap_pair[size]
    _sink(pairs, size)


@jit
def _pick(
    pairs: Pairs,
    rows: np.ndarray,
    where: np.ndarray,
    most: int,
    new: int,
    lengths: np.ndarray,
    width: np.ndarray,
    threshold: int,
    marks: np.ndarray,
) -> int:
    """Pick the next merges that can be applied in one go, into `rows` and (their lists) `where`; return how many."""
    as_left, as_right = marks
    floor = 0
    n = 0
    while n < most and pairs.state[1] > 0:
        pair = pairs.heap_pair[0]
        count = pairs.count[pair]
        if count < threshold:
            _drop_first(pairs)
            continue
        if count != pairs.heap_count[0]:
            pairs.heap_count[0] = count
            _sink(pairs, pairs.state[1])
            continue
        a, b = pairs.left[pair], pairs.right[pair]
        if as_right[a] or as_left[b] or 2 * count < floor:
            break
        if a == b:
            floor = max(floor, count)
        as_left[a] = as_right[b] = 1
        _drop_first(pairs)
        rows[n] = a, b, count
        origin, side = pairs.origin[pair], pairs.side[pair]
        where[n] = origin, side, (pair if origin < 0 else b if side == 1 else a)
        lengths[new + n] = lengths[a] + lengths[b]
        width[new + n] = width[a] + width[b]
        n += 1
    for i in range(n):
        as_left[rows[i, 0]] = as_right[rows[i, 1]] = 0
    return n
