"""Byte pair encoding merges of a corpus: exact, in shards, at the size of a hospital's archive.

The corpus is cut into shards of whole pieces. A shard applies merges to its own text and returns counts;
the driver, `learn_merges`, sums the counts of all shards and picks what comes next. No shard needs another.

What makes it fast, and leaves the merges what the plain definition says:

Batches. Merges that share no place in the text can be made in one go. Take the pairs by falling count. The
next one, (c, d), is the next merge even before the merges (a, b) taken so far are made, as long as no b is c
and no d is a: then its count stays what it is; and a pair (x, y) that a merge brings into being takes the
places of a pair (b, y) or (x, a) that stands behind (c, d) in the order, so it stands behind it too. Only a
merge (a, a) can make pairs, inside its runs, that come from nowhere else: at most half of its own count.

Scans, then lists. The first merges touch most of the text. They are made by scans that close the gaps in
place, over one byte per letter, with a dense table of counts. After that, merges are made by lists of
positions, in generations: a generation counts the pairs, writes the positions of those that reach a
threshold (a guess at the count of the last merge of all, or what there is room for), makes merges until no
pair reaches it or the room is used up, and closes the gaps. Pairs below the threshold need neither a list
nor a count. What a generation leaves behind is only the text, so a wrong guess costs time, nothing else.

Lazy lists and heap. A pair's occurrences all come into being when the later of its two tokens is made, and
afterwards only vanish. So its list is written once, in rising order, and each entry is checked when it is
used; and its count only falls, so a heap may hold old counts that are put right when they come up.

No linked list. A token's length in cells follows from its id, which leads to the next token; the id is also
written to the token's last cell, which leads to the token before.
"""

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat

import numpy as np

from ecgbyte_kernels import jit

BATCH = 64  # the most merges that are made in one go
SCAN_SHARE = 0.015  # scans go on while one removes this part of the text; then lists are faster
TOO_SMALL = 8_000_000  # with fewer tokens than this, handing work to threads saves little or nothing
SPARE = 65536  # places for lists that even a tiny shard has
BUCKET_BITS = 18  # a table of counts that stays in a core's own cache
MULTIPLY_LEFT, MULTIPLY_RIGHT = 0x9E3779B1, 0x85EBCA6B  # hash of a pair: golden ratio, and MurmurHash3's

# A shard in a generation. `cells`: the text. `pool`: positions; those of the pairs found at the start, pair
# after pair, are bounded by `base`; those of the tokens that merge m made are `own[m]`: where, how many. The
# neighbours before these tokens are at `bounds[2 m] : bounds[2 m + 1]`, those behind them at `bounds[2 m +
# 1] : bounds[2 m + 2]`: their ids (`neighbour`), how often (`number`), and where in the pool the positions
# of the new pair are (`first`; -1: they are too few for a list). `state`: neighbours and places of the pool
# in use, and 1 if something did not fit, which ends the generation.
Shard = namedtuple("Shard", "cells pool base own bounds neighbour number first state")

# The pairs at or above a generation's threshold: ids, count, and where their lists are (`origin`: the merge
# that made them, `side`: 0 before it, 1 behind it; or origin -1). `key`, `slot`: a hash table from pair to
# number. `heap_count`, `heap_pair`: a heap with counts that may be old. `state`: pairs and heap entries in
# use, and 1 if a pair did not fit.
Pairs = namedtuple("Pairs", "left right count origin side key slot heap_count heap_pair state")


