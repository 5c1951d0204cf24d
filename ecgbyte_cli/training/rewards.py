"""Rewards of `ecgbyte reinforce`, each 0 to 1."""

from collections.abc import Callable, Mapping, Sequence

from ecgbyte_cli.evaluation.metrics import exact_match, set_f1
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.questions.reasoning import ReasonedAnswer

# all rewards take the arguments of `total_reward` except `weights`
REWARDS: dict[str, Callable[[ReasonedAnswer, Question, Sequence[str], float], float]] = {
    "exact": lambda answer, question, whole, _: float(exact_match(answer.answer, question.truth, whole)),
    "f1": lambda answer, question, whole, _: set_f1(answer.answer, question.truth, whole),
    "form": lambda answer, *_: float(answer.kept),
    "length": lambda *args: 1.0 - args[-1],
}


def total_reward(
    weights: Mapping[str, float],
    answer: ReasonedAnswer,
    question: Question,
    whole: Sequence[str],
    length: float,
) -> float:
    """Return the weighted sum of an answer's rewards.

    Parameters
    ----------
    weights : dict
        Names in `REWARDS` mapped to weights.
    answer : ReasonedAnswer
        Without tags, an answer counts as having the right form.
    question : Question
        The question with its true answer.
    whole : sequence of str
        Labels that must not be split: see `metrics.unsplittable_labels`.
    length : float
        Length of the answer in tokens, as a share of the maximum, 0 to 1.
    """
    return sum(weight * REWARDS[name](answer, question, whole, length) for name, weight in weights.items())
