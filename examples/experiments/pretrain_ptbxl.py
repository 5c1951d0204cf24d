"""Measure how well ECGs are predicted, over vocabularies and quantizers, and whether pretraining helps answers.

    OMP_NUM_THREADS=1 python examples/experiments/pretrain_ptbxl.py bits ptb-xl/ --out pretrain/
    OMP_NUM_THREADS=1 python examples/experiments/pretrain_ptbxl.py helps ptb-xl/ --out pretrain/

`bits`: three vocabularies by two quantizers, each with `finetune --pretrain --model tiny` for the same number of
updates on folds 1 to 8. Bits per second and lead on fold 9 can be compared between vocabularies; between quantizers,
compare PRD, too. `helps`: the eighteen findings, one letter each, for the same number of updates from a new and from a
pretrained model, with two seeds. The score is the mean AUROC of P(yes) on fold 9, as in ablation_ptbxl.py. Finished
rows in OUT are not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from ablation_ptbxl import MODEL, TOKENS, ask, scores, tokens

from ecgbyte_cli.stages.finetune import FinetuneOptions, finetune
from ecgbyte_cli.storage.files import read_json

VOCABULARIES, QUANTIZERS, SEEDS = (500, 2000, 5000), ("paper", "mulaw"), (0, 1)


def kept(path, keys, make):
    """The rows of a file, one for each of some keys; those that are missing are made, and written as they come."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for key in keys:
        if not any(row["key"] == list(key) for row in rows):
            rows.append({"key": list(key), **make(*key)})
            with open(path, "a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    return rows


def bits(out, data, steps):
    """Bits per second of each vocabulary and quantizer."""

    def made(vocab, quantizer):
        work = tokens(out, data, **TOKENS | {"vocab": vocab, "quantizer": quantizer})
        options = {"steps": steps, "every": steps, "batch": 16, "model": "tiny", "overwrite": True}
        result = finetune(work, FinetuneOptions(pretrain=True, **options))
        decode = [
            sys.executable,
            "-m",
            "ecgbyte_cli",
            "--work",
            str(work.root),
            "decode",
            "--limit",
            "300",
            "--json",
        ]
        lost = json.loads(subprocess.run(decode, check=True, capture_output=True, text=True).stdout)
        encoded = read_json(work.token_settings)["result"]
        return {
            "tokens": encoded["tokens"] / encoded["segments"],
            "perplexity": result["ecg_perplexity"],
            "bits": result["bits_per_second"],
            "prd": lost["prd_percent"],
            "parameters": result["trainable_parameters"],
        }

    rows = kept(out / "bits.jsonl", [(v, q) for q in QUANTIZERS for v in VOCABULARIES], made)
    print(f"\n{steps} updates each")
    print("| quantizer | vocabulary | tokens an ECG | perplexity | bits per second and lead | PRD, % |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        (vocab, quantizer), number = (
            row["key"],
            "| {tokens:.0f} | {perplexity:.1f} | {bits:.1f} | {prd:.1f} |",
        )
        print(f"| {quantizer} | {vocab} {number.format(**row)}")


def helps(out, data, steps):
    """Mean AUROC with and without pretraining."""
    qa, work = ask(out, data), tokens(out, data, **TOKENS)
    same = {"steps": steps, "every": steps, "overwrite": True}

    def made(before, seed):
        model = "tiny"
        if before:
            pretraining = {"pretrain": True, "model": model, "seed": seed, "batch": MODEL["batch"]}
            finetune(work, FinetuneOptions(**pretraining, **same))
            model = str(out / f"pretrained-{seed}")
            subprocess.run(["cp", "-rT", str(work.model), model], check=True)
        result = finetune(work, FinetuneOptions(qa=((qa, 1.0),), model=model, seed=seed, **same, **MODEL))
        each = scores(work, qa)
        return {"auroc": float(np.mean([*each.values()])), "val_loss": result["val_loss"], "each": each}

    rows = kept(out / "helps.jsonl", [(before, seed) for seed in SEEDS for before in (0, steps)], made)
    print(
        f"\n| updates of pretraining, then {steps} with questions | AUROC | by seed |\n| --- | ---: | --- |"
    )
    for before in (0, steps):
        found = [row["auroc"] for row in rows if row["key"][0] == before]
        print(f"| {before} | {np.mean(found):.3f} | {', '.join(f'{value:.3f}' for value in found)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bits", "helps"])
    parser.add_argument("data", type=Path, help="PTB-XL's folder, or a part of it")
    parser.add_argument("--out", type=Path, default=Path("pretrain"))
    parser.add_argument("--steps", type=int, help="updates  [default: 400 for bits, 800 for helps]")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    what, steps = {"bits": (bits, 400), "helps": (helps, 800)}[options.what]
    what(options.out, options.data, options.steps or steps)
