"""Work on a Dask cluster: the same tasks as on one machine, on workers that see the same files.

Dask is imported where `--dask` is given, and nowhere else. A task runs in the folder in which the command was started,
so that paths mean there what they mean here; the work folder must be on storage that all share.
"""

import contextlib
import itertools
import logging
import os
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal import corpus
from ecgbyte_cli.signal.shards import LostError, Shards
from ecgbyte_cli.workdir import read_array

SECONDS = 10  # until a scheduler must have answered
AHEAD = 4  # tasks for each thread of the cluster that are handed out at a time
AGAIN = 3  # times that a task is tried elsewhere when its worker is lost

option = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Work on a Dask cluster: its scheduler's address (tcp://…) or file, or local:N for N processes here.",
)


@contextlib.contextmanager
def connected(address, root):
    """A client of the cluster at an address, whose workers have this version of ecgbyte and see a work folder.

    Parameters
    ----------
    address : str
        `tcp://…`, the path of a scheduler file, or `local:N`.
    root : Path
        The work folder.

    Raises
    ------
    Failure
        If Dask is not installed, no scheduler answers, or a worker cannot be used.
    """
    try:
        import distributed
    except ImportError as error:
        raise Failure(f"{error.name} is not installed: pip install ecgbyte[cluster]") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # losses are told in a line, or mended
    here, _, count = address.partition(":")
    with contextlib.ExitStack() as stack:
        try:
            if here == "local":
                if not count.isdecimal() or not 0 < int(count) <= 1024:
                    raise Failure(f"--dask {address}: local:N starts N processes, as in local:4")
                cluster = distributed.LocalCluster(
                    n_workers=int(count),
                    threads_per_worker=1,
                    dashboard_address=None,
                    silence_logs=logging.CRITICAL,
                )
                address = stack.enter_context(cluster)
            elif "://" not in address and not Path(address).is_file():
                raise Failure(
                    f"--dask {address}: there is no such scheduler file, and an address begins with tcp://"
                )
            told = (
                {"scheduler_file": address}
                if here != "local" and "://" not in address
                else {"address": address}
            )
            client = distributed.Client(**told, timeout=SECONDS, direct_to_workers=True)
        except (OSError, TimeoutError, ValueError) as error:
            raise Failure(f"no Dask scheduler answers at {address} within {SECONDS} s") from error
        stack.enter_context(client)
        _check(client, address, root)
        yield client


def _check(client, address, root):
    """Refuse a cluster without workers, or with one that has another version or does not see the work folder."""
    with contextlib.suppress(TimeoutError):
        client.wait_for_workers(1, timeout=SECONDS)
    if not client.scheduler_info(n_workers=-1)["workers"]:
        raise Failure(f"the Dask scheduler at {address} has no workers")
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".seen-{os.urandom(6).hex()}"
    probe.touch()
    try:
        found = client.run(look, os.getcwd(), str(probe), on_error="return")
    finally:
        probe.unlink()
    for worker, told in found.items():
        if isinstance(told, Exception):
            raise Failure(f"the Dask worker {worker} cannot run ecgbyte {__version__}: {told}")
        version, seen = told
        if version != __version__:
            raise Failure(f"the Dask worker {worker} has ecgbyte {version}, here is {__version__}")
        if not seen:
            raise Failure(
                f"the Dask worker {worker} does not see {root.absolute()}: the work folder must be on storage that "
                "all workers share"
            )


