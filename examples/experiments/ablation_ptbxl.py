"""Ablate the language model on real recordings: marks, positions, augmentation, ECG loss.

    OMP_NUM_THREADS=1 python examples/experiments/ablation_ptbxl.py ptb-xl/ --out ablation/ --seconds 450

Each row changes one setting of the first, and trains `--model tiny` on folds 1 to 8 for the same CPU time (one thread,
updates only; with pretraining, half for each). The questions are the eighteen findings of findings.csv, one letter
each to save time. The score is the mean AUROC of P(yes) over the findings with five or more recordings in fold 9.
Finished rows are kept in OUT/rows.jsonl; the table is printed at the end.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from ecgbyte_cli.evaluation.reliability import auroc
from ecgbyte_cli.inference.batch_answering import PromptSet
from ecgbyte_cli.model import model_folder
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.questions import findings, question_file, question_segments
from ecgbyte_cli.questions.labels import NO, YES, derive_labels
from ecgbyte_cli.questions.sources import ptbxl
from ecgbyte_cli.signal.segment_lines import segment_lines
from ecgbyte_cli.stages.finetune import FinetuneOptions, finetune
from ecgbyte_cli.storage.files import read_array, read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import trainer

THREE, EIGHT = "II,V1,V5", "I,II,V1,V2,V3,V4,V5,V6"
TWELVE = "I,II,III,aVR,aVL,aVF,V1,V2,V3,V4,V5,V6"
TOKENS = {"leads": THREE, "fs": 100, "quantizer": "paper", "levels": 26, "vocab": 2000}
LETTERS = "ABCDEFGHIJKLMNOPQR"  # one for each finding
MODEL = {"ecg_loss": 0.3, "augment": 1.0, "batch": 16}
# name, what differs in the tokens, what differs in the training, whether it decides a default
ROWS = [
    ("as it is: marks, token positions, --augment 1, --ecg-loss 0.3", {}, {}, True),
    ("no marks", {}, {"marks": False}, True),
    ("--positions time", {}, {"positions": "time"}, True),
    ("--augment 0", {}, {"augment": 0.0}, True),
    ("--ecg-loss 0", {}, {"ecg_loss": 0.0}, True),
    ("--ecg-loss 0.1", {}, {"ecg_loss": 0.1}, True),
    ("--ecg-loss 1", {}, {"ecg_loss": 1.0}, True),
    ("--pretrain for half of the time", {}, {"pretrain": True}, True),
    ("--together 1", {}, {"together": 1}, True),
    ("--quantizer mulaw", {"quantizer": "mulaw"}, {}, False),
    ("--quantizer trellis", {"quantizer": "trellis", "levels": 43}, {}, False),
    ("--vocab 500", {"vocab": 500}, {}, False),
    ("--vocab 5000", {"vocab": 5000}, {}, False),
    ("8 leads", {"leads": EIGHT}, {}, False),
    ("12 leads", {"leads": TWELVE}, {}, False),
    ("250 Hz", {"fs": 250}, {}, False),
]


def tokens(out, data, leads, fs, quantizer, levels, vocab):
    """A work folder with the tokens of all recordings."""
    count = len(leads.split(","))
    records = data / ("records100" if fs == 100 else "records500")
    root = out / f"{count}-{fs}-{quantizer}-{levels}-{vocab}"
    stages = ["symbolize", str(records if records.exists() else data), "--profile", "paper"]
    stages += ["--fs", str(fs), "--leads", leads, "--quantizer", quantizer, "--levels", str(levels)]
    stages += ["--patients", str(data / "ptbxl_database.csv"), "--jobs", "1"]
    stages += ["learn", "--vocab", str(vocab), "--threads", "1", "encode", "--threads", "1"]
    command = [sys.executable, "-m", "ecgbyte_cli", "--work", str(root), *stages]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return WorkDir(root)


def ask(out, data):
    """A question file with every finding of every recording that the table is certain of."""
    return ask_about(out / "qa.jsonl", ptbxl.read_ptbxl(data / "ptbxl_database.csv").facts)


def ask_about(path, facts):
    """Write the question file, if it is not there: a letter for each finding that is known to be there or not."""
    if not path.exists():
        lines, found = [], derive_labels(facts).findings
        for i, of in enumerate(facts):
            for letter, name in zip(LETTERS, findings.FINDINGS, strict=True):
                if name not in found:  # the source does not cover it
                    continue
                answer = {YES: "yes", NO: "no"}.get(found[name][i])
                if answer is None:
                    continue
                more = {"record": of.record, "split": of.split, "type": name}
                lines.append(json.dumps({**more, "question": letter, "answer": answer}) + "\n")
        path.write_text("".join(lines))
    return path


def train(work, qa, seconds, seed, marks=True, pretrain=False, **options):
    """Train for some seconds of CPU time, and return how many updates that were."""
    spent, update, of = [], trainer.Trainer.update, Layout.of

    def timed(self, groups):
        start = time.process_time()
        made = update(self, groups)
        spent.append(time.process_time() - start)
        return made

    def steps(seconds, **more):
        spent.clear()
        model = more.pop("model", "tiny")
        trial = {"model": model, "steps": 8, "every": 8, "overwrite": True, "seed": seed}
        finetune(work, FinetuneOptions(**trial, **more))
        return max(10, round(seconds / np.median(spent[3:])))

    trainer.Trainer.update = timed
    if not marks:
        Layout.of = classmethod(lambda cls, offset, tokenizer, *_: cls(offset, 0, tokenizer.lengths))
    try:
        count, model = 0, "tiny"
        options = MODEL | options
        if pretrain:
            seconds /= 2
            alone = {"pretrain": True, "augment": options["augment"], "batch": options["batch"]}
            count = steps(seconds, **alone)
            whole = {"steps": count, "every": count, "overwrite": True, "seed": seed, "model": "tiny"}
            finetune(work, FinetuneOptions(**whole, **alone))
            model = str(work.root / "pretrained")
            subprocess.run(["cp", "-rT", str(work.model), model], check=True)
        files = ((qa, 1.0),)
        more = steps(seconds, qa=files, model=model, **options)
        options |= {"steps": more, "every": more, "overwrite": True, "seed": seed}
        result = finetune(work, FinetuneOptions(qa=files, model=model, **options))
    finally:
        trainer.Trainer.update, Layout.of = update, of
    return count + more, result


def scores(work, qa, without_ecg=False):
    """AUROC of P(yes) for each finding on the validation split."""
    lm, text_tokenizer, tokenizer, about = model_folder.load_model(work.model, "cpu")
    prompts = PromptSet(Prompt(text_tokenizer, lm.layout), tokenizer, about["prompt_tokens"])
    lines = segment_lines(work) if about["measured"] else None
    ids, places = read_array(work.tokens), read_table(work.token_segments)
    joined, _ = question_segments.join_segments(
        question_file.read_questions(qa), read_table(work.symbol_segments)
    )
    asked = [question for question, *_, split in joined if split == "val"]
    for number, question in enumerate(asked):
        (segment,) = question.segments
        start = places["offset"][segment]
        ecg = ids[start : start + (0 if without_ecg else places["length"][segment])]
        prompts.ask(number, question, [ecg], [lines[segment]] if lines else [])
    yes, no = (text_tokenizer.encode(word, add_special_tokens=False)[0] for word in ("yes", "no"))
    odds = {}
    for batch in prompts.batches(range(len(asked)), 90, False):
        kept = []

        def keep(logits, _rows, kept=kept):
            kept.append(logits[:, yes] - logits[:, no])
            return logits.argmax(-1)

        lm.answer([prompts.ids(key) for (key,) in batch], set(), 1, keep)
        odds.update(zip((key for (key,) in batch), kept[0].tolist(), strict=True))
    found = {}
    for name in findings.FINDINGS:
        mine = [number for number, question in enumerate(asked) if question.type == name]
        truth = np.array([asked[number].answer == "yes" for number in mine])
        if truth.sum() >= 5:
            values = np.array([odds[number] for number in mine])
            found[name] = float(auroc(values, truth, np.ones((1, len(mine))))[0])
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="PTB-XL's folder, or a part of it")
    parser.add_argument("--out", type=Path, default=Path("ablation"))
    parser.add_argument("--seconds", type=float, default=450)
    parser.add_argument(
        "--seeds", default="0,1", help="all but the first for the rows that decide a default alone"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept, qa = options.out / "rows.jsonl", ask(options.out, options.data)
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for seed in map(int, options.seeds.split(",")):
        for name, of_tokens, of_model, decides in ROWS:
            if (seed and not decides) or any((row["name"], row["seed"]) == (name, seed) for row in done):
                continue
            work = tokens(options.out, options.data, **TOKENS | of_tokens)
            steps, result = train(work, qa, options.seconds, seed, **of_model)
            each = scores(work, qa)
            encoded = read_json(work.token_settings)["result"]
            row = {
                **{"name": name, "seed": seed, "steps": steps, "auroc": float(np.mean([*each.values()]))},
                **{"tokens": encoded["tokens"] / encoded["segments"], "bits": result["bits_per_second"]},
                **{
                    "val_loss": result["val_loss"],
                    "parameters": result["trainable_parameters"],
                    "each": each,
                },
            }
            done.append(row)
            with open(kept, "a") as file:
                file.write(json.dumps(row) + "\n")
            print(json.dumps({**row, "each": None}), flush=True)
    print("\n| | tokens an ECG | updates | bits per second and lead | AUROC | by seed |")
    print("| --- | ---: | ---: | ---: | ---: | --- |")
    for name, *_ in ROWS:
        mine = [row for row in done if row["name"] == name]
        if mine:
            bits = f"{np.mean([row['bits'] for row in mine]):.1f}" if mine[0]["bits"] else ""
            by_seed = ", ".join(f"{row['auroc']:.3f}" for row in mine)
            print(
                f"| {name} | {mine[0]['tokens']:.0f} | {np.mean([r['steps'] for r in mine]):.0f} | {bits} | "
                f"{np.mean([r['auroc'] for r in mine]):.3f} | {by_seed} |"
            )


if __name__ == "__main__":
    main()
