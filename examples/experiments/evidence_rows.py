"""Compare ECG tokens in a language model with other ways to read an ECG, on all of PTB-XL, at equal time.

    OMP_NUM_THREADS=1 python examples/experiments/evidence_rows.py ptb-xl/ --ludb ludb/ --challenge cinc2021/

A row is one training of a model of two_stage.py with its scores: folds 1 to 8 train, fold 9 is beside (val), fold 10
tests, and recordings of other hospitals (elsewhere; LUDB, and the Challenge without those from PTB-XL). Each model
trains for each of --seconds with all recordings; for the longest time also with each of --shares of the patients, and
with further seeds. A finished row is written to RESULTS/evidence.jsonl at once and never repeated. A training that is
stopped or killed goes on from its last checkpoint. So the hours can be spread over days:

    ... --rows 1          # the next row alone
    ... --hours 2         # stop after two hours; --rows 0 only says what is left

Time is CPU time of one thread, pretraining included (half of it, for the contrastive encoder), scores excluded. It is
converted to steps by the time of a step. That is measured at the first call, when nothing else should run
(RESULTS/evidence_speed.json): on a busy machine it came out 1.0 to 1.9 times as long, most for ECG tokens. Later rows
then have as many steps on a busy machine; cpu_seconds is what their training took. The learning rate rises in 20 steps,
is constant, and falls to 0 in the last fifth of the steps.
"""

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from ablation_ptbxl import TOKENS, ask, tokens
from safetensors.torch import load_file, save_file
from two_stage import ARMS, elsewhere, make, rate, scored, speed

from ecgbyte_cli.storage.files import atomic_folder, read_json, write_json
from ecgbyte_cli.storage.locks import hold_folder
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.checkpoint import flatten_state, unflatten_state

RESULTS = Path(__file__).resolve().parent / "results"
NAME, SPEED = "evidence", "evidence_speed.json"
SECONDS, SHARES, SEEDS = (600.0, 2400.0), (0.12, 0.48), (0, 1)
PRETRAINED = 0.5  # share of the time
BETWEEN = 300  # s between checkpoints


class Key(NamedTuple):
    """What a row is about."""

    arm: str
    seed: int
    share: float  # of the training recordings
    seconds: float


class StoppedError(Exception):
    """The time of this call is over; the checkpoint is written."""


def wanted(seconds=SECONDS, shares=SHARES, seeds=SEEDS) -> list[Key]:
    """The rows, in the order in which they are trained."""
    first, last = seeds[0], max(seconds)
    keys = [Key(arm, first, 1.0, s) for s in sorted(seconds) for arm in ARMS]
    keys += [Key(arm, first, share, last) for share in sorted(shares, reverse=True) for arm in ARMS]
    return keys + [Key(arm, seed, 1.0, last) for seed in seeds[1:] for arm in ARMS]


