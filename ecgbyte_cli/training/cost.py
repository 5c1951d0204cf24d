"""Measure the memory and time of a training run with two steps."""

import time
from typing import Any

import numpy as np

from ecgbyte_cli.runtime.processes import free_memory, peak_rss_mb, reset_peak_rss
from ecgbyte_cli.training.calibration import tokens_read
from ecgbyte_cli.training.setup import Prepared, memory_advice
from ecgbyte_cli.training.sharding import held_part
from ecgbyte_cli.training.trainer import Trainer

MB = 2**20
UPDATES = 8  # tries until a step updates the weights: float16 steps with overflowing gradients are skipped
ENOUGH = 0.8  # share of the free memory that a run may use: batches differ, and memory fragments


def measure_cost(ready: Prepared) -> dict[str, Any]:
    """Measure one step on the longest samples and one on samples of median length, and extrapolate to the whole run.

    This changes the weights of the trainer but writes nothing.

    Returns
    -------
    dict
        `readings` and `questions` (in training), `tokens` (per reading: `median`, `p90`, `longest`), `memory_mb`
        (`weights`, `gradients`, `optimizer`, `activations` of a batch of the longest readings, `free` before the
        first step), `steps`, `step_seconds` (mean), `minutes` (`training`, `validation`, `calibration`, `total`),
        `checkpointing` and `lower` (`memory`, `time`: options to change).
    """
    trainer, recompute = ready.trainer, ready.recompute
    lengths = np.array([plan.length for plan in trainer.training])
    order = np.argsort(lengths, kind="stable")[::-1]
    memory = _measure_memory(trainer, order)
    learn = _measure_step(trainer, order[len(order) // 2 :])
    questions = [question for plan in ready.plans.training for question in plan.questions]
    forward, calibrated = learn / (4 if recompute else 3), 0
    if trial := trainer.held_out(2 * trainer.settings["batch"]):
        start = time.perf_counter()
        trainer.validation_loss(trial)
        tokens = sum(plan.length for plan in trial) / trainer.processes
        forward = (time.perf_counter() - start) / tokens
        if trainer.settings["qa"]:
            calibrated = tokens_read(trainer.lm, trainer.samples, questions, ready.plans.validation)
    minutes = trainer.minutes(forward, learn, calibrated)
    return {
        "readings": len(lengths),
        "questions": len(questions),
        "tokens": {
            **{name: int(np.quantile(lengths, q)) for name, q in (("median", 0.5), ("p90", 0.9))},
            "longest": int(lengths.max()),
        },
        "memory_mb": {name: round(size / MB) for name, size in memory.items()},
        "steps": trainer.steps,
        "step_seconds": learn * trainer.tokens_per_step(),
        "minutes": minutes | {"total": sum(minutes.values())},
        "checkpointing": recompute,
        "lower": {"memory": memory_advice(trainer.settings, recompute), "time": _time_advice(minutes)},
    }


def _measure_memory(trainer: Trainer, longest: np.ndarray) -> dict[str, float]:
    """Update once with the longest plans; return the bytes of memory by part."""
    import torch

    lm, device = trainer.lm, trainer.lm.device
    on_gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else free_memory()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    else:
        reset_peak_rss()
        before = peak_rss_mb() * MB
    for _ in range(UPDATES):
        _update(trainer, longest)
        if trainer.optimizer.state:
            break
    peak = torch.cuda.max_memory_allocated(device) if on_gpu else peak_rss_mb() * MB
    held = [held_part(p) for p in lm.parameters()]
    gradients = sum(p.nbytes for p, of in zip(held, lm.parameters(), strict=True) if of.requires_grad)
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    return {
        "weights": sum(p.nbytes for p in held) + sum(b.nbytes for b in lm.buffers()),
        "gradients": gradients,
        "optimizer": sum(held_part(value).nbytes for value in states if torch.is_tensor(value)),
        "activations": max(0.0, peak - before - gradients),
        "free": free,
    }


def _measure_step(trainer: Trainer, typical: np.ndarray) -> float:
    """Update once with some plans; return the seconds per token."""
    trainer.seen, trainer.seconds = 0, 0.0  # the first step was slower
    _update(trainer, typical)
    return trainer.seconds * trainer.processes / trainer.seen


def _update(trainer: Trainer, order: np.ndarray) -> None:
    """Update the weights once with the first plans of `order`, one batch on each process."""
    batch = [(0, int(number)) for number in order[: trainer.settings["batch"]]]
    trainer.lm.train()
    groups = [batch] * trainer.processes
    if trainer.ahead:  # in training, each batch is prepared during the previous step
        trainer.ready = trainer.batches_of_step(groups, trainer.step)
    trainer.update(groups)
    trainer.step = 0


def _time_advice(minutes: dict[str, float]) -> str:
    """Return the options that would shorten the training."""
    if minutes["validation"] > minutes["training"]:
        return "raise --every, for fewer validations"
    return "lower --steps or --max-length"


def cost_lines(cost: dict[str, Any]) -> list[str]:
    """Return the lines that print the result of `measure_cost`."""
    tokens, memory, minutes = cost["tokens"], cost["memory_mb"], cost["minutes"]
    grown = memory["gradients"] + memory["optimizer"] + memory["activations"]
    scarce = grown > ENOUGH * memory["free"]
    step = "with" if cost["checkpointing"] else "without"
    return [
        f"readings: {cost['readings']:,} with {cost['questions']:,} questions; tokens per reading: "
        f"{tokens['median']:,} (median), {tokens['p90']:,} (90 %), {tokens['longest']:,} (longest)",
        f"memory: weights {memory['weights']:,} MB, gradients {memory['gradients']:,} MB, optimizer "
        f"{memory['optimizer']:,} MB, activations {memory['activations']:,} MB ({step} gradient checkpointing)",
        f"memory beyond the weights: {grown:,} MB of {memory['free']:,} MB free"
        + (", which is too close" if scarce else ""),
        f"time: {cost['steps']:,} steps of {cost['step_seconds']:.2f} s, {minutes['training']:.1f} minutes; "
        f"validation {minutes['validation']:.1f}, calibration {minutes['calibration']:.1f}, "
        f"in all {minutes['total']:.1f} minutes",
        f"for less memory: {cost['lower']['memory']}",
        f"for less time: {cost['lower']['time']}",
    ]
