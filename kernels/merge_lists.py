"""Lists of `merges`: a generation of merges that are made by the positions of their pairs.

The pairs that reach a threshold are put in a hash table and a heap, and their positions in lists. The first
of the heap are merged, place by place; that brings new pairs with lists of their own; and in the end the
gaps in the text are closed.
"""

from collections import namedtuple
from itertools import repeat

import numpy as np

from ecgbyte_kernels import jit
from ecgbyte_kernels.merge_scans import BATCH, _find, _hash_table, _insert

SPARE = 65536  # places for lists that even a tiny shard has

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
    pairs = pairs_of(left, right, count)
    key, slot = _hash_table(left, right, np.arange(len(left)))

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


def pairs_of(left, right, count):
    """Pairs in a heap, with room for those that merges will bring."""
    room = 2 * len(left) + SPARE
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
    return pairs


def opened(cells, ends, room, most):
    """A shard of its own for a generation of at most `most` merges; `ends`: where each pair's list ends in the pool."""
    base = np.concatenate([[0], ends])
    entries = SPARE + min(room // 4, 1 << 24)
    return Shard(
        cells,
        np.empty(SPARE + max(room, base[-1]), np.uint32),
        base,
        np.zeros((most, 2), np.int64),
        np.zeros(2 * most + 1, np.int64),
        *np.empty((2, entries), np.int32),
        np.empty(entries, np.int64),
        np.array([0, base[-1], 0], np.int64),
    )


def settle(pairs, told, rows, n, done, new, lengths, limit, threshold, sums):
    """As `_settle`, from what shards elsewhere told of the last `n` merges: bounds, neighbours and numbers of each."""
    most = max(len(neighbour) for _, neighbour, _ in told)
    bounds = np.zeros((len(told), 2 * (done + n) + 1), np.int64)  # those of earlier merges are not looked at
    neighbour, number = np.zeros((2, len(told), most), np.int32)
    for s, (places, ids, counts) in enumerate(told):
        bounds[s, 2 * done :] = places
        neighbour[s, : len(ids)], number[s, : len(ids)] = ids, counts
    _settle(pairs, bounds, neighbour, number, rows, n, done, new, lengths, limit, threshold, sums)


# Kernels: pairs and their heap ---------------------------------------------------------------------------


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


# Kernels: positions --------------------------------------------------------------------------------------


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
