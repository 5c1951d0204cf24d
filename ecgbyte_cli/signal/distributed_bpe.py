"""Merges of a corpus that lies on several machines: each holds some shards and tells how counts change.

`learn` picks what comes next, as `ecgbyte_kernels.merges` does on one machine, by the same kernels; so the merges are
the same, whatever the number of machines. Over the network go, at each step, the merges one way, and the other way how
the counts of pairs change: never the text, until so little of it is left that one machine is faster.

A machine that is lost takes nothing with it but time. Its shards are read again by another, which makes the merges
known so far. A batch of merges counts as known as soon as it is picked, so it does not matter which machines have made
it: each knows how many it has made, and makes up the rest.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat

import numpy as np

from ecgbyte_kernels import merge_heap as heap
from ecgbyte_kernels import merge_lists as lists
from ecgbyte_kernels import merge_scans as scans
from ecgbyte_kernels import merges as kernels

GATHERED = 32_000_000  # tokens: with fewer, they are brought to one machine, as steps are short then
NO_ROWS = np.zeros((0, 3), np.int64)


class LostError(Exception):
    """Some machines are gone; others have their shards now, as they were at the beginning."""


class Shards:
    """What one machine holds: some shards of the text, and how far merges have been made in them.

    Parameters
    ----------
    texts : list of numpy.ndarray
        As `ecgbyte_kernels.merges.learn_merges` takes them; used up.
    levels, merges : int
        How many letters there are, and how many merges are learned at most.
    threads : int
        That work on the shards.
    """

    def __init__(self, texts, levels, merges, threads=1):
        self.texts, self.levels, self.merges = texts, levels, merges
        self.end = int(np.iinfo(texts[0].dtype).max)
        self.letters, self.sizes = [len(text) for text in texts], [len(text) for text in texts]
        self.pieces = int(sum(kernels._count_value(text, self.end) for text in texts))
        self.cells, self.lists, self.made = None, None, 0
        self.counts = [scans._count_letters(text) for text in texts] if self.end == 255 else None
        self.found = None  # per shard: keys of pairs, in order, and their counts
        self.others = min(threads, len(texts)) - 1
        self.pool = ThreadPoolExecutor(max(1, self.others))

    def do(self, name, *arguments):
        """Call a method by its name; what it returns, and the seconds that it took."""
        start = time.perf_counter()
        return getattr(self, name)(*arguments), time.perf_counter() - start

    def _over(self, kernel, *arguments):
        return kernels._over(self.pool, self.others, kernel, *arguments)

    def catch_up(self, rows, scanning):
        """Make the merges known so far, int64 (k, 3); tokens, with the ends of pieces, and how many these are."""
        if self.lists:
            self.close()
        room = self._room()
        if self.cells is None and self.made < min(room, len(rows)):
            known = rows[self.made : room, :2]
            for k in kernels._independent(known, self.levels + self.made):
                self._scan(known[k], self.levels + self.made + k)
            self.made += len(known)
        if not scanning:
            self._widen()
        if self.made < len(rows):
            known = rows[self.made :, :2]
            for k in kernels._independent(known, self.levels + self.made):
                table = scans._hash_table(known[k, 0], known[k, 1], self.levels + self.made + k)
                self.sizes = self._over(scans._replay, self.cells, self.sizes, repeat(table))
            self.made = len(rows)
        return sum(self.sizes), self.pieces

    def _room(self):
        """How many merges have ids that fit into a byte."""
        return min(self.merges, self.end - self.levels) if self.end == 255 else 0

    def letter_counts(self):
        """How often pairs of bytes are there: places in the table, left * 256 + right, and counts."""
        return _told(sum(self.counts))

    def scan(self, start, rows):
        """Make merges from number `start` on by a scan; tokens then, and how the counts changed."""
        before = sum(self.counts).copy()
        self._scan(rows[:, :2], self.levels + start + np.arange(len(rows)))
        self.made += len(rows)
        return sum(self.sizes), _told(sum(self.counts) - before)

    def _scan(self, pairs, ids):
        self.sizes = scans._scan(self._over, self.texts, self.sizes, self.counts, pairs, ids)

    def _widen(self):
        """Go on with two or four bytes a token."""
        if self.cells is not None:
            return
        cell = kernels._cell_type(self.levels, self.merges)
        self.cells = []
        while self.texts:  # one by one, so that no more than one shard is there twice
            size = self.sizes[len(self.cells)]
            self.cells.append(scans._widen(self.texts.pop(0), size, self.end, cell(0), np.iinfo(cell).max))
        self.end, self.counts = int(np.iinfo(cell).max), None

    def text(self):
        """All tokens in one array, and how many letters they were: where one machine goes on alone."""
        made = np.concatenate([cells[:n] for cells, n in zip(self.cells, self.sizes, strict=True)])
        return made, sum(self.letters)

    def buckets(self):
        """Counts of pairs by a hash: no pair is found more often than its bucket says."""
        return sum(self._over(scans._count_buckets, self.cells, self.sizes, repeat(self.end)))

    def pairs(self, wanted):
        """Keys and counts of the pairs in the buckets wanted; and how many positions there is room for."""
        found = self._over(scans._count_pairs, self.cells, self.sizes, repeat(self.end), repeat(wanted))
        self.found = []
        for keys, counts in found:
            order = np.argsort(keys)
            self.found.append((keys[order], counts[order]))
        rooms = sum(map(kernels._room, self.sizes, self.letters))
        if len(found) == 1:
            return *self.found[0], rooms
        keys, place = np.unique(np.concatenate([keys for keys, _ in found]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([counts for _, counts in found]), len(keys))
        return keys, counts.astype(np.int64), rooms

    def open(self, left, right, ids):
        """Write the lists of pairs that a generation deals with; `ids` tokens there will be at most."""
        keys = left << 32 | right
        hashed = scans._hash_table(left, right, np.arange(len(left)))
        most = self.merges - self.made
        self.width = np.ones(ids, np.int64)
        self.scratch = np.zeros((len(self.cells), 2, ids), np.int64)
        self.opened, self.lists = self.made, []
        for cells, size, letters, (known, counts) in zip(
            self.cells, self.sizes, self.letters, self.found, strict=True
        ):
            at = np.minimum(np.searchsorted(known, keys), max(0, len(known) - 1))
            local = (
                np.where(known[at] == keys, counts[at], 0) if len(known) else np.zeros(len(keys), np.int64)
            )
            self.lists.append(lists.opened(cells, np.cumsum(local), kernels._room(size, letters), most))
        self.found = None
        self._over(lists._write_lists, self.lists, self.sizes, repeat(self.end), *map(repeat, hashed))

    def apply(self, start, rows, where, least):
        """Make merges from number `start` on by lists.

        Returns
        -------
        (int, list of (int64, int32, int32 arrays), bool)
            How many tokens went; of each shard the neighbours of the new tokens (for each merge before it and behind
            it: the bounds, ids and how often); and whether a list had no more room.
        """
        done, new, n = start - self.opened, self.levels + start, len(rows)
        for j, (left, right, _) in enumerate(rows):
            self.width[new + j] = self.width[left] + self.width[right]
        removed = self._over(
            lists._apply, self.lists, repeat(self.end), repeat(rows), repeat(where), repeat(n), repeat(done),
            repeat(new), repeat(self.width), repeat(least), self.scratch,
        )  # fmt: skip
        self.made += n
        told = []
        for shard in self.lists:
            bounds = shard.bounds[2 * done : 2 * (done + n) + 1]
            here = slice(bounds[0], bounds[-1])
            told.append((bounds - bounds[0], shard.neighbour[here].copy(), shard.number[here].copy()))
        return int(sum(removed)), told, any(shard.state[2] > 0 for shard in self.lists)

    def close(self):
        """Close the gaps that a generation left; tokens then."""
        self.sizes = self._over(
            lists._close_gaps, self.cells, self.sizes, repeat(self.end), repeat(self.width)
        )
        self.lists = None
        return sum(self.sizes)


def _told(table):
    """The places of a table that are not zero, and what is there: small to send."""
    places = np.flatnonzero(table)
    return places.astype(np.int32), table[places]


def learn(groups, levels, merges, min_count, max_length, known=NO_ROWS, gathered=GATHERED):
    """Learn merges from shards that lie on several machines.

    Parameters
    ----------
    groups : object
        `call(name, *arguments)` calls a method of all `Shards` and returns a list of results, or raises LostError.
    levels, merges, min_count, max_length, known
        As `ecgbyte_kernels.merges.learn_merges` takes them.
    gathered : int
        With fewer tokens than this in all, the text is brought here, and learning ends here.

    Yields
    ------
    (numpy.ndarray, int)
        As `learn_merges` does.
    """
    driver = _Driver(groups, levels, merges, min_count, max_length, known, gathered)
    told = len(known)
    while True:
        try:
            for tokens in driver.steps():
                yield driver.rows[told:], tokens
                told = len(driver.rows)
            return
        except LostError:
            continue


class _Driver:
    """Picks the merges; what is known survives the loss of a machine."""

    def __init__(self, groups, levels, merges, min_count, max_length, known, gathered):
        self.groups, self.levels, self.merges, self.gathered = groups, levels, merges, gathered
        self.min_count, self.limit = min_count, max_length or np.iinfo(np.int64).max
        self.rows = np.asarray(known, np.int64).reshape(-1, 3)
        self.lengths = np.ones(levels + merges, np.int64)
        for i, (left, right, _) in enumerate(self.rows):
            self.lengths[levels + i] = self.lengths[left] + self.lengths[right]
        self.room = min(merges, 255 - levels) if kernels.text_type(levels) is np.uint8 else 0
        self.scanning = len(self.rows) < self.room
        self.last = None  # what no pair's count exceeds

    def add(self, rows):
        """Take merges as known: from now on each machine makes them, or makes them up."""
        ids = self.levels + len(self.rows) + np.arange(len(rows))
        self.lengths[ids] = self.lengths[rows[:, 0]] + self.lengths[rows[:, 1]]
        self.rows = np.concatenate([self.rows, rows])
        self.last = int(rows[-1, 2])

    def steps(self):
        """Yield how many tokens are left, after each step."""
        call = self.groups.call
        sizes = call("catch_up", self.rows, self.scanning)
        size, pieces = (sum(column) for column in zip(*sizes, strict=True))
        if self.last is None:
            self.last = size
        yield size - pieces
        if self.scanning:
            for size in self._scans(size):  # noqa: B020
                yield size - pieces
            self.scanning = False
            if len(self.rows) == self.merges or self.last < self.min_count:
                return
            call("catch_up", self.rows, False)
        for size in self._generations(size):  # noqa: B020
            yield size - pieces
        if len(self.rows) < self.merges and self.last >= self.min_count:
            yield from self._alone(pieces)

    def _scans(self, size):
        """Merges by scans over one byte per letter; yields the size after each."""
        counts = np.zeros(65536, np.int64)
        for places, numbers in self.groups.call("letter_counts"):
            counts[places] += numbers
        while len(self.rows) < self.room:
            made = len(self.rows)
            most = min(scans.BATCH, self.room - made)
            rows = scans._pick_letters(
                counts, self.levels + made, self.lengths, self.limit, self.min_count, most
            )
            if len(rows) == 0:
                self.last = 0
                return
            self.add(rows)
            before, told = size, self.groups.call("scan", made, rows)
            size = sum(each for each, _ in told)
            for _, (places, numbers) in told:
                counts[places] += numbers
            yield size
            if before - size < kernels.SCAN_SHARE * before:
                return

    def _generations(self, size):
        """Merges by lists, until there are none left, or few tokens; yields the size after each step."""
        call = self.groups.call
        while len(self.rows) < self.merges and self.last >= self.min_count and size >= self.gathered:
            made = len(self.rows)
            threshold = max(self.min_count, int(self.last * ((made + 1) / self.merges) ** 1.4))
            found = call("pairs", sum(call("buckets")) >= threshold)
            threshold, (left, right, count, _) = heap._frequent(
                [(keys, counts) for keys, counts, _ in found],
                threshold,
                self.lengths,
                self.limit,
                sum(room for _, _, room in found) // 2,
            )
            if len(left) == 0:
                self.last = threshold - 1
                continue
            pairs = heap.pairs_of(left, right, count)
            call("open", left, right, len(self.lengths))
            yield from self._generation(size, pairs, threshold, len(found))
            size = sum(call("close"))

    def _generation(self, size, pairs, threshold, machines):
        """Merges of pairs found at least `threshold` times; yields the size after each step."""
        ids, opened = len(self.lengths), len(self.rows)
        width, (marks, sums) = np.ones(ids, np.int64), np.zeros((2, 2, ids), np.int64)
        rows, where = np.zeros((2, scans.BATCH, 3), np.int64)
        least, full = max(1, threshold // (2 * machines)), False
        while len(self.rows) < self.merges and not full:
            made = len(self.rows)
            most, new = min(scans.BATCH, self.merges - made), self.levels + made
            n = heap._pick(pairs, rows, where, most, new, self.lengths, width, threshold, marks)
            if n == 0:
                return
            self.add(rows[:n].copy())
            told = self.groups.call("apply", made, rows[:n], where[:n], least)
            shards = [shard for _, each, _ in told for shard in each]
            full = any(each for _, _, each in told) or pairs.state[2] > 0
            lists.settle(
                pairs, shards, rows, n, made - opened, new, self.lengths, self.limit, threshold, sums
            )
            full = full or pairs.state[2] > 0
            size -= sum(removed for removed, _, _ in told)
            yield size

    def _alone(self, pieces):
        """Bring the text here, and make the merges that are left."""
        texts, letters = zip(*self.groups.call("text"), strict=True)
        cells = [np.concatenate(texts)]
        nobody = partial(kernels._over, None, 0)
        steps = kernels._by_lists(
            nobody, cells, [sum(letters)], [len(cells[0])], None, len(cells[0]) - pieces, len(self.rows), self.last,
            self.merges, self.levels, self.min_count, self.lengths, self.limit,
        )  # fmt: skip
        for rows, tokens in steps:
            self.rows = np.concatenate([self.rows, rows])
            yield tokens
