"""Run tasks on a Dask cluster, on workers that see the same files.

Dask is imported only for `--dask`. A task runs in the folder where the command was started, so that relative paths
are valid; all workers must share the storage of the work folder. A worker runs one task at a time, regardless of its
threads, because the current folder belongs to the process, and models and libraries are not thread-safe.
"""

import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.storage.stamps import Files, Stamps, file_stamps, find_changed

# timeouts in seconds, long enough for a busy machine
CONNECT = 30  # until a scheduler answers
START = 60  # until a worker is available: its process must start and import much
LOOK = 10  # between checks of an unanswered task
# Dask drops a local worker that is not back after 15 s, but restarting takes longer on a busy machine.
PATIENT = {"distributed.deploy.lost-worker-timeout": "10 minutes"}
AHEAD = 4  # tasks submitted per thread of the cluster
SAMPLED = 32  # recordings that each worker checks before the first task

_one_task = threading.Lock()  # held by a worker while it runs a task


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
        Input files that each worker must see unchanged.

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
        logging.getLogger(name).setLevel(logging.CRITICAL)  # losses are recovered, or reported in one line
    kind, _, count = address.partition(":")
    with contextlib.ExitStack() as stack:
        if kind == "local":
            if not count.isdecimal() or not 0 < int(count) <= 1024:
                raise Failure(f"--dask {address}: local:N starts N processes, as in local:4")
            connection = {"address": stack.enter_context(_processes(int(count)))}
        elif "://" in address:
            connection = {"address": address}
        elif Path(address).is_file():
            connection = {"scheduler_file": address}
        else:
            raise Failure(
                f"--dask {address}: there is no such scheduler file, and an address begins with tcp://"
            )
        try:
            client = stack.enter_context(
                distributed.Client(**connection, timeout=CONNECT, direct_to_workers=True)
            )
        except (OSError, ValueError, TypeError, KeyError, AssertionError, RuntimeError) as error:
            raise Failure(f"no Dask scheduler answers at {address} within {CONNECT} s") from error
        _check(client, address, root, file_stamps(files))
        yield client


@contextlib.contextmanager
def _processes(count: int) -> Iterator[Any]:
    """Yield a cluster of local worker processes. Ctrl-C does not reach them: this process ends them."""
    import dask
    import distributed

    resource_tracker.ensure_running()  # starting it later would remove the signal mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # inherited by the workers
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
    """Reject a cluster without workers, or with a worker that has another version or other files."""
    with contextlib.suppress(TimeoutError):
        client.wait_for_workers(1, timeout=START)
    if not workers_of(client):
        raise Failure(f"the Dask scheduler at {address} has no workers")
    root.mkdir(parents=True, exist_ok=True)
    probe = root / f".seen-{os.urandom(6).hex()}"
    probe.touch()
    try:
        reports = client.run(probe_worker, os.getcwd(), str(probe), files, on_error="return")
    finally:
        probe.unlink()
    for worker, report in reports.items():
        if isinstance(report, Exception):
            raise Failure(f"the Dask worker {worker} cannot run ecgbyte {__version__}: {report}")
        version, host, *seen, difference = report
        if version != __version__:
            raise Failure(
                f"the Dask worker {worker} has ecgbyte {version}, but this machine has {__version__}"
            )
        for path, is_seen in zip((os.getcwd(), root.absolute()), seen, strict=True):
            if not is_seen:
                raise Failure(
                    f"the Dask worker {worker} on {host} does not see {path}: the folder where the command was "
                    "started and the work folder must be on storage shared by all workers"
                )
        if difference:
            raise Failure(f"the Dask worker {worker} on {host} {difference}")


def probe_worker(folder: str, probe: str, files: Stamps) -> tuple[str, str, bool, bool, str | None]:
    """Return a worker's report: version, host, whether it sees the folder and the probe, and how its files differ."""
    seen = os.path.isdir(folder), os.path.exists(os.path.join(folder, probe))
    return __version__, socket.gethostname(), *seen, find_changed(files)


def sample(paths: Sequence[str]) -> list[str]:
    """Return the first path, the last and some evenly between: few enough for each worker to check."""
    if len(paths) <= SAMPLED:
        return list(paths)
    return [paths[i] for i in np.linspace(0, len(paths) - 1, SAMPLED).round().astype(int)]


