"""What the machine gives: its memory, and processes that work side by side."""

import multiprocessing
import os
import signal
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
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
    """Yield the results of `function(*task)`, in any order, from `jobs` processes that import `preload` once."""
    if jobs <= 1:
        yield from (function(*task) for task in tasks)
        return
    # not by fork: a process with threads of its own (Numba, torch) must not be copied
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([*preload])
    pool = ProcessPoolExecutor(jobs, context, initializer=ignore_interrupts)
    try:
        running = set()
        for task in tasks:
            if len(running) >= 2 * jobs:
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ready)
            running.add(pool.submit(function, *task))
        while running:
            ready, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ready)
    finally:
        pool.shutdown(cancel_futures=True)


def ignore_interrupts():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process' business
