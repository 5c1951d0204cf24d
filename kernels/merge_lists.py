"""Lists of `merges`: a generation of merges applied by the positions of their pairs.

The pairs that reach a threshold go into a hash table and a heap (merge_heap.py), and their positions into lists. The
first of the heap are merged, position by position, which creates new pairs with lists of their own. At the end the gaps
in the text are closed.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import NamedTuple

import numpy as np

from ecgbyte_kernels import jit
from ecgbyte_kernels.merge_heap import SPARE, Pairs, _add, _pick, pairs_of
from ecgbyte_kernels.merge_scans import BATCH, Over, _find, _hash_table


class Shard(NamedTuple):
    """A shard in a generation."""

    cells: np.ndarray  # the text
    pool: np.ndarray  # positions of pairs and tokens
    base: np.ndarray  # bounds in the pool of the pairs known at the start, pair after pair
    own: np.ndarray  # place in the pool and number of the tokens that each merge created
    bounds: (
        np.ndarray
    )  # merge m: neighbours before its tokens are [2 m] : [2 m + 1], behind them [2 m + 1] : [2 m + 2]
    neighbour: np.ndarray  # their ids
    number: np.ndarray  # how often each occurs
    first: np.ndarray  # the place in the pool of the new pair's positions; -1: too few for a list
    state: np.ndarray  # neighbours and pool in use, and 1 if something did not fit, which ends the generation


def _generation(
    over: Over,
    cells: list[np.ndarray],
    sizes: list[int],
    rooms: Sequence[int],
    end: int,
    found: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    threshold: int,
    made: int,
    merges: int,
    levels: int,
    lengths: np.ndarray,
    limit: int,
) -> Iterator[tuple[np.ndarray, int]]:
    """Apply merges of pairs that occur at least `threshold` times, by lists; then close the gaps."""
    left, right, count, local = found
    pairs = pairs_of(left, right, count)
    key, slot = _hash_table(left, right, np.arange(len(left)))

    most = merges - made
    ids = len(lengths)
    # memory never written costs nothing
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

    width = np.ones(ids, np.int64)  # width of each token, in cells
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


def opened(cells: np.ndarray, ends: np.ndarray, room: int, most: int) -> Shard:
    """Open a shard on its own for a generation of at most `most` merges; `ends`: the end of each pair's list."""
    base = np.concatenate([[0], ends])
    entries = SPARE + min(room // 4, 1 << 24)
    neighbour, number = np.empty((2, entries), np.int32)
    return Shard(
        cells,
        np.empty(SPARE + max(room, base[-1]), np.uint32),
        base,
        np.zeros((most, 2), np.int64),
        np.zeros(2 * most + 1, np.int64),
        neighbour,
        number,
        np.empty(entries, np.int64),
        np.array([0, base[-1], 0], np.int64),
    )


def settle(
    pairs: Pairs,
    changes: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    rows: np.ndarray,
    n: int,
    done: int,
    new: int,
    lengths: np.ndarray,
    limit: int,
    threshold: int,
    sums: np.ndarray,
) -> None:
    """Settle the last `n` merges of shards on other machines, from the bounds, neighbours and numbers of each."""
    most = max(len(neighbour) for _, neighbour, _ in changes)
    bounds = np.zeros((len(changes), 2 * (done + n) + 1), np.int64)  # earlier merges do not matter
    neighbour, number = np.zeros((2, len(changes), most), np.int32)
    for s, (places, ids, counts) in enumerate(changes):
        bounds[s, 2 * done :] = places
        neighbour[s, : len(ids)], number[s, : len(ids)] = ids, counts
    _settle(pairs, bounds, neighbour, number, rows, n, done, new, lengths, limit, threshold, sums)


@jit
def _write_lists(shard: Shard, size: int, end: int, key: np.ndarray, slot: np.ndarray) -> None:
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
def _positions(
    shard: Shard, pair: np.ndarray, where: np.ndarray, width: np.ndarray
) -> tuple[np.ndarray, int | np.int64]:
    """Return the positions where a pair may be, and their index in the pool.

    A pair too rare for a list gets the positions of its newer token beside the other, and the place -1.
    """
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
def _apply(
    shard: Shard,
    end: int,
    rows: np.ndarray,
    where: np.ndarray,
    n: int,
    done: int,
    new: int,
    width: np.ndarray,
    least: int,
    scratch: np.ndarray,
) -> int:
    """Apply `n` merges in a shard; return the number of removed tokens. Pairs with `least` positions get lists."""
    removed = 0
    for j in range(n):
        at, place = _positions(shard, rows[j], where[j], width)
        removed += _apply_one(shard, end, rows[j], at, place, done + j, new + j, width, least, scratch)
    return removed


@jit
def _apply_one(
    shard: Shard,
    end: int,
    row: np.ndarray,
    at: np.ndarray,
    place: int,
    merge: int,
    new: int,
    width: np.ndarray,
    least: int,
    scratch: np.ndarray,
) -> int:
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
        if y == new:  # the token behind the one before is a `new` now
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
def _neighbours(
    shard: Shard,
    end: int,
    tokens: np.ndarray,
    at: np.ndarray,
    merge: int,
    side: int,
    new: int,
    width: np.ndarray,
    least: int,
    number: np.ndarray,
) -> None:
    """Count the neighbours on one side of a merge's new tokens, and write the lists of the new pairs."""
    pool, state = shard.pool, shard.state
    start = stop = state[0]
    for y in tokens:
        # a `new` before a `new` counts as the `new` behind a `new`
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
def _settle(
    pairs: Pairs,
    bounds: np.ndarray,
    neighbour: np.ndarray,
    number: np.ndarray,
    rows: np.ndarray,
    n: int,
    done: int,
    new: int,
    lengths: np.ndarray,
    limit: int,
    threshold: int,
    sums: np.ndarray,
) -> None:
    """Sum the counts of all shards: add the pairs that `n` merges created, and subtract those that they ended."""
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
                    # behind a `new` before a `new` was the a of the second
                    left, right, gone_left, gone_right = fresh, y, b, (a if y == fresh else y)
                if count >= threshold and lengths[left] + lengths[right] <= limit:
                    _add(pairs, left, right, count, done + j, side)
                gone = _find(pairs.key, pairs.slot, gone_left, gone_right)
                if gone >= 0:
                    pairs.count[gone] -= count


@jit
def _make(
    shard: Shard,
    pairs: Pairs,
    end: int,
    bounds: np.ndarray,
    neighbour: np.ndarray,
    number: np.ndarray,
    most: int,
    done: int,
    new: int,
    lengths: np.ndarray,
    width: np.ndarray,
    limit: int,
    threshold: int,
    scratch: np.ndarray,
) -> tuple[np.ndarray, int]:
    """Pick, apply and settle with one shard, until no pair is left or many tokens went."""
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
def _close_gaps(cells: np.ndarray, size: int, end: int, width: np.ndarray) -> int:
    """Write token after token, without the cells inside them; return the new size."""
    i = o = 0
    while i < size:
        token = cells[i]
        cells[o] = token
        i += 1 if token == end else width[token]
        o += 1
    return o
