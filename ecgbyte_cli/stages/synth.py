"""ecgbyte synth: write synthetic 12-lead records with questions and answers.

Every record shows one of eight conditions. The comments of its WFDB header contain the truth, one `# Key: value` per
line, in this order:

    Source: synthetic (ecgbyte synth)
    Patient: P000123           name; a patient has one to three records, all on one side of the split
    Split: train               train, val or test
    Condition: atrial fibrillation
    Heart rate: 74.3           mean ventricular rate: beats per minute from the first beat to the last
    RR variation: 0.213        standard deviation of the RR intervals over their mean
    R peaks: 0.412 1.180       time of every beat in s, premature ones included
    PR interval: 0.162         start of P to start of QRS in s, or none (no P waves)
    Premature beats: 3.218     times in s, or none; each replaces a sinus beat, whose P wave is missing
    Raised leads: V1 V2 V3 V4  ST segment at least 0.1 mV above the line before the QRS complex, or none;
                               only for anterior ST elevation

`qa.jsonl` next to the records contains the questions, one JSON object per line: record, patient, question, answer,
type and split. Every record has a question about its rhythm. Questions about the rate and bundle branch block are
chosen so that "yes" and "no" are equally frequent on each side of the split.

signal/simulate.py generates the signals, from a model of the heart vector.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import counted, note, print_result, progress, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.wfdb_write import record_files
from ecgbyte_cli.runtime.processes import threads
from ecgbyte_cli.signal.simulate import CONDITIONS, GAIN, SPLITS, make_record, patient_name, plan_records
from ecgbyte_cli.storage.files import atomic_write, write_json
from ecgbyte_cli.storage.locks import clear_leftovers, lock
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_kernels.vcg import LEADS


@dataclass(frozen=True)
class SynthOptions:
    """Options of `ecgbyte synth`."""

    records: int = 400  # number of records
    seconds: int = 10  # length of a record in seconds
    fs: int = 500  # sampling rate in Hz
    seed: int = 1  # random seed of the records
    jobs: int | None = None  # threads; None: one per core. The records do not depend on it
    overwrite: bool = False  # replace records made with other settings


@click.command(
    cls=Stage,
    short_help="Write synthetic 12-lead records with questions and answers.",
    epilog="Example: ecgbyte synth data/ --records 400",
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--records",
    type=click.IntRange(1, 10_000_000),
    default=SynthOptions.records,
    show_default=True,
    help="Number of records.",
)
@click.option(
    "--seconds",
    type=click.IntRange(5, 3600),
    default=SynthOptions.seconds,
    show_default=True,
    help="Length of a record in seconds.",
)
@click.option(
    "--fs",
    type=click.IntRange(100, 2000),
    default=SynthOptions.fs,
    show_default=True,
    help="Sampling rate in Hz.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=SynthOptions.seed,
    show_default=True,
    help="Random seed of the records.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=SynthOptions.jobs,
    show_default="all cores",
    help="Number of threads. The records do not depend on it.",
)
@click.option("--overwrite", is_flag=True, help="Replace records made with other settings.")
def command(out: Path, **options: Any) -> dict:
    """Write synthetic 12-lead records (WFDB format 16) and questions about them to the folder OUT.

    The records show eight conditions in equal numbers, for experiments and tests. They come from a
    model, not from people. The comments of each record's header say what it shows; the questions and
    answers are in OUT/qa.jsonl. Above 1000 records, OUT gets a subfolder for every 1000.
    """
    result = synth(out, SynthOptions(**options))
    counts = result["conditions"]
    rows = [(name, *(counts[name][s] for s in SPLITS), sum(counts[name].values())) for name in counts]
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 5))))
    table(rows, ("records", *SPLITS, "all"))
    print_result(
        f"{counted(result['records'], 'record')} and {counted(result['questions'], 'question')} in {result['path']}"
    )
    return result


def synth(out: Path, options: SynthOptions) -> dict:
    """Write synthetic records and the questions about them.

    Parameters
    ----------
    out : path
        Output folder; created if it does not exist.
    options : SynthOptions

    Returns
    -------
    dict
        `records`, `questions`, `leads` (count), `fs`, `path`, `seconds` (duration of the run) and `conditions`
        (condition to split to number of records).

    Raises
    ------
    Failure
        If `out` holds records made with other settings, or cannot be written to.
    """
    start = time.perf_counter()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise Failure(f"{out} is a file, not a folder: name another folder")
    try:
        with lock(out):
            return _synth(out, options, start)
    except OSError as error:
        raise Failure(
            f"{error.filename or out} cannot be written ({error.strerror}): name another folder"
        ) from error


def _synth(out: Path, options: SynthOptions, start: float) -> dict:
    """Write the missing records, and the questions."""
    records, seconds, fs, seed = options.records, options.seconds, options.fs, options.seed
    settings = {"records": records, "seconds": seconds, "fs": fs, "seed": seed}
    # Settings are written without a result first and with the result last, which shows whether a run was interrupted.
    settings_path = out / "synth.json"
    if earlier := completed_result(
        settings_path, settings, options.overwrite, "records", "name another folder"
    ):
        return earlier
    clear_leftovers(out)
    plan = plan_records(records, seed)
    todo = [record for record in plan if not (out / f"{record['path']}.hea").exists()]
    if not settings_path.exists() or options.overwrite:
        _remove_earlier(out, settings_path)
        todo = plan
    elif len(todo) < records:
        note(f"{out}: resuming, {records - len(todo)} of {counted(records, 'record')} done before")
    write_json(settings_path, {"settings": settings, "result": None, "ecgbyte": __version__})
    for folder in {(out / record["path"]).parent for record in plan}:
        folder.mkdir(exist_ok=True)
    with progress("making", len(todo), "records") as bar, threads(options.jobs) as pool:
        for _ in pool.map(lambda record: _write_record(out, record, seconds, fs, seed), todo):
            bar.advance()
    questions = ask(plan, seed)
    with atomic_write(out / "qa.jsonl") as beside:
        beside.write_text("".join(json.dumps(q) + "\n" for q in questions), encoding="utf-8")
    counts = {condition: dict.fromkeys(SPLITS, 0) for condition in CONDITIONS}
    for record in plan:
        counts[record["condition"]][record["split"]] += 1
    result = {
        "records": records,
        "questions": len(questions),
        "leads": len(LEADS),
        "fs": fs,
        "path": str(out),
        "seconds": round(time.perf_counter() - start, 3),
        "conditions": counts,
    }
    write_json(settings_path, {"settings": settings, "result": result, "ecgbyte": __version__})
    return result


def ask(plan: Sequence[Mapping[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return the lines of `qa.jsonl`, ordered by record."""
    rng = np.random.default_rng([seed, 3])
    yes_no = {
        "rate": ("Is the heart rate above 100 beats per minute?", lambda record: record["fast"]),
        "lbbb": (
            "Is there left bundle branch block?",
            lambda record: record["condition"] == "left bundle branch block",
        ),
    }
    # in each split, as many yes answers as no answers
    chosen: dict[str, set[int]] = {kind: set() for kind in yes_no}
    for kind, (_, truth) in yes_no.items():
        for side in SPLITS:
            yes = [record["number"] for record in plan if record["split"] == side and truth(record)]
            no = [record["number"] for record in plan if record["split"] == side and not truth(record)]
            n = min(len(yes), len(no))
            for numbers in (yes, no):
                chosen[kind].update(rng.permutation(numbers)[:n].tolist())
    questions = []
    for record in plan:
        items = [("rhythm", "What is the rhythm?", record["condition"])]
        for kind, (question, truth) in yes_no.items():
            if record["number"] in chosen[kind]:
                items.append((kind, question, "yes" if truth(record) else "no"))
        for kind, question, answer in items:
            questions.append(
                {
                    "record": record["name"],
                    "patient": patient_name(record),
                    "question": question,
                    "answer": answer,
                    "type": kind,
                    "split": record["split"],
                }
            )
    return questions


def _write_record(out: Path, record: Mapping[str, Any], seconds: int, fs: int, seed: int) -> None:
    """Write a record's .dat and then its .hea, so that a record with a header is complete."""
    steps, comments = make_record(record, seconds, fs, seed)
    header, signal = record_files(record["name"], steps, fs, GAIN, LEADS, comments)
    path = out / record["path"]
    # no atomic_write: its fsync takes longer than the simulation
    for ending, content in ((".dat", signal), (".hea", header)):
        beside = f"{path}{ending}.part"
        try:
            with open(beside, "wb") as file:
                file.write(content)
            os.replace(beside, f"{path}{ending}")
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


def _remove_earlier(out: Path, settings_path: Path) -> None:
    """Remove the records of an earlier run."""
    try:
        earlier = json.loads(settings_path.read_text(encoding="utf-8"))["settings"]
        paths = [record["path"] for record in plan_records(int(earlier["records"]), int(earlier["seed"]))]
    except (OSError, ValueError, KeyError, TypeError):
        return
    (out / "qa.jsonl").unlink(missing_ok=True)
    for path in paths:
        for ending in (".hea", ".dat", ".hea.part", ".dat.part"):
            (out / f"{path}{ending}").unlink(missing_ok=True)
