"""Scores of probabilities, against the obvious way and worked examples."""

import numpy as np
import pytest

from ecgbyte_cli.evaluation import reliability, report
from ecgbyte_cli.inference.batch_answering import Answer
from ecgbyte_cli.questions import Question


def pairwise(values, truth):
    values, truth = np.asarray(values), np.asarray(truth)
    return np.mean([(y > n) + 0.5 * (y == n) for y in values[truth] for n in values[~truth]])


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_counts_pairs(ties):
    random = np.random.default_rng(0)
    values = random.integers(0, 4, 40) / 4 if ties else random.random(40)
    truth = random.random(40) < 0.3
    times = np.vstack([np.ones(40, int), random.multinomial(40, np.full(40, 1 / 40), size=5)])
    found = reliability.auroc(values, truth, times)
    assert found[0] == pytest.approx(pairwise(values, truth))
    for row, area in zip(times, found, strict=True):
        again = np.repeat(np.arange(40), row)
        assert area == pytest.approx(pairwise(values[again], truth[again]))
    assert np.isnan(reliability.auroc(values, np.ones(40, bool), times)).all()


def test_calibration_error_of_a_worked_example():
    # 0.9 said of ten of which seven are right; 0.6 said of five of which three are right
    probabilities = np.array([0.95] * 10 + [0.65] * 5)
    right = np.array([1] * 7 + [0] * 3 + [1] * 3 + [0] * 2, bool)
    assert reliability.calibration_error(probabilities, right) == pytest.approx((2.5 + 0.25) / 15)
    assert reliability.calibration_error(np.ones(4), np.ones(4, bool)) == 0


def test_scores_of_yes_and_no_and_of_rhythms():
    random = np.random.default_rng(1)
    questions, given, patients = [], [], []
    for i in range(200):
        truth, topic = random.random() < 0.4, "afib" if i % 2 else "pvc"
        yes = float(
            np.clip(0.5 + (0.3 if truth else -0.3) * (topic == "afib") + random.normal(0, 0.1), 0.01, 0.99)
        )
        answer = "yes" if yes >= 0.5 else "no"
        questions.append(Question("r", "?", "yes" if truth else "no", "finding-verify", "test", topic=topic))
        given.append(Answer(answer, max(yes, 1 - yes), 0.1, "no", 1 - yes, yes > 0.7 or yes < 0.3, yes))
        patients.append(str(i // 2))
    for i in range(60):
        truth = ["sinus rhythm", "atrial fibrillation", "bigeminy"][min(2, i // 25)]
        answer = "sinus rhythm" if i % 5 else truth
        questions.append(Question("r", "rhythm?", truth, "rhythm-query", "test", topic="rhythm"))
        given.append(Answer(answer, 0.6, 0.1, "other", 0.2, True))
        patients.append(str(i))
    result = reliability.score_probabilities(questions, given, patients)
    assert set(result["auroc"]) == {"afib", "pvc"} and result["mean_of"] == 2
    area, (low, high) = result["auroc"]["afib"], result["auroc_intervals"]["afib"]
    mine = [i for i in range(200) if i % 2]
    wanted = pairwise([given[i].yes for i in mine], [questions[i].answer == "yes" for i in mine])
    assert area == pytest.approx(wanted) and low <= wanted <= high
    assert result["auroc"]["pvc"] < 0.7 < 0.95 < area
    assert result["mean_auroc"] == pytest.approx((area + result["auroc"]["pvc"]) / 2)
    assert result["mean_auroc_interval"][0] < result["mean_auroc"] < result["mean_auroc_interval"][1]
    coverage = dict(map(tuple, result["coverage"]))
    order = sorted(range(260), key=lambda i: -given[i].probability)
    right = [given[i].answer == questions[i].answer for i in order]
    assert coverage[100] == pytest.approx(100 * np.mean(right))
    assert coverage[50] == pytest.approx(100 * np.mean(right[:130]))
    rhythm = result["balanced"]["rhythm-query"]
    assert set(rhythm["recall"]) == {"sinus rhythm", "atrial fibrillation", "bigeminy"}
    assert rhythm["recall"]["sinus rhythm"] == 100 and rhythm["recall"]["atrial fibrillation"] == 20
    assert rhythm["accuracy"] == pytest.approx(np.mean([*rhythm["recall"].values()]))
    assert rhythm["confusion"]["bigeminy"] == {"sinus rhythm": 8, "bigeminy": 2}
    assert "finding-verify" not in result["balanced"]
    text = " ".join(report.reliability_lines(result))
    assert "AUROC" in text and "balanced accuracy of rhythm-query" in text


def test_answers_that_were_not_chosen_have_no_such_scores():
    questions = [Question("r", "?", "yes", "t-verify", "test") for _ in range(3)]
    result = reliability.score_probabilities(questions, [Answer("yes", 0.9, 0.1)] * 3, ["a", "b", "c"])
    assert result == {"balanced": {}} and report.reliability_lines(result) == []
