"""Scores that compare the texts of answers: BLEU, ROUGE-L, METEOR and BERTScore, all 0 to 100."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np


def text_scores(
    answers: Sequence[str], truths: Sequence[str], bertscore: str | None = None
) -> dict[str, Any]:
    """Score the overlap of texts.

    Parameters
    ----------
    answers, truths : list of str
    bertscore : str or None
        Hub id or folder of the model for BERTScore; None skips it.

    Returns
    -------
    dict
        `bleu`: BLEU-4 of the corpus (sacrebleu; 0 where no answer has four words), `bleu_nltk`: see the function,
        `rouge_l`: mean F1 of ROUGE-L (rouge-score), `meteor`: mean METEOR (nltk, with its wordnet data). Each is None
        without answers, and where the extra `eval`, or the data, is not installed; `meteor_missing` says why.
        `bertscore`: mean F1, with `bertscore`.
    """
    scores: dict[str, Any] = {"bleu": None, "bleu_nltk": None, "rouge_l": None, "meteor": None}
    if not answers:
        return scores
    try:
        import sacrebleu
        from rouge_score.rouge_scorer import RougeScorer
    except ModuleNotFoundError:
        pass
    else:
        scorer = RougeScorer(["rougeL"])
        f1 = [scorer.score(t, a)["rougeL"].fmeasure for a, t in zip(answers, truths, strict=True)]
        scores["bleu"] = sacrebleu.corpus_bleu(list(answers), [list(truths)]).score
        scores["rouge_l"] = float(100 * np.mean(f1))
    try:
        scores["bleu_nltk"] = bleu_nltk(answers, truths)
        scores["meteor"] = _meteor(answers, truths)
    except ModuleNotFoundError:
        scores["meteor_missing"] = "nltk is not installed: pip install 'ecgbyte[eval]'"
    except LookupError:
        scores["meteor_missing"] = "nltk has no wordnet: python -m nltk.downloader wordnet"
    if bertscore:
        scores["bertscore"] = bert_score(answers, truths, bertscore)
    return scores


def bleu_nltk(answers: Sequence[str], truths: Sequence[str]) -> float:
    """Return BLEU-4 of the corpus, 0 to 100, computed like published results of ECG-Byte and ECG-Bench.

    White space separates words, an n-gram order without a match counts 0.1 of one (nltk's smoothing method 1, Chen and
    Cherry 2014), and empty answers are left out. For short answers it is far lower than sacrebleu's.
    """
    from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

    pairs = [(t.split(), a.split()) for a, t in zip(answers, truths, strict=True) if a.strip() and t.strip()]
    if not pairs:
        return 0.0
    smooth = SmoothingFunction().method1
    return float(100 * corpus_bleu([[t] for t, _ in pairs], [a for _, a in pairs], smoothing_function=smooth))


def _meteor(answers: Sequence[str], truths: Sequence[str]) -> float:
    """Return mean METEOR, 0 to 100 (Banerjee and Lavie 2005); raise LookupError without nltk's wordnet data."""
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import single_meteor_score

    wordnet.ensure_loaded()

    def words(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text)

    values = [single_meteor_score(words(t), words(a)) for a, t in zip(answers, truths, strict=True)]
    return float(100 * np.mean(values))


def bert_score(answers: Sequence[str], truths: Sequence[str], model: str) -> float:
    """Return mean F1 of BERTScore (Zhang et al., ICLR 2020), 0 to 100, without baseline rescaling.

    Parameters
    ----------
    answers, truths : list of str
    model : str
        Hub id or folder. The layer is the one that bert-score recommends for the model, else the last.
    """
    from bert_score import BERTScorer
    from bert_score.utils import model2layers
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    scorer = BERTScorer(model, num_layers=model2layers.get(model) or config.num_hidden_layers)
    # a tokenizer without a maximum length says 1e30, which bert-score passes on
    longest = getattr(config, "max_position_embeddings", 512)
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, longest)
    # an empty text should score 0 in bert-score, but raises an error there
    pairs = [(a, t) for a, t in zip(answers, truths, strict=True) if a.strip() and t.strip()]
    f1 = scorer.score(*map(list, zip(*pairs, strict=True)))[2].sum() if pairs else 0.0
    return float(100 * f1 / len(truths))
