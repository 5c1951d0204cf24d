"""Calibrate a trained model: its questions and answers, temperatures of its probabilities, typical ECGs."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ecgbyte_cli.inference.batch_answering import PromptSet
from ecgbyte_cli.inference.certainty import (
    Certainty,
    answer_kind,
    can_choose_from,
    lead_ranges,
    normalize_question,
    preceding_tokens,
    yes_place,
)
from ecgbyte_cli.model.ecg_lm import ECGLM
from ecgbyte_cli.questions import Question
from ecgbyte_cli.runtime.memory import in_parts, out_of_memory
from ecgbyte_cli.runtime.ranks import process_rank
from ecgbyte_cli.training.dataset import SampleBuilder
from ecgbyte_cli.training.distributed import failing_together, first_progress, sum_over_processes
from ecgbyte_cli.training.plans import TrainingPlans
from ecgbyte_cli.training.sampling import first_with_same_ecgs
from ecgbyte_cli.training.sharding import is_sharded

MOST_TEXTS = 100_000  # with more question texts, no list of questions is stored
SEEN = 3  # least mean number of occurrences of each answer of a closed question in training
WEIGHED = 1500  # validation questions used for calibration
MOST_WEIGHED = 300_000  # the same, if all other questions about the same ECGs are added
LEAST_EACH = 20  # fewest validation questions answered yes, and answered no, to calibrate one by itself
TEMPERATURES = np.geomspace(0.25, 8, 61)
OFTEN = 10  # fewest validation questions with an answer for its recall to count
ROUNDS, MOVES = 3, np.linspace(-1.5, 1.5, 13)  # how the adjustment of one answer is moved
PARTS = 10  # of a cross-validation
MOVE_COST = 0.003  # what a move by 1 must gain in accuracy plus mean recall
WEIGHED_ALONE = 100  # WEIGHED for a model that reads the ECG once per answer
LEAST = 50  # fewest validation questions to calibrate on
SEGMENTS = 20_000  # training segments in which token pairs are counted
MOST_PAIRS = 400_000  # the most frequent token pairs are stored: 3.2 MB
RIGHT, COVERED = 0.9, 0.7  # of the sure answers RIGHT are right, or they are COVERED of all answers


def calibrate_training(
    lm: ECGLM, samples: SampleBuilder, plans: TrainingPlans, batch: int, tell: Callable[[str], object]
) -> Certainty | None:
    """Calibrate a model on its training data, with a progress bar; see `calibrate_model`."""
    questions = [question for plan in plans.training for question in plan.questions]
    validation = chosen_for_calibration(lm, plans.validation)
    with first_progress("certainty", len(validation), "questions") as bar:
        return calibrate_model(lm, samples, questions, validation, batch, bar, tell)


def calibrate_model(
    lm: ECGLM,
    samples: SampleBuilder,
    training: Sequence[Question],
    validation: Sequence[Question],
    batch: int = 4,
    bar: Any = None,
    tell: Callable[[str], object] = print,
) -> Certainty | None:
    """Collect the questions and answers of a training run, and calibrate the probabilities of the answers.

    The processes divide the answers among them, and all must call this; it returns None on all but the first.

    Parameters
    ----------
    lm : ECGLM
    samples : SampleBuilder
    training, validation : list of Question
        The probabilities are calibrated on the validation questions.
    batch : int
        Number of ECGs read together.
    bar : object or None
        Progress bar that counts validation questions.
    tell : callable
        Prints a message.
    """
    is_first, nothing = process_rank()[0] == 0, np.zeros(0, np.int64)
    pairs = count_pairs(samples, samples.tokenizer.vocab_size) if is_first else [nothing] * 3
    certainty = Certainty(answer_groups(training), {}, {}, None, None, *pairs)
    log_probabilities: list[np.ndarray] = []
    weighed: list[tuple[Question, list[str]]] = []
    try:
        weighed = to_weigh(certainty, lm, validation)
        log_probabilities = answer_log_probabilities(lm, samples, weighed, batch, bar)
    except RuntimeError as error:  # the trained model is kept regardless
        reason = "out of memory" if out_of_memory(error) else " ".join(str(error).split())[:200]
        tell(f"its probabilities are not calibrated: {reason}")
    if not is_first:
        return None
    for kind in ("two", "more"):
        of_kind = [
            (logs, answers, question)
            for (question, answers), logs in zip(weighed, log_probabilities, strict=False)
            if answer_kind(answers) == kind
        ]
        if len(of_kind) >= LEAST:
            certainty.temperature[kind], certainty.sure[kind] = fit_temperature(of_kind)
    certainty.points = fit_points(weighed, log_probabilities)
    certainty.adjustments = fit_adjustments(certainty, weighed, log_probabilities)
    if certainty.temperature or certainty.points:
        certainty.calibrated_on = f"{len(weighed):,} questions of the validation split"
    places = np.flatnonzero(np.asarray(samples.recorded["split"]) == "val")[:2000]
    if len(places) >= LEAST:
        certainty.bits, certainty.amplitude = _typical_ranges(certainty, samples, places)
    return certainty


def to_weigh(
    certainty: Certainty, lm: ECGLM, validation: Sequence[Question]
) -> list[tuple[Question, list[str]]]:
    """Return the questions for calibration, worded as in training, and their possible answers."""
    weighed = []
    for question in validation:
        known = certainty.match(question.question)
        if known and known.answers and not question.earlier and len(question.segments) == 1:
            weighed.append((replace(question, question=known.text), known.answers))
    return weighed[: MOST_WEIGHED if lm.beside else WEIGHED_ALONE]


def chosen_for_calibration(lm: ECGLM, validation: Sequence[Question]) -> list[Question]:
    """Return the first validation questions, plus all others about the same ECGs if each ECG is read only once."""
    return first_with_same_ecgs(validation, WEIGHED) if lm.beside else list(validation[:WEIGHED])


def tokens_read(
    lm: ECGLM, samples: SampleBuilder, training: Sequence[Question], validation: Sequence[Question]
) -> int:
    """Estimate how many tokens a calibration reads. The parameters are those of `calibrate_model`."""
    nothing = np.zeros(0, np.int64)
    certainty = Certainty(answer_groups(training), {}, {}, None, None, nothing, nothing, nothing)
    weighed = to_weigh(certainty, lm, chosen_for_calibration(lm, validation))
    plans = samples.plans([question for question, _ in weighed])[0]
    if lm.beside:
        return sum(plan.length for plan in plans)
    # each answer needs its own prompt
    longest = max((plan.length for plan in plans), default=0)
    return longest * sum(len(answers) for _, answers in weighed)


def answer_groups(questions: Sequence[Question]) -> list[dict]:
    """Group questions with the same meaning, and return their texts and possible answers.

    Closed questions with the same type and topic are rewordings of each other.
    """
    texts: dict[tuple[str, str] | str, dict[str, None]] = {}
    answers: dict[tuple[str, str] | str, Counter] = {}
    reasoned = set()
    for question in questions:
        if question.earlier or len(question.segments) > 1:
            continue
        of_topic = question.closed and question.topic
        key = (question.type, str(question.topic)) if of_topic else normalize_question(question.question)
        texts.setdefault(key, {})[question.question] = None
        if question.reasoning:
            reasoned.add(key)  # reasonings all differ, so there is no list of answers to choose from
        answers.setdefault(key, Counter())[question.answer] += 1
    if sum(map(len, texts.values())) > MOST_TEXTS:
        return []
    groups = []
    for key, same in texts.items():
        counted = answers[key]
        known = [answer for answer, _ in counted.most_common()]
        if {*known} < {"yes", "no"}:
            known += {"yes", "no"} - {*known}
        often = isinstance(key, tuple) or counted.total() >= SEEN * len(counted)
        groups.append(
            {
                "texts": [*same],
                "answers": known if often and can_choose_from(known) and key not in reasoned else None,
            }
        )
    return groups


def answer_log_probabilities(
    lm: ECGLM,
    samples: SampleBuilder,
    weighed: Sequence[tuple[Question, Sequence[str]]],
    batch: int,
    bar: Any = None,
) -> list[np.ndarray]:
    """Return the log probabilities of the possible answers to each question.

    Several processes must call this together. They divide the batches, and each gets all results.

    Raises
    ------
    RuntimeError
        If any of the processes cannot compute its share.
    """
    rank, processes = process_rank()
    prompts = PromptSet(samples.prompt, samples.tokenizer, samples.longest)
    for number, (question, _) in enumerate(weighed):
        lines = samples.lines_of(question.segments)
        prompts.ask(number, question, [samples.own(segment) for segment in question.segments], lines)
    log_probabilities = [np.zeros(0)] * len(weighed)

    def weigh(numbers: Sequence[int]) -> list[np.ndarray]:
        answers = [[samples.prompt.written(answer) for answer in weighed[number][1]] for number in numbers]
        return lm.weigh([prompts.ids(number) for number in numbers], answers)

    lm.eval()
    batches = list(prompts.batches(range(len(weighed)), 4 * batch, False))
    # all processes of a sharded model compute every batch
    shared = processes > 1 and bool(weighed) and not is_sharded(lm)
    own = batches[rank::processes] if shared else batches
    with failing_together(lm.device):
        for together in own:
            numbers = [number for (number,) in together]
            parts = in_parts(numbers, len(numbers), weigh)
            for number, logs in zip(numbers, itertools.chain.from_iterable(parts), strict=True):
                log_probabilities[number] = logs
            if bar:
                bar.advance(len(numbers) * (processes if shared else 1))
    if not shared:
        return log_probabilities
    # each result is zero on all processes except one
    counts = [len(answers) for _, answers in weighed]
    known = [logs if len(logs) else np.zeros(n) for logs, n in zip(log_probabilities, counts, strict=True)]
    sums = sum_over_processes(np.concatenate(known).tolist(), lm.device)
    return np.split(np.array(sums), np.cumsum(counts)[:-1])


def fit_temperature(weighed: Sequence[tuple[np.ndarray, Sequence[str], Question]]) -> tuple[float, float]:
    """Return the temperature with the highest likelihood of the truths, and the lowest probability of a sure answer.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.

    Parameters
    ----------
    weighed : list of (float64 array, list of str, Question)
        Log probabilities of the possible answers, the answers, and the question with its true answer.
    """
    widest = max(len(answers) for _, answers, _ in weighed)
    logs = np.full((len(weighed), widest), -np.inf)
    truth = np.full(len(weighed), -1)
    for i, (own, answers, question) in enumerate(weighed):
        logs[i, : len(own)] = own
        if question.answer in answers:
            truth[i] = list(answers).index(question.answer)
    known = np.flatnonzero(truth >= 0)

    def probabilities(temperature: float) -> np.ndarray:
        weights = np.exp((logs - logs.max(1, keepdims=True)) / temperature)
        return weights / weights.sum(1, keepdims=True)

    losses = [-np.log(np.maximum(probabilities(t)[known, truth[known]], 1e-300)).sum() for t in TEMPERATURES]
    temperature = float(TEMPERATURES[int(np.argmin(losses))]) if len(known) else 1.0
    weights = probabilities(temperature)
    best, right = weights.max(1), weights.argmax(1) == truth
    order = np.argsort(-best, kind="stable")
    share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(share >= RIGHT)
    count = max(int(enough[-1]) + 1 if len(enough) else 0, math.ceil(COVERED * len(order)))
    return temperature, float(best[order][count - 1])


def fit_points(
    weighed: Sequence[tuple[Question, Sequence[str]]], log_probabilities: Sequence[np.ndarray]
) -> dict[str, list[float]]:
    """Calibrate each yes/no question individually, and choose its threshold for yes.

    Returns
    -------
    dict of str to list of float
        `Certainty.points` of the questions with `LEAST_EACH` answers yes and as many no.
    """
    odds: dict[str, list[float]] = {}
    truth: dict[str, list[bool]] = {}
    for (question, answers), logs in zip(weighed, log_probabilities, strict=False):
        yes = yes_place(answers)
        if yes is not None:
            odds.setdefault(question.question, []).append(float(logs[yes] - logs[1 - yes]))
            truth.setdefault(question.question, []).append(question.answer.casefold() == "yes")
    return {
        text: fit_point(np.array(values), np.array(truth[text]))
        for text, values in odds.items()
        if min(sum(truth[text]), len(values) - sum(truth[text])) >= LEAST_EACH
    }


def fit_adjustments(
    certainty: Certainty,
    weighed: Sequence[tuple[Question, Sequence[str]]],
    log_probabilities: Sequence[np.ndarray],
) -> dict[str, dict[str, float]]:
    """Choose how strongly to prefer each answer, for each question with more than two answers.

    The sum of accuracy and mean recall decides. First a multiple (0 to 1) of the logarithm of each answer's share of
    the questions is subtracted from its log-probability. Then the answers that occur at least `OFTEN` times are
    adjusted one by one, if that also raises the sum on questions held out of the fit.

    Returns
    -------
    dict of str to dict of str to float
        `Certainty.adjustments` of the questions with at least `LEAST` truths and two answers that occur `OFTEN` times.
    """
    by_text: dict[str, list[tuple[np.ndarray, int]]] = {}
    answers_of: dict[str, Sequence[str]] = {}
    for (question, answers), logs in zip(weighed, log_probabilities, strict=False):
        if answer_kind(answers) == "more" and question.answer in answers:
            weights = certainty.weights(answers, logs, question.question)
            answers_of[question.question] = answers
            truth = list(answers).index(question.answer)
            by_text.setdefault(question.question, []).append((np.log(np.maximum(weights, 1e-300)), truth))
    adjustments = {}
    for text, known in by_text.items():
        logs, truths = np.array([one for one, _ in known]), np.array([truth for _, truth in known])
        frequent = np.flatnonzero(np.bincount(truths, minlength=logs.shape[1]) >= OFTEN)
        if len(known) < LEAST or len(frequent) < 2:
            continue
        added = _best_adjustment(logs, truths, frequent)
        if added.any():
            adjustments[text] = dict(zip(answers_of[text], added.tolist(), strict=True))
    return adjustments


def _best_adjustment(logs: np.ndarray, truths: np.ndarray, frequent: np.ndarray) -> np.ndarray:
    """Return what to add to the log-probabilities (questions, answers) of one question's answers."""

    def held_out(one_by_one: bool) -> float:
        part, adjusted = np.random.default_rng(0).integers(PARTS, size=len(truths)), logs.copy()
        for number in range(PARTS):
            fitted = part != number
            adjusted[~fitted] += _fitted_adjustment(logs[fitted], truths[fitted], frequent, one_by_one)
        return _score(adjusted, truths, frequent)

    return _fitted_adjustment(logs, truths, frequent, held_out(True) > held_out(False))


