"""ecgbyte questions: questions and answers from what a data set says about its recordings.

Each kind of source has its file in questions/; what is asked, and how it is balanced, is in questions/asking.py,
and the wordings are in questions/wording.py.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import note, print_result, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import question_segments
from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.questions.labels import YES, derive_labels
from ecgbyte_cli.questions.question_builder import build_questions, verifiable
from ecgbyte_cli.questions.sources import read_source
from ecgbyte_cli.readers.patients import SIDES
from ecgbyte_cli.storage.files import atomic_write


@click.command(
    cls=Stage,
    short_help="Make questions and answers from what a data set says.",
    epilog="Example: ecgbyte questions data/ --out questions.jsonl",
)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("qa.jsonl"),
    show_default=True,
    help="The question file to write.",
)
@click.option(
    "--cap",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    help="How often a thing is asked about with the same answer, at most, on each side of the split.",
)
@click.option(
    "--every-finding",
    is_flag=True,
    help="Ask about each of the findings of examples/findings.csv for every record, balanced or not.",
)
@click.option(
    "--cannot",
    type=click.FloatRange(0, 0.9),
    default=0.02,
    show_default=True,
    help="The share of questions that no ECG can answer.",
)
@click.option(
    "--think",
    is_flag=True,
    help="Add the reasoning that leads to each answer, from what is measured and seen.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=1, show_default=True, help="Another seed, other questions."
)
@click.option("--overwrite", is_flag=True, help="Replace other questions in the file.")
@click.pass_obj
def command(_work, source, **options):
    """Make questions and answers from what the data set SOURCE says about its recordings.

    SOURCE is PTB-XL's folder or its ptbxl_database.csv; a folder of WFDB headers with SNOMED CT codes in their
    comments, as in the PhysioNet Challenges, or of `ecgbyte synth`; CODE-15's exams.csv; or any CSV table with the
    column `record` and columns of yes and no. Yes and no are equally often right, on each side of the split. No
    question is asked about what the source neither states nor denies.
    """
    result = questions(source, **options)
    by_type, by_split = result["by_type"], result["by_split"]
    rows = [(kind, *result["counts"][kind].values(), number) for kind, number in by_type.items()]
    rows.append(("all", *by_split.values(), result["questions"]))
    table(rows, ("type", *SIDES, "all"))
    print_result()
    table(
        [(name, *counts.values()) for name, counts in result["by_finding"].items()], ("finding", "yes", "no")
    )
    print_result(f"{result['questions']} questions about {result['records']} records in {result['path']}")
    return result


def questions(
    source, *, out="qa.jsonl", cap=500, every_finding=False, cannot=0.02, think=False, seed=1, overwrite=False
):
    """Write questions and answers about the recordings of a data set.

    Parameters
    ----------
    source : path
        See the command.
    out : path
        The question file, JSON Lines in ecgbyte's own form.
    cap, every_finding, cannot, think, seed
        See `ecgbyte_cli.questions.question_builder.build_questions`.
    overwrite : bool
        Replace a file that holds anything else.

    Returns
    -------
    dict
        `records` (of the data set), `questions`, `by_type` and `by_split` (their numbers), `counts` (type to split
        to number), `by_finding` (finding to the numbers of `yes` and `no`: the eighteen that models are compared by
        first, then the others but noise), `path` and `seconds`.

    Raises
    ------
    Failure
        If the source is none of the kinds or cannot be read, or `out` cannot be written or holds something else.
    """
    start = time.perf_counter()
    out = Path(out)
    known = read_source(Path(source))
    lines = build_questions(known, seed, cap, every_finding, cannot, think)
    if not lines:
        raise Failure(
            f"{source} says nothing that a question could be made of: each side needs a yes and a no"
        )
    for line in _remarks(known):
        note(line)
    _write(out, lines, overwrite)
    counts = _counted(lines, "type", "split", SIDES)
    return {
        "records": len(known.facts),
        "questions": len(lines),
        "by_type": {kind: sum(numbers.values()) for kind, numbers in counts.items()},
        "by_split": {side: sum(numbers[side] for numbers in counts.values()) for side in SIDES},
        "counts": counts,
        "by_finding": _by_finding(lines),
        "path": str(out),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _remarks(source):
    """Yield lines about labels that contradict each other, and about the split."""
    labels = derive_labels(source.facts)
    for (stated, denied), count in labels.contradictions.most_common(5):
        yield f"{count} recordings have {stated} and no {denied}: taken as unknown"
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


def _write(out, lines, overwrite):
    """Write the lines, unless they stand there already; something else is only replaced if that was asked for."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    if out.is_dir():
        raise Failure(f"{out} is a folder: --out names a file")
    if out.exists() and not overwrite:
        if os.path.getsize(out) == len(text) and out.read_bytes() == text:
            note(f"{out}: these questions stand there already")
            return
        raise Failure(f"{out} holds something else: add --overwrite, or name another file with --out")
    with atomic_write(out) as beside:
        beside.write_bytes(text)


def _counted(lines, key, other, columns_):
    """How many lines have each value of `key`, by their value of `other`, the columns."""
    counts = Counter((line[key], line[other]) for line in lines)
    values = sorted({value for value, _ in counts})
    return {value: {column: counts[value, column] for column in columns_} for value in values}


def _by_finding(lines):
    asked = [line for line in lines if line["type"] == "finding-verify"]
    counts = _counted(asked, "finding", "answer", ("yes", "no"))
    return {name: counts[name] for name in [*FINDINGS, *sorted(counts.keys() - FINDINGS)] if name in counts}
