"""What the machine gives: its memory, and processes that work side by side."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing import resource_tracker
from pathlib import Path


def free_memory():
    """Bytes of memory that this process can still take."""
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


def peak_rss_mb():
    """The most memory this process has held, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would count what the parent held before it started this process
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1000 * 1.024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000 * 1.024


def in_parallel(function, tasks, jobs, preload=()):
    """Yield the results of `function(*task)`, in any order, from `jobs` processes that import `preload` once.

    The processes end when this one does, in whatever way, and at once where the loop over the results is left:
    put it into `contextlib.closing`, as what is left by an exception is otherwise closed later.
    """
    if jobs <= 1:
        yield from (function(*task) for task in tasks)
        return
    # not by fork: a process with threads of its own (Numba, torch) must not be copied
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([*preload])
    starting = _signals_kept if method == "forkserver" else nullcontext
    ends, lifeline = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(jobs, context, initializer=_end_with, initargs=(ends,))
    try:
        running = set()
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
        lifeline.close()  # the workers of a run that was stopped do not finish what they have in hand
        pool.shutdown(cancel_futures=True)
        ends.close()


@contextmanager
def _signals_kept():
    """Keep Ctrl-C and SIGTERM until the block ends; processes that it starts never get them.

    Ending the workers is the main process' business: theirs would be a traceback each, from wherever they are.
    """
    numbers, kept, before = (signal.SIGINT, signal.SIGTERM), [], {}
    if threading.current_thread() is threading.main_thread():
        # the mask alone is not enough: another thread of this process may take the signal
        before = {n: signal.signal(n, lambda number, _: kept.append(number)) for n in numbers}
    resource_tracker.ensure_running()  # which otherwise lifts the mask
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in kept[:1]:
            signal.raise_signal(number)


def _end_with(lifeline):
    """End this worker as soon as the main process has closed its end of the pipe, or is gone."""

    def watch():
        with suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def threads(count=None):
    """Yield a pool of threads, one for each processor unless told; when it is left, what has not begun is dropped."""
    pool = ThreadPoolExecutor(count or os.cpu_count())
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
