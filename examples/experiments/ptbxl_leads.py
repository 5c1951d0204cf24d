"""Score the included model by the leads that it gets, and by the sampling rate of the files.

    python examples/experiments/ptbxl_leads.py leads ptb-xl/ --qa asked.jsonl --fold 10 --out leads.json
    python examples/experiments/ptbxl_leads.py rates ptb-xl/ --qa asked.jsonl --out rates.json

`leads` leaves leads out of the recordings of a fold; the model does not use III, aVR, aVL and aVF, which
follow from I and II. `rates` reads each recording of fold 9 at 500 Hz and at 100 Hz, as far as the folder has both, and
counts letters that are equal. Scores are the mean AUROC over the eighteen findings with a yes and a no, and the
balanced accuracy of the rhythm over those with ten recordings.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.evaluation.reliability import auroc
from ecgbyte_cli.inference.conversation import ECG
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.storage.files import atomic_write

SETS = {
    "12 or 8": ("I", "II", "V1", "V2", "V3", "V4", "V5", "V6"),
    "limb": ("I", "II"),
    "II, V1, V5": ("II", "V1", "V5"),
    "I": ("I",),
    "II": ("II",),
}
OFTEN = 10
Truth = dict[tuple[str, str], str]  # number of a recording and question to the answer


def read_truth(qa: Path) -> Truth:
    """The answers of all questions."""
    with open(qa, encoding="utf-8") as file:
        return {(line["record"][:5], line["question"]): line["answer"] for line in map(json.loads, file)}


def paths_of(folder: Path, fold: int, column: str) -> list[Path]:
    """The recordings of a fold that are there."""
    with open(folder / "ptbxl_database.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["strat_fold"]) == fold]
    paths = [(folder / row[column]).with_suffix(".hea") for row in rows]
    return [path for path in paths if path.exists()]


def read_ecg(session: Session, path: Path, leads: Sequence[str]) -> ECG:
    """Read some leads of a recording."""
    recording = readers.read_recording(path)
    rows = [i for i, name in enumerate(recording.leads) if readers.lead_name(name) in leads]
    few = replace(recording, signal=recording.signal[rows], leads=[recording.leads[i] for i in rows])
    return session.reader.segment(few, preprocess.segments(few, session.tokenizer.signal), 0)


def answers(session: Session, ecgs: Iterator[ECG]) -> tuple[np.ndarray, list[str]]:
    """P(yes) of each finding, float64 (recordings, findings), and the rhythm of each recording."""
    names, rhythm = [*FINDINGS], session.match("rhythm")
    assert rhythm and rhythm.answers
    chances, rhythms = [], []
    for ecg in ecgs:
        prompts = [session.prompt_ids([ecg], [(name, None)])[0] for name in names]
        chances.append([weights[1] for weights in session.weigh_prompts(prompts, ["no", "yes"], names)])
        ids, _ = session.prompt_ids([ecg], [(rhythm.text, None)])
        [weights] = session.weigh_prompts([ids], rhythm.answers, [rhythm.text])
        rhythms.append(session.choose(rhythm.text, rhythm.answers, weights).answer)
        if len(rhythms) % 200 == 0:
            print(f"{len(rhythms)} recordings", flush=True)
    return np.array(chances), rhythms


def scores(
    chances: np.ndarray, rhythms: Sequence[str], records: Sequence[str], truth: Truth
) -> dict[str, Any]:
    """Mean AUROC and balanced accuracy."""
    areas = {}
    for place, name in enumerate(FINDINGS):
        told = [truth.get((record[:5], name)) for record in records]
        known = np.array([answer is not None for answer in told])
        yes = np.array([answer == "yes" for answer in told])[known]
        if yes.any() and not yes.all():
            areas[name] = float(auroc(chances[known, place], yes, np.ones((1, len(yes))))[0])
    of_rhythm: dict[str, list[bool]] = {}
    for record, said in zip(records, rhythms, strict=True):
        if told := truth.get((record[:5], "rhythm")):
            of_rhythm.setdefault(told, []).append(said == told)
    recalls = {name: float(np.mean(hits)) for name, hits in of_rhythm.items() if len(hits) >= OFTEN}
    return {
        "recordings": len(records),
        "mean_auroc": float(np.mean([*areas.values()])),
        "auroc": areas,
        "rhythm": float(np.mean([*recalls.values()])) if recalls else None,
        "recall": recalls,
    }


def by_leads(session: Session, options: argparse.Namespace, truth: Truth) -> dict[str, Any]:
    """Score each set of leads."""
    paths, results = paths_of(options.folder, options.fold, "filename_lr"), {}
    for name, leads in SETS.items():
        chances, rhythms = answers(session, (read_ecg(session, path, leads) for path in paths))
        results[name] = scores(chances, rhythms, [path.stem for path in paths], truth)
        print(name, results[name]["mean_auroc"], results[name]["rhythm"], flush=True)
    return {"fold": options.fold, "sets": results}


def by_rate(session: Session, options: argparse.Namespace, truth: Truth) -> dict[str, Any]:
    """Score the same recordings at both rates, and compare their letters."""
    paths = {
        column: {path.stem[:5]: path for path in paths_of(folder, 9, column)}
        for column, folder in (
            ("filename_hr", options.fast or options.folder),
            ("filename_lr", options.folder),
        )
    }
    records = sorted({*paths["filename_hr"]} & {*paths["filename_lr"]})
    ecgs = {
        column: [read_ecg(session, found[record], SETS["12 or 8"]) for record in records]
        for column, found in paths.items()
    }
    letters = [[session.tokenizer.quantize(ecg.segments[0][1])[0] for ecg in some] for some in ecgs.values()]
    equal = np.mean([np.mean(fast == slow) for fast, slow in zip(*letters, strict=True)])
    results = {column: scores(*answers(session, iter(some)), records, truth) for column, some in ecgs.items()}
    return {"letters_equal": float(equal), "500": results["filename_hr"], "100": results["filename_lr"]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["leads", "rates"])
    parser.add_argument("folder", type=Path, help="PTB-XL, unpacked")
    parser.add_argument("--fast", type=Path, help="folder of the recordings at 500 Hz, if it is another one")
    parser.add_argument("--model", default="ptbxl", help="model folder, or ptbxl")
    parser.add_argument("--qa", type=Path, required=True, help="from ptbxl_questions.py")
    parser.add_argument("--fold", type=int, default=9)
    parser.add_argument("--out", type=Path, required=True, help="results, JSON")
    options = parser.parse_args()
    score = {"leads": by_leads, "rates": by_rate}[options.what]
    result = score(Session.open(options.model), options, read_truth(options.qa))
    with atomic_write(options.out) as beside:
        beside.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "sets"})[:400])
