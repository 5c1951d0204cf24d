"""Measure training and answering on a GPU, with random weights; see gpu.sh. Prints one JSON object.

`steps`      of QLoRA, LoRA and full training: tokens/s, questions/s, peak GPU memory and MFU, the share of the rate
             of large matrix products (`matmul_tflops`) that the model's own FLOPs reach
`answers`    questions answered a second, nineteen at each ECG
`resumed`    largest difference of a weight between a QLoRA run that was killed and resumed, and one that was not
`attention`  a training step with a bool mask for every id (dense) and with one for the questions alone (rows)

A part that cannot run says why; parts that do not start within the time are left out.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_attention import attention_flops, matrix_flops, take_way
from bench_finetune import LLAMA_1B, build, reading

from ecgbyte_cli.model import base_model
from ecgbyte_cli.model.ecg_lm import ECGLM
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.training import checkpoint
from ecgbyte_cli.training.batch import Batch, collate
from ecgbyte_cli.training.optimizer import make_optimizer

QWEN_05B = {"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "head_dim": 64}  # fmt: skip
TINY = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}  # fmt: skip
SHAPES = {"Qwen2.5-0.5B": QWEN_05B, "Llama-3.2-1B": LLAMA_1B}
METHODS = ("qlora", "lora", "full")
TEXT, ANSWER, ASKED = 20, 4, 19  # ids of a question with its answer, of the answer; questions at each ECG
SECONDS = 240  # no part begins later
STEPS, KILLED = 6, 3  # of the run that is killed; the step after which it is


class Size:
    """How large the parts are: on a GPU, or for a trial on a CPU."""

    def __init__(self, is_tiny: bool):
        self.device = "cpu" if is_tiny else devices.choose_device()
        self.shapes = {"tiny": TINY} if is_tiny else SHAPES
        self.batch, self.ecg, self.ids = (2, 40, 128) if is_tiny else (4, 1000, 4096)
        self.steps, self.seconds = (1, 0.0) if is_tiny else (50, 8.0)  # timed, at most
        self.matmul = 128 if is_tiny else 8192


def batch_of(lm: ECGLM, size: Size, ids: int, seed: int) -> tuple[Batch, int]:
    """A batch of readings of so many ids, and its questions."""
    random, asked = np.random.default_rng(seed), max(1, (ids - size.ecg) // TEXT)
    readings = [reading(size.ecg, asked, TEXT, ANSWER, lm.offset, random) for _ in range(size.batch)]
    return collate(readings, Layout(lm.offset)).to(torch.device(size.device)), asked * size.batch


def train_step(lm: ECGLM, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One update, as `Trainer.update` makes it."""
    with lm.autocast():
        loss = lm(*batch)[0] / len(batch.text)
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in lm.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def timed(size: Size, step: Callable[[int], object]) -> float:
    """Seconds of a call of `step`, without the first two."""
    for number in range(2):
        step(number)
    wait(size)
    start = time.perf_counter()
    for done in range(1, size.steps + 1):
        step(done + 1)
        wait(size)
        if time.perf_counter() - start > size.seconds:
            break
    return (time.perf_counter() - start) / done


def wait(size: Size) -> None:
    """Wait until the GPU has finished."""
    if size.device == "cuda":
        torch.cuda.synchronize()


