"""Byte pair encoding merges of a corpus: exact, in shards, at the size of a hospital's archive.

The corpus is cut into shards of whole pieces. A shard applies merges to its own text and returns counts. The driver,
`learn_merges`, sums the counts of all shards and picks the next merges. No shard needs another.

Four ideas make it fast without changing the merges:

Batches. Merges that share no position in the text can be applied in one go. Take the pairs by falling count. The next
pair (c, d) is the next merge even before the picked merges (a, b) are applied, if no b is c and no d is a: then its
count does not change. A new pair (x, y) takes its positions from a pair (b, y) or (x, a) behind (c, d) in the order, so
it is behind it too. The exception is a merge (a, a), which creates new pairs inside its runs: at most half its count.

Scans, then lists. The first merges touch most of the text. Scans apply them and close the gaps in place, over one byte
per letter, with a dense table of counts. Later merges are applied by lists of positions, in generations. A generation
counts the pairs, lists the positions of pairs that reach a threshold (a guess at the count of the very last merge, or
as many as there is room for), applies merges until no pair reaches it or the room is used up, and closes the gaps.
Pairs below the threshold need neither a list nor a count. Only the text survives a generation, so a wrong guess costs
nothing but time.

Lazy lists and heap. All occurrences of a pair appear when the later of its two tokens is created; afterwards they only
vanish. So its list is written once, in rising order, and each entry is checked when it is used. Its count only falls,
so a heap may hold old counts and correct them at the top.

No linked list. A token's id gives its length in cells, which leads to the next token. The id is also written to the
token's last cell, which leads to the token before.

The scans are in merge_scans.py, the heap in merge_heap.py, the lists in merge_lists.py.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from ecgbyte_kernels.merge_heap import _frequent
from ecgbyte_kernels.merge_lists import _generation
from ecgbyte_kernels.merge_scans import (
    BATCH,
    Over,
    _count_buckets,
    _count_letters,
    _count_pairs,
    _count_value,
    _cut_pieces,
    _hash_table,
    _pairs_of_letters,
    _pick_letters,
    _replay,
    _scan,
    _widen,
)

SCAN_SHARE = 0.015  # scans continue while one removes this share of the text; then lists are faster
TOO_SMALL = 8_000_000  # with fewer tokens, threads save little or nothing


def learn_merges(
    texts: list[np.ndarray],
    levels: int,
    merges: int,
    min_count: int = 2,
    max_length: int = 0,
    threads: int = 1,
    known: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, int]]:
    """Learn byte pair encoding merges: at each step the most frequent pair becomes a new id.

    A pair's count is the number of adjacent positions that hold it inside a piece, overlaps included
    ("aaa" holds "aa" twice); a merge replaces from left to right without overlap. Ties go to the smaller
    (left id, right id). Gage 1994; Sennrich et al. 2016, section 3.2, on letters without word bounds.

    Parameters
    ----------
    texts : list of numpy.ndarray of uint8 or uint16, 1-D
        Shards: letters 0..levels-1, with the type's largest value in front and behind every piece.
        The list is empty on return.
    levels : int
        Number of letters; merge k creates the id levels + k.
    merges : int
        The most merges to learn.
    min_count : int
        Stop when no pair occurs this often.
    max_length : int
        Letters in the longest token (0: no limit).
    threads : int
        Threads that work on the shards. The merges depend neither on it nor on the cut into shards.
    known : numpy.ndarray of int64, shape (k, 2) or None
        The first merges, from an earlier run on the same text: applied without counting.

    Yields
    ------
    rows : numpy.ndarray of int64, shape (m, 3)
        The next merges: left id, right id, and the count of the pair when it was merged. Empty while the known merges
        are applied.
    tokens : int
        Number of tokens after them.

    Raises
    ------
    ValueError
        If an argument makes no sense.
    """
    known = np.zeros((0, 2), np.int64) if known is None else np.asarray(known, np.int64)
    if levels < 1 or merges < 0 or min_count < 1 or max_length < 0 or threads < 1:
        raise ValueError("levels, min_count and threads are 1 or more, merges and max_length 0 or more")
    if not texts or any(text.dtype != texts[0].dtype or text.ndim != 1 for text in texts):
        raise ValueError("texts must be 1-D arrays of one type")
    if levels >= np.iinfo(texts[0].dtype).max:
        raise ValueError(f"{levels} letters leave no value of {texts[0].dtype} to end a piece")
    if any(len(text) == 0 or text[0] != text[-1] or text[0] != np.iinfo(text.dtype).max for text in texts):
        raise ValueError("a text begins and ends with the value that ends a piece")
    if len(known) > merges or (known >= levels + np.arange(len(known))[:, None]).any() or (known < 0).any():
        raise ValueError("known merges must be at most `merges`, each of ids that are there before it")
    lengths = np.ones(levels + merges, np.int64)
    for i, (left, right) in enumerate(known):
        lengths[levels + i] = lengths[left] + lengths[right]
    limit = max_length or np.iinfo(np.int64).max
    others = min(threads, len(texts)) - 1
    with ThreadPoolExecutor(max(1, others)) as pool:

        def over(kernel: Callable[..., Any], *arguments: Any) -> list[Any]:
            return _over(pool, others, kernel, *arguments)

        yield from _learn(texts, levels, merges, min_count, limit, lengths, known, over)


def _over(
    pool: ThreadPoolExecutor | None, others: int, kernel: Callable[..., Any], *arguments: Any
) -> list[Any]:
    """Map a kernel over its arguments, on this thread and `others` more."""
    calls = list(enumerate(zip(*arguments, strict=False)))
    results: list[Any] = [None] * len(calls)
    waiting = iter(calls)  # each thread takes the next call when it is done with one

    def work() -> None:
        for i, call in waiting:
            results[i] = kernel(*call)

    futures = [pool.submit(work) for _ in range(min(others, len(calls) - 1))] if pool else []
    work()
    for future in futures:
        future.result()
    return results


def _learn(
    texts: list[np.ndarray],
    levels: int,
    merges: int,
    min_count: int,
    limit: int,
    lengths: np.ndarray,
    known: np.ndarray,
    over: Over,
    few: int = TOO_SMALL,
    scan_share: float = SCAN_SHARE,
) -> Iterator[tuple[np.ndarray, int]]:
    """Learn merges, with checked arguments.

    `over` maps a kernel over the shards. Shards with fewer than `few` tokens in all are put together; scans continue
    while they remove `scan_share` of the text.
    """
    nothing = np.zeros((0, 3), np.int64)
    end = int(np.iinfo(texts[0].dtype).max)
    pieces = sum(over(_count_value, texts, repeat(end)))
    letters, sizes = [len(text) for text in texts], [len(text) for text in texts]
    counts: list[Any] = []
    made, last = 0, sum(sizes)  # merges so far, and a bound on the count of every pair

    # 1. scans over one byte per letter, while the ids fit and the scans pay
    room = min(merges, end - levels) if end == 255 else 0
    if room:
        counts = over(_count_letters, texts)
        for k in _independent(known[:room], levels):
            sizes = _scan(over, texts, sizes, counts, known[k], levels + k)
        made = min(room, len(known))
    yield nothing, sum(sizes) - pieces
    paying = made == len(known)
    while paying and made < room:
        most = min(BATCH, room - made)
        rows = _pick_letters(sum(counts), levels + made, lengths, limit, min_count, most)
        if len(rows) == 0:
            texts.clear()
            return
        before, ids = sum(sizes), levels + made + np.arange(len(rows))
        lengths[ids] = lengths[rows[:, 0]] + lengths[rows[:, 1]]
        sizes = _scan(over, texts, sizes, counts, rows[:, :2], ids)
        made, last = made + len(rows), int(rows[-1, 2])
        paying = before - sum(sizes) >= scan_share * before
        yield rows, sum(sizes) - pieces
    if made == merges:
        texts.clear()
        return

    # 2. lists of positions, over two bytes per token (four, if there are so many ids)
    cell = _cell_type(levels, merges)
    cells: list[np.ndarray] = []
    while texts:  # one by one, so that only one shard is in memory twice
        cells.append(_widen(texts.pop(0), sizes[len(cells)], end, cell(0), np.iinfo(cell).max))
    if made < len(known):
        for k in _independent(known[made:], levels + made):
            k = k + made
            table = _hash_table(known[k, 0], known[k, 1], levels + k)
            sizes = over(_replay, cells, sizes, repeat(table))
        made, counts = len(known), []
        yield nothing, sum(sizes) - pieces
    if len(cells) > 1 and sum(sizes) < few:
        cells = [np.concatenate([part[:size] for part, size in zip(cells, sizes, strict=True)])]
        letters, sizes = [sum(letters)], [sum(sizes)]
        counts = counts and [sum(counts)]
    found = [_pairs_of_letters(count) for count in counts] or None
    tokens = sum(sizes) - pieces
    yield from _by_lists(
        over, cells, letters, sizes, found, tokens, made, last, merges, levels, min_count, lengths, limit
    )


def _by_lists(
    over: Over,
    cells: list[np.ndarray],
    letters: list[int],
    sizes: list[int],
    found: list[tuple[np.ndarray, np.ndarray]] | None,
    tokens: int,
    made: int,
    last: int,
    merges: int,
    levels: int,
    min_count: int,
    lengths: np.ndarray,
    limit: int,
) -> Iterator[tuple[np.ndarray, int]]:
    """Apply the remaining merges by lists of positions, generation by generation.

    `cells` are the shards' texts, `sizes` how much of each is in use, `letters` their first lengths; `found` the pairs
    of each from `_count_pairs`, if known; no pair occurs more than `last` times.
    """
    end = int(np.iinfo(cells[0].dtype).max)
    while made < merges and last >= min_count:
        # a guess at the last merge's count: counts fall with the rank to a power between 1 and 1.5
        threshold = max(min_count, int(last * ((made + 1) / merges) ** 1.4))
        if not found:
            buckets = sum(over(_count_buckets, cells, sizes, repeat(end)))
            found = over(_count_pairs, cells, sizes, repeat(end), repeat(buckets >= threshold))
        rooms = [_room(*each) for each in zip(sizes, letters, strict=True)]
        threshold, frequent = _frequent(found, threshold, lengths, limit, sum(rooms) // 2)
        last, found = threshold - 1, None
        if len(frequent[0]) == 0:
            continue
        generation = _generation(
            over, cells, sizes, rooms, end, frequent, threshold, made, merges, levels, lengths, limit
        )
        for rows, removed in generation:
            made, tokens, last = made + len(rows), tokens - removed, int(rows[-1, 2])
            yield rows, tokens


def _room(size: int, letters: int) -> int:
    """Return how many positions the lists of a shard may hold.

    A position takes four bytes. With two bytes a token the total stays below three bytes a letter, once the text has
    shrunk by a fifth.
    """
    return max(size // 4, min(3 * size, (3 * letters - 2 * size) // 4))


def cut_pieces(
    letters: np.ndarray,
    starts: npt.ArrayLike,
    lengths: npt.ArrayLike,
    text: np.ndarray,
    at: int,
    ends: bool = True,
) -> tuple[int, int]:
    """Copy pieces of letters to a text for `learn_merges`, with the end value behind each piece.

    Parameters
    ----------
    letters : numpy.ndarray of uint8, 1-D
        All letters.
    starts, lengths : numpy.ndarray of int64, shape (pieces,)
        First letter and length of each piece.
    text : numpy.ndarray of uint8 or uint16, 1-D
        Filled from `at` on.
    at : int
        The first place to fill; at place 0 an end value goes in front.
    ends : bool
        False joins the pieces to one.

    Returns
    -------
    at : int
        The place behind the last one filled.
    largest : int
        The largest letter copied; -1 if there was none.

    Raises
    ------
    ValueError
        If a piece lies outside the letters, or the text has no room for all.
    """
    starts, lengths = np.asarray(starts, np.int64), np.asarray(lengths, np.int64)
    if (lengths < 0).any() or (starts < 0).any() or (starts + lengths > len(letters)).any():
        raise ValueError("a piece lies outside the letters")
    if at + lengths.sum() + ends * len(lengths) + (at == 0) > len(text):
        raise ValueError("the text has no room for the pieces")
    end = np.iinfo(text.dtype).max
    if at == 0:
        text[0] = end
        at = 1
    return _cut_pieces(letters, starts, lengths, text, at, end, ends)


def compile_kernels(levels: int, merges: int, cold: Callable[[], object]) -> None:
    """Compile the kernels, or load them from Numba's cache, by learning from a few letters.

    Parameters
    ----------
    levels, merges : int
        See `learn_merges`.
    cold : callable
        Called before the long part, if the kernels must be compiled.
    """
    kind = text_type(levels)
    _count_value(np.zeros(1, kind), 1)
    if getattr(getattr(_count_value, "stats", None), "cache_misses", None):
        cold()
    letters = (np.arange(200) ** 3 // 7 % 3 % levels).astype(np.uint8)
    letters.flags.writeable = False  # like a memory-mapped file
    for shards, few in ((1, TOO_SMALL), (2, 0)):  # lists work differently with one shard
        texts = [np.empty(len(letters) + 2, kind) for _ in range(shards)]
        for text in texts:
            cut_pieces(letters, [0], [len(letters)], text, 0)
        most, known = max(merges, 300), np.zeros((0, 2), np.int64)
        lengths, over = np.ones(levels + most, np.int64), partial(_over, None, 0)
        for _ in _learn(texts, levels, most, 1, 1 << 62, lengths, known, over, few, scan_share=2):
            pass
    cells = np.zeros(2, _cell_type(levels, merges))
    _replay(cells, 2, _hash_table(np.array([1]), np.array([1]), np.array([2])))


def text_type(levels: int) -> type[np.uint8] | type[np.uint16]:
    """Return the type of a text for `learn_merges`: one byte, if a value is left to end a piece."""
    return np.uint8 if levels < 255 else np.uint16


def _cell_type(levels: int, merges: int) -> type[np.uint16] | type[np.uint32]:
    return np.uint16 if levels + merges < 65534 else np.uint32


def _independent(merges: np.ndarray, levels: int) -> list[np.ndarray]:
    """Group merges, in order, so that the merges of a group share no position and can be applied in one go.

    Merges without a common position commute, so each joins the first group behind all merges that it depends on: those
    that created its tokens, and earlier ones that compete with it for a token.
    """
    ids = levels + len(merges)
    group = np.zeros(len(merges), np.int64)
    # for a token: the first group behind its own merge, and behind the merges with it on the right (left)
    behind_birth, behind_right, behind_left = np.zeros((3, ids), np.int64)
    for k, (left, right) in enumerate(merges):
        group[k] = max(behind_birth[left], behind_birth[right], behind_right[left], behind_left[right])
        behind_birth[levels + k] = group[k] + 1
        behind_right[right] = max(behind_right[right], group[k] + 1)
        behind_left[left] = max(behind_left[left], group[k] + 1)
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(merges) else []
