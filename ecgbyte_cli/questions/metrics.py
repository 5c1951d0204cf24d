"""Scores of answers, beside those of answers that were given without the signal.

Percentages are 0 to 100. Intervals hold 95 % of what a bootstrap over patients gives (Efron 1979): the questions
about one patient are not independent, so patients are drawn, with all their questions.
"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

DRAWS = 2000  # of the bootstrap
MOST_LABELS = 100  # a question type with more distinct labels has no per-label scores


def labels(text):
    """Split an answer into its labels: `"B,  a."` is {"a", "b"}.

    Labels are parted by commas or semicolons, as ECG-QA's lists are; case, outer white space and a full stop at
    the end do not count.
    """
    parts = (re.sub(r"\s+", " ", part).strip().rstrip(".").rstrip() for part in re.split("[,;]", text))
    return frozenset(part.casefold() for part in parts if part)


def exact(answer, truth):
    """True if two answers have the same labels, in whatever order."""
    return labels(answer) == labels(truth)


def set_f1(answer, truth):
    """F1 of an answer's labels against the truth's, 0 to 1; two empty answers agree."""
    given, true = labels(answer), labels(truth)
    return 2 * len(given & true) / (len(given) + len(true)) if given or true else 1.0


def answer_set(kind, truth):
    """What the answer is taken from: verify (yes or no), choose (one of two named) or query (any).

    ECG-QA's question types say so in their last word (`single-verify`); elsewhere it is verify where the truth is
    yes or no, and query else.
    """
    word = kind.rpartition("-")[2]
    if word in ("verify", "choose", "query"):
        return word
    return "verify" if labels(truth) in ({"yes"}, {"no"}) else "query"


def majority(truths, types):
    """The most frequent answer of each question type, the first of several that are equally frequent."""
    counts, spelled = {}, {}
    for truth, kind in zip(truths, types, strict=True):
        counts.setdefault(kind, Counter())[labels(truth)] += 1
        spelled.setdefault(labels(truth), truth)
    return {kind: spelled[counter.most_common(1)[0][0]] for kind, counter in counts.items()}


def score(
    answers: dict[str, Sequence[str]],
    truths: Sequence[str],
    types: Sequence[str],
    patients: Sequence[str],
    seed: int = 0,
) -> dict:
    """Score answers given with the signal, and the same questions' answers given without it.

    Parameters
    ----------
    answers : dict of str to list of str
        `signal`, and the controls by name: an answer for each question.
    truths, types, patients : list of str
        Of each question.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        `questions`, `patients` (how many), `exact_match`, `interval`, `by_type`, `by_answer_set`, `set_f1`;
        `control` (name to its exact_match, interval, by_type, by_answer_set); `best_control`, `difference`
        (signal minus best control, points), `difference_interval` (the best control is chosen anew in every
        draw), `difference_by_type`; `labels` (type to `macro_f1` and `f1` by label, where answers are labels).

    Raises
    ------
    ValueError
        If there is no question, or a list has another length.
    """
    if not truths:
        raise ValueError("no answers to score")
    right = {
        name: np.array([exact(a, t) for a, t in zip(given, truths, strict=True)], float)
        for name, given in answers.items()
    }
    sets = [answer_set(kind, truth) for kind, truth in zip(types, truths, strict=True)]
    drawn = bootstrap(right, patients, seed)

    def scores(name):
        return {
            "exact_match": 100 * right[name].mean(),
            "interval": _interval(drawn[name]),
            "by_type": by_group(right[name], types),
            "by_answer_set": by_group(right[name], sets),
        }

    pairs = list(zip(answers["signal"], truths, strict=True))
    result = {
        "questions": len(truths),
        "patients": len(set(patients)),
        **scores("signal"),
        "set_f1": float(100 * np.mean([set_f1(*pair) for pair in pairs])),
        "control": {name: scores(name) for name in answers if name != "signal"},
        "labels": label_scores(answers["signal"], truths, types),
    }
    controls = result["control"]
    if controls:
        best = max(controls, key=lambda name: controls[name]["exact_match"])
        difference = drawn["signal"] - np.max([drawn[name] for name in controls], axis=0)
        result |= {
            "best_control": best,
            "difference": result["exact_match"] - controls[best]["exact_match"],
            "difference_interval": _interval(difference),
            "difference_by_type": {
                kind: value - max(control["by_type"][kind] for control in controls.values())
                for kind, value in result["by_type"].items()
            },
        }
    return result


def bootstrap(right, patients, seed=0, draws=DRAWS):
    """Means over samples of as many patients, drawn with replacement, in percent.

    Parameters
    ----------
    right : dict of str to array (questions,)
        1 for a right answer, 0 for a wrong one. All are drawn together, so that differences are paired.
    patients : list of str
        Of each question.
    seed, draws : int

    Returns
    -------
    dict of str to array (draws,)
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    random = np.random.default_rng(seed)
    # how often each patient is drawn: (draws, patients), a few million numbers at a time
    totals = {name: np.empty(draws) for name in right}
    asked = np.bincount(patient, minlength=len(names))
    sums = {name: np.bincount(patient, weights=values) for name, values in right.items()}
    chunk = max(1, 4_000_000 // len(names))
    for start in range(0, draws, chunk):
        here = slice(start, min(start + chunk, draws))
        times = random.multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=here.stop - here.start
        )
        for name, per_patient in sums.items():
            totals[name][here] = 100 * (times @ per_patient) / (times @ asked)
    return totals


