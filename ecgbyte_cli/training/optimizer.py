"""The optimizer and the learning rate schedule."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ecgbyte_cli.model.ecg_lm import ECGLM


def make_optimizer(lm: "ECGLM", settings: dict[str, Any]) -> "torch.optim.Optimizer":
    """Return AdamW, in paged 8-bit form for QLoRA on a GPU. Vectors get no weight decay.

    The optimizer state of the ECG rows always has 32 bits.

    The ECG rows have their own group if their learning rate differs: `times` is the ratio.
    """
    import torch

    decay, rate = settings.get("weight_decay"), settings.get("rows_lr")
    decay = 0.05 if decay is None else decay
    trained = [p for p in lm.parameters() if p.requires_grad]
    rows = [p for p in trained if rate and p is lm.ecg_rows.weight]
    matrices = [p for p in trained if p.dim() > 1 and not any(p is row for row in rows)]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if rate and rows:
        groups.append({"params": rows, "weight_decay": decay, "times": rate / settings["lr"]})
    if in_8_bits(lm, settings):
        import bitsandbytes

        # a row gets a gradient only when its token occurs, so its moments are too small for a shared 8-bit scale
        every = bitsandbytes.optim.GlobalOptimManager.get_instance()
        every.override_config(lm.ecg_rows.weight, "optim_bits", 32)
        return bitsandbytes.optim.PagedAdamW8bit(groups, lr=settings["lr"], betas=(0.9, 0.98))
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=(0.9, 0.98))


def in_8_bits(lm: "ECGLM", settings: dict[str, Any]) -> bool:
    """Return whether the optimizer state is in 8 bits."""
    return settings["method"] == "qlora" and lm.device.type == "cuda"


def warmup_cosine(steps: int) -> Callable[[int], float]:
    """Return the learning rate factor per step: linear warm-up over 4 % of the steps, then a half cosine to zero."""
    rise = max(1, round(0.04 * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor
