"""Draw ECGs with a model trained on real ones: do they show what was asked for, and can another model learn from them?

    OMP_NUM_THREADS=1 python examples/experiments/drawn_ptbxl.py ptb-xl/ --out drawn-ptbxl/

On folds 1 to 8 of PTB-XL or a part of it, leads II, V1 and V5 at 100 Hz, a small model learns ECGs only, then to draw
four rhythms from their names. Three checks of the drawn ECGs:

- Rate and its variation, measured as in drawn_right.py, beside the recordings of fold 9.
- The answers of the included model, which was trained separately.
- Training: one model on drawn ECGs only, one on as many recordings of folds 1 to 8, to detect atrial fibrillation and
  sinus tachycardia; both are tested on fold 9 (AUROC of P(yes)).

Every step is a command of ecgbyte; finished steps are not repeated.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from ablation_ptbxl import TOKENS, tokens
from drawn_right import beats

from ecgbyte_cli import readers
from ecgbyte_cli.questions.sources import ptbxl
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.storage.files import read_json

RHYTHMS = {
    "SR": "sinus rhythm",
    "AFIB": "atrial fibrillation",
    "STACH": "sinus tachycardia",
    "SBRAD": "sinus bradycardia",
}
ASKED = {"AF?": "atrial fibrillation", "fast?": "sinus tachycardia"}  # questions with yes and no
MOST = 400  # recordings of a rhythm that the model learns to draw


def run(work, *args):
    """Run a command of ecgbyte in a work folder."""
    subprocess.run([sys.executable, "-m", "ecgbyte_cli", "--work", str(work), *map(str, args)], check=True)


def known_rhythms(data):
    """Record, split and rhythm of the recordings that have one of the four, and no other."""
    for facts in ptbxl.read_ptbxl(data / "ptbxl_database.csv").facts:
        found = [
            words for code, words in RHYTHMS.items() if facts.known.get(code.lower()) or facts.known.get(code)
        ]
        if len(found) == 1:
            yield facts.record, facts.split, found[0]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def measured(paths, leads=("II", "V1")):
    """Rate and variation of the intervals of some recordings, (n, 2)."""
    rows = []
    for path in paths:
        recording = readers.read_recording(path)
        signal = preprocess.pick(recording, list(leads))
        at, _ = beats(preprocess.resample(signal, recording.fs, 100), 100)
        intervals = np.diff(at) / 100
        if len(intervals) > 2:
            rows.append((60 / intervals.mean(), intervals.std() / intervals.mean()))
    return np.array(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="PTB-XL's folder, or a part of it")
    parser.add_argument("--out", type=Path, default=Path("drawn-ptbxl"))
    parser.add_argument(
        "--steps", type=int, default=1500, help="updates of learning ECGs, and of learning to draw"
    )
    parser.add_argument("--records", type=int, default=100, help="ECGs of each rhythm")
    options = parser.parse_args()
    out, data, count = options.out, options.data.resolve(), options.records
    work = tokens(out, data, **TOKENS).root
    rhythms = list(known_rhythms(data))
    kept, seen = [], Counter()
    for record, split, rhythm in rhythms:
        seen[split, rhythm] += 1
        if seen[split, rhythm] <= MOST:
            kept.append(
                {"record": record, "split": split, "question": "R?", "answer": rhythm, "type": "rhythm"}
            )
    qa = write(out / "rhythms.jsonl", kept)
    if not (out / "drawing" / "ecgbyte.json").exists():
        training = ["finetune", "--positions", "time", "--batch", 8, "--steps", options.steps, "--overwrite"]
        run(work, *training, "--pretrain", "--model", "tiny")
        (work / "model").rename(out / "pretrained")
        run(work, *training, "--qa", qa, "--draw", "rhythm", "--ecg-loss", 1, "--model", out / "pretrained")
        (work / "model").rename(out / "drawing")
    drawn = out / "drawn"
    for rhythm in RHYTHMS.values():
        folder = drawn / rhythm.replace(" ", "-")
        run(
            work,
            "draw",
            rhythm,
            "--model",
            out / "drawing",
            "--records",
            count,
            "--out",
            folder,
            "--top-p",
            0.9,
            "--guidance",
            3,
        )

    where = {path.stem: path for path in data.rglob("*.hea")}
    print(
        "\n| | ECGs | rate, median (5 to 95 %) | variation of the intervals, median | ptbxl says the rhythm, % |"
    )
    print("| --- | ---: | ---: | ---: | ---: |")
    for rhythm in RHYTHMS.values():
        mine = sorted((drawn / rhythm.replace(" ", "-")).glob("*.hea"))
        true = [where[record] for record, split, found in rhythms if (split, found) == ("val", rhythm)]
        for name, paths, said in (("drawn", mine, said_by_ptbxl(out, rhythm, mine)), ("fold 9", true, None)):
            rows = measured(paths)
            low, high = np.percentile(rows[:, 0], [5, 95])
            of_model = "" if said is None else f"{said:.0f}"
            print(
                f"| {rhythm}, {name} | {len(paths)} | {np.median(rows[:, 0]):.0f} ({low:.0f} to {high:.0f}) "
                f"| {np.median(rows[:, 1]):.3f} | {of_model} |"
            )
    learned(out, data, rhythms, drawn, count)


def said_by_ptbxl(out, rhythm, paths):
    """In how many of some ECGs, in %, the model that comes with ecgbyte sees a rhythm."""
    work = out / "asked" / rhythm.replace(" ", "-")
    lines = [
        {
            "record": path.stem,
            "question": "What is the rhythm?",
            "answer": rhythm,
            "type": "rhythm",
            "split": "test",
        }
        for path in paths
    ]
    qa = write(work / "qa.jsonl", lines)
    chain = ["symbolize", paths[0].parent, "--like", "ptbxl", "encode", "generate", "--qa", qa]
    run(work, *chain, "--model", "ptbxl", "--no-controls")
    return read_json(work / "answers" / "metrics.json")["result"]["exact_match"]


def learned(out, data, rhythms, drawn, count):
    """Train on drawn ECGs, and on as many recordings; ask both about the recordings of fold 9."""
    together = out / "together"
    together.mkdir(exist_ok=True)
    for name, target in (("recorded", data), ("drawn", drawn)):
        if not (together / name).exists():
            # the names of drawn ECGs are the same in each folder: each rhythm has its own
            (together / name).symlink_to(target.resolve(), target_is_directory=True)
    work = out / "learning"
    run(work, "symbolize", together, "--like", out / "drawing", "encode")

    def questions(record, rhythm, split):
        for question, words in ASKED.items():
            yield {
                **{"record": record, "split": split, "question": question, "type": words},
                "answer": "yes" if rhythm == words else "no",
            }

    tested = [q for r, split, rhythm in rhythms if split == "val" for q in questions(r, rhythm, "test")]
    chosen, seen = [], Counter()
    for record, split, rhythm in rhythms:
        seen[rhythm] += split == "train"
        if split == "train" and seen[rhythm] <= count:
            chosen += questions(record, rhythm, "train")
    made = []
    for rhythm in RHYTHMS.values():
        folder = rhythm.replace(" ", "-")
        for path in sorted((drawn / folder).glob("*.hea"))[
            : sum(r == rhythm and s == "train" for _, s, r in rhythms)
        ]:
            made += questions(f"{folder}/{path.stem}", rhythm, "train")
    print("\n| trained on | questions | AUROC in fold 9: atrial fibrillation | sinus tachycardia |")
    print("| --- | ---: | ---: | ---: |")
    for name, training in (("drawn", made), ("recorded", chosen)):
        qa = write(out / f"{name}.jsonl", [*training, *tested])
        run(work, "finetune", "--qa", qa, "--model", "tiny", "--batch", 8, "--steps", 600, "--overwrite")
        run(work, "generate", "--qa", qa, "--split", "test", "--no-controls", "--overwrite")
        found = read_json(work / "answers" / "metrics.json")["result"]["auroc"]
        print(
            f"| {name} | {len(training)} | {' | '.join(f'{found[words]:.3f}' for words in ASKED.values())} |"
        )


if __name__ == "__main__":
    main()
