"""Shards held by actors on the workers of a Dask cluster."""

import os
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.storage.files import read_array
from ecgbyte_cli.storage.stamps import Stamps

NOTICE = 30  # seconds until the scheduler notices that a worker is gone
LOSSES = 4  # worker losses without progress after which a command ends


class Groups:
    """Shards on the workers of a cluster, one group for each worker: see `signal.distributed_bpe.learn`.

    Parameters
    ----------
    client : distributed.Client
    parts : list
        The arguments of `hold_data` for each group.
    files : Stamps
        Stamps of the files that contain the shards.

    Attributes
    ----------
    spent : dict
        Seconds: `reading` all shards; `computing`, by the slowest worker in each call; `waiting`, the rest of the
        calls. Number of `calls`; bytes of arrays `sent` and `received`, over all workers.
    """

    def __init__(self, client: Any, parts: list[tuple], files: Stamps):
        self.client, self.parts, self.files = client, parts, files
        self.actors: list[Any] = [None] * len(parts)
        self.workers = [""] * len(parts)
        self.losses = 0  # losses since the last complete call
        start = time.perf_counter()
        self._fill()
        self.spent = {"reading": time.perf_counter() - start, "calls": 0, "computing": 0.0, "waiting": 0.0}
        self.spent |= {"sent": 0, "received": 0}

    def _fill(self) -> None:
        """Give an actor to each group without one, on the workers that hold the fewest."""
        while None in self.actors:
            cluster.wait_for_workers(self.client, len(self.parts))
            futures = {}
            for number in [number for number, actor in enumerate(self.actors) if actor is None]:
                alive = cluster.workers_of(self.client)
                worker = min(alive, key=lambda worker: (self.workers.count(worker), worker))
                self.workers[number] = worker
                futures[number] = self.client.submit(
                    cluster.run_on_worker,
                    os.getcwd(),
                    __version__,
                    self.files,
                    hold_data,
                    *self.parts[number],
                    actor=True,
                    pure=False,
                    workers=[worker],
                )
            for number, future in futures.items():
                try:
                    self.actors[number] = self._wait_for(number, future)
                    self.workers[number] = self.actors[number]._address
                except _LostOneError:
                    self._drop(number)

    def call(self, name: str, *arguments: Any) -> list[Any]:
        """Call a method of all groups at once, and return their results.

        Raises
        ------
        If workers are gone. Other workers then hold their shards, in the initial state.
            If workers are gone. Others hold their shards then, in the initial state.
        """
        from ecgbyte_cli.signal.distributed_bpe import LostError

        start, slowest = time.perf_counter(), 0.0
        results, lost = list[Any](), list[int]()
        futures = [self._start(actor, name, arguments) for actor in self.actors]
        for number, future in enumerate(futures):
            try:
                result, seconds = self._wait_for(number, future)
            except _LostOneError:
                lost.append(number)
            else:
                results.append(result)
                slowest = max(slowest, seconds)
        if lost:
            for number in lost:
                self._drop(number)
            self._fill()
            raise LostError
        spent, self.losses = self.spent, 0
        spent["calls"] += 1
        spent["computing"] += slowest
        spent["waiting"] += time.perf_counter() - start - slowest
        spent["sent"] += len(self.actors) * size_of(arguments)
        spent["received"] += size_of(results)
        return results

    @staticmethod
    def _start(actor: Any, name: str, arguments: tuple) -> Any:
        """Start a call and return its future, or None if the worker is already known to be gone."""
        try:
            return actor.do(name, *arguments)
        except RuntimeError:
            return None

    def _drop(self, number: int) -> None:
        """Report that a group's worker is gone, and give up after several losses without progress."""
        self.actors[number], self.losses = None, self.losses + 1
        if self.losses >= LOSSES:
            raise Failure(
                f"the Dask cluster lost {LOSSES} workers in a row, perhaps because memory ran out; the merges "
                "saved so far are kept"
            )
        note(f"the Dask worker {self.workers[number]} is gone: other workers take over")

    def _wait_for(self, number: int, future: Any) -> Any:
        """Return the result of a group's future, checking regularly that its worker exists."""
        from distributed.scheduler import KilledWorker

        while True:
            try:
                if future is None:
                    raise RuntimeError
                return future.result(timeout=cluster.LOOK)
            except TimeoutError as error:
                if self._is_gone(number):
                    raise _LostOneError from error
            except KilledWorker as error:
                raise _LostOneError from error
            except (OSError, RuntimeError, CancelledError) as error:
                if not self._is_gone(number, NOTICE):
                    raise
                raise _LostOneError from error

    def _is_gone(self, number: int, seconds: float = 0.0) -> bool:
        """Return whether a group's worker or actor is gone, now or within some seconds."""
        end, actor = time.monotonic() + seconds, self.actors[number]
        while True:
            held = actor is None or actor._future.status == "finished"
            if self.workers[number] not in cluster.workers_of(self.client) or not held:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.1)


class _LostOneError(Exception):
    """The worker of one group is gone."""


def hold_data(
    path: Path, segments: dict[str, np.ndarray], boundary: str, levels: int, merges: int, threads: int
) -> Any:
    """Read the shards of some segments on a worker."""
    from ecgbyte_cli.signal import corpus
    from ecgbyte_cli.signal.distributed_bpe import Shards

    texts = corpus.read_texts(read_array(path), segments, boundary, levels, threads, path)
    return Shards(texts, levels, merges, threads)


def share_array(
    path: Path,
    segments: dict[str, np.ndarray],
    boundary: str,
    levels: int,
    merges: int,
    workers: dict[str, int],
) -> list[tuple]:
    """Return the arguments of `hold_data` for each group: similar numbers of letters, in the order of the segments.

    Parameters
    ----------
    path : Path
        The letters.
    segments : dict
        `offset`, `leads` and `samples`: int64 arrays.
    boundary : str
        With `none` there is one group, because one piece cannot be divided.
    levels, merges : int
    workers : dict of str to int
        The cluster's workers and their threads.
    """
    count = 1 if boundary == "none" else min(len(workers), len(segments["offset"]))
    ends = np.cumsum(segments["leads"] * segments["samples"])
    bounds = np.searchsorted(ends, np.linspace(0, ends[-1], count + 1)[1:-1], side="right")
    columns = {name: np.split(column, bounds) for name, column in segments.items()}
    threads = max(1, min(workers.values()))
    return [
        (path, {name: column[i] for name, column in columns.items()}, boundary, levels, merges, threads)
        for i in range(count)
        if len(columns["offset"][i])
    ]


def size_of(value: object) -> int:
    """Return the bytes of all arrays in nested lists and tuples."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, (list, tuple)) else 0
