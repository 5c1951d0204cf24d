"""The number of this process in distributed training."""

import os
import re

from ecgbyte_cli.failure import Failure


def process_rank() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, as torchrun, accelerate or srun set them."""
    _take_over_slurm()
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Return the number of this process on its machine."""
    _take_over_slurm()
    return int(os.environ.get("LOCAL_RANK", 0))


def _take_over_slurm() -> None:
    """Set torchrun's variables from those of Slurm, in a task of `srun` that no launcher started.

    A script of `sbatch` sees the number of tasks too, but it is a single process; only srun sets the step's number.
    """
    given = os.environ
    tasks = int(given.get("SLURM_STEP_NUM_TASKS", 1))
    if "RANK" in given or "SLURM_STEP_ID" not in given or tasks == 1:
        return
    names = given.get("SLURM_STEP_NODELIST", "localhost")
    port = 20_000 + (31 * int(given.get("SLURM_JOB_ID", 0)) + int(given["SLURM_STEP_ID"])) % 20_000
    given.setdefault("MASTER_ADDR", _first_node(names))
    given.setdefault("MASTER_PORT", str(port))
    given.update(
        RANK=given["SLURM_PROCID"], LOCAL_RANK=given.get("SLURM_LOCALID", "0"), WORLD_SIZE=str(tasks)
    )


def _first_node(names: str) -> str:
    """Return the first machine of a Slurm list, such as `gpu01` of `gpu[01-04,9],big1`.

    Raises
    ------
    Failure
        If the list has an unknown form.
    """
    # names contain no comma; their numbers may be in several brackets with commas
    found = re.match(r"((?:[^,\[\]]|\[[\d,-]+\])+)(,|$)", names)
    first = re.sub(r"\[(\d+)[\d,-]*\]", r"\1", found[1]) if found else ""
    if not re.fullmatch(r"[\w.-]+", first):
        raise Failure(
            f"SLURM_STEP_NODELIST is {names!r}: set MASTER_ADDR to the machine of the first process"
        )
    return first
