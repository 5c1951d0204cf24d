"""Compare learning rates of LoRA on a pretrained model, at equal steps, by the loss on held-out recordings.

    python examples/experiments/smollm2_folder.py smollm2/
    ecgbyte questions PTBXL100/ --out qa.jsonl --cap 300
    ecgbyte --work work symbolize PTBXL100/records100/00000 --patients PTBXL100/ptbxl_database.csv --fs 100 --leads II
    ecgbyte --work work learn encode
    OMP_NUM_THREADS=1 python examples/experiments/learning_rates.py smollm2/ --work work --qa qa.jsonl --out rates.jsonl

Trainings with one seed see the same readings in the same order, and their adapters have the same initial weights. They
take their steps in turn, so that an interrupted run still compares equal steps. The schedule is that of `ecgbyte
finetune`, over all steps. Each validation adds a row to OUT. The questions of fold 10 are not used.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.model import base_model
from ecgbyte_cli.questions.question_file import paths_of
from ecgbyte_cli.stages.finetune import FinetuneOptions, training_settings
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import setup
from ecgbyte_cli.training.sampling import length_batches
from ecgbyte_cli.training.trainer import Trainer

TYPES = ("finding-verify", "rhythm-query", "class-query", "axis-query", "sex-query")


def prepared(options: argparse.Namespace, rate: float, seed: int) -> Trainer:
    """A training with one learning rate."""
    given = FinetuneOptions(
        qa=((options.qa, 1.0),), model=str(options.base), method="lora", lr=rate, types=TYPES, seed=seed,
        steps=options.steps, batch=options.batch, together=options.together, checkpointing="off",
    )  # fmt: skip
    work = WorkDir(options.work)
    settings = training_settings(work, given, "lora", 1)
    torch.manual_seed(seed)
    return setup.prepare(work, paths_of(given.qa), settings, given.checkpointing, "cpu", note).trainer


def compare(options: argparse.Namespace, seed: int) -> None:
    """Train with each rate in turn, step by step."""
    trainers = {rate: prepared(options, rate, seed) for rate in options.rates}
    losses: dict[float, list[float]] = {rate: [] for rate in trainers}
    first = next(iter(trainers.values()))
    # a plan is a recording with some of its questions
    held_out = first.samples.plans(first.validation)[0]
    held_out = [held_out[i] for i in np.random.default_rng(0).permutation(len(held_out))[: options.readings]]
    batches = length_batches([plan.length for plan in first.training], options.batch, seed)
    for step, group in enumerate(itertools.islice(batches, options.steps), 1):
        for rate, trainer in trainers.items():
            trainer.lm.train()
            losses[rate].append(trainer.update([group])[0][0])
            if step % options.every == 0 or step == options.steps:
                row: dict[str, Any] = {"rate": rate, "seed": seed, "step": step, "steps": options.steps}
                row |= {"batch": options.batch, "together": options.together}
                row |= {"train_loss": round(float(np.mean(losses[rate][-options.every :])), 4)}
                row |= {"val_loss": round(trainer.validation_loss(held_out)[0], 4)}
                row |= {"readings": len(held_out), "questions": sum(len(p.questions) for p in held_out)}
                with options.out.open("a") as file:
                    file.write(json.dumps(row | {"cpu_seconds": round(time.process_time())}) + "\n")
                note(json.dumps(row))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, help="folder of the base model")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--qa", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("rates.jsonl"))
    parser.add_argument("--rates", type=lambda s: [float(x) for x in s.split(",")], default=[2e-4, 1e-3])
    parser.add_argument("--seeds", type=lambda s: [int(x) for x in s.split(",")], default=[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--every", type=int, default=25, help="steps between validations")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--together", type=int, default=4, help="most questions of a reading")
    parser.add_argument("--readings", type=int, default=48, help="readings of a validation")
    options = parser.parse_args()
    with base_model.silence_libraries():
        for seed in options.seeds:
            compare(options, seed)


if __name__ == "__main__":
    main()