def _fitted_adjustment(
    logs: np.ndarray, truths: np.ndarray, frequent: np.ndarray, one_by_one: bool
) -> np.ndarray:
    counts = np.bincount(truths, minlength=logs.shape[1])
    shares = np.log(np.maximum(counts, OFTEN) / len(truths))  # too little is known about rarer answers
    strengths = np.linspace(0, 1, 11)
    added = max(
        (-strength * shares for strength in strengths), key=lambda a: _score(logs + a, truths, frequent)
    )
    costs = MOVE_COST * np.abs(MOVES)
    for answer in [*frequent] * ROUNDS * one_by_one:
        moved = added + np.outer(MOVES, np.arange(logs.shape[1]) == answer)
        added = moved[np.argmax([_score(logs + a, truths, frequent) for a in moved] - costs)]
    return added


def _score(logs: np.ndarray, truths: np.ndarray, frequent: np.ndarray) -> float:
    """Return accuracy plus mean recall of the frequent answers that occur."""
    right = logs.argmax(1) == truths
    return float(right.mean() + np.mean([right[truths == a].mean() for a in frequent if (truths == a).any()]))


def fit_point(odds: np.ndarray, truth: np.ndarray) -> list[float]:
    """Fit slope and intercept of calibrated log-odds, and the threshold for yes.

    The fit follows Platt, Probabilistic Outputs for Support Vector Machines, 1999. With few answers it stays near the
    model's own odds (slope 1, intercept 0). The threshold maximises F1, the harmonic mean of sensitivity and positive
    predictive value.

    Parameters
    ----------
    odds : float64 array (n,)
        The model's log-odds of yes.
    truth : bool array (n,)
    """
    values = np.stack([odds, np.ones(len(odds))], axis=1)
    before, spread = np.array([1.0, 0.0]), np.array([0.5, 1.0])
    fitted = before.copy()
    for _ in range(25):  # Newton's method
        chance = 1 / (1 + np.exp(-values @ fitted))
        gradient = values.T @ (chance - truth) + (fitted - before) / spread**2
        curvature = (values * (chance * (1 - chance))[:, None]).T @ values + np.diag(spread**-2)
        fitted = fitted - np.linalg.solve(curvature, gradient)
    chance = np.sort(1 / (1 + np.exp(-values @ fitted)))[::-1]
    hits = np.cumsum(truth[np.argsort(-(values @ fitted), kind="stable")])
    f1 = 2 * hits / (np.arange(1, len(truth) + 1) + truth.sum())
    best = int(f1[:-1].argmax())
    point = float((chance[best] + chance[best + 1]) / 2)
    return [float(fitted[0]), float(fitted[1]), min(max(point, 0.01), 0.99)]


