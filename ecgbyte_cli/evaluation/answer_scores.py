"""Score any model's answers like `ecgbyte generate`, and compare them with its answers to twins."""

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ecgbyte_cli.evaluation import metrics, reliability
from ecgbyte_cli.evaluation.answer_files import Given
from ecgbyte_cli.evaluation.answer_matching import Matched, plain, read_answer
from ecgbyte_cli.evaluation.comparison import ALL, compare_labelled, labelled_topic
from ecgbyte_cli.evaluation.text_scores import text_scores
from ecgbyte_cli.evaluation.twins import PARTIAL, SIGNAL
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.question_file import Question

MAJORITY = "majority"


class Read(NamedTuple):
    """An answer read from a file; see `reliability.Answered`."""

    answer: str
    probability: float
    yes: float | None
    sure: bool | None = None


def score_answers(matched: Matched, seed: int = 0) -> dict[str, Any]:
    """Score answers.

    Parameters
    ----------
    matched : Matched
    seed : int
        Seed of the bootstrap over patients.

    Returns
    -------
    dict
        The results of `metrics.score` (its controls without `PARTIAL`, with the majority answer), of
        `metrics.text_scores` and `reliability.score_probabilities`; `majority_by`; `token_f1_elm`; `partial` (name to
        exact match and interval of twins with a part of the ECG); `gain` (every control to `difference` and `interval`
        in points of exact match, and if both have probabilities `auroc` and `auroc_interval`); `unanswered`
        (questions of the same splits without an answer), `incomplete` (left out because a control lacks them),
        `unknown` (answers to no question) and `unclear` (answers to yes/no questions, including twins, that begin with
        neither).

    Raises
    ------
    Failure
        If no question is answered with the signal and with every control.
    """
    chosen = _answered_throughout(matched)
    own = matched.answers[SIGNAL]
    asked = [matched.questions[i] for i in chosen]
    patients = [q.patient or " ".join(q.original or q.records) for q in asked]
    given = {name: [of[i] for i in chosen] for name, of in matched.answers.items()}
    answers: dict[str, Any] = {
        name: [read_answer(one.answer, q) for one, q in zip(some, asked, strict=True)]
        for name, some in given.items()
    }
    result: dict[str, Any] = {"majority_by": "the file"}
    if MAJORITY not in answers:
        training = [q for q in matched.questions if q.split == "train"]
        answers[MAJORITY], result["majority_by"] = metrics.baseline_guesses(training, asked)
    result |= _scores(answers, asked, patients, seed)
    read = {name: _read(given[name], answers[name], asked) for name in given}
    texts = [i for i, one in enumerate(read[SIGNAL]) if one.yes is None]
    result |= text_scores([plain(given[SIGNAL][i].answer) for i in texts], [asked[i].answer for i in texts])
    result |= reliability.score_probabilities(asked, read[SIGNAL], patients, seed)
    for name, some in read.items():
        if name != SIGNAL and (gain := _auroc_gain(asked, read[SIGNAL], some, patients, result)):
            result["gain"][name] |= gain
    splits = {q.split for q in asked}
    return result | {
        "token_f1_elm": token_f1_elm([plain(one.answer) for one in given[SIGNAL]], [q.answer for q in asked]),
        "unanswered": sum(q.split in splits and i not in own for i, q in enumerate(matched.questions)),
        "incomplete": len(own) - len(chosen),
        "unknown": len(matched.unknown),
        "unclear": sum(
            _is_unclear(q, answer) for name in given for q, answer in zip(asked, answers[name], strict=True)
        ),
    }


def _answered_throughout(matched: Matched) -> list[int]:
    """Return the numbers of the questions that are answered with the signal and with every control."""
    if SIGNAL not in matched.answers:
        raise Failure(
            f"no answer is about the recordings themselves, only about twins ({', '.join(sorted(matched.answers))})"
            if matched.answers
            else "no answer is about a question of the question file"
        )
    own = matched.answers[SIGNAL]
    chosen = [i for i in sorted(own) if all(i in of for of in matched.answers.values())]
    if not chosen:
        raise Failure("no question is answered with the signal and under every control")
    return chosen