def learn_merges(texts, levels, merges, min_count=2, max_length=0, threads=1, known=None):
    """Learn byte pair encoding merges: at each step the most frequent pair becomes a new id.

    A pair's count is the number of adjacent positions that hold it inside a piece, overlaps included
    ("aaa" holds "aa" twice); a merge replaces from left to right without overlap. Ties go to the smaller
    (left id, right id). Gage 1994; Sennrich et al. 2016, section 3.2, on letters without word bounds.

    Parameters
    ----------
    texts : list of numpy.ndarray of uint8 or uint16, 1-D
        Shards: letters 0..levels-1, with the type's largest value in front, and behind every piece.
        Used up: on return the list is empty.
    levels : int
        How many letters there are; merge k makes the id levels + k.
    merges : int
        How many merges to learn at most.
    min_count : int
        Stop when no pair is found this often.
    max_length : int
        No token becomes longer than this many letters (0: no limit).
    threads : int
        Threads that work on the shards. The merges do not depend on it, nor on the cut into shards.
    known : numpy.ndarray of int64, shape (k, 2) or None
        The first merges, from an earlier run on the same text: made without counting.

    Yields
    ------
    made : numpy.ndarray of int64, shape (m, 3)
        The next merges: left id, right id, and the count of the pair when it was merged.
    tokens : int
        How many tokens are left after them. Without merges: the known ones are being made.

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

        def over(kernel, *arguments):
            return _over(pool, others, kernel, *arguments)

        yield from _learn(texts, levels, merges, min_count, limit, lengths, known, over)


def _over(pool, others, kernel, *arguments):
    """Like `map`, as a list, on this thread and `others` more."""
    calls = list(enumerate(zip(*arguments, strict=False)))
    results = [None] * len(calls)
    waiting = iter(calls)  # each thread takes the next call when it is done with one

    def work():
        for i, call in waiting:
            results[i] = kernel(*call)

    futures = [pool.submit(work) for _ in range(min(others, len(calls) - 1))]
    work()
    for future in futures:
        future.result()
    return results


def _learn(
    texts, levels, merges, min_count, limit, lengths, known, over, few=TOO_SMALL, scan_share=SCAN_SHARE
):
    """What `learn_merges` does, once its arguments are checked; `over` maps a kernel over the shards,
    which are put together when they hold fewer than `few` tokens; scans go on while they remove `scan_share`."""
    nothing = np.zeros((0, 3), np.int64)
    end = int(np.iinfo(texts[0].dtype).max)
    pieces = sum(over(_count_value, texts, repeat(end)))
    letters, sizes = [len(text) for text in texts], [len(text) for text in texts]
    counts = None
    made, last = 0, sum(sizes)  # merges made, and what no pair's count exceeds

    # 1. scans over one byte per letter, as long as the ids fit and the scans pay
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
    cells = []
    while texts:  # one by one, so that no more than one shard is there twice
        cells.append(_widen(texts.pop(0), sizes[len(cells)], end, cell(0), np.iinfo(cell).max))
    end = int(np.iinfo(cell).max)
    if made < len(known):
        for k in _independent(known[made:], levels + made):
            k = k + made
            table = _hash_table(known[k, 0], known[k, 1], levels + k)
            sizes = over(_replay, cells, sizes, repeat(table))
        made, counts = len(known), None
        yield nothing, sum(sizes) - pieces
    if len(cells) > 1 and sum(sizes) < few:
        cells = [np.concatenate([part[:size] for part, size in zip(cells, sizes, strict=True)])]
        letters, sizes = [sum(letters)], [sum(sizes)]
        counts = counts and [sum(counts)]
    tokens = sum(sizes) - pieces

    while made < merges and last >= min_count:
        # counts fall with the rank to a power between 1 and 1.5: where the last merge will be
        threshold = max(min_count, int(last * ((made + 1) / merges) ** 1.4))
        if counts:
            found, counts = [_pairs_of_letters(count) for count in counts], None
        else:
            buckets = sum(over(_count_buckets, cells, sizes, repeat(end)))
            found = over(_count_pairs, cells, sizes, repeat(end), repeat(buckets >= threshold))
        # Positions take four bytes. With two for each token, three for each letter are not exceeded, as
        # long as the text has shrunk by a fifth
        rooms = [max(n // 4, min(3 * n, (3 * m - 2 * n) // 4)) for n, m in zip(sizes, letters, strict=True)]
        threshold, found = _frequent(found, threshold, lengths, limit, sum(rooms) // 2)
        last = threshold - 1
        if len(found[0]) == 0:
            continue
        generation = _generation(
            over, cells, sizes, rooms, end, found, threshold, made, merges, levels, lengths, limit
        )
        for rows, removed in generation:
            made, tokens, last = made + len(rows), tokens - removed, int(rows[-1, 2])
            yield rows, tokens


def cut_pieces(letters, starts, lengths, text, at, ends=True):
    """Copy pieces of letters to a text for `learn_merges`, with the value that ends a piece behind each.

    Parameters
    ----------
    letters : numpy.ndarray of uint8, 1-D
        All letters.
    starts, lengths : numpy.ndarray of int64, shape (pieces,)
        Where the pieces begin, and how long they are.
    text : numpy.ndarray of uint8 or uint16, 1-D
        Filled from `at` on.
    at : int
        The first place to fill; at the first place of all, an end goes in front.
    ends : bool
        False: nothing goes between the pieces, which then are one.

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


