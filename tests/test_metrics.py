"""Scores against values computed by hand."""

import pytest

from ecgbyte_cli import metrics


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("yes", "Yes", True),
        (" sinus  rhythm. ", "sinus rhythm", True),
        ("sinus", "sinus rhythm", False),
        ("", "no", False),
    ],
)
def test_exact(answer, truth, same):
    assert metrics.exact(answer, truth) is same


def test_exact_match_by_type():
    scores = metrics.exact_match(["a", "b", "c", "d"], ["a", "x", "c", "d"], ["t", "t", "t", "u"])
    assert scores["exact_match"] == 75
    assert scores["by_type"] == {"t": pytest.approx(200 / 3), "u": 100}


def test_overlap():
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    same = metrics.overlap(["the heart beats in sinus rhythm"], ["the heart beats in sinus rhythm"])
    assert same["bleu"] == pytest.approx(100) and same["rouge_l"] == pytest.approx(100)
    # "a b" and "a c": longest common subsequence 1 of 2 words each, F1 one half
    assert metrics.overlap(["a b"], ["a c"])["rouge_l"] == pytest.approx(50)