def count_pairs(samples: SampleBuilder, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count the tokens of the training split, and the pairs of consecutive tokens.

    Returns
    -------
    (keys, counts, single)
        int64 arrays: the pairs in rising order, their counts, and the count of each token. Pairs that occur once are
        left out, and so are the rarest beyond `MOST_PAIRS`.
    """
    places = np.flatnonzero(np.asarray(samples.recorded["split"]) == "train")
    if len(places) > SEGMENTS:
        places = places[np.linspace(0, len(places) - 1, SEGMENTS).astype(int)]
    single, keys = np.zeros(vocabulary, np.int64), []
    for place in places.tolist():
        ecg = samples.own(place)
        if len(ecg):
            single += np.bincount(ecg, minlength=vocabulary)
            before = preceding_tokens(ecg, samples.tokenizer.lengths, samples.shape[1], vocabulary)
            keys.append(before * vocabulary + ecg)
    pairs, counts = np.unique(np.concatenate(keys) if keys else np.zeros(0, np.int64), return_counts=True)
    pairs, counts = pairs[counts > 1], counts[counts > 1]
    kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_PAIRS])
    return pairs[kept], counts[kept], single


def _typical_ranges(
    certainty: Certainty, samples: SampleBuilder, places: np.ndarray
) -> tuple[list[float] | None, list[float]]:
    """Return percentiles over segments: bits per token (50 and 99.5), and range in mV (0.5 and 99.5)."""
    tokenizer = samples.tokenizer
    bits: list[float] = []
    ranges: list[float] = []
    for place in places.tolist():
        ecg = samples.own(place)
        lo, hi = samples.recorded["lo"][place], samples.recorded["hi"][place]
        ranges.append(float(np.median(lead_ranges(tokenizer.to_mv(samples.letters_of(place), lo, hi)))))
        if len(ecg):
            bits.append(certainty.bits_of(ecg, tokenizer.lengths, tokenizer.signal["samples"]))
    return (
        [float(x) for x in np.percentile(bits, [50, 99.5])] if bits else None,
        [float(x) for x in np.percentile(ranges, [0.5, 99.5])],
    )
