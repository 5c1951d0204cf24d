"""Measure the effect of rewards and of reasoning on the quickstart's synthetic records.

    make quickstart
    OMP_NUM_THREADS=1 python examples/experiments/reinforced.py rewards quickstart/ --out reinforced/
    OMP_NUM_THREADS=1 python examples/experiments/reinforced.py think quickstart/ --out reinforced/

`rewards`: `--model tiny`, stopped early (200 steps), then `ecgbyte reinforce` with its defaults, compared with 250
more steps of `finetune` on the same questions. `think`: the same questions with and without reasoning before the
answer (`ecgbyte questions --think`), trained for the same number of steps. Differences are paired by patient on the
test questions, for the signal and for every control. Finished stages are not repeated.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from ecgbyte_cli.evaluation.metrics import bootstrap_counts, confidence_interval, exact_match

STEPS, MORE, THOUGHT = 200, 250, 1000


def run(work, *args):
    """A command of ecgbyte in a work folder."""
    command = [sys.executable, "-m", "ecgbyte_cli", "--work", work, *args]
    subprocess.run(list(map(str, command)), check=True)


def prepared(out, source, name):
    """A work folder with the quickstart's tokens."""
    work = out / name
    for part in ("symbols", "tokenizer", "tokens"):
        if not (work / part).exists():
            shutil.copytree(source / "ecgbyte-work" / part, work / part)
    return work


def answers(work, kept, *args):
    """The answers to the test questions, in a file of their own."""
    if not kept.exists():
        run(work, "generate", "--overwrite", *args)
        shutil.copy(work / "answers" / "answers.jsonl", kept)
    return [json.loads(line) for line in kept.open(encoding="utf-8")]


def right(lines, control):
    """Which answers are right, 0 or 1."""
    given = [line["control"][control] if control else line["answer"] for line in lines]
    return np.array([exact_match(a, line["truth"]) for a, line in zip(given, lines, strict=True)], float)


def compared(before, after):
    """Exact match before and after, and the difference with its interval, for the signal and every control."""
    assert [line["question"] for line in before] == [line["question"] for line in after]
    names, number = np.unique([line["patient"] for line in before], return_inverse=True)
    print("| | before, % | after, % | difference (95 % by patient) |\n| --- | ---: | ---: | ---: |")
    for control in (None, *before[0]["control"]):
        one, other = right(before, control), right(after, control)
        drawn = []
        for times in bootstrap_counts(len(names), 0, at_a_time=len(one)):
            weights = times[:, number]
            drawn.append(100 * (weights * (other - one)).sum(1) / weights.sum(1))
        low, high = confidence_interval(np.concatenate(drawn))
        what = control or "signal"
        print(
            f"| {what} | {100 * one.mean():.1f} | {100 * other.mean():.1f} | "
            f"{100 * (other - one).mean():+.1f} ({low:+.1f} to {high:+.1f}) |"
        )


def rewards(source, out):
    qa, work = source / "data" / "qa.jsonl", prepared(out, source, "rewards")
    learn = ["finetune", "--qa", qa, "--model", "tiny", "--batch", 4, "--ecg-loss", 0, "--overwrite"]
    longer = prepared(out, source, "longer")
    if not (work / "model").exists():
        run(work, *learn, "--steps", STEPS)
    before = answers(work, out / "stopped.jsonl")
    run(work, "reinforce")
    after = answers(work, out / "reinforced.jsonl", "--model", work / "reinforced")
    print(f"\n{STEPS} steps of finetune, then reinforce:\n")
    compared(before, after)
    if not (longer / "model").exists():
        run(longer, *learn, "--steps", STEPS + MORE)
    print(f"\n{STEPS} steps of finetune, and {STEPS + MORE}:\n")
    compared(before, answers(longer, out / "longer.jsonl"))


def think(source, out):
    more = []
    thought = out / "reasoned.jsonl"
    if not thought.exists():
        run(out / "none", "questions", source / "data", "--think", "--out", thought)
    for name, option in (("plain", []), ("think", ["--think"])):
        work = prepared(out, source, name)
        if not (work / "model").exists():
            learn = ["finetune", "--qa", thought, "--model", "tiny", "--batch", 4, "--ecg-loss", 0]
            run(work, *learn, "--steps", THOUGHT, *option)
        more.append(answers(work, out / f"{name}.jsonl", "--qa", thought, "--limit", 500))
    kept = np.mean([line["form_kept"] for line in more[1]])
    print(f"\nplain, and reasoning first ({100 * kept:.1f} % of its answers have the form):\n")
    compared(*more)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["rewards", "think"])
    parser.add_argument("source", type=Path, help="the quickstart's folder")
    parser.add_argument("--out", type=Path, default=Path("reinforced"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    {"rewards": rewards, "think": think}[options.what](options.source, options.out)
