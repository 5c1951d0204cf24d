"""Scores of yes/no answers by finding, like `ecgbyte findings --truth`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgbyte_cli.evaluation.finding_scores import answer_scores, probability_scores
from ecgbyte_cli.evaluation.metrics import split_labels

if TYPE_CHECKING:
    from ecgbyte_cli.inference.batch_answering import Answer
    from ecgbyte_cli.questions.question_file import Question


def score_answered_findings(
    questions: Sequence["Question"], answers: Sequence["Answer"], reliability: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Score yes/no questions by topic, or by type if they have no topic.

    Parameters
    ----------
    questions : list of Question
    answers : list of Answer
        One for each question. An answer that is not sure counts as unsure.
    reliability : mapping
        The result of `reliability.score_probabilities`, which provides the AUROC.

    Returns
    -------
    dict
        Topic mapped to `recordings`, `positives`, `auroc`, `auroc_interval`, and the scores of `answer_scores` and
        `probability_scores`.
    """
    groups: dict[str, list[int]] = {}
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        if answer.yes is not None:
            groups.setdefault(question.topic or question.type, []).append(i)
    areas, intervals = reliability.get("auroc", {}), reliability.get("auroc_intervals", {})
    scores = {}
    for topic, some in groups.items():
        truth = np.array([split_labels(questions[i].truth) == {"yes"} for i in some])
        said = np.array(
            ["unsure" if answers[i].sure is False else answers[i].answer.casefold() for i in some]
        )
        chances = np.array([answers[i].yes for i in some], float)
        scores[topic] = {
            "recordings": len(some),
            "positives": int(truth.sum()),
            "auroc": areas.get(topic),
            "auroc_interval": intervals.get(topic),
            **answer_scores(said, truth),
            **probability_scores(chances, truth),
        }
    return scores
