"""Training on several processes: rank, sums over all processes, and a common stop."""

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from ecgbyte_cli.cli.output import progress
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.runtime.ranks import process_rank

if TYPE_CHECKING:
    import torch

# Process groups that this process has joined. They are kept, because DDP would free them while it holds the GIL and
# wait forever for a thread of the group that needs the GIL.
_groups: list[Any] = []


def sum_over_processes(values: list[float], device: "torch.device | str") -> list[float]:
    """Return the sum of each value over all processes.

    Raises
    ------
    Failure
        If another process has ended.
    """
    if process_rank()[1] == 1:
        return values
    import torch

    sums = torch.tensor(values, dtype=torch.float64, device=device)
    try:
        torch.distributed.all_reduce(sums)
        return sums.tolist()
    except RuntimeError as error:
        raise Failure("another process of the training run has ended: run the same command again") from error


def first_progress(name: str, total: int, unit: str) -> contextlib.AbstractContextManager[Any]:
    """Return a progress bar on the first process, and a context manager that yields None on the others."""
    return progress(name, total, unit) if process_rank()[0] == 0 else contextlib.nullcontext()


def any_process(condition: bool, device: "torch.device | str") -> bool:
    """Return whether a condition holds on any process. All processes must call this at the same place."""
    return sum_over_processes([float(condition)], device)[0] > 0


@contextlib.contextmanager
def failing_together(device: "torch.device | str") -> Iterator[None]:
    """Raise a RuntimeError on all processes if one raises it in the block; otherwise they would wait forever.

    All processes must enter this at the same place.
    """
    failure: RuntimeError | None = None
    try:
        yield
    except RuntimeError as error:
        failure = error
    failed = any_process(failure is not None, device)
    if failure:
        raise failure
    if failed:
        raise RuntimeError("another process failed")


def sum_gradients(parameters: "Iterable[torch.nn.Parameter]") -> None:
    """Replace each gradient by its sum over all processes; a missing one counts as zero."""
    if process_rank()[1] == 1:
        return
    import torch

    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        torch.distributed.all_reduce(p.grad)


@contextlib.contextmanager
def process_group(wanted: str | None, method: str) -> Iterator[str]:
    """Join the other processes, if any, and yield the device of this one; see `devices.choose_device`.

    At the end all processes wait for the first, which writes the model. That may take longer than NCCL's timeout of ten
    minutes, so they poll the store through which they found each other.
    """
    import torch
    from torch import distributed

    gc.collect()  # frees the model of the previous seed's run
    device = devices.choose_device(wanted, method)
    if process_rank()[1] == 1:
        yield device
        return
    if device != "cpu":
        torch.cuda.set_device(device)
    store, rank, count = next(distributed.rendezvous("env://"))
    # with `--seeds`, the next run uses the same store
    store = distributed.PrefixStore(f"ecgbyte-{len(_groups)}", store)
    distributed.init_process_group(
        "nccl" if device != "cpu" else "gloo", store=store, rank=rank, world_size=count
    )
    _groups.append(distributed.group.WORLD)
    try:
        yield device
        if rank == 0:
            store.set("done", "")
        while not store.check(["done"]):
            time.sleep(0.2)
        distributed.barrier()  # the first process may host the store
    finally:
        distributed.destroy_process_group()


class StopSignal:
    """Delay Ctrl-C and SIGTERM until a step is finished and saved.

    Several processes stop at the same step, because `agreed` asks all of them; otherwise one would wait for another
    that has left. A single process stops immediately where no work can be lost (`at_once`), or at the second signal of
    the same kind. Several processes never do, because launchers repeat the signal.

    Parameters
    ----------
    device : torch.device or str
        Device for exchanging tensors between processes.

    Attributes
    ----------
    asked : set of int
        Signals received.
    """

    def __init__(self, device: "torch.device | str"):
        self.device, self.alone = device, process_rank()[1] == 1
        self.asked: set[int] = set()
        self.waits, self.before = True, dict[int, Any]()

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self.before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        try:
            if kind is None:
                self.check()
        finally:
            for number, handler in self.before.items():
                signal.signal(number, handler or signal.SIG_DFL)

    def _ask(self, number: int, _: FrameType | None) -> None:
        again = number in self.asked
        self.asked.add(number)
        if self.alone and (again or not self.waits):
            raise KeyboardInterrupt

    def agreed(self) -> bool:
        """Return whether any process received a signal. All processes must call this at the same place."""
        return any_process(bool(self.asked), self.device)

    def check(self) -> None:
        """Raise KeyboardInterrupt on all processes if any of them received a signal."""
        if self.agreed():
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a single process stop immediately in the block, which must not change any saved state."""
        before, self.waits = self.waits, not self.alone
        try:
            yield
        finally:
            self.waits = before
