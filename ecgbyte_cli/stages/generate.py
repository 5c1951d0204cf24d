"""ecgbyte generate: answers for many questions, and their scores."""

import json
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli.console import Stage, note, progress, say, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.answering import Partial, Prompts, Sampler, answer_all, longest_prompt
from ecgbyte_cli.model.controls import CONTROLS, Signals
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.questions import files as question_files
from ecgbyte_cli.questions import metrics
from ecgbyte_cli.workdir import finished, read_json, read_table, sha256_of, whole, write_json


@click.command(
    cls=Stage,
    short_help="Answer many questions, and score the answers.",
    epilog="Example: ecgbyte generate --split test --limit 8",
)
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    help="Question file, or a folder of them.  [default: the one the model was trained on]",
)
@click.option("--model", type=click.Path(path_type=Path), help="Model folder.  [default: the work folder's]")
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which questions.",
)
@click.option("--limit", type=click.IntRange(1), help="Answer only so many questions, drawn by seed.")
@click.option(
    "--batch", type=click.IntRange(1), default=32, show_default=True, help="Questions answered together."
)
@click.option(
    "--max-new", type=click.IntRange(1), default=64, show_default=True, help="Longest answer in tokens."
)
@click.option(
    "--temperature",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="0 answers greedily; above 0 answers are drawn by seed.",
)
@click.option(
    "--controls/--no-controls",
    default=True,
    show_default=True,
    help="Whether to ask the same without the signal too.",
)
@click.option("--bertscore", metavar="MODEL", help="Add BERTScore, by this model (hub id or folder).")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Of the limit, the controls, and answers that are drawn.",
)
@click.option("--overwrite", is_flag=True, help="Replace answers made with other settings.")
@click.pass_obj
def command(work, **options):
    """Answer the questions of a split, and score the answers beside those of controls.

    The controls ask the same questions with no signal, with the signal of another patient, with a flat line, and
    with noise of the segment's own spectrum; the last one is the most frequent answer of the training questions
    of the same type. A model that reads the ECG does much worse in all of them: what counts is the difference to
    the best. Intervals hold 95 % of a bootstrap over patients.
    """
    result = generate(work, **options)
    header, lines = metrics.rows(result)
    table(
        lines, header, title=f"Exact match in %, {result['questions']} questions of split {result['split']}"
    )
    say(metrics.headline(result))
    say(metrics.texts(result))
    return result


