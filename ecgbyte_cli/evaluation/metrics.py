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


def split_labels(answer, whole=()):
    """Split an answer into its labels: `"B,  a."` is {"a", "b"}.

    Labels are parted by commas or semicolons; case, outer white space and a full stop at the end do not count.

    Parameters
    ----------
    answer : str or sequence of str
        A text, or the labels themselves.
    whole : sequence of str
        Labels, as `labels` has them, that hold a comma or a semicolon: they are not split.
    """
    if not isinstance(answer, str):
        return frozenset(map(_normalized, answer)) - {""}
    found, text = set(), re.sub(r"\s+", " ", answer).casefold()
    for label in whole:
        if label in text:
            found.add(label)
            text = text.replace(label, ";")
    return frozenset(found | {_normalized(part) for part in re.split("[,;]", text)} - {""})


def _normalized(label):
    return re.sub(r"\s+", " ", label).strip().rstrip(".").rstrip().casefold()


def unsplittable_labels(truths):
    """The labels of those truths that are lists which hold a comma or a semicolon, the longest first."""
    known = {label for truth in truths if not isinstance(truth, str) for label in split_labels(truth)}
    return sorted((label for label in known if re.search("[,;]", label)), key=len, reverse=True)


def exact_match(answer, truth, whole=()):
    """True if two answers have the same labels, in whatever order."""
    return split_labels(answer, whole) == split_labels(truth, whole)


def set_f1(answer, truth, whole=()):
    """F1 of an answer's labels against the truth's, 0 to 1; two empty answers agree."""
    given, true = split_labels(answer, whole), split_labels(truth, whole)
    return 2 * len(given & true) / (len(given) + len(true)) if given or true else 1.0


def candidate_answers(kind, truth):
    """What the answer is taken from: verify (yes or no), choose (one of two named) or query (any).

    ECG-QA's question types say so in their last word (`single-verify`); elsewhere it is verify where the truth is
    yes or no, and query else.
    """
    word = kind.rpartition("-")[2]
    if word in ("verify", "choose", "query"):
        return word
    return "verify" if split_labels(truth) in ({"yes"}, {"no"}) else "query"


def majority_answers(truths, groups):
    """The most frequent answer of each group, the first of several that are equally frequent."""
    counts, spelled = {}, {}
    for truth, group in zip(truths, groups, strict=True):
        counts.setdefault(group, Counter())[split_labels(truth)] += 1
        spelled.setdefault(split_labels(truth), truth)
    return {group: spelled[counter.most_common(1)[0][0]] for group, counter in counts.items()}


def baseline_guesses(training, asked):
    """Answers without any signal: the training questions' most frequent, by type or by the question's words.

    Parameters
    ----------
    training, asked : list of Question

    Returns
    -------
    (list of str or of tuple, str)
        A guess for each question asked, and `type` or `question`: whichever is right more often. A question that
        training does not have is guessed by its type, and a type that it does not have from those asked.
    """
    by_type = majority_answers([q.truth for q in asked], [q.type for q in asked])
    by_type |= majority_answers([q.truth for q in training], [q.type for q in training])
    by_words = majority_answers([q.truth for q in training], [q.question for q in training])
    made = {
        "type": [by_type[q.type] for q in asked],
        "question": [by_words.get(q.question, by_type[q.type]) for q in asked],
    }
    right = {
        name: sum(exact_match(guess, q.truth) for guess, q in zip(given, asked, strict=True))
        for name, given in made.items()
    }
    best = max(right, key=right.__getitem__)
    return made[best], best


