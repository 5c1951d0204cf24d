"""ecgbyte controls: twins of recordings, and the same questions about each twin, as controls for any model."""

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import (
    CommaList,
    bare_file_options,
    bare_file_settings,
    jobs_option,
    replace_option,
)
from ecgbyte_cli.cli.output import counted, note, print_result, print_skipped, progress
from ecgbyte_cli.evaluation import twin_questions
from ecgbyte_cli.evaluation.twin_files import (
    COLUMNS,
    FORMS,
    PRELOAD,
    SECONDS,
    WHOLE,
    Described,
    describe,
    donors_of,
    names_of,
    plan_file,
    remove_unlisted,
    rows_maker,
)
from ecgbyte_cli.evaluation.twins import CONTROLS, OTHER
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import question_segments
from ecgbyte_cli.questions.question_file import Question, questions_sha256, read_questions
from ecgbyte_cli.readers.recording import HDF5, record_name, split_row
from ecgbyte_cli.runtime.processes import in_parallel
from ecgbyte_cli.runtime.row_parts import (
    PART,
    JoinedRows,
    TableWork,
    finished_table,
    parts_folder,
    report_skipped,
    settings_file,
    table_settings,
    write_finished,
    write_rows,
)
from ecgbyte_cli.storage.files import write_json
from ecgbyte_cli.storage.locks import lock
from ecgbyte_cli.storage.manifest import refuse_foreign_folder

MANIFEST = "manifest.jsonl"
SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True)
class ControlsOptions:
    """Options of `ecgbyte controls`."""

    out: Path | None = None  # output folder; required by the command
    qa: Path | None = None  # questions to ask about the twins; None: write no question files
    split: str = "test"  # split of the questions
    forms: tuple[str, ...] = tuple(FORMS)  # file formats of the twins
    patients: Sequence[Path] = ()  # tables of records and patients
    input_fs: float | None = None  # sampling rate of files that do not state it, in Hz
    lead_names: str | None = None  # lead names of files that do not state them, separated by commas
    units: str | None = None  # unit of files that do not state it
    seed: int = 0  # seed of noise, choice of other patients, lead order and flat stretches
    jobs: int | None = None  # processes; None: one per processor. The twins do not depend on it
    overwrite: bool = False  # replace twins made with other settings


@click.command(
    cls=Stage,
    groups={
        "Data": ("qa", "split", "patients", "input_fs", "lead_names", "units"),
        "Twins": ("forms", "seed"),
    },
    short_help="Write twins of recordings, to test whether a model reads the ECG.",
    epilog="Example: ecgbyte controls data/ --qa data/qa.jsonl --out controls/ --forms wfdb,npy",
)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    help="Question file: also write its questions about each twin, and skip recordings without a question.",
)
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default=ControlsOptions.split,
    show_default=True,
    help="Split of the questions.",
)
@click.option(
    "--forms",
    type=CommaList(),
    default=",".join(ControlsOptions.forms),
    show_default=True,
    help="File formats of the twins. wfdb: whole recordings; npy: ten seconds at 250 Hz, as ELM preprocesses them; "
    "png: a ten-second sheet.",
)
@click.option(
    "--patients",
    multiple=True,
    type=click.Path(path_type=Path),
    default=ControlsOptions.patients,
    show_default="from the questions or recordings",
    help="CSV table of records and patients, such as ptbxl_database.csv.",
)
@bare_file_options
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=ControlsOptions.seed,
    show_default=True,
    help="Random seed of the twins.",
)
@jobs_option
@replace_option
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Output folder.")
def command(paths: tuple[str, ...], **options: Any) -> dict:
    """Write twins of recordings: copies in which all or part of the ECG is replaced.

    The twins: a flat line, noise with the same spectrum, another patient's ECG, the leads shuffled, a quarter
    flattened, and the unchanged recording. Ask any model the same questions about each, and pass its answers to
    `ecgbyte score`: a model that reads the ECG does worse without it. OUT/manifest.jsonl lists every file, its
    checksum and how it was made.
    """
    chosen = ControlsOptions(**options)
    unknown = [form for form in chosen.forms if form not in FORMS]
    if unknown or not chosen.forms:
        raise click.UsageError(f"--forms takes {', '.join(FORMS)}, separated by commas")
    result = controls(paths, chosen)
    before = " in an earlier run" if result.pop("done_before", False) else ""
    count = result["records"]
    asked = f", and {counted(result['questions'], 'question')} for each kind of twin" if chosen.qa else ""
    print_result(f"{counted(count, 'recording')} with twins{asked}{before}: {result['files']}")
    print_skipped(result)
    return result


