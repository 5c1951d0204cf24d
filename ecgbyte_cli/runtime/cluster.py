"""Work on a Dask cluster: the same tasks as on one machine, on workers that see the same files.

Dask is imported where `--dask` is given, and nowhere else. A task runs in the folder in which the command was started,
so that paths mean there what they mean here; the work folder must be on storage that all share. A worker does one task
at a time, whatever its threads: the folder is the process's, and models and libraries are not made for more.
"""

import contextlib
import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import click
import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import read_array
from ecgbyte_cli.storage.stamps import Files, Stamps, file_stamps, find_changed

# Seconds, such that a busy machine keeps to them
CONNECT = 30  # until a scheduler must have answered
START = 60  # until a worker must be there: it is a process that is started, and imports much
LOOK = 10  # between looks at what does not answer
NOTICE = 30  # until the scheduler knows that a worker is gone
# Dask gives up a process of its own that is not back after 15 s: on a busy machine it starts for longer
PATIENT = {"distributed.deploy.lost-worker-timeout": "10 minutes"}
AHEAD = 4  # tasks for each thread of the cluster that are handed out at a time
LOSSES = 4  # workers lost one after the other, without any progress, that end a command
SAMPLED = 32  # recordings that each worker is asked about before anything begins

_alone = threading.Lock()  # of a worker: one task at a time

option = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Work on a Dask cluster: its scheduler's address (tcp://…) or file, or local:N for N processes here.",
)


@contextlib.contextmanager
def connected(address: str, root: Path, files: Files = ()) -> Iterator[Any]:
    """Yield a client of a cluster whose workers have this version of ecgbyte and see the same files.

    Parameters
    ----------
    address : str
        `tcp://…`, the path of a scheduler file, or `local:N`.
    root : Path
        The work folder.
    files : iterable of path
        Input files that each worker must see as they are here.

    Raises
    ------
    Failure
        If Dask is not installed, no scheduler answers, or a worker cannot be used.
    """
    try:
        import distributed
    except ImportError as error:
        raise Failure(f"{error.name} is not installed: pip install ecgbyte[cluster]") from error
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # losses are mended, or told in a line
    here, _, count = address.partition(":")
    with contextlib.ExitStack() as stack:
        if here == "local":
            if not count.isdecimal() or not 0 < int(count) <= 1024:
                raise Failure(f"--dask {address}: local:N starts N processes, as in local:4")
            told = {"address": stack.enter_context(_processes(int(count)))}
        elif "://" in address:
            told = {"address": address}
        elif Path(address).is_file():
            told = {"scheduler_file": address}
        else:
            raise Failure(
                f"--dask {address}: there is no such scheduler file, and an address begins with tcp://"
            )
        try:
            client = stack.enter_context(distributed.Client(**told, timeout=CONNECT, direct_to_workers=True))
        except (OSError, ValueError, TypeError, KeyError, AssertionError, RuntimeError) as error:
            raise Failure(f"no Dask scheduler answers at {address} within {CONNECT} s") from error
        _check(client, address, root, file_stamps(files))
        yield client


@contextlib.contextmanager
def _processes(count):
    """A cluster of worker processes here, which Ctrl-C does not reach: ending them is this one's business."""
    import dask
    import distributed

    resource_tracker.ensure_running()  # which otherwise lifts the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # what is started now inherits it
    try:
        cluster = distributed.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    except (OSError, RuntimeError) as error:
        raise Failure(f"--dask local:{count}: the processes do not start: {error}") from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with dask.config.set(PATIENT), cluster:
        yield cluster


def _check(client: Any, address: str, root: Path, files: Stamps) -> None:
    """Refuse a cluster without workers, or with one that has another version or does not see the same files."""
    with contextlib.suppress(TimeoutError):
        client.wait_for_workers(1, timeout=START)
    if not workers_of(client):
        raise Failure(f"the Dask scheduler at {address} has no workers")
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".seen-{os.urandom(6).hex()}"
    probe.touch()
    try:
        found = client.run(probe_worker, os.getcwd(), str(probe), files, on_error="return")
    finally:
        probe.unlink()
    for worker, told in found.items():
        if isinstance(told, Exception):
            raise Failure(f"the Dask worker {worker} cannot run ecgbyte {__version__}: {told}")
        version, host, *seen, difference = told
        if version != __version__:
            raise Failure(f"the Dask worker {worker} has ecgbyte {version}, here is {__version__}")
        for path, is_there in zip((os.getcwd(), root.absolute()), seen, strict=True):
            if not is_there:
                raise Failure(
                    f"the Dask worker {worker} on {host} does not see {path}: the folder in which the command is "
                    "started and the work folder must be on storage that all workers share"
                )
        if difference:
            raise Failure(f"the Dask worker {worker} on {host} {difference}")