def score(
    answers: dict[str, Sequence[str | Sequence[str]]],
    truths: Sequence[str | Sequence[str]],
    types: Sequence[str],
    patients: Sequence[str],
    seed: int = 0,
    attributes: Sequence[str | None] | None = None,
) -> dict:
    """Score answers given with the signal, and the same questions' answers given without it.

    Parameters
    ----------
    answers : dict of str to list of str
        `signal`, and the controls by name: an answer for each question.
    truths : list of str, or of lists of str
        Of each question: a text, or its labels.
    types, patients : list of str
        Of each question.
    seed : int
        Of the bootstrap.
    attributes : list of str or None, optional
        What each question asks for (ECG-QA's attribute_type), where that is known.

    Returns
    -------
    dict
        `questions`, `patients` (how many), `exact_match`, `interval`, `by_type`, `by_answer_set`, `set_f1`;
        `control` (name to its exact_match, interval, by_type, by_answer_set); `best_control`, `difference`
        (signal minus best control, points), `difference_interval` (the best control is chosen anew in every
        draw), `difference_by_type`; `by_attribute`, where attributes are known;
        `labels` (type to `macro_f1` and `f1` by label, where answers are labels).

    Raises
    ------
    ValueError
        If there is no question, or a list has another length.
    """
    if not truths:
        raise ValueError("no answers to score")
    whole = unsplittable_labels(truths)
    right = {
        name: np.array([exact_match(a, t, whole) for a, t in zip(given, truths, strict=True)], float)
        for name, given in answers.items()
    }
    attributes = attributes or [None] * len(truths)
    sets = [candidate_answers(kind, truth) for kind, truth in zip(types, truths, strict=True)]
    drawn = bootstrap(right, patients, seed)

    def scores(name):
        return {
            "exact_match": 100 * right[name].mean(),
            "interval": confidence_interval(drawn[name]),
            "by_type": group_means(right[name], types),
            "by_answer_set": group_means(right[name], sets),
            "by_attribute": group_means(right[name], attributes),
        }

    pairs = list(zip(answers["signal"], truths, strict=True))
    result = {
        "questions": len(truths),
        "patients": len(set(patients)),
        **scores("signal"),
        "set_f1": float(100 * np.mean([set_f1(*pair, whole) for pair in pairs])),
        "control": {name: scores(name) for name in answers if name != "signal"},
        "labels": label_scores(answers["signal"], truths, types, whole),
    }
    controls = result["control"]
    if controls:
        best = max(controls, key=lambda name: controls[name]["exact_match"])
        difference = drawn["signal"] - np.max([drawn[name] for name in controls], axis=0)
        result |= {
            "best_control": best,
            "difference": result["exact_match"] - controls[best]["exact_match"],
            "difference_interval": confidence_interval(difference),
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
    totals = {name: np.empty(draws) for name in right}
    asked = np.bincount(patient, minlength=len(names))
    sums = {name: np.bincount(patient, weights=values) for name, values in right.items()}
    start = 0
    for times in bootstrap_counts(len(names), seed, draws):
        here = slice(start, start := start + len(times))
        for name, per_patient in sums.items():
            totals[name][here] = 100 * (times @ per_patient) / (times @ asked)
    return totals


def bootstrap_counts(patients, seed=0, draws=DRAWS, at_a_time=0):
    """How often each patient is drawn: arrays (some draws, patients), a few million numbers at a time.

    `at_a_time`: how many numbers a draw is turned into, where that is more than there are patients.
    """
    random, chunk = np.random.default_rng(seed), max(1, 4_000_000 // max(patients, at_a_time))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start)
        yield random.multinomial(patients, np.full(patients, 1 / patients), size=size)


def confidence_interval(values):
    return [float(v) for v in np.percentile(values, [2.5, 97.5])]


def summarize_seeds(results):
    """Scores over trainings that differ in their seed.

    Returns
    -------
    dict
        For `exact_match`, `difference` (the gain over the best control) and each type of question: `values`, `mean`
        and `interval` (95 % of the mean, by Student's t).
    """
    from scipy.stats import t

    def of(values):
        mean, count = float(np.mean(values)), len(values)
        wide = float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count))
        return {"values": [float(v) for v in values], "mean": mean, "interval": [mean - wide, mean + wide]}

    made = {
        key: of([one[key] for one in results]) for key in ("exact_match", "difference") if key in results[0]
    }
    return made | {
        "by_type": {kind: of([one["by_type"][kind] for one in results]) for kind in results[0]["by_type"]}
    }


def seed_table(over):
    """The lines of a table of `over_seeds`, and its header."""
    named = {**over["by_type"], "all": over["exact_match"]}
    if "difference" in over:
        named["gain"] = over["difference"]
    lines = [
        [
            name,
            f"{of['mean']:.1f}",
            "{:.1f} to {:.1f}".format(*of["interval"]),
            ", ".join(f"{v:.1f}" for v in of["values"]),
        ]
        for name, of in named.items()
    ]
    return lines, ("questions", "mean", "95 %", "each")


