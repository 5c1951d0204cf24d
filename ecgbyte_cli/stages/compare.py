"""ecgbyte compare: paired differences between two tables of findings, or two files of answers."""

from pathlib import Path
from typing import Any

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import TableFile, replace_option
from ecgbyte_cli.cli.output import counted, print_result, table
from ecgbyte_cli.evaluation.comparison import TOO_FEW, Difference, compare_files
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.row_table import row_writer

COLUMNS: dict[str, type] = {
    **{"name": str, "measure": str, "a": float, "b": float, "difference": float, "low": float, "high": float},
    **{"patients": int, "verdict": str},
}


@click.command(
    cls=Stage,
    short_help="Compare two findings tables or two answer files.",
    epilog="Example: ecgbyte compare before.csv after.csv --truth labels.csv",
)
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    metavar="LABELS.csv",
    help="True labels of the recordings, as for `ecgbyte findings`.",
)
@click.option("--out", type=TableFile(), help="Also write the differences: .csv, .parquet or .jsonl.")
@replace_option
@click.pass_obj
def command(work: Any, a: Path, b: Path, truth: Path | None, out: Path | None, overwrite: bool) -> dict:
    """Compare two models, or two training runs of one model, on the same recordings.

    A and B are tables from `ecgbyte findings`, or answers.jsonl files from `ecgbyte generate`. Each difference has a
    95 % interval from a bootstrap over patients. If it contains zero, there are too few recordings to decide.
    """
    result = compare(a, b, truth, out, overwrite)
    differences = result.pop("differences")
    lines = [
        (
            *(one.name, one.measure, f"{one.a:.3f}", f"{one.b:.3f}", f"{one.difference:+.3f}"),
            *(f"{one.low:+.3f} to {one.high:+.3f}", one.verdict),
        )
        for one in differences
    ]
    table(lines, ("", "measure", "A", "B", "B - A", "95 %", ""))
    print_result(f"{counted(result['pairs'], 'pair')}. {_summary(differences)}")
    return result | {"differences": [one._asdict() | {"verdict": one.verdict} for one in differences]}


def compare(
    a: Path, b: Path, truth: Path | None = None, out: Path | None = None, overwrite: bool = False
) -> dict[str, Any]:
    """Compare two files; the parameters are the options of the command.

    Returns
    -------
    dict
        `pairs`, `differences` (list of `Difference`) and `out`.

    Raises
    ------
    Failure
        If they cannot be compared, or `out` exists.
    """
    if out and out.exists() and not overwrite:
        raise Failure(f"{out} exists: add --overwrite, or name another file with --out")
    pairs, differences = compare_files(a, b, truth)
    if out:
        with row_writer(out, COLUMNS) as write:
            write([one._asdict() | {"verdict": one.verdict} for one in differences])
    return {"pairs": pairs, "differences": differences, "out": None if out is None else str(out)}


def _summary(differences: list[Difference]) -> str:
    """Summarise the differences in a sentence."""
    clear = [one for one in differences if one.verdict not in (TOO_FEW, "the same")]
    if not clear:
        same = all(one.verdict == "the same" for one in differences)
        return (
            "The two are the same."
            if same
            else "No difference is clear: there are too few recordings to tell."
        )
    return f"{len(clear)} of {len(differences)} differences are clear; one in twenty is expected by chance."
