"""ecgbyte score: score any model's answers, and compare them with its answers to twins."""

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import note, print_result, table
from ecgbyte_cli.evaluation import report
from ecgbyte_cli.evaluation.answer_files import BENCHMARK, AnswerFile, read_answers
from ecgbyte_cli.evaluation.answer_matching import match_answers
from ecgbyte_cli.evaluation.answer_scores import score_answers
from ecgbyte_cli.evaluation.reasoning_benchmark import score_samples
from ecgbyte_cli.evaluation.twins import CONTROLS, SIGNAL
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.question_file import read_questions

NAMED = re.compile(r"([A-Za-z][\w -]*)=(.+)", re.DOTALL)


@click.command(
    cls=Stage,
    short_help="Score the answers of any model.",
    epilog="Example: ecgbyte score answers.jsonl --qa controls/questions-wfdb.jsonl",
)
@click.argument("answers", nargs=-1, required=True, metavar="ANSWERS...")
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    required=True,
    help="The question file that was answered, from `ecgbyte controls` or elsewhere.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Random seed of the bootstrap."
)
def command(answers: tuple[str, ...], qa: Path, seed: int) -> dict:
    """Score the answers of any model like `ecgbyte generate`, with the gain over each control.

    ANSWERS is a file with record, question and answer, and optionally control and probability (JSON Lines or CSV), or
    results of PULSE, ELM, ECG-QA or ECG-Reasoning-Benchmark. Write CONTROL=ANSWERS, such as noise=results/, for
    answers to one control in a file that does not name it. 95 % intervals are from a bootstrap over patients.
    """
    result = score(answers, qa, seed)
    if "completion_hard" in result:
        _show_benchmark(result)
    else:
        _show(result)
    return result


def score(answers: Sequence[str], qa: Path, seed: int = 0) -> dict[str, Any]:
    """Score files of answers; the parameters are the options of the command.

    Returns
    -------
    dict
        The result of `score_answers` or of `score_samples`, `forms` (file formats) and `seconds`.

    Raises
    ------
    Failure
        If a file cannot be read, or the answers do not match the questions.
    """
    started = time.perf_counter()
    files: list[tuple[str, AnswerFile]] = []
    for text in answers:
        match = None if os.path.exists(text) else NAMED.fullmatch(text)
        control, path = (match[1], Path(match[2])) if match else ("", Path(text))
        if control and control not in CONTROLS:
            note(f"{control} is not a twin from `ecgbyte controls`: its answers count as a control")
        files.append((control, read_answers(path)))
    forms = sorted({file.form for _, file in files})
    if BENCHMARK in forms:
        if len(forms) > 1:
            raise Failure(f"samples of {BENCHMARK} are scored separately, without other answers")
        result = _score_benchmark(files, qa, seed)
    else:
        matched = match_answers(read_questions(qa), [(control, file.answers) for control, file in files])
        if matched.unknown:
            count, first = len(matched.unknown), matched.unknown[0]
            note(f"{count} answers match no question in {qa}: ignored (the first: {first})")
        result = score_answers(matched, seed)
        for name, text in (
            ("unanswered", "questions have no answer"),
            ("incomplete", "questions are not answered for every control"),
        ):
            if result[name]:
                note(f"{result[name]} {text}: ignored")
        if result["unclear"]:
            note(
                f"{result['unclear']} answers to yes/no questions begin with neither yes nor no: counted as wrong"
            )
    return result | {"forms": forms, "seconds": time.perf_counter() - started}


def _score_benchmark(files: Sequence[tuple[str, AnswerFile]], qa: Path, seed: int) -> dict[str, Any]:
    """Score samples of ECG-Reasoning-Benchmark."""
    benchmark = read_answers(qa)
    if benchmark.form != BENCHMARK:
        raise Failure(f"{qa} has no samples of {BENCHMARK}: name its data file, such as data/ptbxl.jsonl")
    samples: dict[str, list[dict[str, Any]]] = {}
    for control, file in files:
        samples.setdefault(control or SIGNAL, []).extend(file.samples)
    if SIGNAL not in samples:
        raise Failure("no responses are about the recordings themselves: name a folder without CONTROL=")
    return score_samples(samples, benchmark.samples, seed)


def _show(result: dict[str, Any]) -> None:
    """Print the scores of answers."""
    header, lines = report.score_rows(result)
    table(lines, header, title=f"Exact match in %, {result['questions']} questions")
    print_result(report.headline(result))
    shown = [
        (
            f"gain over {name}",
            f"{of['difference']:+.1f}",
            "{:+.1f} to {:+.1f}".format(*of["interval"]),
            f"{of['auroc']:+.3f}" if "auroc" in of else "",
            "{:+.3f} to {:+.3f}".format(*of["auroc_interval"]) if "auroc" in of else "",
        )
        for name, of in result["gain"].items()
    ]
    table(shown, ("", "points", "95 %", "AUROC", "95 %"))
    print_result(
        f"{report.text_score_line(result)}, F1 of words as ELM counts it {result['token_f1_elm']:.1f}"
    )
    for line in report.reliability_lines(result):
        print_result(line)
    if len(result["control"]) == 1:
        print_result("There are no answers about twins. `ecgbyte controls` writes twins and their questions.")


def _show_benchmark(result: dict[str, Any]) -> None:
    """Print completion and depth."""
    release = result["release"]
    title = f"{BENCHMARK}, release {release} judging by its questions, {result['questions']} samples"
    rows = [(SIGNAL, result), *result["control"].items()]
    table(
        [
            (
                name,
                *(f"{of[key]:.1f}" for key in ("completion_hard", "completion_soft")),
                f"{of['depth']:.2f}" if "depth" in of else "",
                *(f"{of[key]:.1f}" for key in ("initial_accuracy", "diagnosis_accuracy")),
            )
            for name, of in rows
        ],
        ("", "completion %", "soft %", "depth", "first diagnosis %", "last %"),
        title=title,
    )
    for name, of in result["gain"].items():
        texts = [
            "{} {:+.2f} ({:+.2f} to {:+.2f})".format(
                key.replace("_", " "), one["difference"], *one["interval"]
            )
            for key, one in of.items()
        ]
        print_result(f"gain over {name}: {', '.join(texts)}")
    if result["renewed"]:
        print_result(
            f"{result['renewed']} samples have diagnoses that release 0.0.2 generated again: compare them within one "
            "release only"
        )
    if result["unanswered"]:
        note(f"{result['unanswered']} samples have no response, or not for every control: ignored")