def group_means(right, groups):
    """Mean of each group in percent: a dict from the group's name; None is no group."""
    values = {}
    for r, group in zip(right, groups, strict=True):
        if group is not None:
            values.setdefault(group, []).append(r)
    return {group: float(100 * np.mean(values[group])) for group in sorted(values)}


def label_scores(answers, truths, types, whole=()):
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
        given, true = (
            [split_labels(answers[i], whole) for i in at],
            [split_labels(truths[i], whole) for i in at],
        )
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


def text_scores(answers, truths, bertscore=None):
    """Overlap of texts, all 0 to 100.

    Parameters
    ----------
    answers, truths : list of str
    bertscore : str or None
        Hub id or folder of the model for BERTScore; without one it is not computed.

    Returns
    -------
    dict
        `bleu`: BLEU-4 of the corpus (sacrebleu; 0 where no answer has four words), `bleu_nltk`: the same as
        ECG-Byte's reference code and ECG-Bench compute it (see `bleu_nltk`), `rouge_l`: mean F1 of ROUGE-L
        (rouge-score), `meteor`: mean METEOR (nltk, with its wordnet data); each None where the extra `eval`, or
        the data, is not installed, and `meteor_missing` says why. `bertscore`: mean F1, where asked for.
    """
    scores = {"bleu": None, "bleu_nltk": None, "rouge_l": None, "meteor": None}
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


def bleu_nltk(answers, truths):
    """BLEU-4 of the corpus, 0 to 100, as published results of ECG-Byte and ECG-Bench have it.

    Words are what white space parts, an n-gram order without a match counts 0.1 of one (nltk's smoothing method
    1, Chen and Cherry 2014), and empty answers are left out. On short answers it is far from sacrebleu's.
    """
    from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu

    pairs = [(t.split(), a.split()) for a, t in zip(answers, truths, strict=True) if a.strip() and t.strip()]
    if not pairs:
        return 0.0
    smooth = SmoothingFunction().method1
    return float(100 * corpus_bleu([[t] for t, _ in pairs], [a for _, a in pairs], smoothing_function=smooth))


def _meteor(answers, truths):
    """Mean METEOR, 0 to 100 (Banerjee and Lavie 2005); LookupError without nltk's wordnet data."""
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import single_meteor_score

    wordnet.ensure_loaded()

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


def score_columns(result):
    """The scores of a result by name: the signal's first, then each control's."""
    return {"signal": result, **result["control"]}


def score_rows(result):
    """The table of a result: the header, and a row for each question type, for all, and for their interval.

    The last column is the signal's score minus that of the row's best control. With names of types of up to 15
    letters it fits 80 columns, which is what a pipe has.
    """
    scores = score_columns(result)
    header = ["questions", *scores]
    lines = [[kind, *(f"{s['by_type'][kind]:.1f}" for s in scores.values())] for kind in result["by_type"]]
    lines.append(["all", *(f"{s['exact_match']:.1f}" for s in scores.values())])
    lines.append(
        ["95 % interval", *("{:.0f}-{:.0f}".format(*s["interval"]) for s in scores.values())]
    )
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


def text_score_line(result):
    """One line: the scores that compare texts, and F1 of label sets."""
    names = {
        "bleu": "BLEU-4 (sacrebleu)",
        "bleu_nltk": "BLEU-4 (nltk)",
        "rouge_l": "ROUGE-L",
        "meteor": "METEOR",
        "bertscore": "BERTScore F1",
    }
    known = [f"{names[k]} {result[k]:.1f}" for k in names if result.get(k) is not None]
    if "meteor_missing" in result:
        known.append(f"no METEOR ({result['meteor_missing']})")
    macro = [
        f"macro F1 of {kind} {scores['macro_f1']:.1f}" for kind, scores in result["labels"].items()
    ]
    return ", ".join([f"F1 of answer sets {result['set_f1']:.1f}", *macro, *known])


def metrics_markdown(result, title):
    """The table, the headline and the other scores as Markdown."""
    header, lines = score_rows(result)
    grid = [header, ["---", *["---:"] * (len(header) - 1)], *lines]
    attributes = [f"{name} {value:.1f}" for name, value in result["by_attribute"].items()]
    return "\n".join(
        [f"# {title}", "", *("| " + " | ".join(line) + " |" for line in grid), ""]
        + [headline(result), "", text_score_line(result), ""]
        + ([f"Exact match by attribute: {', '.join(attributes)}", ""] if attributes else [])
    )
