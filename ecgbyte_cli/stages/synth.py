"""ecgbyte synth: 12-lead records with questions and answers, from a model of the heart vector.

Every record shows one of eight conditions, and its truth stands in the comments of the WFDB header, one
`# Key: value` a line, in this order:

    Source: synthetic (ecgbyte synth)
    Patient: P000123           name; a patient has one to three records, all on one side of the split
    Split: train               train, val or test
    Condition: atrial fibrillation
    Heart rate: 74.3           mean ventricular rate: beats per minute from the first beat to the last
    RR variation: 0.213        standard deviation of the RR intervals over their mean
    R peaks: 0.412 1.180       time of every beat in s, premature ones included
    PR interval: 0.162         start of P to start of QRS in s, or none (no P waves)
    Premature beats: 3.218     times in s, or none; the sinus beat that each takes the place of has no P wave
    Raised leads: V1 V2 V3 V4  ST segment at least 0.1 mV above the line before the QRS complex, or none;
                               told for anterior ST elevation only

`qa.jsonl` beside the records holds the questions, one JSON object a line: record, patient, question, answer,
type and split. The rhythm is asked of every record; the rate and bundle branch block of so many that "yes" and
"no" are equally often right on each side of the split.

The signals are made in signal/simulate.py.
"""

import json
import os
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import __version__
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import note, print_result, progress, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers.wfdb_write import record_files
from ecgbyte_cli.runtime.processes import threads
from ecgbyte_cli.signal.simulate import CONDITIONS, GAIN, SPLITS, make_record, patient_name, plan_records
from ecgbyte_cli.storage.files import atomic_write, write_json
from ecgbyte_cli.storage.locks import clear_leftovers, lock
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_kernels.vcg import LEADS


@click.command(
    cls=Stage,
    short_help="Write synthetic 12-lead records with questions and answers.",
    epilog="Example: ecgbyte synth data/ --records 400",
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--records", type=click.IntRange(1, 10_000_000), default=400, show_default=True, help="How many records."
)
@click.option(
    "--seconds", type=click.IntRange(5, 3600), default=10, show_default=True, help="Length of a record."
)
@click.option(
    "--fs", type=click.IntRange(100, 2000), default=500, show_default=True, help="Samples per second."
)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Another seed, other records."
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=None,
    show_default="all cores",
    help="Threads; the records do not depend on it.",
)
@click.option("--overwrite", is_flag=True, help="Replace records made with other settings.")
@click.pass_obj
def command(_work, out, **options):
    """Write synthetic 12-lead records (WFDB format 16) and questions about them to the folder OUT.

    The records show eight conditions, in equal numbers, and are for learning and for trying things out: they
    come from a model, not from people. What each record shows stands in the comments of its header; the
    questions and answers are in OUT/qa.jsonl. Above 1000 records, OUT gets a subfolder for every 1000.
    """
    result = synth(out, **options)
    counts = result["conditions"]
    rows = [(name, *(counts[name][s] for s in SPLITS), sum(counts[name].values())) for name in counts]
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 5))))
    table(rows, ("records", *SPLITS, "all"))
    print_result(f"{result['records']} records and {result['questions']} questions in {result['path']}")
    return result


def synth(out, *, records=400, seconds=10, fs=500, seed=1, jobs=None, overwrite=False):
    """Write synthetic records and the questions about them.

    Parameters
    ----------
    out : path
        The folder to write to; made if it does not exist.
    records, seconds, fs, seed : int
        How many, how long (s), samples per second, and which.
    jobs : int or None
        Number of threads; None for one per core. The files do not depend on it.
    overwrite : bool
        Replace the records that an earlier run with other settings left in `out`.

    Returns
    -------
    dict
        `records`, `questions`, `leads` (how many), `fs`, `path`, `seconds` (the work took) and `conditions`
        (condition to split to number of records).

    Raises
    ------
    Failure
        If `out` holds records made with other settings, or cannot be written to.
    """
    start = time.perf_counter()
    out = Path(out)
    asked = {"records": records, "seconds": seconds, "fs": fs, "seed": seed}
    # Written before the records without a result, and again after them with it: so that a run that was
    # interrupted is known from one that was not.
    settings_path = out / "synth.json"
    if out.exists() and not out.is_dir():
        raise Failure(f"{out} is a file, not a folder: name another folder for the records")
    try:
        with lock(out):
            return _synth(out, settings_path, asked, jobs, overwrite, start)
    except OSError as error:
        raise Failure(
            f"{error.filename or out} cannot be written ({error.strerror}): name another folder"
        ) from error


