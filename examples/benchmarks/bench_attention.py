"""Compare training steps with a mask for every id and with a mask for the questions alone: memory, time, FLOPs.

    python examples/benchmarks/bench_attention.py            # batch 2 of 4,096 ids, the shape of --model small
    python examples/benchmarks/bench_attention.py --shape decoder --json

(dense) a bool mask (n x n), as ecgbyte had: every layer converts it and keeps the copy
(once)  the same mask, converted once
(rows)  causal attention over the ECG, a mask for the rows of the questions alone, converted once

Each way runs in processes of its own, in turn. Memory is the growth of the resident memory in the step, time the CPU
time of the process. Weights are random, float32 on a CPU. FLOPs are those of the scores and their sums over values, in
forward and backward passes, without and with the rest of the model (Llama-3.2-1B).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from bench_finetune import LLAMA_1B, SMALL, reading

from ecgbyte_cli.model import ecg_lm
from ecgbyte_cli.model.attention import ROWS
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.training.batch import collate

OWN = {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 5,
       "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 32}  # fmt: skip
SHAPES = {"own": OWN, "decoder": SMALL}
TEXT, ANSWER = 20, 4  # ids of a question with its answer, and of the answer


def resident(key: str) -> int:
    """Bytes of memory of this process: VmRSS now, VmHWM at most."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def take_way(lm: ecg_lm.ECGLM, way: str) -> None:
    """Make a new model compute its attention in one of the three ways."""
    if way != "rows":
        lm.takes_last_rows = False
    if way == "dense":
        lm.mask = lambda seen: seen[:, None]


def one_step(way: str, shape: dict, batch: int, ids: int, ecg: int, checkpointing: bool) -> dict[str, float]:
    """Bytes and CPU seconds of a training step."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, tie_word_embeddings=True, max_position_embeddings=16384)
    lm = ecg_lm.ECGLM(LlamaForCausalLM(config), 5000).train()
    if checkpointing:
        ecg_lm.checkpoint_layers(lm.base)
    take_way(lm, way)
    random = np.random.default_rng(0)

    def step(length: int) -> float:
        own = min(ecg, length // 2)
        readings = [
            reading(own, (length - own) // TEXT, TEXT, ANSWER, lm.offset, random) for _ in range(batch)
        ]
        made = collate(readings, Layout(lm.offset))
        loss = lm(*made)[0] / len(made.text)
        loss.backward()
        return float(loss.detach())

    step(128)  # gradients have their memory, and the way is known to work
    lm.zero_grad(set_to_none=False)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # VmHWM starts again
    before, start = resident("VmRSS"), time.process_time()
    loss = step(ids)
    return {"seconds": time.process_time() - start, "bytes": resident("VmHWM") - before, "loss": loss}


def attention_flops(shape: dict, ids: int, ecg: int, way: str) -> float:
    """FLOPs of the attention of a reading in a training step, without those of scores that are computed again."""
    pairs = float(ids * ids)
    if way == "rows":
        ends = (min(row + ROWS, ids) for row in range(ecg, ids, ROWS))
        pairs = ecg * ecg / 2 + sum(
            (end - row) * end for row, end in zip(range(ecg, ids, ROWS), ends, strict=True)
        )
    # two products forward, four backward
    return 6 * 2 * pairs * shape["num_attention_heads"] * shape["head_dim"] * shape["num_hidden_layers"]


def matrix_flops(shape: dict, ids: int, products: int = 2) -> float:
    """FLOPs of the matrices of the layers for a reading in a training step: two products with LoRA, three in full."""
    width, inner = shape["hidden_size"], shape["num_attention_heads"] * shape["head_dim"]
    inner += shape["num_key_value_heads"] * shape["head_dim"]
    weights = 2 * width * inner + 3 * width * shape["intermediate_size"]
    return products * 2 * ids * weights * shape["num_hidden_layers"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="own")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--ids", type=int, default=4096)
    parser.add_argument(
        "--ecg", type=int, default=1024, help="ids of the ECG; the others are questions of 20 ids"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--way", choices=["dense", "once", "rows"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = options.batch, options.ids, options.ecg
    if options.way:
        print(json.dumps(one_step(options.way, SHAPES[options.shape], *sizes, options.checkpointing)))
        return
    found: dict[str, list[dict]] = {"dense": [], "once": [], "rows": []}
    for _ in range(options.repeats):
        for way, steps in found.items():
            command = [sys.executable, *sys.argv, "--way", way]
            steps.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
    result = {"shape": options.shape, "batch": sizes[0], "ids": sizes[1], "ecg": sizes[2],
              "checkpointing": options.checkpointing, "threads": torch.get_num_threads(),
              "torch": torch.__version__}  # fmt: skip
    for way, steps in found.items():
        result[way] = {
            "peak_mb": round(statistics.median(s["bytes"] for s in steps) / 2**20),
            "cpu_seconds": round(statistics.median(s["seconds"] for s in steps), 1),
            "loss": steps[0]["loss"],
            "attention_tflops_1b": round(attention_flops(LLAMA_1B, options.ids, options.ecg, way) / 1e12, 2),
        }
    result["matrix_tflops_1b"] = round(matrix_flops(LLAMA_1B, options.ids) / 1e12, 2)
    if options.json:
        print(json.dumps(result))
        return
    print(
        f"{os.uname().machine}, {result['threads']} threads, torch {result['torch']}; {options.shape}: {sizes}"
    )
    print(f"{'way':6} {'peak MB':>8} {'CPU s':>7} {'loss':>9} {'attention TFLOPs (1B)':>22}")
    for way in found:
        row = result[way]
        print(
            f"{way:6} {row['peak_mb']:8} {row['cpu_seconds']:7} {row['loss']:9.5f} {row['attention_tflops_1b']:22}"
        )
    print(f"matrices of the layers (1B, LoRA): {result['matrix_tflops_1b']} TFLOPs per reading")


if __name__ == "__main__":
    main()
