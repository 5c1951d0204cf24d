"""Scores of answers."""

import re


def exact(answer, truth):
    """True if two answers are the same but for case, outer white space and a final full stop."""
    return _plain(answer) == _plain(truth)


def _plain(text):
    return re.sub(r"\s+", " ", text).strip().rstrip(".").strip().casefold()


def exact_match(answers, truths, types):
    """Share of exact answers in percent, overall and by question type.

    Returns
    -------
    dict
        `exact_match` (percent) and `by_type` (type to percent).
    """
    right = [exact(a, t) for a, t in zip(answers, truths, strict=True)]
    groups = {}
    for kind, r in zip(types, right, strict=True):
        groups.setdefault(kind, []).append(r)
    return {
        "exact_match": _percent(right),
        "by_type": {kind: _percent(groups[kind]) for kind in sorted(groups)},
    }


def _percent(right):
    return 100 * sum(right) / len(right)


def overlap(answers, truths):
    """Text overlap: BLEU-4 (sacrebleu, corpus) and ROUGE-L (rouge-score, mean F1), both 0 to 100.

    Returns
    -------
    dict
        `bleu` and `rouge_l`; None where the extra `eval` is not installed.
    """
    scores = {"bleu": None, "rouge_l": None}
    try:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError:
        return scores
    scorer = RougeScorer(["rougeL"])
    f1 = [scorer.score(t, a)["rougeL"].fmeasure for a, t in zip(answers, truths, strict=True)]
    scores["bleu"] = sacrebleu.corpus_bleu(answers, [truths]).score
    scores["rouge_l"] = 100 * sum(f1) / len(f1)
    return scores
