"""Rehearsal: keep the earlier answers of a model that is trained further.

Each reading in training also asks some of the earlier questions. Their targets are the answer probabilities from
before the training run (Li and Hoiem, Learning without Forgetting, ECCV 2016, section 3).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from ecgbyte_cli.inference.certainty import Certainty, softmax
from ecgbyte_cli.model.ecg_lm import ECGLM
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.training.calibration import answer_log_probabilities
from ecgbyte_cli.training.dataset import ReadingPlan, SampleBuilder
from ecgbyte_cli.training.distributed import first_progress

LEAST = 0.01  # less probable answers are skipped
AT_ONCE = 512  # questions processed together

Asked = tuple[int, Question, list[str]]  # index of the plan, question, possible answers


def earlier_questions(known: Certainty, plans: Sequence[ReadingPlan]) -> dict[str, list[str]]:
    """Return the questions that a model answers from a list and `plans` do not ask, each with its possible answers."""
    asked = {question.question for plan in plans for question in plan.questions}
    texts = {group.get("asked", group["texts"][0]): group["answers"] for group in known.groups}
    return {text: answers for text, answers in texts.items() if answers and text not in asked}


def with_rehearsal(
    lm: ECGLM,
    samples: SampleBuilder,
    earlier: dict[str, list[str]],
    plans: Sequence[ReadingPlan],
    count: int,
    seed: int,
    batch: int,
    tell: Callable[[str], object],
) -> list[ReadingPlan]:
    """Add earlier questions to plans, drawn at random.

    Parameters
    ----------
    lm : ECGLM
        The model before this training run.
    samples : SampleBuilder
    earlier : dict of str to list of str
        From `earlier_questions`.
    plans : list of ReadingPlan
    count : int
        Number of earlier questions for each plan.
    seed, batch : int
    tell : callable
        Prints a message.

    Returns
    -------
    list of ReadingPlan
        An earlier question is repeated for each possible answer, weighted by the answer's probability.
    """
    texts, drawn = sorted(earlier), list[Asked]()
    for number, plan in enumerate(plans):
        if plan.questions and len(plan.segments) == 1 and not any(q.earlier for q in plan.questions):
            random = np.random.default_rng([seed, number, 3])
            first = plan.questions[0]
            for place in random.choice(len(texts), min(count, len(texts)), replace=False):
                text = texts[place]
                question = Question(first.record, text, "", "rehearsal", None, segments=plan.segments)
                drawn.append((number, question, earlier[text]))
    tell(f"rehearsing {len(texts)} earlier questions, {min(count, len(texts))} with each ECG")
    added: dict[int, list[Question]] = {}
    with first_progress("rehearsal", len(drawn), "questions") as bar:
        for start in range(0, len(drawn), AT_ONCE):
            some = drawn[start : start + AT_ONCE]
            weighed = [(question, answers) for _, question, answers in some]
            logs = answer_log_probabilities(lm, samples, weighed, batch, bar)
            for (number, question, answers), each in zip(some, logs, strict=True):
                added.setdefault(number, []).extend(_soft(question, answers, softmax(each)))
    return [_longer(samples, plan, added.get(number, [])) for number, plan in enumerate(plans)]


def _soft(question: Question, answers: Sequence[str], chances: np.ndarray) -> list[Question]:
    """Return a question once per probable answer, weighted by the answer's probability."""
    return [
        replace(question, answer=answer, weight=float(chance))
        for answer, chance in zip(answers, chances, strict=True)
        if chance >= LEAST
    ]


def _longer(samples: SampleBuilder, plan: ReadingPlan, added: list[Question]) -> ReadingPlan:
    """Return a plan with as many additional questions as fit."""
    length, questions = plan.length, list(plan.questions)
    for question in added:
        _, tail, answer = samples.prompt.parts(question.turns)
        length += sum(len(ids) for ids, _ in tail + answer)
        if length > samples.max_length:
            break
        questions.append(question)
    return plan._replace(questions=tuple(questions), length=min(length, samples.max_length))