def _synth(out, settings_path, asked, jobs, overwrite, start):
    """Write the records that are missing, and the questions."""
    records, seconds, fs, seed = (asked[key] for key in ("records", "seconds", "fs", "seed"))
    earlier = completed_result(settings_path, asked, overwrite, "records", "name another folder")
    if earlier:
        note(f"{out}: these {records} records were made already; --overwrite makes them again")
        return earlier
    clear_leftovers(out)
    plan = plan_records(records, seed)
    todo = [record for record in plan if not (out / f"{record['path']}.hea").exists()]
    if not settings_path.exists() or overwrite:
        _remove_earlier(out, settings_path)
        todo = plan
    elif len(todo) < records:
        note(f"{out}: going on, {records - len(todo)} of {records} records are there")
    write_json(settings_path, {"settings": asked, "result": None, "ecgbyte": __version__})
    for folder in {(out / record["path"]).parent for record in plan}:
        folder.mkdir(exist_ok=True)
    with progress("making", len(todo), "records") as bar, threads(jobs) as pool:
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
    write_json(settings_path, {"settings": asked, "result": result, "ecgbyte": __version__})
    return result


def ask(plan, seed):
    """Make the questions: dicts as `qa.jsonl` holds them, ordered by record."""
    rng = np.random.default_rng([seed, 3])
    yes_no = {
        "rate": ("Is the heart rate above 100 beats per minute?", lambda record: record["fast"]),
        "lbbb": (
            "Is there left bundle branch block?",
            lambda record: record["condition"] == "left bundle branch block",
        ),
    }
    # As many with the answer yes as with no, on each side.
    asked = {}
    for kind, (_, truth) in yes_no.items():
        asked[kind] = set()
        for side in SPLITS:
            yes = [record["number"] for record in plan if record["split"] == side and truth(record)]
            no = [record["number"] for record in plan if record["split"] == side and not truth(record)]
            n = min(len(yes), len(no))
            for numbers in (yes, no):
                asked[kind].update(rng.permutation(numbers)[:n].tolist())
    questions = []
    for record in plan:
        items = [("rhythm", "What is the rhythm?", record["condition"])]
        for kind, (question, truth) in yes_no.items():
            if record["number"] in asked[kind]:
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


def _write_record(out, record, seconds, fs, seed):
    """Write a record's .dat and then its .hea: a record with a header is complete."""
    steps, comments = make_record(record, seconds, fs, seed)
    header, signal = record_files(record["name"], steps, fs, GAIN, LEADS, comments)
    path = out / record["path"]
    # Without the fsync of workdir.whole(): it costs more than making the record, and after a power cut the
    # records are made again.
    for ending, content in ((".dat", signal), (".hea", header)):
        beside = f"{path}{ending}.part"
        try:
            with open(beside, "wb") as file:
                file.write(content)
            os.replace(beside, f"{path}{ending}")
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


def _remove_earlier(out, settings_path):
    """Remove the records of an earlier run, so that no stranger stands among the new ones."""
    try:
        earlier = json.loads(settings_path.read_text(encoding="utf-8"))["settings"]
        paths = [record["path"] for record in plan_records(int(earlier["records"]), int(earlier["seed"]))]
    except (OSError, ValueError, KeyError, TypeError):
        return
    (out / "qa.jsonl").unlink(missing_ok=True)
    for path in paths:
        for ending in (".hea", ".dat", ".hea.part", ".dat.part"):
            (out / f"{path}{ending}").unlink(missing_ok=True)