def look(folder, probe):
    """What a worker is asked first: its version, and whether it sees a file."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return __version__, os.path.exists(os.path.join(folder, probe))


def there(folder, function, *task):
    """What a worker does: a task, in the folder in which the command was started."""
    os.chdir(folder)
    return function(*task)


def each(address, root, function, tasks):
    """Yield the results of `function(*task)`, in any order, from a cluster.

    A task whose worker is lost is done again by another. Put it into `contextlib.closing`.
    """
    with connected(address, root) as client:
        from distributed import as_completed
        from distributed.scheduler import KilledWorker

        def handed_out(task):
            return client.submit(there, os.getcwd(), function, *task, pure=False, retries=0)

        tasks = iter(tasks)
        ahead = AHEAD * max(1, sum(client.nthreads().values()))
        running = as_completed([handed_out(task) for task in itertools.islice(tasks, ahead)])
        try:
            for future in running:
                yield future.result()
                for task in itertools.islice(tasks, 1):
                    running.add(handed_out(task))
        except KilledWorker as error:
            raise Failure(f"the Dask cluster lost {AGAIN + 1} workers at one task: {error}") from error


def memory(client):
    """The bytes that all workers together may use; infinite where none is told."""
    limits = [told["memory_limit"] for told in client.scheduler_info(n_workers=-1)["workers"].values()]
    return sum(limits) if all(limits) else float("inf")


class Groups:
    """Shards on the workers of a cluster, one group for each worker: see `signal.shards.learn`.

    Parameters
    ----------
    client : distributed.Client
    parts : list
        For each group, what `hold` needs to read its shards.

    Attributes
    ----------
    spent : dict
        Seconds: `reading`, until all shards were there; `computing`, of the slowest worker of each call; `waiting`, the
        rest of the calls. `calls`; and the bytes of arrays `sent` and `received`, over all workers.
    """

    def __init__(self, client, parts):
        self.client, self.parts = client, parts
        self.actors, self.workers = [None] * len(parts), [""] * len(parts)
        start = time.perf_counter()
        self._fill()
        self.spent = {"reading": time.perf_counter() - start, "calls": 0, "computing": 0.0, "waiting": 0.0}
        self.spent |= {"sent": 0, "received": 0}

    def _alive(self):
        return sorted(self.client.scheduler_info(n_workers=-1)["workers"])

    def _fill(self):
        """Give each group without an actor one, on the workers that hold the fewest."""
        empty = [number for number, actor in enumerate(self.actors) if actor is None]
        futures = {}
        for number in empty:
            alive = self._alive()
            for _ in range(10 * SECONDS):
                if alive:
                    break
                time.sleep(0.1)  # a nanny starts another
                alive = self._alive()
            else:
                raise Failure("the Dask cluster has lost all its workers")
            self.workers[number] = min(alive, key=lambda worker: (self.workers.count(worker), worker))
            futures[number] = self.client.submit(
                there, os.getcwd(), hold, *self.parts[number], actor=True, pure=False,
                workers=[self.workers[number]], allow_other_workers=True,
            )  # fmt: skip
        for number, future in futures.items():
            self.actors[number] = future.result()

    def call(self, name, *arguments):
        """Call a method of all groups at once; a list of what they return.

        Raises
        ------
        LostError
            If workers are gone; the others hold their shards now, as these were at first.
        """
        start, made, slowest, lost = time.perf_counter(), [], 0.0, []
        waiting = [self._begun(actor, name, arguments) for actor in self.actors]
        for number, future in enumerate(waiting):
            try:
                result, seconds = future.result()
            except Exception as error:
                if not self._gone(number, error):
                    raise
                lost.append(number)
                continue
            made.append(result)
            slowest = max(slowest, seconds)
        if lost:
            for number in lost:
                self.actors[number] = None
            self._fill()
            raise LostError
        spent = self.spent
        spent["calls"] += 1
        spent["computing"] += slowest
        spent["waiting"] += time.perf_counter() - start - slowest
        spent["sent"] += len(self.actors) * size_of(arguments)
        spent["received"] += size_of(made)
        return made

    @staticmethod
    def _begun(actor, name, arguments):
        try:
            return actor.do(name, *arguments)
        except RuntimeError as error:  # it is known already that the worker is gone
            return _Failed(error)

    def _gone(self, number, error):
        """Whether a call failed as its worker is gone."""
        if not isinstance(error, (OSError, RuntimeError)):
            return False
        for _ in range(10 * SECONDS):
            if self.workers[number] not in self._alive():
                return True
            time.sleep(0.1)
        return False


class _Failed:
    """The future of a call that could not be made."""

    def __init__(self, error):
        self.error = error

    def result(self):
        raise self.error


def hold(path, segments, boundary, levels, merges, threads):
    """The shards of some segments, read by a worker."""
    texts = corpus.read_texts(read_array(path), segments, boundary, levels, threads, path)
    return Shards(texts, levels, merges, threads)


def shared(path, segments, boundary, levels, merges, workers):
    """What each group holds: about as many letters each, in the order of the segments.

    Parameters
    ----------
    path : Path
        Of the letters.
    segments : dict
        `offset`, `leads` and `samples`: int64 arrays.
    boundary : str
        One piece cannot be shared: with `none` there is one group.
    levels, merges : int
    workers : dict of str to int
        The cluster's workers and their threads.
    """
    count = 1 if boundary == "none" else min(len(workers), len(segments["offset"]))
    ends = np.cumsum(segments["leads"] * segments["samples"])
    bounds = np.searchsorted(ends, np.linspace(0, ends[-1], count + 1)[1:-1])
    columns = {name: np.split(column, bounds) for name, column in segments.items()}
    threads = max(1, min(workers.values()))
    return [
        (path, {name: column[i] for name, column in columns.items()}, boundary, levels, merges, threads)
        for i in range(count)
        if len(columns["offset"][i])
    ]


def size_of(value):
    """The bytes of all arrays in nested lists and tuples."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    return sum(map(size_of, value)) if isinstance(value, (list, tuple)) else 0