def run_on_worker(folder: str, version: str, files: Stamps, function: Callable[..., Any], *task: Any) -> Any:
    """Run a task on a worker, in the folder where the command was started.

    The input files of the task are compared first: a worker may have joined late, or lost a mount.
    """
    with _one_task:
        if version != __version__:
            raise Failure(f"a Dask worker has ecgbyte {__version__}, but the command has {version}")
        os.chdir(folder)
        if difference := find_changed(files):
            raise Failure(f"a Dask worker on {socket.gethostname()} {difference}; finished work is kept")
        return function(*task)


def device_here(wanted: str | None) -> str | None:
    """Return the device for a task: on a machine with several GPUs each worker uses one of them.

    Parameters
    ----------
    wanted : str or None
        See `devices.choose_device`. A device with a number, or one other than a GPU, is returned unchanged.
    """
    if wanted not in (None, "auto", "cuda") or "distributed" not in sys.modules:
        return wanted
    from distributed import get_client, get_worker

    try:
        worker = get_worker()
    except ValueError:  # not inside a Dask task
        return wanted
    return devices.gpu_of_worker(workers_of(get_client()), worker.address) or wanted


def workers_of(client: Any) -> dict[str, Any]:
    """Return the scheduler's information about its workers, by their addresses.

    Raises
    ------
    Failure
        If the scheduler is gone.
    """
    info = client.scheduler_info(n_workers=-1) if client.status == "running" else {}
    if "workers" not in info:
        raise Failure("the Dask scheduler is gone; finished work is kept: run the same command again")
    return info["workers"]


def map_tasks(
    address: str,
    root: Path,
    function: Callable[..., Any],
    tasks: Iterable[tuple],
    files: Files = (),
    reads: Callable[..., Files] | None = None,
) -> Iterator[Any]:
    """Yield the results of `function(*task)`, in any order, from a cluster.

    If a worker is lost, another repeats its task. Wrap the generator in `contextlib.closing`.

    Parameters
    ----------
    address, root
        See `connected`.
    function : callable
    tasks : iterable of tuple
    files : iterable of path
        Input files that each worker must see before the first task.
    reads : callable or None
        `reads(*task)` names the input files of a task, compared before it runs; None means `files`.

    Raises
    ------
    Failure
        If a worker does not see the files, a task fails or ends several workers, or scheduler or workers are gone.
    """
    files = list(files)
    known = file_stamps(files)
    with connected(address, root, files) as client:
        running: set[Any] = set()
        tasks = iter(tasks)
        while True:
            room = AHEAD * max(1, sum(client.nthreads().values())) - len(running)
            for task in itertools.islice(tasks, max(0, room)):
                stamps = known if reads is None else file_stamps(reads(*task))
                running.add(
                    client.submit(
                        run_on_worker, os.getcwd(), __version__, stamps, function, *task, pure=False
                    )
                )
            if not running:
                return
            results, running = _next_results(client, running)
            yield from results


def _next_results(client: Any, running: set[Any]) -> tuple[list[Any], set[Any]]:
    """Wait for futures for a limited time; return the results and the unfinished futures."""
    from distributed import wait
    from distributed.scheduler import KilledWorker

    try:
        ready, running = wait(running, LOOK, "FIRST_COMPLETED")
        return [future.result() for future in ready], running
    except TimeoutError:
        wait_for_workers(client, 1)
        return [], running
    except KilledWorker as error:
        raise Failure(
            "one task killed several Dask workers, perhaps because memory ran out; finished work is kept"
        ) from error
    except CancelledError as error:
        workers_of(client)
        raise Failure(f"the Dask cluster cancelled a task: {error}") from error


def wait_for_workers(client: Any, count: int) -> None:
    """Wait for `count` workers for a limited time, and raise a Failure if there are none after that."""
    end = time.monotonic() + START
    while len(workers_of(client)) < count and time.monotonic() < end:
        time.sleep(0.1)  # a nanny starts another worker
    if not workers_of(client):
        raise Failure("the Dask cluster has lost all its workers; finished work is kept")


def memory(client: Any) -> float:
    """Return the bytes that the smallest worker may use (80 % of its limit); infinite without limits."""
    limits = [worker["memory_limit"] for worker in workers_of(client).values()]
    return 0.8 * min(limits) if all(limits) else float("inf")
