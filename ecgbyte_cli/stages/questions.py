"""ecgbyte questions: build questions and answers from the labels of a data set.

Each kind of source has a module in questions/sources/. questions/question_builder.py selects and balances the
questions, and questions/phrasings.py words them.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import counted, note, print_result, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import question_segments
from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.questions.labels import YES, derive_labels
from ecgbyte_cli.questions.question_builder import build_questions, verifiable
from ecgbyte_cli.questions.sources import read_source
from ecgbyte_cli.questions.sources.base import Source
from ecgbyte_cli.readers.patients import SIDES
from ecgbyte_cli.storage.files import atomic_write


@dataclass(frozen=True)
class QuestionsOptions:
    """Options of `ecgbyte questions`. See `ecgbyte_cli.questions.question_builder.build_questions`."""

    out: Path = Path("qa.jsonl")  # output file
    cap: int = 500  # most questions about a finding with the same answer, on each side of the split
    every_finding: bool = False  # ask about each finding of examples/findings.csv for every record
    cannot: float = 0.02  # share of questions that no ECG can answer
    think: bool = False  # add the reasoning before each answer
    seed: int = 1  # random seed of the questions
    overwrite: bool = False  # replace other content of the file


@click.command(
    cls=Stage,
    short_help="Build questions and answers from a data set's labels.",
    epilog="Example: ecgbyte questions data/ --out questions.jsonl",
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=QuestionsOptions.out,
    show_default=True,
    help="Output file.",
)
@click.option(
    "--cap",
    type=click.IntRange(1),
    default=QuestionsOptions.cap,
    show_default=True,
    help="Most questions about a finding with the same answer, on each side of the split.",
)
@click.option(
    "--every-finding",
    is_flag=True,
    help="Ask about each finding in examples/findings.csv for every record, without balancing.",
)
@click.option(
    "--cannot",
    type=click.FloatRange(0, 0.9),
    default=QuestionsOptions.cannot,
    show_default=True,
    help="Share of questions that no ECG can answer.",
)
@click.option(
    "--think",
    is_flag=True,
    help="Add the reasoning before each answer, from measurements and labels.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=QuestionsOptions.seed,
    show_default=True,
    help="Random seed of the questions.",
)
@click.option("--overwrite", is_flag=True, help="Replace a file with other content.")
def command(source: Path, **options: Any) -> dict:
    """Build questions and answers from the labels of the data set SOURCE.

    SOURCE is PTB-XL's folder or its ptbxl_database.csv; a folder of WFDB headers with SNOMED CT codes in the
    comments, as in the PhysioNet Challenges, or written by `ecgbyte synth`; CODE-15's exams.csv; or any CSV table with
    a column `record` and yes/no columns. Yes and no are equally frequent in each split. Uncertain and missing labels
    are skipped.
    """
    result = questions(source, QuestionsOptions(**options))
    by_type, by_split = result["by_type"], result["by_split"]
    rows = [(kind, *result["counts"][kind].values(), number) for kind, number in by_type.items()]
    rows.append(("all", *by_split.values(), result["questions"]))
    table(rows, ("type", *SIDES, "all"))
    print_result()
    table(
        [(name, *counts.values()) for name, counts in result["by_finding"].items()], ("finding", "yes", "no")
    )
    print_result(
        f"{counted(result['questions'], 'question')} about {counted(result['records'], 'record')} in {result['path']}"
    )
    return result


def questions(source: Path, options: QuestionsOptions) -> dict:
    """Write questions and answers about the recordings of a data set.

    Parameters
    ----------
    source : path
        See the command.
    options : QuestionsOptions

    Returns
    -------
    dict
        `records` (in the data set), `questions`, `by_type` and `by_split` (their numbers), `counts` (type to split
        to count), `by_finding` (finding to the counts of `yes` and `no`: first the eighteen of
        examples/findings.csv, then the others except noise), `path` and `seconds`.

    Raises
    ------
    Failure
        If the source is of an unknown kind or cannot be read, or `out` cannot be written or has other content.
    """
    start = time.perf_counter()
    out, labelled = Path(options.out), read_source(Path(source))
    lines = build_questions(
        labelled, options.seed, options.cap, options.every_finding, options.cannot, options.think
    )
    if not lines:
        raise Failure(f"{source} has no usable labels: training and test split both need a yes and a no")
    for line in _remarks(labelled):
        note(line)
    _write(out, lines, options.overwrite)
    counts = _count(lines, "type", "split", SIDES)
    return {
        "records": len(labelled.facts),
        "questions": len(lines),
        "by_type": {kind: sum(numbers.values()) for kind, numbers in counts.items()},
        "by_split": {side: sum(numbers[side] for numbers in counts.values()) for side in SIDES},
        "counts": counts,
        "by_finding": _by_finding(lines),
        "path": str(out),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _remarks(source: Source) -> Iterator[str]:
    """Yield messages about contradictory labels and about the split."""
    labels = derive_labels(source.facts)
    for (stated, denied), count in labels.contradictions.most_common(5):
        yield f"{count} recordings have {stated} and no {denied}: treated as unknown"
    sides: dict[str, set[str]] = {}
    for each in source.facts:
        sides.setdefault(each.patient, set()).add(each.split)
    if line := readers.on_two_sides(sides):
        yield line
    test = np.array([each.split == "test" for each in source.facts])
    yield from question_segments.without_positives(
        {
            words: {"test"} if (column[test] == YES).any() else {"train"}
            for _, words, kind, column in verifiable(labels, source.words)
            if kind == "finding-verify" and (column == YES).any()
        }
    )


def _write(out: Path, lines: Sequence[dict[str, Any]], overwrite: bool) -> None:
    """Write the lines, unless the file already holds them. Replace other content only if `overwrite`."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    if out.is_dir():
        raise Failure(f"{out} is a folder: --out must name a file")
    if out.exists() and not overwrite:
        if os.path.getsize(out) == len(text) and out.read_bytes() == text:
            note(f"{out} already holds these questions")
            return
        raise Failure(f"{out} has other content: add --overwrite, or name another file with --out")
    with atomic_write(out) as beside:
        beside.write_bytes(text)


def _count(
    lines: Sequence[dict[str, Any]], key: str, other: str, columns: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Count the lines: value of `key` to value of `other`, one of `columns`, to count."""
    counts = Counter((line[key], line[other]) for line in lines)
    values = sorted({value for value, _ in counts})
    return {value: {column: counts[value, column] for column in columns} for value in values}


def _by_finding(lines: Sequence[dict[str, Any]]) -> dict[str, dict[str, int]]:
    asked = [line for line in lines if line["type"] == "finding-verify"]
    counts = _count(asked, "finding", "answer", ("yes", "no"))
    return {name: counts[name] for name in [*FINDINGS, *sorted(counts.keys() - FINDINGS)] if name in counts}
