"""The optimizer of a training, and the course of its learning rate."""

import math


def make_optimizer(lm, settings):
    """AdamW, in paged 8-bit form for QLoRA on a GPU; no weight decay on vectors.

    The ECG rows have a group of their own where their learning rate differs: `times` is by how much.
    """
    import torch

    decay, rate = settings.get("weight_decay"), settings.get("rows_lr")
    decay = 0.05 if decay is None else decay
    trained = [p for p in lm.parameters() if p.requires_grad]
    rows = [p for p in trained if rate and p is lm.ecg_rows.weight]
    groups = [
        {
            "params": [p for p in trained if p.dim() > 1 and not any(p is row for row in rows)],
            "weight_decay": decay,
        },
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if rows:
        groups.append({"params": rows, "weight_decay": decay, "times": rate / settings["lr"]})
    if settings["method"] == "qlora" and lm.device.type == "cuda":
        import bitsandbytes

        return bitsandbytes.optim.PagedAdamW8bit(groups, lr=settings["lr"], betas=(0.9, 0.98))
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=(0.9, 0.98))


def warmup_cosine(steps):
    """The learning rate's factor per step: a linear rise over 4 % of the steps, then half a cosine to zero."""
    rise = max(1, round(0.04 * steps))

    def factor(step):
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor
