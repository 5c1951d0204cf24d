"""Learn merges from a corpus on several machines: each holds some shards and reports changes of the counts.

`learn` picks the next merges with the same kernels as `ecgbyte_kernels.merges` on one machine, so the merges do not
depend on the number of machines. At each step the merges go out over the network, and the changes of the pair counts
are returned. The text is not sent until so little is left that one machine is faster.

A lost machine costs only time: another one reads its shards again and applies the known merges. A batch counts
as known once it is picked. Machines that have not applied it catch up later.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import Any, Protocol

import numpy as np

from ecgbyte_kernels import merge_heap as heap
from ecgbyte_kernels import merge_lists as lists
from ecgbyte_kernels import merge_scans as scans
from ecgbyte_kernels import merges as kernels

GATHERED = 32_000_000  # tokens: a smaller text is moved to one machine, because its steps are short
NO_ROWS = np.zeros((0, 3), np.int64)


class LostError(Exception):
    """Some machines were lost; others now hold their shards in the initial state."""


class Groups(Protocol):
    """The machines."""

    def call(self, name: str, *arguments: Any) -> list[Any]:
        """Call a method of all `Shards`; return the results, or raise LostError."""


class Shards:
    """The shards of the text on one machine, and the merges applied to them.

    Parameters
    ----------
    texts : list of numpy.ndarray
        See `ecgbyte_kernels.merges.learn_merges`; consumed.
    levels, merges : int
        Number of letters, and largest number of merges.
    threads : int
        Threads that work on the shards.
    """

    def __init__(self, texts: list[np.ndarray], levels: int, merges: int, threads: int = 1) -> None:
        self.texts, self.levels, self.merges = texts, levels, merges
        self.end = int(np.iinfo(texts[0].dtype).max)
        self.letters, self.sizes = [len(text) for text in texts], [len(text) for text in texts]
        self.pieces = int(sum(kernels._count_value(text, self.end) for text in texts))
        self.cells: list[np.ndarray] = []  # the text, two or four bytes per token
        self.lists: list[lists.Shard] = []
        self.made = 0
        self.counts: list[Any] = [scans._count_letters(text) for text in texts] if self.end == 255 else []
        # per shard: sorted keys of pairs, and their counts
        self.found: list[tuple[np.ndarray, np.ndarray]] = []
        self.others = min(threads, len(texts)) - 1
        self.pool = ThreadPoolExecutor(max(1, self.others))

    def do(self, name: str, *arguments: Any) -> tuple[Any, float]:
        """Call a method by name; return its result and the seconds it took."""
        start = time.perf_counter()
        return getattr(self, name)(*arguments), time.perf_counter() - start

    def _over(self, kernel: Callable[..., Any], *arguments: Any) -> list[Any]:
        return kernels._over(self.pool, self.others, kernel, *arguments)

    def catch_up(self, rows: np.ndarray, scanning: bool) -> tuple[int, int]:
        """Apply the merges known so far, int64 (k, 3); return the numbers of tokens and ends, and of pieces."""
        if self.lists:
            self.close()
        room = self._room()
        if not self.cells and self.made < min(room, len(rows)):
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

    def _room(self) -> int:
        """Return the number of merges whose ids fit into a byte."""
        return min(self.merges, self.end - self.levels) if self.end == 255 else 0

    def letter_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the counts of pairs of bytes: indices in the table, left * 256 + right, and counts."""
        return _nonzero(sum(self.counts))

    def scan(self, start: int, rows: np.ndarray) -> tuple[int, tuple[np.ndarray, np.ndarray]]:
        """Apply merges starting at index `start` by a scan; return the number of tokens and the count changes."""
        before = sum(self.counts)
        self._scan(rows[:, :2], self.levels + start + np.arange(len(rows)))
        self.made += len(rows)
        return sum(self.sizes), _nonzero(sum(self.counts) - before)

    def _scan(self, pairs: np.ndarray, ids: np.ndarray) -> None:
        self.sizes = scans._scan(self._over, self.texts, self.sizes, self.counts, pairs, ids)

    def _widen(self) -> None:
        """Continue with two or four bytes per token."""
        if self.cells:
            return
        cell = kernels._cell_type(self.levels, self.merges)
        while self.texts:  # one at a time, so that only one shard is in memory twice
            size = self.sizes[len(self.cells)]
            self.cells.append(scans._widen(self.texts.pop(0), size, self.end, cell(0), np.iinfo(cell).max))
        self.end, self.counts = int(np.iinfo(cell).max), []

    def text(self) -> tuple[np.ndarray, int]:
        """Return all tokens in one array, and the number of letters, for the machine that continues alone."""
        tokens = np.concatenate([cells[:n] for cells, n in zip(self.cells, self.sizes, strict=True)])
        return tokens, sum(self.letters)

    def buckets(self) -> np.ndarray:
        """Count pairs by hash bucket: no pair occurs more often than its bucket."""
        return sum(self._over(scans._count_buckets, self.cells, self.sizes, repeat(self.end)))

    def pairs(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Return keys and counts of the pairs in the wanted buckets, and the number of positions to reserve."""
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

    def open(self, left: np.ndarray, right: np.ndarray, ids: int) -> None:
        """Write the lists of a generation's pairs; `ids` is the largest vocabulary."""
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
        self.found = []
        self._over(lists._write_lists, self.lists, self.sizes, repeat(self.end), *map(repeat, hashed))

    def apply(
        self, start: int, rows: np.ndarray, where: np.ndarray, least: int
    ) -> tuple[int, list[tuple[np.ndarray, np.ndarray, np.ndarray]], bool]:
        """Apply merges starting at index `start` by lists.

        Returns
        -------
        (int, list of (int64, int32, int32 arrays), bool)
            Number of removed tokens; for each shard the neighbours of the new tokens (bounds, ids and counts, before
            and after each merge); and whether a list ran out of room.
        """
        done, new, n = start - self.opened, self.levels + start, len(rows)
        for j, (left, right, _) in enumerate(rows):
            self.width[new + j] = self.width[left] + self.width[right]
        removed = self._over(
            lists._apply, self.lists, repeat(self.end), repeat(rows), repeat(where), repeat(n), repeat(done),
            repeat(new), repeat(self.width), repeat(least), self.scratch,
        )  # fmt: skip
        self.made += n
        changes = []
        for shard in self.lists:
            bounds = shard.bounds[2 * done : 2 * (done + n) + 1]
            here = slice(bounds[0], bounds[-1])
            changes.append((bounds - bounds[0], shard.neighbour[here].copy(), shard.number[here].copy()))
        return int(sum(removed)), changes, any(shard.state[2] > 0 for shard in self.lists)

    def close(self) -> int:
        """Close a generation's gaps; return the number of tokens."""
        self.sizes = self._over(
            lists._close_gaps, self.cells, self.sizes, repeat(self.end), repeat(self.width)
        )
        self.lists = []
        return sum(self.sizes)


def _nonzero(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices and values of a table's nonzero entries, which are small to send."""
    places = np.flatnonzero(table)
    return places.astype(np.int32), table[places]


def learn(
    groups: Groups,
    levels: int,
    merges: int,
    min_count: int,
    max_length: int,
    known: np.ndarray = NO_ROWS,
    gathered: int = GATHERED,
) -> Iterator[tuple[np.ndarray, int]]:
    """Learn merges from shards on several machines.

    Parameters
    ----------
    groups : Groups
    levels, merges, min_count, max_length, known
        See `ecgbyte_kernels.merges.learn_merges`.
    gathered : int
        If fewer tokens are left, the text is moved to this machine, which learns the remaining merges.

    Yields
    ------
    (numpy.ndarray, int)
        Same as `learn_merges`.
    """
    driver = _Driver(groups, levels, merges, min_count, max_length, known, gathered)
    yielded = len(known)
    while True:
        try:
            for tokens in driver.steps():
                yield driver.rows[yielded:], tokens
                yielded = len(driver.rows)
            return
        except LostError:
            continue


class _Driver:
    """Pick the merges, and keep them when a machine is lost."""

    def __init__(
        self,
        groups: Groups,
        levels: int,
        merges: int,
        min_count: int,
        max_length: int,
        known: np.ndarray,
        gathered: int,
    ) -> None:
        self.groups, self.levels, self.merges, self.gathered = groups, levels, merges, gathered
        self.min_count, self.limit = min_count, max_length or np.iinfo(np.int64).max
        self.rows = np.asarray(known, np.int64).reshape(-1, 3)
        self.lengths = np.ones(levels + merges, np.int64)
        for i, (left, right, _) in enumerate(self.rows):
            self.lengths[levels + i] = self.lengths[left] + self.lengths[right]
        self.room = min(merges, 255 - levels) if kernels.text_type(levels) is np.uint8 else 0
        self.scanning = len(self.rows) < self.room
        self.last = -1  # upper bound of the count of every pair; -1: unknown

    def add(self, rows: np.ndarray) -> None:
        """Add merges to the known ones; each machine applies them now or catches up."""
        ids = self.levels + len(self.rows) + np.arange(len(rows))
        self.lengths[ids] = self.lengths[rows[:, 0]] + self.lengths[rows[:, 1]]
        self.rows = np.concatenate([self.rows, rows])
        self.last = int(rows[-1, 2])

    def steps(self) -> Iterator[int]:
        """Yield the number of tokens after each step."""
        call = self.groups.call
        sizes = call("catch_up", self.rows, self.scanning)
        size, pieces = (sum(column) for column in zip(*sizes, strict=True))
        if self.last < 0:
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

    def _scans(self, size: int) -> Iterator[int]:
        """Learn by scans over one byte per token; yield the size after each step."""
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
            before, results = size, self.groups.call("scan", made, rows)
            size = sum(each for each, _ in results)
            for _, (places, numbers) in results:
                counts[places] += numbers
            yield size
            if before - size < kernels.SCAN_SHARE * before:
                return

    def _generations(self, size: int) -> Iterator[int]:
        """Learn by lists, until few tokens or no merges are left; yield the size after each step."""
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

    def _generation(self, size: int, pairs: heap.Pairs, threshold: int, machines: int) -> Iterator[int]:
        """Learn merges of pairs that occur at least `threshold` times; yield the size after each step."""
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
            results = self.groups.call("apply", made, rows[:n], where[:n], least)
            shards = [shard for _, each, _ in results for shard in each]
            full = any(each for _, _, each in results) or pairs.state[2] > 0
            lists.settle(
                pairs, shards, rows, n, made - opened, new, self.lengths, self.limit, threshold, sums
            )
            full = full or pairs.state[2] > 0
            size -= sum(removed for removed, _, _ in results)
            yield size

    def _alone(self, pieces: int) -> Iterator[int]:
        """Move the text to this machine, and learn the remaining merges."""
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
