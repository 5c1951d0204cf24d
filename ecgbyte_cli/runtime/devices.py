"""Choose the device that a model computes on, and its number types."""

import os
import re
import sys
from typing import TYPE_CHECKING, Any

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime.ranks import local_rank, process_rank

if TYPE_CHECKING:
    import torch

NAMES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows Subsystem for Linux
EXPECTED = "auto, cpu, cuda, cuda:N (the number of a GPU) or mps"


def choose_device(wanted: str | None = None, method: str | None = None) -> str:
    """Return the device to use, after checking that PyTorch supports it.

    Parameters
    ----------
    wanted : str or None
        `auto` (same as None: an NVIDIA or AMD GPU, else the CPU), `cpu`, `cuda`, `cuda:N` or `mps` (Apple).
    method : str or None
        How the model is loaded: `qlora`, `lora` or `full`.

    Returns
    -------
    str
        `cpu`, `mps`, `cuda`, or `cuda:N`. With several processes on a machine, each gets the GPU of its local rank.

    Raises
    ------
    Failure
        If the device does not exist or cannot load the model.
    """
    import torch

    wanted = wanted or "auto"
    if not NAMES.fullmatch(wanted):
        raise Failure(f"--device {wanted}: it must be {EXPECTED}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        wanted = "cuda" if count else "cpu"
    processes = process_rank()[1]
    if wanted == "mps":
        _check_mps(method, processes)
    if not wanted.startswith("cuda"):
        return wanted
    if not count:
        raise Failure(
            f"--device {wanted}: PyTorch {torch.__version__} finds no GPU: install its build for your GPU, or use "
            "--device cpu"
        )
    if processes > 1:
        if wanted != "cuda":
            raise Failure(f"--device {wanted}: each of {processes} processes uses one GPU: use --device cuda")
        # Slurm may show each task only its own GPU
        alone = count == 1 and "CUDA_VISIBLE_DEVICES" in os.environ and "SLURM_STEP_ID" in os.environ
        wanted = f"cuda:{0 if alone else local_rank()}"
    if int(wanted.partition(":")[2] or 0) >= count:
        known = f"{count} GPUs, cuda:0 to cuda:{count - 1}" if count > 1 else "one GPU, cuda:0"
        raise Failure(f"--device {wanted}: this machine has {known}")
    return wanted


def _check_mps(method: str | None, processes: int) -> None:
    """Reject the Apple GPU if there is none, for 4-bit models, and for several processes."""
    import torch

    if not torch.backends.mps.is_available():
        raise Failure("--device mps: PyTorch finds no Apple GPU: use --device cpu")
    if method == "qlora":
        raise Failure("--device mps cannot compute with 4-bit weights: use --method lora or full")
    if processes > 1:
        raise Failure(
            "--device mps: only one process can train on an Apple GPU: run the command without torchrun"
        )


def on_gpu(wanted: str | None) -> bool:
    """Return whether a device is a GPU; `auto` and None count as one if there is one.

    PyTorch is imported only on a machine with a GPU's driver.
    """
    if wanted not in (None, "auto"):
        return not wanted.startswith("cpu")
    if sys.platform == "linux" and not any(map(os.path.exists, DRIVERS)):
        return False
    import torch

    return torch.cuda.is_available()


def gpu_of_worker(workers: dict[str, dict[str, Any]], address: str) -> str | None:
    """Return the device of a Dask worker: a machine's workers are distributed evenly over its GPUs; None without GPUs.

    Parameters
    ----------
    workers : dict
        The scheduler's information about each worker, keyed by address, with its `host`.
    address : str
        Address of this worker.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:  # no GPU, or the one that a GPU cluster has assigned
        return None
    here = sorted(other for other, about in workers.items() if about["host"] == workers[address]["host"])
    return f"cuda:{here.index(address) % count}"


def half_type(device: "str | torch.device") -> "torch.dtype | None":
    """Return the 16-bit type that a device computes fast in; None if it has none.

    bfloat16 on GPUs since compute capability 8 (Ampere) and on CPUs that have it in hardware; float16, which needs
    scaled gradients, on older GPUs. None on Apple GPUs, where no 16-bit type has been tested.
    """
    import torch

    kind = torch.device(device).type
    if kind == "cuda":
        # `is_bf16_supported` is also true where bfloat16 is emulated and slow
        amd = torch.version.hip is not None
        return torch.bfloat16 if amd or torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16
    has = torch.cpu.get_capabilities()
    in_hardware = any(has.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if kind == "cpu" and in_hardware else None