def peak_gb(size: Size) -> float | None:
    """Peak memory of the GPU since `begin`."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 2) if size.device == "cuda" else None


def begin(size: Size) -> None:
    """Forget the memory of the part before."""
    if size.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def matmul_rate(size: Size) -> float:
    """FLOPs a second of a product of large matrices, in bfloat16."""
    a, b = (torch.randn(size.matmul, size.matmul, device=size.device, dtype=torch.bfloat16) for _ in "ab")
    return 2 * size.matmul**3 / timed(size, lambda _: a @ b)


def measure_steps(size: Size, shape: dict[str, Any], method: str, rate: float) -> dict[str, Any]:
    """Training steps of one method."""
    lm = build(shape, method, size.device)
    optimizer = make_optimizer(lm, {"method": method, "lr": 1e-4})
    ids = size.ecg + 50 * TEXT if size.device == "cuda" else size.ids
    batches = [batch_of(lm, size, ids, seed) for seed in range(4)]
    seconds = timed(size, lambda number: train_step(lm, optimizer, batches[number % 4][0]))
    batch, questions = batches[0]
    n = batch.ids.shape[1]
    products = 3 if method == "full" else 2
    flops = matrix_flops(shape, n, products) + attention_flops(shape, n, size.ecg, "rows")
    flops = size.batch * flops + products * 2 * len(batch.text) * shape["hidden_size"] * shape["vocab_size"]
    return {
        "tokens_per_second": round(batch.ids.numel() / seconds),
        "questions_per_second": round(questions / seconds, 1),
        "step_seconds": round(seconds, 4),
        "peak_gb": peak_gb(size),
        "mfu": round(flops / seconds / rate, 3),
    }


def measure_answers(size: Size, shape: dict[str, Any]) -> dict[str, Any]:
    """Questions answered a second, with eight ids each."""
    lm = build(shape, "lora", size.device).eval()
    random = np.random.default_rng(0)
    prompts = []
    for _ in range(size.batch):
        ecg = random.integers(lm.layout.first, lm.layout.first + 1000, size.ecg)
        begin_ids = [lm.offset, *ecg, lm.offset + 1]
        prompts += [np.array([*begin_ids, *random.integers(3, lm.offset, TEXT)]) for _ in range(ASKED)]
    seconds = timed(size, lambda _: lm.answer(prompts, set(), 8))
    return {"answers_per_second": round(len(prompts) / seconds, 1), "peak_gb": peak_gb(size)}


def qlora_run(size: Size, shape: dict[str, Any], folder: Path, killed: bool) -> ECGLM:
    """Train with QLoRA for a few steps, from the newest checkpoint; a run that is to be killed kills itself."""
    lm = build(shape, "qlora", size.device)
    settings = {"method": "qlora", "lr": 1e-3}
    optimizer = make_optimizer(lm, settings)
    first = 0
    if saved := sorted(folder.glob("step-*")):
        first = checkpoint.load_checkpoint(saved[-1], lm, optimizer)["step"]
    for step in range(first, STEPS):
        torch.manual_seed(step)  # of the dropout
        train_step(lm, optimizer, batch_of(lm, size, size.ecg + 5 * TEXT, step)[0])
        checkpoint.save_checkpoint(folder / f"step-{step + 1}", lm, optimizer, settings, {"step": step + 1})
        if killed and step + 1 == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
    return lm


def measure_resumed(size: Size, shape: dict[str, Any]) -> dict[str, Any]:
    """Compare a killed and resumed QLoRA run with one that nothing interrupts."""
    # a GPU cannot be used in a fork of a process that uses it
    context = multiprocessing.get_context("spawn" if size.device == "cuda" else "fork")
    with tempfile.TemporaryDirectory() as here:
        child = context.Process(target=qlora_run, args=(size, shape, Path(here), True))
        child.start()
        child.join()
        steps = len(list(Path(here).glob("step-*")))
        if child.exitcode != -signal.SIGKILL or steps != KILLED:
            raise RuntimeError(f"the run to kill ended with {child.exitcode} after {steps} steps")
        resumed = qlora_run(size, shape, Path(here), False)
    with tempfile.TemporaryDirectory() as here:
        whole = qlora_run(size, shape, Path(here), False)
    pairs = zip(resumed.parameters(), whole.parameters(), strict=True)
    differences = [(a.detach() - b.detach()).abs().max().item() for a, b in pairs if a.requires_grad]
    return {"killed_after": KILLED, "steps": STEPS, "largest_difference": max(differences)}


def measure_attention(size: Size, shape: dict[str, Any], way: str) -> dict[str, Any]:
    """LoRA steps at the longest reading, in one way of attention."""
    lm = build(shape, "lora", size.device)
    take_way(lm, way)
    optimizer = make_optimizer(lm, {"method": "lora", "lr": 1e-4})
    batch, _ = batch_of(lm, size, size.ids, 0)
    seconds = timed(size, lambda _: train_step(lm, optimizer, batch))
    return {"step_seconds": round(seconds, 4), "peak_gb": peak_gb(size)}


def parts(size: Size, rate: float) -> Iterator[tuple[str, str, Callable[[], dict[str, Any]]]]:
    """The parts in order: the group and the name of each, and a function that measures it."""
    last = list(size.shapes)[-1]
    for name, method in itertools.product(size.shapes, METHODS):
        yield (
            "steps",
            f"{name} {method}",
            lambda n=name, m=method: measure_steps(size, size.shapes[n], m, rate),
        )
    for name in size.shapes:
        yield "answers", name, lambda n=name: measure_answers(size, size.shapes[n])
    first = next(iter(size.shapes))
    yield "resumed", f"{first} qlora", lambda: measure_resumed(size, size.shapes[first])
    for way in ("dense", "rows"):
        yield "attention", f"{last} {way}", lambda w=way: measure_attention(size, size.shapes[last], w)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU: a trial of the script")
    size = Size(parser.parse_args().tiny)
    if size.device == "cpu":
        torch.set_num_threads(1)  # a fork of a process with several would wait for ever
    if size.device == "cpu" and len(size.shapes) > 1:
        sys.exit("gpu.py: PyTorch finds no GPU; --tiny tries the script on the CPU")
    start = time.perf_counter()
    rate = matmul_rate(size)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if size.device == "cuda" else platform.machine(),
        **{"torch": torch.__version__, "python": platform.python_version()},
        "matmul_tflops": round(rate / 1e12, 3),
    }
    with base_model.silence_libraries():
        for group, name, measure in parts(size, rate):
            if time.perf_counter() - start > SECONDS:
                break
            begin(size)
            try:
                found = measure()
            except (ImportError, RuntimeError, OSError, ValueError) as error:
                found = {"failed": " ".join(str(error).split())[:200]}
            result.setdefault(group, {})[name] = found
            print(f"{time.perf_counter() - start:6.1f} s  {group}: {name}: {found}", file=sys.__stderr__)
    print(json.dumps(result | {"seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
