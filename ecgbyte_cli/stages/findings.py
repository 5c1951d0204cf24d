"""ecgbyte findings: write a table of a model's answers about recordings, with measured values."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import (
    Recordings,
    check_few,
    dask_option,
    jobs_option,
    loading_options,
    model_option,
    recording_options,
    replace_option,
    site_option,
    table_option,
)
from ecgbyte_cli.cli.output import print_result, print_skipped, print_written, table
from ecgbyte_cli.evaluation import finding_report
from ecgbyte_cli.evaluation.finding_scores import score_findings
from ecgbyte_cli.evaluation.finding_truth import join_truth, read_finding_table
from ecgbyte_cli.evaluation.site_calibration import calibrate_site
from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.inference.certainty import read_certainty
from ecgbyte_cli.inference.finding_table import columns_of, finding_rows, write_embeddings
from ecgbyte_cli.inference.operating_points import UNSURE, YES, operating_point
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.inference.site import write_site
from ecgbyte_cli.inference.trained_questions import TrainedQuestion, choose_questions
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.model_names import model_identity
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.runtime.row_parts import (
    JoinedRows,
    TableWork,
    few_rows,
    finished_table,
    report_skipped,
    table_settings,
    write_finished,
    write_rows,
)
from ecgbyte_cli.storage.row_table import Row
from ecgbyte_cli.storage.workdir import WorkDir

PRELOAD = ("ecgbyte_cli.inference.finding_table", "ecgbyte_cli.model.model_folder", "scipy.signal")
SHOWN = {
    "rate_bpm": "rate",
    "pr_ms": "PR",
    "qrs_ms": "QRS",
    "qtcf_ms": "QTcF",
}  # columns shown on the terminal


@dataclass(frozen=True)
class FindingsOptions:
    """Options of `ecgbyte findings`.

    Attributes
    ----------
    out : Path or None
        Output table; None prints a few recordings on the terminal.
    questions : tuple of str
        Short names, findings or training questions, or `all`; empty: the standard findings and the rhythm.
    truth : Path or None
        True labels to score the table with.
    calibrate : Path or None
        Site file to write, from the labels.
    max_error : float
        Largest error rate that the site's thresholds guarantee.
    site : Path or None
        Site file to use.
    embeddings : Path or None
        Where to write the model's state after each ECG, as .npy.
    model, base : Path or None
        Model folder (None: the work folder's model, or the included one), and where its base model is now, if it has
        moved.
    device : str or None
        See `devices.choose_device`.
    input_fs, lead_names, units
        See `ecgbyte chat`.
    jobs : int or None
        Processes; None: all processors, or one if the model has a separate base model. On a GPU one process runs
        the model, and this number of threads read the recordings ahead.
    dask : str or None
        Address of a cluster.
    overwrite : bool
    """

    out: Path | None = None
    questions: tuple[str, ...] = ()
    truth: Path | None = None
    calibrate: Path | None = None
    max_error: float = 0.1
    site: Path | None = None
    embeddings: Path | None = None
    model: Path | str | None = None
    base: Path | None = None
    device: str | None = None
    input_fs: float | None = None
    lead_names: str | None = None
    units: str | None = None
    jobs: int | None = None
    dask: str | None = None
    overwrite: bool = False


@click.command(
    cls=Stage,
    groups={
        "Data": ("out", "input_fs", "lead_names", "units"),
        "Model": ("model", "base", "device", "questions", "embeddings"),
        "Your labels": ("truth", "calibrate", "max_error", "site"),
    },
    short_help="Write a table of findings in many recordings.",
    epilog="Example: ecgbyte findings data/ --out findings.csv",
)
@click.argument("paths", nargs=-1, required=True, type=Recordings(), metavar="PATH...")
@table_option
@click.option(
    "--questions",
    metavar="TEXT",
    multiple=True,
    show_default="the eighteen standard findings and the rhythm",
    help="Question: the short name of a finding, a training question, or `all`. Repeat the option for several.",
)
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    metavar="LABELS.csv",
    help="Score the answers with these labels: a column `record`, and yes/no columns named after findings. Empty "
    "cells are unknown.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    metavar="SITE.json",
    help="Write a site file: probabilities and thresholds for your own site, from the labels.",
)
@click.option(
    "--max-error",
    type=click.FloatRange(0.005, 0.5),
    default=FindingsOptions.max_error,
    show_default=True,
    help="Largest error rate of the yes answers, and of the no answers, that --calibrate guarantees.",
)
@site_option
@click.option(
    "--embeddings",
    type=click.Path(path_type=Path),
    metavar="FILE.npy",
    help="Also write the model's state after each ECG: float32, one row per table row.",
)
@model_option
@loading_options
@recording_options
@jobs_option
@dask_option
@replace_option
@click.pass_obj
def command(work: WorkDir, paths: tuple[str, ...], **options: Any) -> dict:
    """Ask a model about recordings, and measure the recordings.

    PATH is a folder, a RECORDS file, a pattern in quotes, or one recording. Name several if you like. The table has a
    row for each recording and segment: probability and answer for each finding, the rhythm, measured values, ways in
    which the recording is unlike the training data, and answers that contradict a measured value. Columns:
    docs/your-hospital.md. Research use only: not a medical device.
    """
    chosen = FindingsOptions(**options)
    result = findings(work, paths, chosen)
    if chosen.out:
        print_written(result, "read")
    print_skipped(result)
    return result | (_show_scores(result, chosen) if chosen.truth else {})


def _show_scores(result: dict, options: FindingsOptions) -> dict:
    """Print the scores, and the calibration if there is one; return the scores for `--json`."""
    scores = result["scores"]
    table(
        finding_report.score_lines(scores),
        finding_report.HEADER,
        title="Scores; sens to NPV without unsure answers",
    )
    print_result(finding_report.mean_line(scores))
    if few := finding_report.few_line(scores):
        print_result(few)
    if options.calibrate:
        print_result()
        site = result["site"]
        table(
            finding_report.site_lines(site["findings"]),
            finding_report.SITE_HEADER,
            title=str(options.calibrate),
        )
        for line in finding_report.promise_lines(site, site["findings"]):
            print_result(line)
    return finding_report.score_keys(scores)


def findings(work: WorkDir, paths: Sequence[str], options: FindingsOptions) -> dict:
    """Write the table of findings.

    Parameters
    ----------
    work : WorkDir
    paths : sequence of str
        Folders, patterns or recordings.
    options : FindingsOptions

    Returns
    -------
    dict
        `records`, `skipped`, `skipped_reasons` (reason to count), `seconds` and `out`; without `out` also `rows`;
        with `truth` also `scores`, from `score_findings`; with `calibrate` also `site`, from `calibrate_site`;
        `done_before` if an earlier run wrote the table.

    Raises
    ------
    Failure
        If there is no model, it does not know a question, no recording can be used, or `out` exists.
    """
    started = time.perf_counter()
    _check(options)
    session = Session.open(
        *(options.model, work, options.base, options.device),
        fs=options.input_fs,
        lead_names=options.lead_names,
        units=options.units,
        site=options.site,
    )
    session.check_base()
    found, skipped = readers.find(paths)
    table_work, questions, calibrated_on = _work(session, found, options)
    result: dict[str, Any]
    if options.out is None:
        check_few(found)
        rows, records = few_rows(found, skipped, table_work)
        _show(rows, questions, None if options.site else calibrated_on)
        result = report_skipped(skipped, records, None) | {"rows": rows}
    else:
        result = _write(options.out, found, skipped, table_work, columns_of(questions), options)
    if options.out and options.truth:
        labelled = join_truth(read_finding_table(options.out), options.truth)
        result["scores"] = score_findings(labelled)
        finding_report.write_scores(options.out, labelled, result["scores"])
        if options.calibrate:
            points, details, settings = calibrate_site(labelled, options.max_error)
            identity = model_identity(session.folder)
            write_site(options.calibrate, identity["model"], points, details, settings | identity)
            result["site"] = settings | {"findings": details}
    out = None if options.out is None else str(options.out)
    return result | {"seconds": time.perf_counter() - started, "out": out}


def _check(options: FindingsOptions) -> None:
    """Reject conflicting options."""
    if options.embeddings and (not options.out or options.embeddings.suffix.lower() != ".npy"):
        raise click.UsageError("--embeddings FILE.npy needs --out, because its rows match those of the table")
    if options.calibrate and (options.site or not options.truth):
        raise click.UsageError(
            "--calibrate needs --truth and excludes --site: it starts from the model's own probabilities"
        )
    if options.truth and not options.out:
        raise click.UsageError("--truth needs --out: the scores are written next to the table")


def _write(
    out: Path,
    found: Sequence[str],
    skipped: list[tuple[str, str]],
    table_work: TableWork,
    columns: dict[str, type],
    options: FindingsOptions,
) -> dict[str, Any]:
    """Write the table, unless it exists; return `records`, `skipped` and `skipped_reasons`."""
    settings, embeddings = table_settings(found, table_work), options.embeddings
    done = finished_table(out, settings, options.overwrite, found)
    if done and (embeddings is None or embeddings.exists()):
        return done
    if embeddings and embeddings.exists() and not options.overwrite:
        raise Failure(f"{embeddings} exists: add --overwrite, or name another file")

    def more(joined: JoinedRows) -> None:
        if embeddings:
            write_embeddings(embeddings, joined)
        write_finished(out, settings, joined)

    records = write_rows(out, found, skipped, table_work, lambda _: columns, options.overwrite, more)
    return report_skipped(skipped, records, out)


def _work(
    session: Session, found: Sequence[str], options: FindingsOptions
) -> tuple[TableWork, list[TrainedQuestion], str | None]:
    """Return the row maker, the questions, and a description of the calibration data."""
    folder, name = session.folder, session.about["folder"]
    certainty = read_certainty(folder, session.tokenizer.vocab_size)
    if certainty is None:
        raise Failure(
            f"{name} was written by an older version without calibrated answers: train the model again"
        )
    questions = choose_questions(certainty, options.questions, name)
    base = None if options.base is None else os.fspath(options.base)
    reader = session.reader
    identity = model_identity(folder)
    asked = identity | {
        "model": os.fspath(folder),
        "base": base,
        "device": options.device,
        "sha256": identity["model"],
        "reading": {"fs": reader.fs, "lead_names": reader.lead_names, "units": reader.units},
        "questions": [list(one) for one in questions],
        "points": {
            one.name: list(session.site.get(one.name) or operating_point(certainty, one.text))
            for one in questions
            if one.verify
        },
        # one key per patient in all rows, meaningless without the files
        "salt": readers.fingerprint(list(found)),
        "embeddings": options.embeddings is not None,
    }
    files = folder_checks.files_needed(folder, base) if options.dask else []
    rows_of, jobs = _processes(session, options)
    table_work = TableWork("findings", rows_of, asked, jobs, options.dask, PRELOAD, files)
    return table_work, questions, certainty.calibrated_on


def _processes(session: Session, options: FindingsOptions) -> tuple[Callable[..., Any], int]:
    """Return the row maker and the number of processes: one process with reading threads on a GPU."""
    processors = os.cpu_count() or 1
    if not options.dask and devices.on_gpu(options.device):
        return partial(finding_rows, ahead=options.jobs or processors), 1
    small = session.about["base"] in folder_checks.BUILT
    return finding_rows, options.jobs or (processors if small else 1)


def _show(rows: Sequence[Row], questions: Sequence[TrainedQuestion], calibrated_on: str | None) -> None:
    """Print one line per question for a single segment, or one line per segment for several."""

    def text(row: Row, name: str) -> str:
        return "–" if row[name] is None else f"{row[name]:.0f}"

    if len(rows) == 1:
        (row,) = rows
        lines: list[tuple] = [(one.words, row[one.name], f"{row[f'p_{one.name}']:.3f}") for one in questions]
        table(lines, ("question", "answer", "probability"), title=str(row["record"]))
        print_result("measured: " + ", ".join(f"{label} {text(row, name)}" for name, label in SHOWN.items()))
    elif rows:
        verify, others = ([one for one in questions if one.verify is said] for said in (True, False))
        said = [YES, *([UNSURE] if any(row[one.name] == UNSURE for row in rows for one in verify) else [])]
        lines = [
            (
                *(row["record"], f"{row['start']:g}", *(row[one.name] for one in others)),
                *(", ".join(one.name for one in verify if row[one.name] == answer) for answer in said),
                *(text(row, name) for name in SHOWN),
            )
            for row in rows
        ]
        table(lines, ("record", "start", *(one.name for one in others), *said, *SHOWN.values()))
    for row in rows:
        for remark in ("unlike", "conflicts"):
            if row[remark]:
                print_result(
                    f"{printable(str(row['record']))} at {row['start']:g} s, {remark}: {row[remark]}"
                )
    if calibrated_on:
        print_result(f"Probabilities are calibrated on {calibrated_on}.")
    print_result("Rate in beats per minute, intervals in ms. Research use only: not a medical device.")