def probe_worker(folder: str, probe: str, files: Stamps) -> tuple[str, str, bool, bool, str | None]:
    """Report from a worker: version, host, whether it sees the folder and the probe, and how its files differ."""
    seen = os.path.isdir(folder), os.path.exists(os.path.join(folder, probe))
    return __version__, socket.gethostname(), *seen, find_changed(files)


def sample(paths: Sequence[str]) -> list[str]:
    """Return the first path, the last and some evenly between: few enough to ask every worker about each."""
    if len(paths) <= SAMPLED:
        return list(paths)
    return [paths[i] for i in np.linspace(0, len(paths) - 1, SAMPLED).round().astype(int)]


def run_on_worker(folder: str, version: str, files: Stamps, function: Callable[..., Any], *task: Any) -> Any:
    """Do a task on a worker, in the folder in which the command was started.

    A worker may have joined late, or lost a mount since: the files that the task reads are compared first.
    """
    with _alone:
        if version != __version__:
            raise Failure(f"a Dask worker has ecgbyte {__version__}, and the command has {version}")
        os.chdir(folder)
        if difference := find_changed(files):
            raise Failure(f"a Dask worker on {socket.gethostname()} {difference}; what is finished is kept")
        return function(*task)


def workers_of(client):
    """What the scheduler knows of its workers, by their addresses.

    Raises
    ------
    Failure
        If the scheduler is gone.
    """
    told = client.scheduler_info(n_workers=-1) if client.status == "running" else {}
    if "workers" not in told:
        raise Failure("the Dask scheduler is gone; what is finished is kept: run the same command again")
    return told["workers"]


def map_tasks(
    address: str,
    root: Path,
    function: Callable[..., Any],
    tasks: Iterable[tuple],
    files: Files = (),
    reads: Callable[..., Files] | None = None,
) -> Iterator[Any]:
    """Yield the results of `function(*task)`, in any order, from a cluster.

    A task whose worker is lost is done again by another. Put it into `contextlib.closing`.

    Parameters
    ----------
    address, root
        As `connected` takes them.
    function : callable
    tasks : iterable of tuple
    files : iterable of path
        Input files that each worker must see before anything begins.
    reads : callable or None
        `reads(*task)` names the input files of a task, compared before it is done; None means `files`.

    Raises
    ------
    Failure
        If a worker does not see the files, a task fails or takes several workers with it, or scheduler or workers
        are gone.
    """
    files = list(files)
    known = file_stamps(files)
    with connected(address, root, files) as client:
        from distributed import wait
        from distributed.scheduler import KilledWorker

        running: set[Any] = set()
        tasks = iter(tasks)
        while True:
            room = AHEAD * max(1, sum(client.nthreads().values())) - len(running)
            for task in itertools.islice(tasks, max(0, room)):
                needed = known if reads is None else file_stamps(reads(*task))
                running.add(
                    client.submit(
                        run_on_worker, os.getcwd(), __version__, needed, function, *task, pure=False
                    )
                )
            if not running:
                return
            try:
                ready, running = wait(running, LOOK, "FIRST_COMPLETED")
                results = [future.result() for future in ready]
            except TimeoutError:
                _wait_for_workers(client, 1)
                continue
            except KilledWorker as error:
                raise Failure(
                    "one task took several Dask workers with it, perhaps for want of memory; what is finished is kept"
                ) from error
            except CancelledError as error:
                workers_of(client)
                raise Failure(f"the Dask cluster cancelled a task: {error}") from error
            yield from results


def _wait_for_workers(client, count):
    """Wait a while until there are so many workers, and fail if there are none then."""
    end = time.monotonic() + START
    while len(workers_of(client)) < count and time.monotonic() < end:
        time.sleep(0.1)  # a nanny starts another
    if not workers_of(client):
        raise Failure("the Dask cluster has lost all its workers; what is finished is kept")


def memory(client):
    """The bytes that the smallest worker may use, of which Dask lets it take four fifths; infinite if none is told."""
    limits = [told["memory_limit"] for told in workers_of(client).values()]
    return 0.8 * min(limits) if all(limits) else float("inf")


