"""The plans of a training run: the questions of two splits, joined with recordings and grouped into readings."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.certainty import Certainty
from ecgbyte_cli.model.prompt import IGNORED
from ecgbyte_cli.questions import question_file, question_segments
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.questions.reasoning import join_reasoning
from ecgbyte_cli.runtime.memory import unsupported
from ecgbyte_cli.signal.origin import patients_learned_from
from ecgbyte_cli.storage.files import read_table
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.dataset import ReadingPlan, SampleBuilder
from ecgbyte_cli.training.sampling import repeat_plans, stratified_order

if TYPE_CHECKING:
    from ecgbyte_cli.model.ecg_lm import ECGLM

Tell = Callable[[str], object]
QuestionFiles = str | os.PathLike | list  # the path of a file or folder, or a list of several


class TrainingPlans(NamedTuple):
    """The data of a training run."""

    training: list[ReadingPlan]
    validation: list[
        Any
    ]  # `Question`s in the order of `stratified_order`; `ReadingPlan`s if there are no questions
    counts: dict[str, int]  # numbers of trimmed and of skipped samples


class JoinedFile(NamedTuple):
    """Questions from one file, or from all files if they have no weights, about encoded recordings."""

    train: list[Question]
    val: list[Question]
    weight: float  # repetitions in an epoch


def plan_training(
    work: WorkDir,
    qa: QuestionFiles | None,
    lm: "ECGLM",
    samples: SampleBuilder,
    settings: dict[str, Any],
    tell: Tell,
    known: Certainty | None = None,
) -> TrainingPlans:
    """Plan a training with the questions of `qa`, or without questions if it is None.

    `known` holds the questions of the model that is trained further; the same questions are worded as it knows them.
    """
    if qa is None:
        plans = _plan_pretraining(work, samples, settings)
    else:
        think, types, weights = (settings.get(name) for name in ("think", "types", "weights"))
        plans = read_samples(
            work, qa, samples, settings["seed"], tell, bool(think), types or (), weights, known
        )
        if not can_share_reading(lm, samples, plans.training):
            tell(
                "this base model cannot share an ECG among several questions: each question gets its own copy"
            )
            samples.together = 1
            questions = [question for plan in plans.training for question in plan.questions]
            plans = plans._replace(training=samples.plans(questions)[0])
    kind = settings["draw"]
    if kind and not samples.tokenizer.has_size:
        raise Failure(
            "--draw needs letters that have a size in mV: symbolize with --quantizer paper, mulaw or lloyd"
        )
    if kind and not any(plan.words for plan in plans.training):
        raise Failure(
            f"--draw {kind}: {qa} holds no training question of this type about one recording whose ECG fits within "
            f"--max-length {samples.max_length}"
        )
    if settings["patience"] and not plans.validation:
        raise Failure(f"--patience needs validation questions, but {qa} has none about an encoded record")
    return plans


def _plan_pretraining(work: WorkDir, samples: SampleBuilder, settings: dict[str, Any]) -> TrainingPlans:
    """Plan a training on all recordings, without questions."""
    if settings.get("types"):
        raise Failure("--types selects questions, but --pretrain uses none: remove one of the two")
    splits = np.asarray(read_table(work.symbol_segments)["split"])
    training, validation = (samples.alone(np.flatnonzero(splits == split)) for split in ("train", "val"))
    if not training:
        raise Failure(f"{work.tokens} holds no recording of the training split: see `ecgbyte info`")
    order = np.random.default_rng(settings["seed"]).permutation(len(validation))
    return TrainingPlans(training, [validation[i] for i in order], {"trimmed": 0, "left_out": 0})


def read_samples(
    work: WorkDir,
    qa: QuestionFiles,
    samples: SampleBuilder,
    seed: int,
    tell: Tell,
    think: bool = False,
    types: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    known: Certainty | None = None,
) -> TrainingPlans:
    """Read the questions of the training and validation splits, and set the longest prompt of `samples`.

    Parameters
    ----------
    work : WorkDir
    qa : path or list of path
    samples : SampleBuilder
    seed : int
        Seed for the order of the validation questions, and for fractional weights.
    tell : callable
        Prints a message.
    think : bool
        Whether to train on the reasoning of questions that contain it.
    types, weights
        Types of the questions to use (empty: all), and repetitions of each file of `qa` in an epoch.
    known : Certainty or None
        Certainty of the model that is trained further.

    Raises
    ------
    Failure
        If there are no training questions about encoded recordings, or all are too long.
    """
    files = _join_files(work, qa, tell, think, types, weights, known)
    train = [question for file in files for question in file.train]
    val = [question for file in files for question in file.val]
    if not train:
        raise Failure(
            f"{qa} holds no question of the training split about an encoded record: see `ecgbyte info`"
        )
    samples.make_room(train + val)
    samples.count_answers(train)
    training, *in_training = _plan_split(
        samples, "training", [(file.train, file.weight) for file in files], seed, tell
    )
    held_out, *in_validation = _plan_split(
        samples, "validation", [(file.val, 1) for file in files], seed, tell
    )
    long_drawings = samples.to_draw(train)[1]
    if long_drawings:
        tell(f"{long_drawings} ECGs to generate are longer than --max-length {samples.max_length}: skipped")
    if not training:
        raise Failure(
            f"all prompts of the training questions of {qa} have more than {samples.longest} tokens: raise --max-length"
        )
    fitting = {question for plan in held_out for question in plan.questions}
    validation = [q for q in stratified_order(val, seed) if q in fitting]
    trimmed, left_out = map(sum, zip(in_training, in_validation, strict=True))
    return TrainingPlans(training, validation, {"trimmed": trimmed, "left_out": left_out})


def _plan_split(
    samples: SampleBuilder,
    split: str,
    files: Sequence[tuple[list[Question], float]],
    seed: int,
    tell: Tell,
) -> tuple[list[ReadingPlan], int, int]:
    """Return the plans of a split, and the numbers of trimmed and of skipped samples; report both."""
    plans: list[ReadingPlan] = []
    trimmed = left_out = 0
    for number, (questions, weight) in enumerate(files):
        planned, trimmed_here, left_out_here = samples.plans(questions)
        plans += repeat_plans(planned, weight, [seed, number])
        trimmed += trimmed_here
        left_out += left_out_here
    too_long = (
        f"of {sum(len(questions) for questions, _ in files)} {split} samples have prompts of more than "
        f"{samples.longest} tokens (--max-length {samples.max_length} minus the longest answer)"
    )
    if trimmed:
        tell(f"{trimmed} {too_long}: trimmed at the end of each lead")
    if left_out:
        tell(f"{left_out} {too_long}: skipped")
    return plans, trimmed, left_out


def _join_files(
    work: WorkDir,
    qa: QuestionFiles,
    tell: Tell,
    think: bool,
    types: Sequence[str],
    weights: Sequence[float] | None,
    known: Certainty | None,
) -> list[JoinedFile]:
    """Read the question files, match them to recordings, and report unmatched questions and leaks between splits."""
    paths = qa if isinstance(qa, list) and weights else [qa]
    files = [question_file.read_questions(path) for path in paths]
    questions = [question for file in files for question in file]
    used_types = {question.type for question in question_file.filter_types(questions, types)}
    if think and not any(question.reasoning for question in questions if question.type in used_types):
        raise Failure(f"--think: no question of {qa} has reasoning: `ecgbyte questions --think` writes it")
    segments, joined, unmatched = read_table(work.symbol_segments), [], []
    for file in files:
        used = [
            _training_question(question, think, known) for question in file if question.type in used_types
        ]
        matched, not_matched = question_segments.join_segments(used, segments)
        joined.append(matched)
        unmatched += not_matched
    items = [item for matched in joined for item in matched]
    if unmatched:
        tell(question_segments.describe_unmatched(unmatched, len(items) + len(unmatched)))
    for line in question_segments.split_leaks(items, patients_learned_from(work), str(qa)):
        tell(line)

    def in_split(matched: Sequence[tuple], name: str) -> list[Question]:
        return [question for question, _, _, split in matched if split == name]

    return [
        JoinedFile(in_split(matched, "train"), in_split(matched, "val"), weight)
        for matched, weight in zip(joined, weights or [1.0], strict=True)
    ]


def _training_question(question: Question, think: bool, known: Certainty | None) -> Question:
    """Return a question worded as the model knows it, whose answer to learn includes the reasoning if `think`."""
    if not question.reasoning:
        alone = not (question.earlier or question.other_records or question.labels)
        matched = known.match(question.question) if known and alone else None
        if matched and question.answer in (matched.answers or ()):
            return replace(question, question=matched.text)
        return question
    if think:
        return replace(question, answer=join_reasoning(question.reasoning, question.answer), labels=())
    return replace(question, reasoning="")


def can_share_reading(lm: "ECGLM", samples: SampleBuilder, plans: Sequence[ReadingPlan]) -> bool:
    """Return whether a model answers several questions after one reading of an ECG as it answers each alone.

    This is tested on the longest plan with several questions.
    """
    import torch

    from ecgbyte_cli.model.attention import TAKE_MASKS
    from ecgbyte_cli.model.kv_cache import GrowingState, new_cache

    several = [plan for plan in plans if len(plan.questions) > 1]
    if not several or lm.base.config._attn_implementation not in TAKE_MASKS:
        return not several
    plan = max(several, key=lambda plan: plan.length)
    for layer in new_cache(lm.base).layers:
        # a sliding window counts ids, not positions, so shared questions would shift it
        if type(layer) is not GrowingState and getattr(layer, "sliding_window", 0) < plan.length:
            return False
    alone = [plan._replace(questions=(question,)) for question in (plan.questions[0], plan.questions[-1])]
    training = lm.training
    lm.eval()
    try:
        with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
            first = [lm(*samples.batch([samples.reading(p)]).to(lm.device))[0].item() for p in alone]
            reading = samples.reading(plan)
            # the loss is computed for the first and the last question only
            reading.labels[(reading.owner != 1) & (reading.owner != reading.owner[-1])] = IGNORED
            both = lm(*samples.batch([reading]).to(lm.device))[0].item()
    except (RuntimeError, TypeError, ValueError) as error:
        if not unsupported(error):
            raise
        return False
    finally:
        lm.train(training)
    exact = next(p.dtype for p in lm.base.parameters() if p.is_floating_point()) == torch.float32
    return abs(sum(first) - both) <= (1e-3 if exact else 5e-2) * max(1.0, abs(sum(first)))