def _interval(values):
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def by_group(right, groups):
    """Mean of each group in percent: a dict from the group's name."""
    values = {}
    for r, group in zip(right, groups, strict=True):
        values.setdefault(group, []).append(r)
    return {group: float(100 * np.mean(values[group])) for group in sorted(values)}


def label_scores(answers, truths, types):
    """F1 of each label, for the question types whose answers are labels: few, and seen more than once.

    Returns
    -------
    dict
        Type to `macro_f1` (mean over the labels of the truths, percent) and `f1` (label to `f1`, `precision`,
        `recall` in percent and `support`, its count among the truths).
    """
    result = {}
    for kind in sorted(set(types)):
        at = [i for i, t in enumerate(types) if t == kind]
        given, true = [labels(answers[i]) for i in at], [labels(truths[i]) for i in at]
        support, made = Counter(x for s in true for x in s), Counter(x for s in given for x in s)
        if len(support) > MOST_LABELS or sum(support.values()) < 2 * len(support):
            continue
        hits = Counter(x for g, t in zip(given, true, strict=True) for x in g & t)
        table = {
            label: {
                "f1": 200 * hits[label] / (made[label] + support[label]),
                "precision": 100 * hits[label] / made[label] if made[label] else 0.0,
                "recall": 100 * hits[label] / support[label],
                "support": support[label],
            }
            for label in sorted(support)
        }
        macro = float(np.mean([row["f1"] for row in table.values()])) if table else 0.0
        result[kind] = {"macro_f1": macro, "f1": table}
    return result


def overlap(answers, truths, bertscore=None):
    """Overlap of texts, all 0 to 100.

    Parameters
    ----------
    answers, truths : list of str
    bertscore : str or None
        Hub id or folder of the model for BERTScore; without one it is not computed.

    Returns
    -------
    dict
        `bleu`: BLEU-4 of the corpus (sacrebleu; 0 where no answer has four words), `rouge_l`: mean F1 of ROUGE-L
        (rouge-score), `meteor`: mean METEOR (nltk, with its wordnet data); each None where the extra `eval`, or
        the data, is not installed. `bertscore`: mean F1, where asked for.
    """
    scores = {"bleu": None, "rouge_l": None, "meteor": None}
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
        scores["meteor"] = _meteor(answers, truths)
    if bertscore:
        scores["bertscore"] = bert_score(answers, truths, bertscore)
    return scores


