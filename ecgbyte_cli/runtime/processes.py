"""The machine's memory, and parallel processes and threads."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any


def free_memory() -> int:
    """Return how many bytes of memory this process can still allocate."""
    free = []
    limits = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if Path("/proc/meminfo").exists():
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    else:
        free.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if all(path.exists() for path in limits) and limits[0].read_text().strip() != "max":
        free.append(int(limits[0].read_text()) - int(limits[1].read_text()))
    return min(free)


def peak_rss_mb() -> float:
    """Return the peak memory of this process, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the parent process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1000 * 1.024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 * 1.024


def reset_peak_rss() -> None:
    """Reset `peak_rss_mb` to the memory in use (on Linux only)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def in_parallel(
    function: Callable[..., Any], tasks: Iterable[tuple], jobs: int, preload: Sequence[str] = ()
) -> Iterator[Any]:
    """Yield the results of `function(*task)`, in any order, from `jobs` processes that import `preload` once.

    The processes end with this one, whatever the cause, and when the generator is closed. Wrap it in
    `contextlib.closing`, because after an exception it would be closed late.
    """
    if jobs <= 1:
        yield from (function(*task) for task in tasks)
        return
    # do not fork: a process with threads (Numba, torch) must not be copied
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([*preload])
    starting = _signals_deferred if method == "forkserver" else nullcontext
    ends, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, initializer=_end_with, initargs=(ends,))
    try:
        running: set[Any] = set()
        for task in tasks:
            if len(running) >= 2 * jobs:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
            with starting():  # a worker
                running.add(pool.submit(function, *task))
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ready)
        pool.shutdown()
    finally:
        lifeline.close()  # ends the workers of a stopped run immediately
        pool.shutdown(cancel_futures=True)
        ends.close()


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Defer Ctrl-C and SIGTERM until the block ends; processes started in the block never get them.

    The main process ends the workers. If they received a signal, each would print a traceback.
    """
    numbers, deferred, before = (signal.SIGINT, signal.SIGTERM), list[int](), dict[int, Any]()
    if threading.current_thread() is threading.main_thread():
        # the mask is not enough: another thread of this process may receive the signal
        before = {n: signal.signal(n, lambda number, _: deferred.append(number)) for n in numbers}
    resource_tracker.ensure_running()  # starting it later would remove the signal mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in deferred[:1]:
            signal.raise_signal(number)


def _end_with(lifeline: Any) -> None:
    """End this worker when the main process closes its end of the pipe, or ends."""

    def watch() -> None:
        with suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def threads(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of `count` threads (default: one per processor). On exit, drop tasks that have not started."""
    pool = ThreadPoolExecutor(count or os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
