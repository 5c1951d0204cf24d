"""Detect running out of memory, avoid it with smaller parts, and report it in one line with advice."""

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime.processes import free_memory

if TYPE_CHECKING:
    import torch

    from ecgbyte_cli.model.ecg_lm import ECGLM

T = TypeVar("T")

# messages of CUDA, Windows, Linux, cuBLAS and cuDNN
_NO_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory|ALLOC_FAILED")
_DEVICE = re.compile(r"\bdevices?\b|cuda|cublas|cudnn|\bmps\b|float64", re.IGNORECASE)
_SHAPE = re.compile(
    "size|shape|dimension|expand|broadcast|mask|dtype|not (yet )?supported|unsupported|no available kernel",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the machine is out of memory."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error)))


def unsupported(error: Exception) -> bool:
    """Return whether an error in a test run means that the model does not support the input.

    Running out of memory, tensors on two devices and device failures do not.
    """
    if out_of_memory(error):
        return False
    if isinstance(error, NotImplementedError):
        return True
    if _DEVICE.search(str(error)):
        return False
    return isinstance(error, (TypeError, ValueError)) or (
        isinstance(error, RuntimeError) and bool(_SHAPE.search(str(error)))
    )


@contextlib.contextmanager
def reporting_out_of_memory(where: str, advice: str) -> Iterator[None]:
    """Report running out of memory in one line.

    Parameters
    ----------
    where : str
        Follows "out of memory", such as `at --batch 4`.
    advice : str
        Advice that names only options of the current command.

    Raises
    ------
    Failure
        If the block runs out of memory.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise Failure(f"out of memory {where}: {advice}") from error


def in_parts(items: "Sequence[Any] | torch.Tensor", size: int, compute: Callable[[Any], T]) -> Iterator[T]:
    """Compute consecutive parts of some items, in smaller parts if memory runs out.

    Parameters
    ----------
    items : sequence or torch.Tensor
    size : int
        Largest part. It is halved whenever `compute` runs out of memory.
    compute : callable
        Takes a part.

    Yields
    ------
    object
        The result of `compute` for each part.

    Raises
    ------
    RuntimeError or MemoryError
        If memory is too small for one item.
    """
    first = 0
    while first < len(items):
        part = items[first : first + size]
        try:
            result = compute(part)
        except (RuntimeError, MemoryError) as error:
            if len(part) == 1 or not out_of_memory(error):
                raise
            size = len(part) // 2
            continue
        yield result
        first += len(part)


def exceeds_memory(lm: "ECGLM", tokens: int, full: bool = False) -> bool:
    """Return whether the activations of a training step may take more than half of the free memory.

    Parameters
    ----------
    lm : ECGLM
    tokens : int
        Tokens of a batch.
    full : bool
        Whether all weights are trained: gradients and optimizer state then need memory first.
    """
    import torch

    config = lm.base.config.get_text_config()
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * width
    # per layer: inputs of norms, projections and adapters, some of them in float32
    activations = tokens * layers * (34 * width + 6 * inner) * (2 if lm.device.type == "cuda" else 4)
    free = torch.cuda.mem_get_info(lm.device)[0] if lm.device.type == "cuda" else free_memory()
    if full:  # gradient and two moments, in float32
        free -= 12 * sum(p.numel() for p in lm.parameters())
    return activations > free / 2