class Groups:
    """Shards on the workers of a cluster, one group for each worker: see `signal.shards.learn`.

    Parameters
    ----------
    client : distributed.Client
    parts : list
        For each group, what `hold` needs to read its shards.
    files : Stamps
        Of the files that the shards are read from.

    Attributes
    ----------
    spent : dict
        Seconds: `reading`, until all shards were there; `computing`, of the slowest worker of each call; `waiting`, the
        rest of the calls. `calls`; and the bytes of arrays `sent` and `received`, over all workers.
    """

    def __init__(self, client: Any, parts: list[tuple], files: Stamps):
        self.client, self.parts, self.files = client, parts, files
        self.actors, self.workers = [None] * len(parts), [""] * len(parts)
        self.losses = 0  # since the last call that all answered
        start = time.perf_counter()
        self._fill()
        self.spent = {"reading": time.perf_counter() - start, "calls": 0, "computing": 0.0, "waiting": 0.0}
        self.spent |= {"sent": 0, "received": 0}

    def _fill(self):
        """Give each group without an actor one, on the workers that hold the fewest."""
        while None in self.actors:
            _wait_for_workers(self.client, len(self.parts))
            futures = {}
            for number in [number for number, actor in enumerate(self.actors) if actor is None]:
                alive = workers_of(self.client)
                worker = min(alive, key=lambda worker: (self.workers.count(worker), worker))
                self.workers[number] = worker
                futures[number] = self.client.submit(
                    run_on_worker,
                    os.getcwd(),
                    __version__,
                    self.files,
                    hold_data,
                    *self.parts[number],
                    actor=True,
                    pure=False,
                    workers=[worker],
                )  # fmt: skip
            for number, future in futures.items():
                try:
                    self.actors[number] = self._waited_for(number, future)
                    self.workers[number] = self.actors[number]._address
                except _LostOneError:
                    self._lost(number)

    def call(self, name, *arguments):
        """Call a method of all groups at once; a list of what they return.

        Raises
        ------
        LostError
            If workers are gone; the others hold their shards now, as these were at first.
        """
        from ecgbyte_cli.signal.distributed_bpe import LostError

        start, made, slowest, lost = time.perf_counter(), [], 0.0, []
        waiting = [self._begun(actor, name, arguments) for actor in self.actors]
        for number, future in enumerate(waiting):
            try:
                result, seconds = self._waited_for(number, future)
            except _LostOneError:
                lost.append(number)
            else:
                made.append(result)
                slowest = max(slowest, seconds)
        if lost:
            for number in lost:
                self._lost(number)
            self._fill()
            raise LostError
        spent, self.losses = self.spent, 0
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
        except RuntimeError:  # it is known already that the worker is gone
            return None

    def _lost(self, number):
        """A group's worker is gone: say so, and give up if that is all that happens."""
        self.actors[number], self.losses = None, self.losses + 1
        if self.losses >= LOSSES:
            raise Failure(
                f"the Dask cluster lost {LOSSES} workers one after the other, perhaps for want of memory; the merges "
                "saved so far are kept"
            )
        note(f"the Dask worker {self.workers[number]} is gone: others take over")

    def _waited_for(self, number, future):
        """What a future of a group's worker gives, looking now and then whether the worker is there."""
        from distributed.scheduler import KilledWorker

        while True:
            try:
                if future is None:
                    raise RuntimeError
                return future.result(timeout=LOOK)
            except TimeoutError as error:
                if self._gone(number):
                    raise _LostOneError from error
            except KilledWorker as error:
                raise _LostOneError from error
            except (OSError, RuntimeError, CancelledError) as error:
                if not self._gone(number, NOTICE):
                    raise
                raise _LostOneError from error

    def _gone(self, number, seconds=0.0):
        """Whether a group's worker is gone, or its actor, or will be known to be within some seconds."""
        end, actor = time.monotonic() + seconds, self.actors[number]
        while True:
            held = actor is None or actor._future.status == "finished"
            if self.workers[number] not in workers_of(self.client) or not held:
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.1)


class _LostOneError(Exception):
    """The worker of one group is gone."""


def hold_data(path, segments, boundary, levels, merges, threads):
    """The shards of some segments, read by a worker."""
    from ecgbyte_cli.signal import corpus
    from ecgbyte_cli.signal.distributed_bpe import Shards

    texts = corpus.read_texts(read_array(path), segments, boundary, levels, threads, path)
    return Shards(texts, levels, merges, threads)


def share_array(path, segments, boundary, levels, merges, workers):
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
    bounds = np.searchsorted(ends, np.linspace(0, ends[-1], count + 1)[1:-1], side="right")
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
