"""Compare tokenizers: vocabulary, quantizer and levels against tokens, PRD, bits and AUROC.

    OMP_NUM_THREADS=1 python examples/experiments/tradeoff_ptbxl.py ptb-xl/ --out evidence/ --seconds 160

Each row is a tokenizer with merges learned on folds 1 to 8, and `--model tiny` trained with it for the same time of
one thread, as the arm `tokens` of two_stage.py; more tokens mean fewer steps. Tokens per ECG, PRD between the signal
and its letters, and the trained model's bits per second and lead are on fold 10; AUROC and controls are as in
two_stage.py. The merges are also applied to recordings of other hospitals (--elsewhere): tokens per ECG, beside the
tokens of noise with its spectrum (merges that learned nothing of ECGs), and PRD. Finished rows in OUT/tradeoff.jsonl
and OUT/hospitals.jsonl are not repeated.
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
from ablation_ptbxl import TOKENS, ask, tokens
from two_stage import COOLED, make, rate, scored, speed

from ecgbyte_cli import ECGTokenizer, read, segments
from ecgbyte_cli.evaluation.controls import spectrum_noise
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal.fidelity import differences
from ecgbyte_cli.storage.files import read_json, read_table, write_json
from ecgbyte_cli.training.validation import validation_loss

# quantizer, levels, vocabulary; the first is that of two_stage.py
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


def hospitals(out, data, more, work, key, done):
    """A row for each recording: what the merges of PTB-XL make of it."""
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    table = read_table(work.symbol_segments)
    paths = [path for path, split in zip(table["path"], table["split"], strict=True) if split == "test"]
    paths += sorted(str(path) for path in more.glob("*.hea") if not path.stem.startswith("HR"))
    with open(out / "hospitals.jsonl", "a") as file:
        for number, path in enumerate(paths):
            if [key, Path(path).stem] in done:
                continue
            try:
                signal = segments(read(path), tokenizer.signal)[0][1]
            except (Failure, IndexError):
                continue
            made, noise, prd = lost(tokenizer, signal, number)
            row = {"key": key, "record": Path(path).stem, "source": source(path)}
            file.write(json.dumps(row | {"tokens": made, "noise": noise, "prd": prd}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="PTB-XL's folder, or a part of it")
    parser.add_argument("--out", type=Path, default=Path("evidence"))
    parser.add_argument("--elsewhere", type=Path, help="recordings of the PhysioNet Challenge 2021")
    parser.add_argument("--seconds", type=float, default=160)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--rows", type=int, default=len(ROWS), help="the first so many of the tokenizers")
    parser.add_argument("--speed", action="store_true", help="measure the speeds alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    qa = ask(options.out, options.data)

    def rows(name):
        path = options.out / name
        return [json.loads(line) for line in path.open()] if path.exists() else []

    works = {}
    measured = options.out / "tradeoff_speed.json"
    speeds = read_json(measured) if measured.exists() else {}

    def made(key):
        return lambda arm, seed, share: make(arm, {"3": works[key]}, qa, seed, share)

    chosen = ROWS[: options.rows]
    for key in chosen:
        quantizer, levels, vocab = key
        works[key] = tokens(
            options.out, options.data, **TOKENS | {"quantizer": quantizer, "levels": levels, "vocab": vocab}
        )
        name = " ".join(map(str, key))
        if name not in speeds:
            speeds[name] = speed("tokens", made(key))["second"]
            write_json(measured, speeds)
    print(json.dumps(speeds), flush=True)
    if options.speed:
        return
    if options.elsewhere:
        done = [[row["key"], row["record"]] for row in rows("hospitals.jsonl")]
        for key in [key for key in (ROWS[0], ROWS[4]) if key in chosen]:
            hospitals(options.out, options.data, options.elsewhere, works[key], list(key), done)
    for seed, key in itertools.product(map(int, options.seeds.split(",")), chosen):
        if any(row["key"] == list(key) and row["seed"] == seed for row in rows("tradeoff.jsonl")):
            continue
        model, questions, patients = made(key)("tokens", seed, 1.0)
        steps = max(1, round(options.seconds / speeds[" ".join(map(str, key))]))
        fall = round((1 - COOLED) * steps)
        model.train(steps, lambda step, steps=steps, fall=fall: rate(step, steps, fall))
        plans, _, _ = model.samples.plans(questions["test"])
        lengths, tokenizer = (
            [len(model.samples.own(plan.segments[0])) for plan in plans],
            model.samples.tokenizer,
        )
        table = read_table(works[key].symbol_segments)
        prd = []
        for plan in plans:
            signal = segments(read(table["path"][plan.segments[0]]), tokenizer.signal)[0][1]
            prd.append(differences(signal, tokenizer.to_mv(model.samples.letters_of(plan.segments[0])))[1])
        row = {
            **{"key": list(key), "seed": seed, "seconds": options.seconds, "steps": steps},
            **{"tokens": float(np.mean(lengths)), "prd": float(np.mean(prd))},
            "bits": validation_loss(model.lm, model.samples, plans, 16, learn_ecg=True)[2],
            "val": scored(model, questions["val"], patients, compare=()),
            "test": scored(model, questions["test"], patients),
        }
        with open(options.out / "tradeoff.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps({"key": key, "seed": seed, "steps": steps, "val": row["val"]["auroc"]}), flush=True)


if __name__ == "__main__":
    main()
