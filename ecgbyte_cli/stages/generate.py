"""ecgbyte generate: answer many questions, and score the answers."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import (
    dask_option,
    loading_options,
    max_new_option,
    seeds_option,
    site_option,
    types_option,
    work_model_option,
)
from ecgbyte_cli.cli.output import note, print_result, table
from ecgbyte_cli.evaluation import metrics, reliability, report
from ecgbyte_cli.evaluation.answered_findings import score_answered_findings
from ecgbyte_cli.evaluation.finding_report import HEADER, score_lines
from ecgbyte_cli.evaluation.text_scores import text_scores
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.batch_answering import Answer
from ecgbyte_cli.inference.measured_remarks import measured_remarks
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.inference.split_answering import Joined, answer_split, check_tokens, without_declined
from ecgbyte_cli.inference.witness import witness_among
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.model_names import model_identity
from ecgbyte_cli.questions import question_file, question_segments
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.questions.reasoning import ReasonedAnswer, split_reasoning
from ecgbyte_cli.signal.origin import patients_learned_from
from ecgbyte_cli.storage.files import atomic_write, read_json, read_table, sha256_of, write_json
from ecgbyte_cli.storage.manifest import completed_result, refuse_foreign_folder
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.sampling import recording_runs


@dataclass(frozen=True)
class GenerateOptions:
    """Options of `ecgbyte generate`.

    Attributes
    ----------
    qa : Path or None
        Question file, or a folder of them; None means the one that the model was trained on.
    model, base : Path or None
        Model folder, and where its base model is now, if it has moved.
    device : str or None
        See `devices.choose_device`.
    site : Path or None
        Site file, from `ecgbyte findings --calibrate`.
    split : str
        train, val, test or all.
    types : tuple of str
        Types of questions; empty: all.
    limit : int or None
        Largest number of questions, drawn at random.
    batch : int
        Number of questions answered together.
    max_new : int or None
        Longest answer, in tokens.
    temperature : float
        Sampling temperature; 0 decodes greedily.
    controls : bool
        Whether to ask the same questions without the signal too.
    segments : {"first", "all"}
    bertscore : str or None
        Model for BERTScore.
    seed : int
        Seed of `limit`, the controls, and sampled answers.
    dask : str or None
        Address of a cluster.
    out : Path or None
        Output folder; None means answers/ in the work folder.
    overwrite : bool
    """

    qa: Path | None = None
    model: Path | str | None = None
    base: Path | None = None
    device: str | None = None
    site: Path | None = None
    split: str = "test"
    types: tuple[str, ...] = ()
    limit: int | None = None
    batch: int = 64
    max_new: int | None = None
    temperature: float = 0.0
    controls: bool = True
    segments: str = "first"
    bertscore: str | None = None
    seed: int = 0
    dask: str | None = None
    out: Path | None = None
    overwrite: bool = False


@click.command(
    cls=Stage,
    groups={
        "Data": ("qa", "split", "types", "limit", "segments"),
        "Model": ("model", "base", "device", "site", "max_new", "temperature", "seeds"),
        "Evaluation": ("controls", "bertscore"),
    },
    short_help="Answer many questions, and score the answers.",
    epilog="Example: ecgbyte generate --split test --limit 8",
)
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    help="Question file, or a folder of them.  [default: the one the model was trained on]",
)
@work_model_option
@loading_options
@site_option
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "all"]),
    default=GenerateOptions.split,
    show_default=True,
    help="Split of the questions.",
)
@types_option
@click.option("--limit", type=click.IntRange(1), help="Answer only this many questions, drawn at random.")
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=GenerateOptions.batch,
    show_default=True,
    help="Number of questions answered together.",
)
@max_new_option
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=GenerateOptions.temperature,
    show_default=True,
    help="Sampling temperature. 0 decodes greedily.",
)
@click.option(
    "--controls/--no-controls",
    default=GenerateOptions.controls,
    show_default=True,
    help="Ask the same questions without the signal too, as controls.",
)
@click.option(
    "--segments",
    type=click.Choice(["first", "all"]),
    default=GenerateOptions.segments,
    show_default=True,
    help="Answer about the first segment of a longer recording, or about all segments: the answer with the largest "
    "total probability.",
)
@click.option("--bertscore", metavar="MODEL", help="Add BERTScore, by this model (hub id or folder).")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=GenerateOptions.seed,
    show_default=True,
    help="Random seed of --limit, the controls and sampled answers.",
)
@seeds_option
@dask_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="answers/ in the work folder",
    help="Folder for the answers and scores.",
)
@click.option("--overwrite", is_flag=True, help="Replace answers made with other settings.")
@click.pass_obj
def command(work: WorkDir, seeds: int, **options: Any) -> dict:
    """Answer the questions of a split, and compare the scores with controls.

    The controls ask the same questions with no signal, with another patient's signal, with a flat line, and with
    noise of the same spectrum. The last control is the most frequent answer in training, by question type or
    wording, whichever is better. A model that reads the ECG does much worse in all of them: what counts is the
    gain over the best control. 95 % intervals are from a bootstrap over patients.
    """
    chosen = GenerateOptions(**options)
    if seeds > 1 and chosen.model:
        raise click.UsageError("--seeds asks the models of `ecgbyte finetune --seeds`: remove --model")
    if seeds > 1 and chosen.out:
        raise click.UsageError("--seeds writes the answers of each model next to the model: remove --out")
    others = [work.of_seed(number) for number in range(1, seeds)]
    if others:
        check_seeds([work, *others])
    result = generate(work, chosen)
    header, lines = report.score_rows(result)
    table(lines, header, title=score_title(result))
    print_result(report.headline(result))
    if "form_kept" in result:
        print_result(
            f"reasoning, then answer: {100 * result['form_kept']:.1f} % of the answers have this form"
        )
    print_result(report.text_score_line(result))
    if result.get("findings"):
        table(score_lines(result), HEADER, title="Yes/no answers, by finding")
    for line in report.reliability_lines(result):
        print_result(line)
    if seeds > 1:
        every = [result, *(generate(of, chosen) for of in others)]
        result = result | {"seeds": metrics.summarize_seeds(every)}
        rows, names = report.seed_table(result["seeds"])
        table(rows, names, title=f"Exact match in %, {seeds} training runs")
        write_json(work.metrics, read_json(work.metrics) | {"result": result}, indent=1)
    return result


def check_seeds(works: list[WorkDir]) -> None:
    """Check that the models of several work folders differ only in their seed."""
    paths = [work.need(work.model_settings, f"finetune --seeds {len(works)}") for work in works]
    settings = [read_json(path)["settings"] | {"seed": None} for path in paths]
    if any(one != settings[0] for one in settings):
        raise Failure(
            f"models of {works[0].root} differ in more than their seed: run `ecgbyte finetune --seeds {len(works)}`"
        )


def score_title(result: dict) -> str:
    """Return the title of the table of scores."""
    return f"Exact match in %, {result['questions']} questions of split {result['split']}"


def generate(work: WorkDir, options: GenerateOptions) -> dict:
    """Answer the questions of a split with and without the signal. The answers do not depend on `batch`.

    Parameters
    ----------
    work : WorkDir
    options : GenerateOptions

    Returns
    -------
    dict
        The results of `metrics.score` and `metrics.text_scores`, split, majority_by (`type` or `question`),
        seen_in_training (number of questions of the split that are in training too) and seconds.

    Raises
    ------
    Failure
        If model, tokens or questions are missing or do not fit together, or the model fails on a question. Answers
        so far are saved, and the next run resumes.
    """
    start = time.perf_counter()
    work = work if options.out is None else answering_in(work, options.out)
    if not work.symbol_settings.exists():
        name = options.model or (work.model if work.model.exists() else folder_checks.SHIPPED.name)
        work.need(work.token_settings, f"symbolize DATA --like {name} encode")
    with work.checked("tokens", "model"), work.making("answers"):
        session = Session.open(options.model, work, options.base, options.device, site=options.site)
        encoded, qa = check_tokens(work, session), need_questions(session, options.qa)
        settings = settings_of(session, options, encoded, qa)
        another = "name another folder with --out"
        if done := completed_result(work.metrics, settings, options.overwrite, "answers", another):
            return done
        questions = question_file.filter_types(question_file.read_questions(qa), options.types)
        segments, seed = read_table(work.symbol_segments), options.seed
        chosen, joined = choose(questions, segments, options.split, options.limit, seed)
        for line in question_segments.split_leaks(joined, patients_learned_from(work), qa):
            note(line)
        count, chosen = len(chosen), without_declined(session, chosen)
        given = answer_split(work, session, chosen, settings, options.batch, options.dask)
        answers: dict[str, Any] = {name: [one.answer for one in some] for name, some in given.items()}
        thoughts: list[ReasonedAnswer] | None = None
        result: dict[str, Any] = {}
        if tags := session.about.get("think"):
            answers, thoughts = split_thoughts(answers, tags)
            result["form_kept"] = sum(thought.kept for thought in thoughts) / len(thoughts)
        if options.controls:
            training = [question for question, *_, side in joined if side == "train"]
            asked = [question for question, *_ in chosen]
            answers["majority"], result["majority_by"] = metrics.baseline_guesses(training, asked)
        result |= score(chosen, answers, given["signal"], options)
        result |= {
            "split": options.split,
            "declined": count - len(chosen),
            "seen_in_training": question_segments.count_seen_in_training(joined),
        }
        result["seconds"] = time.perf_counter() - start
        write(work, chosen, answers, given, thoughts, settings, result)
        return result


def settings_of(session: Session, options: GenerateOptions, encoded: dict, qa: Any) -> dict:
    """Return the settings that determine the answers."""
    return {
        **model_identity(session.folder),
        "qa": question_file.questions_sha256(qa),
        "tokens": encoded["settings"],
        "split": options.split,
        "types": list(options.types) or None,
        "limit": options.limit,
        "max_new": folder_checks.answer_limit(session.about, options.max_new),
        "temperature": options.temperature,
        "controls": options.controls,
        "segments": options.segments,
        "bertscore": options.bertscore,
        "seed": options.seed,
        "site": options.site and sha256_of(options.site),
    }


def split_thoughts(
    answers: dict[str, list[str]], tags: list[str]
) -> tuple[dict[str, list[str]], list[ReasonedAnswer]]:
    """Return the answers without their reasoning, and the answers with the signal in both forms."""
    parts = {name: [split_reasoning(text, tags) for text in some] for name, some in answers.items()}
    return {name: [part.answer for part in some] for name, some in parts.items()}, parts["signal"]


def score(
    chosen: list[Joined], answers: dict[str, Any], given: list[Answer], options: GenerateOptions
) -> dict:
    """Score the answers and their probabilities."""
    asked, patients = [question for question, *_ in chosen], [patient for *_, patient, _ in chosen]
    scores = metrics.score(
        answers,
        [question.truth for question in asked],
        [question.type for question in asked],
        patients,
        options.seed,
        [question.attribute_type for question in asked],
    )
    # answers from a list are not texts to compare word by word
    texts = [i for i, answer in enumerate(given) if answer.weights is None]
    scores |= text_scores(
        [answers["signal"][i] for i in texts], [asked[i].answer for i in texts], options.bertscore
    )
    scores |= reliability.score_probabilities(asked, given, patients, options.seed)
    findings = score_answered_findings(asked, given, scores)
    by_finding = {
        key: {name: one[key] for name, one in findings.items()} for key in ("sensitivity", "specificity")
    }
    return scores | {"findings": findings} | (by_finding if findings else {})


def answering_in(work: WorkDir, folder: Path) -> WorkDir:
    """Return the work folder with another answers folder, which must hold nothing else."""
    work = work.answering_in(folder)
    if not work.partial_answers.exists():
        refuse_foreign_folder(folder, work.metrics, "answers")
    return work


def need_questions(session: Session, qa: Any) -> Any:
    """Return the question file: `qa`, else the one that the model was trained on, if it exists."""
    trained = session.about["qa"]
    if qa is None and isinstance(trained, str) and not Path(trained).exists():
        raise Failure(
            f"{trained}, the question file of the model's training, does not exist: name one with --qa; "
            "`ecgbyte questions DATA --out qa.jsonl` writes one"
        )
    return qa or trained


def write(
    work: WorkDir,
    chosen: list[Joined],
    answers: dict[str, Any],
    given: dict[str, list[Answer]],
    thoughts: list[ReasonedAnswer] | None,
    settings: dict,
    result: dict,
) -> None:
    """Write the answers, their scores as a table, and finally the settings and scores as JSON."""
    own, asked = given["signal"], [question for question, *_ in chosen]
    counts = recording_runs(read_table(work.symbol_segments))[1] if settings["segments"] == "all" else None
    alone = [counts is None or counts[question.segments[0]] == 1 for question in asked]
    remarks = measured_remarks(work, asked, answers["signal"], alone)
    with atomic_write(work.answers) as beside, open(beside, "w", encoding="utf-8") as file:
        for i, (question, _, patient, _) in enumerate(chosen):
            controls = {name: some[i] for name, some in answers.items() if name != "signal"}
            line = {
                "record": question.record if len(question.records) == 1 else list(question.records),
                "patient": patient,
                "question": question.question,
                "truth": question.answer,
                "answer": answers["signal"][i],
                "type": question.type,
                "template_id": question.template_id,
                "attribute_type": question.attribute_type,
                "topic": question.topic,
                "probability": round(own[i].probability, 6),
                "sure": own[i].sure,
                "runner_up": own[i].other
                and {"answer": own[i].other, "probability": rounded(own[i].other_probability)},
                "p_yes": rounded(own[i].yes),
                "seconds": round(own[i].seconds, 4),
                **remarks[i],
                **({"witness": seen.as_json()} if (seen := witness_among(given, i)) else {}),
                **({"reasoning": thoughts[i].reasoning, "form_kept": thoughts[i].kept} if thoughts else {}),
                "control": {
                    name: a if isinstance(a, str) else question_file.BETWEEN.join(a)
                    for name, a in controls.items()
                },
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    with atomic_write(work.metrics_table) as beside:
        more = "".join(f"- {line}\n" for line in report.reliability_lines(result))
        parts = [
            report.metrics_markdown(result, score_title(result)),
            report.markdown_table(HEADER, score_lines(result)) + "\n" if result["findings"] else "",
            more,
            report.confusion_tables(result),
        ]
        beside.write_text("\n".join(filter(None, parts)), encoding="utf-8")
    write_json(work.metrics, {"settings": settings, "result": result}, indent=1)
    work.partial_answers.unlink(missing_ok=True)


def rounded(probability: float | None) -> float | None:
    """Round a probability to 6 decimal places."""
    return None if probability is None else round(probability, 6)


def choose(
    questions: list[Question], segments: dict, split: str, limit: int | None, seed: int
) -> tuple[list[Joined], list[Joined]]:
    """Choose the questions of a split that are about an encoded segment.

    Returns
    -------
    (list of (Question, int, str, str), list of the same)
        At most `limit` questions with segment, patient and split, drawn at random; and the questions of all splits.

    Raises
    ------
    Failure
        If there is no such question.
    """
    joined, unmatched = question_segments.join_segments(questions, segments)
    if unmatched:
        note(question_segments.describe_unmatched(unmatched, len(questions)))
    chosen = [item for item in joined if split in (item[3], "all")]
    if not chosen:
        raise Failure(
            f"no question of split {split} is about an encoded record: try --split all or another --qa"
        )
    if limit and limit < len(chosen):
        keep = np.random.default_rng(seed).choice(len(chosen), limit, replace=False)
        chosen = [chosen[i] for i in sorted(keep)]
    return chosen, joined
