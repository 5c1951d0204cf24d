"""Train a model that does not fit on one device: each process holds a part of all weights, gradients and moments.

PyTorch's `fully_shard` (FSDP2) gathers the weights of a layer from all processes before the layer runs, and frees
them afterwards. So all processes must run the same layers in the same order, and read or write weights together.
See Zhao et al. 2023, PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, arXiv 2304.11277.
"""

import os
from typing import TYPE_CHECKING

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime.ranks import process_rank

if TYPE_CHECKING:
    import torch

    from ecgbyte_cli.model.ecg_lm import ECGLM


def check_sharding(wanted: bool, method: str) -> None:
    """Raise a Failure if this method cannot be sharded as requested."""
    if (
        os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    ):  # Transformers would load only parts of the weights
        raise Failure("accelerate's --use_fsdp does not work here: remove it, and use finetune --shard")
    if not wanted:
        return
    if process_rank()[1] == 1:
        raise Failure("--shard divides the model among several processes: start them with torchrun or srun")
    if method == "qlora":
        raise Failure("--shard cannot divide 4-bit weights: use --method lora or full")


def shard(lm: "ECGLM", device: str) -> None:
    """Divide the weights of a model among the processes, layer by layer, and move each part to its device.

    Parameters
    ----------
    lm : ECGLM
        The weights must be equal on all processes, on the CPU or on `device`.
    device : str
        Device of this process.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    # these checks run once, on whole weights
    _ = lm.takes_last_rows, lm.beside
    mesh = init_device_mesh(torch.device(device).type, (process_rank()[1],))
    layers = set(getattr(lm.base, "_no_split_modules", None) or ())
    for module in [module for module in lm.base.modules() if type(module).__name__ in layers]:
        fully_shard(module, mesh=mesh)
    # also freed after the forward pass, so that the weights are always sharded between passes
    fully_shard(lm, mesh=mesh, reshard_after_forward=True)
    for name in ("answer", "weigh"):
        register_fsdp_forward_method(lm, name)


def is_sharded(lm: "ECGLM") -> bool:
    """Return whether `shard` has divided a model."""
    return hasattr(lm.ecg_rows.weight, "full_tensor")


def whole(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return a tensor unsharded. If it is sharded, all processes must call this together."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def held_part(tensor: "torch.Tensor") -> "torch.Tensor":
    """Return the part of a tensor that this process holds."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def divided_like(tensor: "torch.Tensor", other: "torch.Tensor") -> "torch.Tensor":
    """Shard a tensor, equal on all processes, like another tensor of its shape, if that one is sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(other, DTensor) or tensor.shape != other.shape:
        return tensor
    # each process takes its part from its own copy
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def gather(lm: "ECGLM") -> None:
    """Load the unsharded weights that a model folder needs into the model of the first process, on the CPU.

    All processes must call this together. The model can be saved afterwards, but not run.
    """
    import torch

    is_first, embedding = process_rank()[0] == 0, lm.base.get_input_embeddings().weight
    # keyed by the id of the sharded parameter, which is kept alive so that the id stays unique
    gathered: dict[int, tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
    for module in list(lm.modules()):
        for name, p in list(module.named_parameters(recurse=False)):
            # its embedding and vectors enter the checksum of a frozen base model
            if not (p.requires_grad or p.dim() == 1 or p is embedding):
                continue
            if id(p) not in gathered:
                tensor = whole(p.detach())
                kept = tensor.cpu() if is_first else tensor.new_empty(0)
                gathered[id(p)] = p, torch.nn.Parameter(kept, p.requires_grad)
            if is_first:
                module.register_parameter(name, gathered[id(p)][1])