def finished(path: Path) -> list[Key]:
    """The rows that a file holds."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [Key(*(row[name] for name in Key._fields)) for row in map(json.loads, lines)]


# ---- a training, with checkpoints


def save(folder: Path, stage, progress: dict[str, Any]) -> None:
    """Write a checkpoint of a stage."""
    tensors, values = flatten_state(stage.optimizer.state_dict()["state"])
    with atomic_folder(folder) as made:
        weights = {name: value.clone().contiguous() for name, value in stage.net.state_dict().items()}
        save_file(weights, made / "weights.safetensors")
        save_file(tensors, made / "optimizer.safetensors")
        write_json(made / "state.json", progress | {"optimizer": values})


def load(folder: Path, stage) -> None:
    """Load a checkpoint of a stage."""
    stage.net.load_state_dict(load_file(folder / "weights.safetensors"))
    values = read_json(folder / "state.json")["optimizer"]
    state = unflatten_state(load_file(folder / "optimizer.safetensors") | values)
    groups = stage.optimizer.state_dict()["param_groups"]
    stage.optimizer.load_state_dict({"state": state, "param_groups": groups})


def train_stages(stages: list, steps: list[int], folder: Path, deadline: float) -> float:
    """Train stages to their last steps, from the checkpoint in a folder if there is one.

    Returns
    -------
    float
        Seconds of CPU time, those before an interruption included.

    Raises
    ------
    StoppedError
        At the deadline (time.monotonic), after a checkpoint.
    """
    progress = {"stage": 0, "step": 0, "cpu": 0.0}
    if (folder / "state.json").exists():
        found = read_json(folder / "state.json")
        progress = {name: found[name] for name in progress}
        load(folder, stages[progress["stage"]])
    saved, first = time.monotonic(), progress["stage"]
    for number in range(first, len(stages)):
        stage, begin = stages[number], progress["step"] if number == first else 0
        for step in range(begin, steps[number]):
            start = time.process_time()
            stage.update(step, rate(step, steps[number]))
            progress["cpu"] += time.process_time() - start
            now, last = time.monotonic(), step + 1 == steps[number]
            if last and number + 1 < len(stages):  # the next stage holds what this one trained
                save(folder, stages[number + 1], progress | {"stage": number + 1, "step": 0})
            elif last or now - saved > BETWEEN or now > deadline:
                save(folder, stage, progress | {"stage": number, "step": step + 1})
                saved = now
            if now > deadline:
                raise StoppedError
    return progress["cpu"]


def steps_of(key: Key, speeds: dict[str, Any]) -> list[int]:
    """Steps of each stage of a training."""
    first, second = speeds[key.arm]["first"], speeds[key.arm]["second"]
    pretrained = PRETRAINED * key.seconds if first else 0.0
    spent = [(pretrained, first)] if first else []
    return [max(1, round(s / each)) for s, each in [*spent, (key.seconds - pretrained, second)]]


def row_of(key: Key, steps: list[int], work: WorkDir, qa: Path, others, folder: Path, deadline: float):
    """Train and score: a row."""
    model, questions, patients = make(key.arm, work, qa, key.seed, key.share)
    stages = [model.first, model] if model.first else [model]
    cpu = train_stages(stages, steps, folder, deadline)
    start = time.process_time()
    val = scored(model, questions["val"], patients, compare=())
    test = scored(model, questions["test"], patients)
    letters, asked, names = others
    model.samples.others = letters
    away = scored(model, asked, names)
    for one in (val, away):  # only the test side is compared draw by draw
        del one["draws"]
    about = {"steps": steps[-1], "cpu_seconds": round(cpu, 1)}
    if model.first:
        about["first_steps"] = steps[0]
    about["score_seconds"] = round(time.process_time() - start, 1)
    return key._asdict() | about | {"val": val, "test": test, "elsewhere": away}


# ---- the rows


def speeds_of(path: Path, work: WorkDir, qa: Path) -> dict[str, Any]:
    """The time of a step of each model, measured if the file is not there."""
    if not path.exists():
        write_json(path, {arm: speed(make(arm, work, qa, 0, 1.0)[0]) for arm in ARMS}, indent=1)
    return read_json(path)


def left_text(keys: list[Key], done: list[Key]) -> str:
    """Say how many rows and hours are left."""
    left = [key for key in keys if key not in done]
    hours, all_hours = (sum(key.seconds for key in some) / 3600 for some in (left, keys))
    return (
        f"{len(keys) - len(left)} of {len(keys)} rows finished; {hours:.1f} of {all_hours:.1f} hours of training on "
        "one core left, and some minutes of scoring after each"
    )


def run(options: argparse.Namespace) -> None:
    """Train and score the rows that are missing, as far as the options allow."""
    path, deadline = options.results / f"{NAME}.jsonl", time.monotonic() + 3600 * options.hours
    numbers = [
        [float(part) for part in text.split(",") if part] for text in (options.seconds, options.shares)
    ]
    keys = wanted(*numbers, [int(part) for part in options.seeds.split(",")])
    print(left_text(keys, finished(path)), flush=True)
    missing = [key for key in keys if key not in finished(path)]
    if not missing or options.rows == 0:
        return
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    work, qa = tokens(options.out, options.data, **TOKENS), ask(options.out, options.data)
    others = elsewhere(options.ludb, options.challenge, work, options.out / "elsewhere.jsonl")
    speeds = speeds_of(options.results / SPEED, work, qa)
    for key in itertools.islice(missing, options.rows):
        steps = steps_of(key, speeds)
        folder = options.out / "running" / "-".join(map(str, [*key, *steps]))
        folder.parent.mkdir(exist_ok=True)
        print(f"{key}: {' + '.join(map(str, steps))} steps", flush=True)
        row = row_of(key, steps, work, qa, others, folder, deadline)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        shutil.rmtree(folder)
        shown = {name: row[name] for name in ("cpu_seconds", "score_seconds")}
        print(json.dumps(shown | {"val": row["val"]["auroc"]}), left_text(keys, finished(path)), flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that evidence.py has too."""
    parser.add_argument("data", type=Path, nargs="?", help="PTB-XL's folder, or a part of it")
    parser.add_argument("--ludb", type=Path, help="LUDB, or a part of it")
    parser.add_argument("--challenge", type=Path, help="recordings of the PhysioNet Challenge 2021")
    parser.add_argument("--out", type=Path, default=Path("build/evidence"), help="tokens and checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the rows go")
    parser.add_argument("--seconds", default=",".join(map(str, SECONDS)), help="time of each training")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="of the training recordings")
    parser.add_argument("--seeds", default=",".join(map(str, SEEDS)))
    parser.add_argument("--rows", type=int, help="train so many of the missing rows  [default: all]")
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop after so many hours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    options = parser.parse_args()
    if not (options.data and options.ludb and options.challenge):
        parser.error("give PTB-XL's folder, --ludb and --challenge")
    options.out.mkdir(parents=True, exist_ok=True)
    with hold_folder(options.out) as alone:
        if not alone:
            parser.error(f"another call works in {options.out}: wait for it, or give another --out")
        try:
            run(options)
        except StoppedError:
            print("stopped: the same command resumes from here", flush=True)


if __name__ == "__main__":
    main()
