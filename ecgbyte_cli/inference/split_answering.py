"""Answer the questions of a split, with their ECGs and with each control."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from ecgbyte_cli.cli.output import note, progress
from ecgbyte_cli.evaluation.controls import CONTROLS, ControlInputs
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.batch_answering import (
    Answer,
    Closed,
    PromptSet,
    Sampler,
    answer_all,
    best_over_segments,
    choose_all,
    longest_prompt,
    most_probable_over_segments,
    on_cluster,
)
from ecgbyte_cli.inference.certainty import MatchedQuestion
from ecgbyte_cli.inference.conversation import declines
from ecgbyte_cli.inference.partial_answers import PartialAnswers
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model.model_names import argument_name
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.storage.files import read_json
from ecgbyte_cli.storage.workdir import WorkDir

Key = tuple[str, int, int]  # `signal` or the control's name, question number, segment number
Joined = tuple[Question, int, str, str]  # question, its first segment, patient, split


def answer_split(
    work: WorkDir,
    session: Session,
    chosen: list[Joined],
    settings: dict,
    batch: int,
    dask: str | None = None,
) -> dict[str, list[Answer]]:
    """Answer each question, with its ECG and with each control.

    Returns
    -------
    dict of str to list of Answer
        Keyed by `signal` or the control's name.
    """
    seed, max_new, temperature = settings["seed"], settings["max_new"], settings["temperature"]
    lm, _, prompt, certainty = session.load()
    matched = [None if temperature else match(session, question) for question, *_ in chosen]
    # worded as in the training data
    asked = [replace(q, question=m.text) if m else q for (q, *_), m in zip(chosen, matched, strict=True)]
    measured = bool(session.about.get("measured"))
    signals = ControlInputs(work, session.tokenizer, session.segmenter, chosen, seed, measured)
    names = ("signal", *CONTROLS) if settings["controls"] else ("signal",)
    counts = [signals.parts(i, settings["segments"] == "all") for i in range(len(asked))]
    longest = longest_prompt(lm, prompt, session.about, [question.answer for question in asked], max_new)
    with (
        PartialAnswers(work.partial_answers, settings) as kept,
        progress("generate", len(names) * sum(counts), "answers") as bar,
    ):
        bar.update(len(kept.answers))
        # one set for all names, because a control's ECG is also the ECG of other questions
        closed, free = (PromptSet(prompt, session.tokenizer, longest) for _ in range(2))
        add_prompts(closed, free, asked, matched, signals, names, counts)

        def keep(key: Key, answer: Answer) -> None:
            kept.add(key, answer)
            bar.advance()

        def answers_of(key: Key) -> Closed:
            question = matched[key[1]]
            return (question.text, question.answers or []) if question else ("", [])

        def name(key: Key) -> str:
            return f"record {asked[key[1]].record}"

        done, sampled = kept.answers.keys(), (temperature, seed) if temperature else None
        if dask:
            base = None if session.base is None else os.fspath(session.base)
            model = session.folder, base, session.device, settings["model"]
            on_cluster(dask, work.root, model, closed, free, batch, max_new, done, keep, answers_of, sampled)
        else:
            choose_all(lm, closed, batch, done, keep, answers_of, certainty, name)
            answer_all(lm, free, batch, max_new, done, keep, Sampler(*sampled) if sampled else None, name)
        return {name: over_segments(name, kept, counts, matched, session) for name in names}


def check_tokens(work: WorkDir, session: Session) -> dict:
    """Check that the work folder was encoded with the model's tokenizer, and return the token settings."""
    model, about = session.folder, session.about
    again = f"symbolize DATA --like {argument_name(model)}"
    encoded = read_json(work.token_settings)
    if encoded["tokenizer_sha256"] != about["ecg_tokenizer_sha256"]:
        raise Failure(
            f"{model} and {work.tokens} use different tokenizers: "
            f"run `ecgbyte {again} --overwrite encode --overwrite`, or train a model with `ecgbyte finetune`"
        )
    if encoded.get("segmenter", about["segmenter"]) != about["segmenter"]:
        raise Failure(
            f"{model} was trained with the segmenter {about['segmenter']}, but {work.tokens} was encoded "
            f"with {encoded['segmenter']}: run `ecgbyte encode --segmenter {about['segmenter']} --overwrite`"
        )
    return encoded


def without_declined(session: Session, chosen: list[Joined]) -> list[Joined]:
    """Return the questions that the model does not decline; a note says how many it declines, as `ecgbyte chat` does.

    Raises
    ------
    Failure
        If it declines all.
    """
    kept: list[Joined] = []
    refused: list[Joined] = []
    for item in chosen:
        question = item[0]
        alone = len(question.records) == 1
        declined = alone and declines(session, session.match(question.question))
        (refused if declined else kept).append(item)
    if refused:
        line = f"the model was not trained on {len(refused)} of {len(chosen)} questions and declines them"
        line += f", such as {refused[0][0].question!r}"
        if not kept:
            raise Failure(f"{line}: name other questions with --qa or --types")
        note(line)
    return kept


def match(session: Session, question: Question) -> MatchedQuestion | None:
    """Return the matching training question; lists, and questions about several ECGs, are answered in free text."""
    if question.earlier or len(question.records) > 1:
        return None
    matched = session.match(question.question)
    return None if matched and matched.parts else matched


def add_prompts(
    closed: PromptSet,
    free: PromptSet,
    asked: list[Question],
    matched: list[MatchedQuestion | None],
    signals: ControlInputs,
    names: Sequence[str],
    counts: list[int],
) -> None:
    """Add the prompt of each question about each segment: to `closed` if its answers are listed, else to `free`."""
    for name in names:
        for part in range(max(counts)):
            inputs = zip(asked, signals.of(name, part), signals.lines(name, part), strict=True)
            for i, (question, ecgs, lines) in enumerate(inputs):
                one = matched[i]
                if part < counts[i]:
                    (closed if one and one.answers else free).ask((name, i, part), question, ecgs, lines)
        trimmed = free.trimmed + closed.trimmed
        if trimmed and name == "signal":
            note(f"{trimmed} prompts were longer than in training and lost ECG tokens")


def over_segments(
    name: str,
    given: PartialAnswers,
    counts: list[int],
    matched: list[MatchedQuestion | None],
    session: Session,
) -> list[Answer]:
    """Return the answer to each question combined over its segments."""
    answers = []
    for i, (count, question) in enumerate(zip(counts, matched, strict=True)):
        some = [given.answers[name, i, part] for part in range(count)]
        if question and question.answers:
            choose = partial(session.choose, question.text)
            answers.append(most_probable_over_segments(choose, question.answers, some))
        else:
            answers.append(best_over_segments(some))
    return answers