def generate(
    work,
    *,
    qa=None,
    model=None,
    split="test",
    limit=None,
    batch=32,
    max_new=64,
    temperature=0.0,
    controls=True,
    bertscore=None,
    seed=0,
    overwrite=False,
):
    """Answer the questions of a split with and without their signal.

    Parameters
    ----------
    work : WorkDir
    qa : Path or None
        Question file or folder; None is the one the model was trained on.
    model : Path or None
        Model folder; None is the work folder's.
    split : str
    limit : int or None
        At most so many questions.
    batch : int
        Questions answered together; the answers do not depend on it.
    max_new : int
        Longest answer in tokens.
    temperature : float
        0 is greedy.
    controls : bool
    bertscore : str or None
        Model for BERTScore.
    seed : int
    overwrite : bool

    Returns
    -------
    dict
        What `metrics.score` and `metrics.overlap` return, split and seconds.

    Raises
    ------
    Failure
        If model, tokens or questions are missing or do not fit together, or the model fails on a question: what
        was answered until then is kept, and the next run goes on from there.
    """
    start = time.perf_counter()
    model = Path(model or work.model)
    if not (model / "ecgbyte.json").exists():
        raise Failure(f"{model} holds no model: run `ecgbyte finetune` first, or name one with --model")
    work.need(work.token_settings, "encode")
    about, encoded = read_json(model / "ecgbyte.json"), read_json(work.token_settings)
    if encoded["tokenizer_sha256"] != about["ecg_tokenizer_sha256"]:
        raise Failure(
            f"{model} was trained with another tokenizer than {work.tokens} was encoded with: "
            "encode with the model's, or train again"
        )
    qa = Path(qa or about["qa"])
    settings = {
        "model": sha256_of(model / "ecgbyte.json"),
        "qa": question_files.sha256(qa),
        "tokens": encoded["settings"],
        "split": split,
        "limit": limit,
        "max_new": max_new,
        "temperature": temperature,
        "controls": controls,
        "bertscore": bertscore,
        "seed": seed,
    }
    done = finished(work.metrics, settings, overwrite, "answers")
    if done:
        note(f"{work.answers} is there already, made with these settings: nothing to do")
        return done

    chosen, guesses = choose(question_files.read(qa), read_table(work.symbol_segments), split, limit, seed)
    from ecgbyte_cli.model import ecg_lm

    with ecg_lm.quiet():
        lm, text_tokenizer, ecg_tokenizer, _ = ecg_lm.load(model)
    prompt = Prompt(text_tokenizer, lm.offset)
    signals = Signals(work, ecg_tokenizer, encoded.get("segmenter", "longest"), chosen, seed)
    names = ("signal", *CONTROLS) if controls else ("signal",)
    longest = longest_prompt(lm, prompt, about, [q.answer for q, *_ in chosen], max_new)
    answers, seconds = {}, {}
    with (
        Partial(work.partial_answers, settings) as partial,
        progress("generate", len(names) * len(chosen), "answers") as bar,
    ):
        bar.update(len(partial.answers))
        for name in names:
            prompts = Prompts(prompt, ecg_tokenizer, [q for q, *_ in chosen], signals.of(name), longest)
            if prompts.trimmed and name == "signal":
                note(f"{prompts.trimmed} prompts were longer than in training, and lost ECG tokens")

            def keep(i, text, took, name=name):
                partial.add(name, i, text, took)
                bar.advance()

            pick = Sampler(temperature, seed, name) if temperature else None
            answer_all(lm, prompt, prompts.ids, batch, max_new, partial.of(name), keep, pick, chosen)
            answers[name] = [partial.answers[name, i][0] for i in range(len(chosen))]
            seconds[name] = [partial.answers[name, i][1] for i in range(len(chosen))]
    if controls:
        answers["majority"] = [guesses[question.type] for question, *_ in chosen]

    truths, types = [q.answer for q, *_ in chosen], [q.type for q, *_ in chosen]
    patients = [patient for *_, patient, _ in chosen]
    result = {
        **metrics.score(answers, truths, types, patients, seed),
        **metrics.overlap(answers["signal"], truths, bertscore),
        "split": split,
        "seconds": time.perf_counter() - start,
    }
    with whole(work.answers) as beside, open(beside, "w", encoding="utf-8") as file:
        for i, (question, _, patient, _) in enumerate(chosen):
            line = {
                "record": question.record if len(question.records) == 1 else list(question.records),
                "patient": patient,
                "question": question.question,
                "truth": question.answer,
                "answer": answers["signal"][i],
                "type": question.type,
                "seconds": round(seconds["signal"][i], 4),
                "control": {name: given[i] for name, given in answers.items() if name != "signal"},
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    title = f"Exact match in %, {result['questions']} questions of split {split}"
    with whole(work.metrics_table) as beside:
        beside.write_text(metrics.markdown(result, title), encoding="utf-8")
    write_json(work.metrics, {"settings": settings, "result": result}, indent=1)
    work.partial_answers.unlink(missing_ok=True)
    return result


def choose(questions, segments, split, limit, seed):
    """The questions of a split that have a segment, and the most frequent answer of each type.

    Returns
    -------
    (list of (Question, int, str, str), dict)
        At most `limit` questions with segment, patient and split; and type to answer: the training split's most
        frequent one, or that of the questions themselves where the training split has none of the type.

    Raises
    ------
    Failure
        If there is no such question.
    """
    joined, unmatched = question_files.join(questions, segments)
    if unmatched:
        note(question_files.describe(unmatched, len(questions)))
    chosen = [item for item in joined if item[3] == split]
    if not chosen:
        raise Failure(f"no question of split {split} is about an encoded record: try another --split or --qa")
    if limit and limit < len(chosen):
        keep = np.random.default_rng(seed).choice(len(chosen), limit, replace=False)
        chosen = [chosen[i] for i in sorted(keep)]
    training = [question for question, *_, side in joined if side == "train"]
    guesses = metrics.majority([q.answer for q, *_ in chosen], [q.type for q, *_ in chosen])
    guesses |= metrics.majority([q.answer for q in training], [q.type for q in training])
    return chosen, guesses