def compile_kernels(levels, merges, cold):
    """Compile the kernels, or load them from Numba's cache, by learning from a few letters.

    Parameters
    ----------
    levels, merges : int
        As `learn_merges` will be given them.
    cold : callable
        Called without arguments before the long part, if the kernels must be compiled.
    """
    kind = text_type(levels)
    _count_value(np.zeros(1, kind), 1)
    if getattr(getattr(_count_value, "stats", None), "cache_misses", None):
        cold()
    letters = (np.arange(200) ** 3 // 7 % 3 % levels).astype(np.uint8)
    letters.flags.writeable = False  # as a memory-mapped file is
    for shards, few in ((1, TOO_SMALL), (2, 0)):  # lists are made in another way with one shard
        texts = [np.empty(len(letters) + 2, kind) for _ in range(shards)]
        for text in texts:
            cut_pieces(letters, [0], [len(letters)], text, 0)
        most, known = max(merges, 300), np.zeros((0, 2), np.int64)
        lengths, over = np.ones(levels + most, np.int64), partial(_over, None, 0)
        for _ in _learn(texts, levels, most, 1, 1 << 62, lengths, known, over, few, scan_share=2):
            pass
    cells = np.zeros(2, _cell_type(levels, merges))
    _replay(cells, 2, _hash_table(np.array([1]), np.array([1]), np.array([2])))


def text_type(levels):
    """The type of a text for `learn_merges`: one byte, if a value is left to end a piece."""
    return np.uint8 if levels < 255 else np.uint16


def _cell_type(levels, merges):
    return np.uint16 if levels + merges < 65534 else np.uint32


def _independent(merges, levels):
    """Group merges, given in order, so that those of a group share no place and can be made in one go.

    Merges without a common place commute, so each goes to the first group behind all it depends on: those
    that made its tokens, and earlier ones that compete with it for a token.
    """
    ids = levels + len(merges)
    group = np.zeros(len(merges), np.int64)
    # for a token: the first group behind the one that made it, behind those that take it as their right
    # (left) part
    behind_birth, behind_right, behind_left = np.zeros((3, ids), np.int64)
    for k, (left, right) in enumerate(merges):
        group[k] = max(behind_birth[left], behind_birth[right], behind_right[left], behind_left[right])
        behind_birth[levels + k] = group[k] + 1
        behind_right[right] = max(behind_right[right], group[k] + 1)
        behind_left[left] = max(behind_left[left], group[k] + 1)
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(merges) else []


def _scan(over, texts, sizes, counts, pairs, ids):
    """Make merges that share no place, in one scan of every shard; the sizes after it."""
    table = np.zeros(65536, np.uint8)  # no id is 0: that is a letter
    table[pairs[:, 0] << 8 | pairs[:, 1]] = ids
    return over(_merge_letters, texts, sizes, counts, repeat(table))


def _hash_table(left, right, values):
    """Keys and values of a hash table from pair to value, at most a quarter full."""
    bits = max(4, int(len(left) * 4 - 1).bit_length())
    key, slot = np.full(1 << bits, -1, np.int64), np.zeros(1 << bits, np.int64)
    _insert_all(key, slot, np.asarray(left), np.asarray(right), np.asarray(values))
    return key, slot


def _pairs_of_letters(counts):
    """Keys and counts from a dense table, as `_count_pairs` returns them."""
    here = np.flatnonzero(counts)
    here = here[(here >> 8 < 255) & (here & 255 < 255)]
    return here >> 8 << 32 | here & 255, counts[here]


def _frequent(found, threshold, lengths, limit, room):
    """The pairs that a generation deals with, from each shard's keys and counts.

    Returns
    -------
    threshold : int
        Raised, if the pairs that reach it are found in more than `room` places.
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
    fitting = np.searchsorted(np.cumsum(largest), room, side="right")
    if fitting < len(largest):
        threshold = int(largest[max(0, fitting - 1)])
        keep &= count >= threshold
    return threshold, (left[keep], right[keep], count[keep], local[:, keep])


def _generation(over, cells, sizes, rooms, end, found, threshold, made, merges, levels, lengths, limit):
    """Make merges of pairs found at least `threshold` times, by lists; then close the gaps."""
    left, right, count, local = found
    room = 2 * len(left) + SPARE
    key, slot = _hash_table(left, right, np.arange(len(left)))
    bits = int(2 * room - 1).bit_length()
    pairs = Pairs(
        *(np.zeros(room, np.int64) for _ in range(5)),
        np.full(1 << bits, -1, np.int64),
        np.zeros(1 << bits, np.int64),
        np.zeros(room, np.int64),
        np.zeros(room, np.int64),
        np.zeros(3, np.int64),
    )
    _add_all(pairs, left, right, count)

    most = merges - made
    ids = len(lengths)
    # memory that is not written to costs nothing
    shards = []
    entries = SPARE + min(max(rooms) // 4, 1 << 24)
    bounds = np.zeros((len(cells), 2 * most + 1), np.int64)
    own = np.zeros((len(cells), most, 2), np.int64)
    neighbour, number = np.empty((2, len(cells), entries), np.int32)
    first = np.empty((len(cells), entries), np.int64)
    for s, text in enumerate(cells):
        base = np.concatenate([[0], np.cumsum(local[s])])
        pool = np.empty(SPARE + max(rooms[s], base[-1]), np.uint32)
        state = np.array([0, base[-1], 0], np.int64)
        shards.append(Shard(text, pool, base, own[s], bounds[s], neighbour[s], number[s], first[s], state))
    over(_write_lists, shards, sizes, repeat(end), repeat(key), repeat(slot))
    del key, slot

    width = np.ones(ids, np.int64)  # of a token, in cells
    scratch = np.zeros((len(cells) + 1, 2, ids), np.int64)
    rows, where = np.zeros((BATCH, 3), np.int64), np.zeros((BATCH, 3), np.int64)
    least = max(1, threshold // (2 * len(shards)))
    done, full = 0, False
    while done < most and not full:
        new = levels + made + done
        if len(shards) == 1:
            rows, removed = _make(
                shards[0],
                pairs,
                end,
                bounds,
                neighbour,
                number,
                most - done,
                done,
                new,
                lengths,
                width,
                limit,
                threshold,
                scratch,
            )
            if len(rows) == 0:
                break
            yield rows, removed
            done += len(rows)
        else:
            n = _pick(
                pairs, rows, where, min(BATCH, most - done), new, lengths, width, threshold, scratch[-1]
            )
            if n == 0:
                break
            removed = sum(
                over(
                    _apply,
                    shards,
                    repeat(end),
                    repeat(rows),
                    repeat(where),
                    repeat(n),
                    repeat(done),
                    repeat(new),
                    repeat(width),
                    repeat(least),
                    scratch,
                )
            )
            _settle(
                pairs, bounds, neighbour, number, rows, n, done, new, lengths, limit, threshold, scratch[-1]
            )
            yield rows[:n].copy(), removed
            done += n
        full = pairs.state[2] > 0 or any(shard.state[2] > 0 for shard in shards)
    sizes[:] = over(_close_gaps, cells, sizes, repeat(end), repeat(width))


# Kernels: scans ------------------------------------------------------------------------------------------


@jit
def _cut_pieces(letters, starts, lengths, text, at, end, ends):
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
def _count_value(text, value):
    n = 0
    for x in text:
        n += x == value
    return n


@jit
def _count_letters(text):
    """Counts of pairs of bytes, at left * 256 + right; those with an end in them mean nothing."""
    counts = np.zeros(65536, np.int64)
    left = np.int64(text[0])
    for i in range(1, len(text)):
        right = np.int64(text[i])
        counts[left << 8 | right] += 1
        left = right
    return counts


@jit
def _merge_letters(text, size, counts, table):
    """Replace the pairs in `table` (which share no place), close the gaps, and put `counts` right."""
    i = o = 0
    fresh = False  # whether the token before is made in this scan, and then: what it ended in
    ended = np.int64(0)
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
def _pick_letters(counts, ids, lengths, limit, min_count, most):
    """The next merges that can be made in one go, from a dense table of counts: rows left, right, count."""
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


@jit
def _widen(text, size, end, like, wide_end):
    """The text in cells of the type of `like`, with another end of pieces."""
    cells = np.full(size, like)
    for i in range(size):
        cells[i] = wide_end if text[i] == end else text[i]
    return cells


@jit
def _replay(cells, size, table):
    """Replace the pairs in a hash table (which share no place), and close the gaps."""
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


# Kernels: hash table and heap ----------------------------------------------------------------------------


@jit
def _hash(left, right, mask):
    mixed = (np.int64(left) & 0xFFFFFF) * MULTIPLY_LEFT + (np.int64(right) & 0xFFFFFF) * MULTIPLY_RIGHT
    return (mixed ^ (mixed >> 17)) & mask


@jit
def _find(key, slot, left, right):
    """The value of a pair in a hash table with linear probing; -1 if it is not there."""
    mask = len(key) - 1
    wanted = np.int64(left) << 32 | np.int64(right)
    i = _hash(left, right, mask)
    while key[i] != wanted:
        if key[i] < 0:
            return np.int64(-1)
        i = (i + 1) & mask
    return slot[i]


@jit
def _insert(key, slot, left, right, value):
    mask = len(key) - 1
    i = _hash(left, right, mask)
    while key[i] >= 0:
        i = (i + 1) & mask
    key[i] = np.int64(left) << 32 | np.int64(right)
    slot[i] = value


@jit
def _insert_all(key, slot, left, right, values):
    for i in range(len(left)):
        _insert(key, slot, left[i], right[i], values[i])


@jit
def _above(pairs, i, j):
    """Whether entry i of the heap comes before entry j: larger count, or the smaller ids."""
    if pairs.heap_count[i] != pairs.heap_count[j]:
        return pairs.heap_count[i] > pairs.heap_count[j]
    a, b = pairs.heap_pair[i], pairs.heap_pair[j]
    if pairs.left[a] != pairs.left[b]:
        return pairs.left[a] < pairs.left[b]
    return pairs.right[a] < pairs.right[b]


@jit
def _swap(pairs, i, j):
    count, pair = pairs.heap_count[i], pairs.heap_pair[i]
    pairs.heap_count[i], pairs.heap_pair[i] = pairs.heap_count[j], pairs.heap_pair[j]
    pairs.heap_count[j], pairs.heap_pair[j] = count, pair


@jit
def _sink(pairs, size):
    """Let the first entry of the heap sink to its place."""
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
def _add(pairs, left, right, count, origin, side):
    """Add a pair to the table and the heap; if there is no room, say so in the state."""
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
def _add_all(pairs, left, right, count):
    for i in range(len(left)):
        _add(pairs, left[i], right[i], count[i], -1, 0)


@jit
def _drop_first(pairs):
    size = pairs.state[1] - 1
    pairs.state[1] = size
    pairs.heap_count[0], pairs.heap_pair[0] = pairs.heap_count[size], pairs.heap_pair[size]
    _sink(pairs, size)


# Kernels: generations ------------------------------------------------------------------------------------


@jit
def _count_buckets(cells, size, end):
    """Counts of pairs by a hash of the pair: no pair is found more often than its bucket says."""
    buckets = np.zeros(1 << BUCKET_BITS, np.int64)
    left = cells[0]
    for i in range(1, size):
        right = cells[i]
        if left != end and right != end:
            buckets[_hash(left, right, (1 << BUCKET_BITS) - 1)] += 1
        left = right
    return buckets


@jit
def _count_pairs(cells, size, end, wanted):
    """Keys (left << 32 | right) and counts of all pairs in the buckets that are wanted."""
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


@jit
def _write_lists(shard, size, end, key, slot):
    """Write the positions of the pairs in a hash table to the pool, pair after pair."""
    cells, pool = shard.cells, shard.pool
    at = shard.base.copy()
    left = cells[0]
    for i in range(1, size):
        right = cells[i]
        if left != end and right != end:
            pair = _find(key, slot, left, right)
            if pair >= 0:
                pool[at[pair]] = i - 1
                at[pair] += 1
        left = right


@jit
def _pick(pairs, rows, where, most, new, lengths, width, threshold, marks):
    """The next merges that can be made in one go; how many. Fills `rows` and `where` their lists are."""
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


@jit
def _positions(shard, pair, where, width):
    """Positions where a pair may be found, and their place in the pool: the pair's list, or, if that was
    too short to be written (then the place is -1), those of its token that stand beside the other."""
    pool = shard.pool
    origin, side, name = where
    if origin < 0:
        return pool[shard.base[name] : shard.base[name + 1]], shard.base[name]
    for i in range(shard.bounds[2 * origin + side], shard.bounds[2 * origin + side + 1]):
        if shard.neighbour[i] == name:
            if shard.first[i] >= 0:
                return pool[shard.first[i] : shard.first[i] + shard.number[i]], shard.first[i]
            low, n = shard.own[origin]
            found = np.empty(n, pool.dtype)
            n_found = 0
            for p in pool[low : low + n]:
                if side == 1:
                    found[n_found] = p
                    n_found += shard.cells[p] == pair[0] and shard.cells[p + width[pair[0]]] == name
                else:
                    found[n_found] = p - width[name]
                    n_found += shard.cells[p] == pair[1] and shard.cells[p - 1] == name
            return found[:n_found], np.int64(-1)
    return pool[:0], np.int64(-1)


@jit
def _apply(shard, end, rows, where, n, done, new, width, least, scratch):
    """Make `n` merges in a shard; how many tokens went. New lists are written for `least` positions up."""
    removed = 0
    for j in range(n):
        at, place = _positions(shard, rows[j], where[j], width)
        removed += _apply_one(shard, end, rows[j], at, place, done + j, new + j, width, least, scratch)
    return removed


@jit
def _apply_one(shard, end, row, at, place, merge, new, width, least, scratch):
    cells, state = shard.cells, shard.state
    a, b = row[0], row[1]
    width_a, width_b = width[a], width[b]
    before, behind = np.empty(len(at), cells.dtype), np.empty(len(at), cells.dtype)
    n = 0
    for i in range(len(at)):
        p = np.int64(at[i])
        q = p + width_a
        if cells[p] != a or cells[q] != b:
            continue
        r = q + width_b
        y = cells[p - 1]
        if y == new:  # what stood behind the one before is a `new` now
            behind[n - 1] = new
        before[n], behind[n] = y, cells[r]
        cells[q] = end - 1  # no token begins here any more
        cells[p] = cells[r - 1] = new
        at[n] = p
        n += 1

    shard.bounds[2 * merge] = shard.bounds[2 * merge + 1] = shard.bounds[2 * merge + 2] = state[0]
    if state[0] + min(2 * n, 2 * new) > len(shard.neighbour) or state[1] + 3 * n > len(shard.pool):
        state[2] = 1
        return n
    _neighbours(shard, end, before[:n], at, merge, 0, new, width, least, scratch[0])
    _neighbours(shard, end, behind[:n], at, merge, 1, new, width, least, scratch[1])
    if place < 0:
        place = state[1]
        shard.pool[place : place + n] = at[:n]
        state[1] += n
    shard.own[merge] = place, n
    return n


@jit
def _neighbours(shard, end, tokens, at, merge, side, new, width, least, number):
    """Count the neighbours on one side of a merge's new tokens, and write the lists of the new pairs."""
    pool, state = shard.pool, shard.state
    start = stop = state[0]
    for y in tokens:
        # a `new` before a `new` has been seen as the `new` behind a `new`
        if y != end and (side == 1 or y != new):
            if number[y] == 0:
                shard.neighbour[stop] = y
                stop += 1
            number[y] += 1
    free = state[1]
    for i in range(start, stop):
        y = shard.neighbour[i]
        shard.number[i] = number[y]
        shard.first[i] = -1
        if number[y] >= least:
            shard.first[i] = free
            free += number[y]
        number[y] = shard.first[i]
    for i in range(len(tokens)):
        y = tokens[i]
        if y != end and (side == 1 or y != new) and number[y] >= 0:
            pool[number[y]] = at[i] - (width[y] if side == 0 else 0)
            number[y] += 1
    for i in range(start, stop):
        number[shard.neighbour[i]] = 0
    shard.bounds[2 * merge + side + 1] = shard.bounds[2 * merge + 2] = stop
    state[0], state[1] = stop, free


@jit
def _settle(pairs, bounds, neighbour, number, rows, n, done, new, lengths, limit, threshold, sums):
    """Sum the counts of all shards: add the pairs that came with `n` merges, take off those that went."""
    seen = np.empty(len(lengths), np.int64)
    for j in range(n):
        a, b, fresh = rows[j, 0], rows[j, 1], new + j
        for side in range(2):
            total = sums[side]
            n_seen = 0
            for s in range(len(bounds)):
                for i in range(bounds[s, 2 * (done + j) + side], bounds[s, 2 * (done + j) + side + 1]):
                    y = neighbour[s, i]
                    if total[y] == 0:
                        seen[n_seen] = y
                        n_seen += 1
                    total[y] += number[s, i]
            for i in range(n_seen):
                y = seen[i]
                count = total[y]
                total[y] = 0
                if side == 0:
                    left, right, gone_left, gone_right = y, fresh, y, a
                else:
                    # behind a `new` that is followed by a `new` stood the a of the second
                    left, right, gone_left, gone_right = fresh, y, b, (a if y == fresh else y)
                if count >= threshold and lengths[left] + lengths[right] <= limit:
                    _add(pairs, left, right, count, done + j, side)
                gone = _find(pairs.key, pairs.slot, gone_left, gone_right)
                if gone >= 0:
                    pairs.count[gone] -= count


@jit
def _make(
    shard, pairs, end, bounds, neighbour, number, most, done, new, lengths, width, limit, threshold, scratch
):
    """With one shard: pick, apply and settle, until no pair is left or some time has gone by."""
    rows, where = np.zeros((most, 3), np.int64), np.zeros((BATCH, 3), np.int64)
    made = removed = 0
    while made < most and removed < 5_000_000 and shard.state[2] + pairs.state[2] == 0:
        batch = rows[made:]
        n = _pick(
            pairs, batch, where, min(BATCH, most - made), new + made, lengths, width, threshold, scratch[0]
        )
        if n == 0:
            break
        removed += _apply(shard, end, batch, where, n, done + made, new + made, width, threshold, scratch[1])
        _settle(
            pairs,
            bounds,
            neighbour,
            number,
            batch,
            n,
            done + made,
            new + made,
            lengths,
            limit,
            threshold,
            scratch[0],
        )
        made += n
    return rows[:made], removed


@jit
def _close_gaps(cells, size, end, width):
    """Write token after token, without the cells inside them; the size after it."""
    i = o = 0
    while i < size:
        token = cells[i]
        cells[o] = token
        i += 1 if token == end else width[token]
        o += 1
    return o