def controls(paths: Sequence[str], options: ControlsOptions) -> dict:
    """Write twins of recordings, and the questions about them.

    Parameters
    ----------
    paths : sequence of str
        See the command.
    options : ControlsOptions

    Returns
    -------
    dict
        `records`, `skipped`, `skipped_reasons` (reason mapped to count), `questions` (about each control), `files` (the
        folder) and `seconds`.

    Raises
    ------
    Failure
        If no recording can be used, no question is about one, or the folder contains other files.
    """
    started = time.perf_counter()
    if options.out is None:
        raise Failure("name the output folder: --out FOLDER")
    out, manifest = Path(options.out), Path(options.out) / MANIFEST
    if not (parts_folder(manifest).exists() or plan_file(out).exists()):  # an interrupted run
        refuse_foreign_folder(out, settings_file(manifest), "twins")
    sets, skipped, inputs = readers.find_data_sets(paths, options.patients, without=out)
    questions = read_questions(options.qa) if options.qa else []
    found = [path for each in sets for path in each.found]
    if options.qa:
        found = _asked_about(found, questions, options)
    work = _table_work(out, options, inputs["patients"])
    settings = table_settings(found, work)
    with lock(out):
        if done := finished_table(manifest, settings, options.overwrite, found):
            return {**done, "files": str(out), "seconds": time.perf_counter() - started}
        plan, columns = _plan(paths, sets, found, questions, work, options)
        asked, line = twin_questions.join_names(questions, columns, options.split)
        if line:
            note(line)
        if options.qa and not asked:
            raise Failure(_no_question(options))
        write_json(plan_file(out), plan)
        several = any(about.get("donor") for about in plan.values())
        made = [name for name in CONTROLS if several or name != OTHER]

        def more(joined: JoinedRows) -> None:
            if asked:
                _write_questions(out, asked, options.forms, made)
            remove_unlisted(out, {str(row["file"]) for rows in joined for row in rows})
            write_finished(manifest, settings, joined, {"questions": len(asked)})

        records = write_rows(manifest, found, skipped, work, lambda _: COLUMNS, options.overwrite, more)
        plan_file(out).unlink()
    counts = report_skipped(skipped, records, manifest)
    counts |= {"questions": len(asked), "files": str(out)}
    return counts | {"seconds": time.perf_counter() - started}


def _table_work(out: Path, options: ControlsOptions, patients: Any) -> TableWork:
    """Return the work of making the twins, with all settings they depend on; `patients` is a hash of the tables."""
    asked = {
        "reading": bare_file_settings(options.input_fs, options.lead_names, options.units),
        "seed": options.seed,
        "forms": list(options.forms),
        "patients": patients,
        "qa": questions_sha256(options.qa) if options.qa else None,
        "split": options.split if options.qa else None,
    }
    jobs = options.jobs or os.cpu_count() or 1
    return TableWork("making twins", rows_maker(out), asked, jobs, None, PRELOAD)


def _write_questions(
    out: Path, asked: Sequence[twin_questions.Asked], forms: Sequence[str], controls: Sequence[str]
) -> None:
    """Write the question files, and note the questions that a format cannot represent."""
    several = sum(len(names) > 1 for _, names, *_ in asked)
    if several and "npy" in forms:
        note(
            f"not in the npy format, because ELM takes one ECG: {counted(several, 'question')} about several recordings"
        )
    twin_questions.write_questions(out, asked, forms, controls)


def _no_question(options: ControlsOptions) -> str:
    """Return the message that no question can be asked."""
    return f"no question of split {options.split} in {options.qa} is about these recordings"


def _asked_about(found: list[str], questions: Sequence[Question], options: ControlsOptions) -> list[str]:
    """Return the recordings that may be in a question of the split, by file name."""
    columns: dict[str, Any] = {"record": [record_name(path) for path in found], "path": found}
    find = question_segments.record_finder(columns)
    wanted = {
        r for q in questions if options.split == "all" or q.split in (options.split, None) for r in q.records
    }
    named = {i for record in wanted for i in find(record)}
    # the rows of an HDF5 file have their own names
    kept = [
        path
        for i, path in enumerate(found)
        if i in named or os.path.splitext(split_row(path)[0])[1].lower() in HDF5
    ]
    if not kept:
        raise Failure(_no_question(options))
    return kept