def _meteor(answers, truths):
    """Mean METEOR, 0 to 100 (Banerjee and Lavie 2005); None without nltk or its wordnet data."""
    try:
        from nltk.corpus import wordnet
        from nltk.translate.meteor_score import single_meteor_score

        wordnet.ensure_loaded()
    except (ModuleNotFoundError, LookupError):
        return None

    def words(text):
        return re.findall(r"\w+|[^\w\s]", text)

    values = [single_meteor_score(words(t), words(a)) for a, t in zip(answers, truths, strict=True)]
    return float(100 * np.mean(values))


def bert_score(answers, truths, model):
    """Mean F1 of BERTScore (Zhang et al., ICLR 2020), 0 to 100, without baseline rescaling.

    Parameters
    ----------
    answers, truths : list of str
    model : str
        Hub id or folder. The layer is the one that bert-score recommends for the model, else its last.
    """
    from bert_score import BERTScorer
    from bert_score.utils import model2layers
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model)
    scorer = BERTScorer(model, num_layers=model2layers.get(model) or config.num_hidden_layers)
    # a tokenizer that names no longest text says 1e30, which bert-score hands on
    longest = getattr(config, "max_position_embeddings", 512)
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, longest)
    # an empty text scores 0, as in bert-score, which no longer gets that far with it
    pairs = [(a, t) for a, t in zip(answers, truths, strict=True) if a.strip() and t.strip()]
    f1 = scorer.score(*map(list, zip(*pairs, strict=True)))[2].sum() if pairs else 0.0
    return float(100 * f1 / len(truths))


def columns(result):
    """The scores of a result by name: the signal's first, then each control's."""
    return {"signal": result, **result["control"]}


def rows(result):
    """The table of a result: the header, and a row for each question type, for all, and for their interval.

    The last column is the signal's score minus that of the row's best control. With names of types of up to 15
    letters it fits 80 columns, which is what a pipe has.
    """
    scores = columns(result)
    header = ["questions", *scores]
    lines = [[kind, *(f"{s['by_type'][kind]:.1f}" for s in scores.values())] for kind in result["by_type"]]
    lines.append(["all", *(f"{s['exact_match']:.1f}" for s in scores.values())])
    lines.append(["95 % interval", *("{:.0f}-{:.0f}".format(*s["interval"]) for s in scores.values())])
    if result["control"]:
        header.append("gain")
        for line, kind in zip(lines, result["by_type"], strict=False):
            line.append(f"{result['difference_by_type'][kind]:+.1f}")
        lines[-2].append(f"{result['difference']:+.1f}")
        lines[-1].append("{:.0f}-{:.0f}".format(*result["difference_interval"]))
    return header, lines


def headline(result):
    """One line: what the signal adds to the best control."""
    if not result["control"]:
        return f"exact match {result['exact_match']:.1f} %, without controls: it may not need the signal"
    low, high = result["difference_interval"]
    return (
        f"signal minus best control ({result['best_control']}): {result['difference']:.1f} points, "
        f"95 % interval {low:.1f} to {high:.1f} ({result['patients']} patients)"
    )


def texts(result):
    """One line: the scores that compare texts, and F1 of label sets."""
    names = {"bleu": "BLEU-4", "rouge_l": "ROUGE-L", "meteor": "METEOR", "bertscore": "BERTScore F1"}
    known = [f"{names[k]} {result[k]:.1f}" for k in names if result.get(k) is not None]
    macro = [f"macro F1 of {kind} {scores['macro_f1']:.1f}" for kind, scores in result["labels"].items()]
    return ", ".join([f"F1 of answer sets {result['set_f1']:.1f}", *macro, *known])


def markdown(result, title):
    """The table, the headline and the other scores as Markdown."""
    header, lines = rows(result)
    grid = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    return "\n".join(
        [f"# {title}", "", *("| " + " | ".join(line) + " |" for line in grid), ""]
        + [headline(result), "", texts(result), ""]
    )
