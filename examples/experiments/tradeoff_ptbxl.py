"""Compare tokenizers: vocabulary, quantizer and levels against tokens, PRD, bits and AUROC.

    OMP_NUM_THREADS=1 python examples/experiments/tradeoff_ptbxl.py ptb-xl/ --out evidence/ --seconds 160

Each row is a tokenizer with merges learned on folds 1 to 8, and `--model tiny` trained with it for the same time of
one thread, as the arm `tokens` of two_stage.py; more tokens mean fewer steps. Tokens per ECG, PRD between the signal
and its letters, and the trained model's bits per second and lead are on fold 10; AUROC and controls are as in
two_stage.py. The merges are also applied to recordings of other hospitals (--elsewhere): tokens per ECG, beside the
tokens of noise with its spectrum (merges that learned nothing of ECGs), and PRD. Finished rows in
RESULTS/tradeoff.jsonl and RESULTS/hospitals.jsonl are not repeated.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from ablation_ptbxl import TOKENS, ask, tokens
from two_stage import make, scored, speed, train

from ecgbyte_cli import ECGTokenizer, read, segments
from ecgbyte_cli.evaluation.controls import spectrum_noise
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal.fidelity import differences
from ecgbyte_cli.storage.files import read_json, read_table, write_json
from ecgbyte_cli.training.validation import validation_loss

CHANGED = ("quantizer", "levels", "vocab")  # in each row; the first is that of two_stage.py
ROWS = [
    ("paper", 26, 2000),
    ("paper", 26, 500),
    ("paper", 26, 5000),
    ("mulaw", 26, 500),
    ("mulaw", 26, 2000),
    ("mulaw", 26, 5000),
    ("paper", 13, 2000),
    ("paper", 52, 2000),
]


def lost(tokenizer, signal, seed):
    """Of one segment: tokens, tokens of noise with its spectrum, and PRD of its letters, %."""
    noise = spectrum_noise(signal, np.random.default_rng([0, seed]))
    prd = differences(signal, tokenizer.to_mv(tokenizer.letters(signal)))[1]
    return len(tokenizer.encode(signal)), len(tokenizer.encode(noise)), prd


def source(path):
    """Where a recording is from, by its name."""
    name = Path(path).stem
    if name[:2] == "HR" or name[0].isdigit():
        return "PTB-XL, fold 10"
    return {"E": "Georgia", "J": "Chapman-Shaoxing, Ningbo"}[name[0]]


def hospitals(more, work, key):
    """Rows, one for each recording: what the merges of PTB-XL make of it."""
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    table = read_table(work.symbol_segments)
    paths = [path for path, split in zip(table["path"], table["split"], strict=True) if split == "test"]
    paths += sorted(str(path) for path in more.glob("*.hea") if not path.stem.startswith("HR"))
    made = []
    for number, path in enumerate(paths):
        try:
            signal = segments(read(path), tokenizer.signal)[0][1]
        except (Failure, IndexError):
            continue
        count, noise, prd = lost(tokenizer, signal, number)
        row = {"key": list(key), "record": Path(path).stem, "source": source(path)}
        made.append(row | {"tokens": count, "noise": noise, "prd": prd})
    return made


def row_of(key, seed, seconds, steps, work, qa):
    """Train with a tokenizer and score: a row."""
    model, questions, patients = make("tokens", work, qa, seed, 1.0)
    train(model, steps)
    plans, _, _ = model.samples.plans(questions["test"])
    lengths, tokenizer = [len(model.samples.own(plan.segments[0])) for plan in plans], model.samples.tokenizer
    table = read_table(work.symbol_segments)
    prd = []
    for plan in plans:
        signal = segments(read(table["path"][plan.segments[0]]), tokenizer.signal)[0][1]
        prd.append(differences(signal, tokenizer.to_mv(model.samples.letters_of(plan.segments[0])))[1])
    return {
        **{"key": list(key), "seed": seed, "seconds": seconds, "steps": steps},
        **{"tokens": float(np.mean(lengths)), "prd": float(np.mean(prd))},
        "bits": validation_loss(model.lm, model.samples, plans, 16, learn_ecg=True)[2],
        "val": scored(model, questions["val"], patients, compare=()),
        "test": scored(model, questions["test"], patients),
    }


def rows(path):
    """The rows of a file."""
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []


def append(path, made):
    """Add rows to a file."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in made)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="PTB-XL's folder, or a part of it")
    parser.add_argument("--out", type=Path, default=Path("evidence"))
    parser.add_argument("--results", type=Path, help="where the rows go  [default: OUT]")
    parser.add_argument("--elsewhere", type=Path, help="recordings of the PhysioNet Challenge 2021")
    parser.add_argument("--seconds", type=float, default=160)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--rows", type=int, default=len(ROWS), help="the first so many of the tokenizers")
    options = parser.parse_args()
    results, chosen = options.results or options.out, ROWS[: options.rows]
    trained, encoded = results / "tradeoff.jsonl", results / "hospitals.jsonl"
    done = {(tuple(row["key"]), row["seed"]) for row in rows(trained)}
    seeds = [int(part) for part in options.seeds.split(",")]
    missing = [(key, seed) for seed, key in itertools.product(seeds, chosen) if (key, seed) not in done]
    away = {tuple(row["key"]) for row in rows(encoded)}
    unseen = [key for key in (ROWS[0], ROWS[4]) if options.elsewhere and key in chosen and key not in away]
    if not missing and not unseen:
        return
    options.out.mkdir(parents=True, exist_ok=True)
    qa = ask(options.out, options.data)
    works = {
        key: tokens(options.out, options.data, **TOKENS | dict(zip(CHANGED, key, strict=True)))
        for key in dict.fromkeys([*unseen, *(key for key, _ in missing)])
    }
    for key in unseen:
        append(encoded, hospitals(options.elsewhere, works[key], key))
    measured = results / "tradeoff_speed.json"
    speeds = read_json(measured) if measured.exists() else {}
    for key, seed in missing:
        name = " ".join(map(str, key))
        if name not in speeds:
            speeds[name] = speed(make("tokens", works[key], qa, 0, 1.0)[0])["second"]
            write_json(measured, speeds)
        steps = max(1, round(options.seconds / speeds[name]))
        row = row_of(key, seed, options.seconds, steps, works[key], qa)
        append(trained, [row])
        print(json.dumps({"key": key, "seed": seed, "steps": steps, "val": row["val"]["auroc"]}), flush=True)


if __name__ == "__main__":
    main()