def _is_unclear(question: Question, answer: Any) -> bool:
    """Return whether an answer to a yes/no question begins with neither yes nor no."""
    verify = metrics.candidate_answers(question.type, question.truth) == "verify"
    return (
        verify and metrics.split_labels(question.truth) in ({"yes"}, {"no"}) and answer not in ("yes", "no")
    )


def _scores(
    answers: Mapping[str, Any], asked: Sequence[Question], patients: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return the scores of `metrics.score`, the scores of partial twins, and the gain over each control."""
    truths = [q.truth for q in asked]
    result = metrics.score(
        {name: of for name, of in answers.items() if name not in PARTIAL},
        truths,
        [q.type for q in asked],
        patients,
        seed,
        [q.attribute_type for q in asked],
    )
    whole = metrics.unsplittable_labels(truths)
    right = {
        name: np.array([metrics.exact_match(a, t, whole) for a, t in zip(of, truths, strict=True)], float)
        for name, of in answers.items()
    }
    drawn = metrics.bootstrap(right, patients, seed)
    result["partial"] = {
        name: {
            "exact_match": 100 * float(right[name].mean()),
            "interval": metrics.confidence_interval(drawn[name]),
        }
        for name in answers
        if name in PARTIAL
    }
    result["gain"] = {
        name: {
            "difference": 100 * float(right[SIGNAL].mean() - right[name].mean()),
            "interval": metrics.confidence_interval(drawn[SIGNAL] - drawn[name]),
        }
        for name in answers
        if name != SIGNAL
    }
    return result


def _read(given: Sequence[Given], answers: Sequence[str], asked: Sequence[Question]) -> list[Read]:
    """Return the answers with P(yes), for yes/no questions."""
    read = []
    for one, answer, question in zip(given, answers, asked, strict=True):
        yes, said = one.yes, answer.strip().rstrip(".").casefold()
        if metrics.split_labels(question.truth) not in ({"yes"}, {"no"}):
            yes = None
        elif yes is None and one.probability is not None and said in ("yes", "no"):
            yes = one.probability if said == "yes" else 1 - one.probability
        chance = one.probability
        if chance is None and yes is not None:
            chance = yes if said == "yes" else 1 - yes
        read.append(Read(answer, chance or 0.0, yes))
    return read


def _auroc_gain(
    asked: Sequence[Question],
    own: Sequence[Read],
    control: Sequence[Read],
    patients: Sequence[str],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the gain of the mean AUROC over a control's, over the topics of `mean_auroc`; empty without AUROC."""
    names = [name for name in reliability.averaged_topics(result.get("auroc", {}))]
    sides: tuple[list, list] = ([], [])
    for name in names:
        some = [
            i
            for i, q in enumerate(asked)
            if (q.topic or q.type) == name and own[i].yes is not None and control[i].yes is not None
        ]
        whose = [patients[i] for i in some]
        for read, side in zip((control, own), sides, strict=True):
            lines = [{"truth": asked[i].truth, "p_yes": read[i].yes, "answer": read[i].answer} for i in some]
            if lines:
                side.append(labelled_topic(name, lines, whose))
    found = (
        [one for one in compare_labelled(*sides) if one.name == ALL and one.measure == "AUROC"]
        if sides[0]
        else []
    )
    return {"auroc": found[0].difference, "auroc_interval": [found[0].low, found[0].high]} if found else {}


def token_f1_elm(answers: Sequence[str], truths: Sequence[str]) -> float:
    """Return the mean F1 of words as ELM counts it, 0 to 100.

    Text is lower case without ASCII punctuation, and repeated words count repeatedly; an empty text matches only an
    empty text (`token_f1` of ECG-Language-Models). Unlike `set_f1`, it knows no labels: "no atrial fibrillation"
    shares two thirds of its words with "atrial fibrillation".
    """
    table = str.maketrans("", "", string.punctuation)
    values = []
    for answer, truth in zip(answers, truths, strict=True):
        said, true = (Counter(text.lower().translate(table).split()) for text in (answer, truth))
        common = 2 * (said & true).total()
        values.append(common / (said.total() + true.total()) if said and true else float(said == true))
    return float(100 * np.mean(values))