def _plan(
    paths: Sequence[str],
    sets: Sequence[readers.DataSet],
    found: Sequence[str],
    questions: Sequence[Question],
    work: TableWork,
    options: ControlsOptions,
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Read all recordings, and return the plan of the twins and the columns of the recordings that can be used.

    The plan maps each path to its twins' name, its patient, and the recording of another patient; or to the reason why
    it was skipped. Patients are numbered, so that no hospital's names or numbers are written.
    """
    told = _described(found, work, SECONDS if {*options.forms} & {*WHOLE} else 0.0)
    usable = [path for path in found if isinstance(told[path], Described)]
    plan: dict[str, dict[str, Any]] = {p: {"skip": why} for p, why in told.items() if isinstance(why, str)}
    names = names_of(usable, [told[path].record for path in usable], _base(paths, usable))  # type: ignore[union-attr]
    first: dict[str, str] = {}
    for path, name in zip(usable, names, strict=True):
        if first.setdefault(name, path) != path:
            plan[path] = {"skip": f"same name as another recording: {first[name]}"}
    kept = list(first.values())
    columns = _columns(sets, kept, told) | {"name": list(first)}
    patients = _own_patients(columns, questions)
    donors = donors_of(patients, options.seed)
    if donors is None and kept:
        note(f"all recordings are of one patient: no {OTHER} twins can be made")
    numbers = {patient: f"P{number:05d}" for number, patient in enumerate(dict.fromkeys(patients), 1)}
    columns["patient"] = [numbers[patient] for patient in patients]
    for i, path in enumerate(kept):
        donor = {} if donors is None else {"donor": kept[donors[i]], "donor_name": columns["name"][donors[i]]}
        plan[path] = {
            **{key: columns[key][i] for key in ("name", "record", "patient", "split")},
            **{"donor": None, **donor},
        }
    return plan, columns


def _described(found: Sequence[str], work: TableWork, seconds: float) -> dict[str, Described | str]:
    """Read all recordings once; return for each its description, or the reason it was skipped."""
    lots = [list(found[i : i + PART]) for i in range(0, len(found), PART)]
    told: dict[int, list[tuple[str, Described | str]]] = {}
    tasks = ((number, lot, work.asked["reading"], seconds) for number, lot in enumerate(lots))
    with (
        progress("reading", len(found), "records") as bar,
        closing(in_parallel(describe, tasks, min(work.jobs, len(lots)), PRELOAD)) as results,  # type: ignore[type-var]
    ):
        for number, some in results:
            told[number] = some
            bar.advance(len(some))
    return {path: what for number in sorted(told) for path, what in told[number]}


def _base(paths: Sequence[str], usable: Sequence[str]) -> str:
    """Return the folder that the twins' names are relative to: the given one, else the common parent."""
    folders = [os.path.abspath(path) for path in paths if os.path.isdir(path)]
    if len(folders) < len(paths):
        folders = [os.path.dirname(split_row(path)[0]) for path in usable]
    return os.path.commonpath(folders) if folders else ""


def _columns(
    sets: Sequence[readers.DataSet], kept: Sequence[str], told: dict[str, Any]
) -> dict[str, list[str]]:
    """Return record, path, patient and split of the recordings."""
    of_set = {path: each for each in sets for path in each.found}
    for each in sets:
        mine = [path for path in kept if of_set[path] is each]
        each.stated.update(told[path].stated for path in mine)
        each.settle({*each.found} - {*mine})
    whose = [of_set[p].whose(told[p].record, told[p].patient, told[p].side, p) for p in kept]
    return {
        "record": [told[path].record for path in kept],
        "path": list(kept),
        "patient": [patient for patient, _ in whose],
        "split": [side for _, side in whose],
    }


def _own_patients(columns: dict[str, list[str]], questions: Sequence[Question]) -> list[str]:
    """Return the patient of each recording, from the questions about it, else from the recording."""
    patients = list(columns["patient"])
    find = question_segments.record_finder(columns)
    for question in questions:
        if question.patient and len(question.records) == 1 and len(places := find(question.record)) == 1:
            patients[places[0]] = question.patient
    return patients
