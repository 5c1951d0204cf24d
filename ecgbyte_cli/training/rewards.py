"""What an answer is worth to `ecgbyte reinforce`: rewards from metrics, each 0 to 1."""

from collections.abc import Callable, Mapping, Sequence

from ecgbyte_cli.evaluation.metrics import exact_match, set_f1
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.questions.reasoning import ReasonedAnswer

# of an answer taken apart, its question, labels that are not split, and the share of the room that it took
REWARDS: dict[str, Callable[[ReasonedAnswer, Question, Sequence[str], float], float]] = {
    "exact": lambda thought, question, whole, _: float(exact_match(thought.answer, question.truth, whole)),
    "f1": lambda thought, question, whole, _: set_f1(thought.answer, question.truth, whole),
    "form": lambda thought, *_: float(thought.kept),
    "length": lambda *given: 1.0 - given[-1],
}


def total_reward(
    weights: Mapping[str, float],
    thought: ReasonedAnswer,
    question: Question,
    whole: Sequence[str],
    room: float,
) -> float:
    """The weighted sum of the rewards of an answer.

    Parameters
    ----------
    weights : dict
        Name in `REWARDS` to weight.
    thought : Thought
        The answer; one of a model that does not reason has kept the form.
    question : Question
        Asked, with its truth.
    whole : sequence of str
        Labels that are not split; see `metrics.labels`.
    room : float
        The share of the tokens that it might have had which the answer has, 0 to 1.
    """
    return sum(weight * REWARDS[name](thought, question, whole, room) for name, weight in weights.items())
