"""From a training: what the model was trained to answer, how far its probabilities are off, what its ECGs are like."""

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ecgbyte_cli.inference.batch_answering import PromptSet
from ecgbyte_cli.inference.certainty import (
    Certainty,
    answer_kind,
    can_choose_from,
    lead_ranges,
    normalize_question,
    preceding_tokens,
    softmax,
)
from ecgbyte_cli.model.ecg_lm import ECGLM
from ecgbyte_cli.questions import Question
from ecgbyte_cli.runtime.memory import in_parts, out_of_memory
from ecgbyte_cli.training.dataset import SampleBuilder

MOST_TEXTS = 100_000  # a training with more questions in other words knows no list of them
SEEN = 3  # times that each answer of a question stands in training, on average, if it is to be chosen from
WEIGHED = 1500  # validation questions that the probabilities are calibrated on
WEIGHED_ALONE = 100  # of a model that reads the ECG once for each answer
LEAST = 50  # validation questions with as many answers: of fewer nothing is concluded
SEGMENTS = 20_000  # of the training split that pairs of tokens are counted in
RIGHT, COVERED = 0.9, 0.7  # "sure": so many of the answers are right, or else so many of all are given


def calibrate_model(
    lm: ECGLM,
    samples: SampleBuilder,
    training: Sequence[Question],
    validation: Sequence[Question],
    batch: int = 4,
    bar=None,
    tell=print,
) -> Certainty:
    """Find out, after a training, what the model was trained to answer and how far it can be believed.

    Parameters
    ----------
    lm : ECGLM
    samples : Samples
    training, validation : list of Question
        Those of validation calibrate the probabilities.
    batch : int
        ECGs that are read together.
    bar : object or None
        Shows how many questions of validation are done.
    tell : callable
        Prints a remark.
    """
    pairs = count_pairs(samples, samples.tokenizer.vocab_size)
    made = Certainty(answer_groups(training), {}, {}, None, None, *pairs)
    given: list[np.ndarray] = []
    asked: list[tuple[Question, list[str]]] = []
    try:
        asked = to_weigh(made, lm, validation)
        given = answer_log_probabilities(lm, samples, asked, batch, bar)
    except RuntimeError as error:  # the model is there, and is to be kept
        reason = "out of memory" if out_of_memory(error) else " ".join(str(error).split())[:200]
        tell(f"its probabilities are not calibrated: {reason}")
    for kind in ("two", "more"):
        mine = [
            (logs, answers, question)
            for (question, answers), logs in zip(asked, given, strict=False)
            if answer_kind(answers) == kind
        ]
        if len(mine) >= LEAST:
            made.temperature[kind], made.sure[kind] = fit_temperature(mine)
    places = np.flatnonzero(np.asarray(samples.recorded["split"]) == "val")[:2000]
    if len(places) >= LEAST:
        made.bits, made.amplitude = _typical_ranges(made, samples, places)
    return made


def to_weigh(
    certainty: Certainty, lm: ECGLM, validation: Sequence[Question]
) -> list[tuple[Question, list[str]]]:
    """Return the questions that probabilities are calibrated on, in the words of training, with their answers."""
    asked = []
    for question in validation:
        known = certainty.match(question.question)
        if known and known.answers and not question.earlier and len(question.segments) == 1:
            asked.append((replace(question, question=known.text), known.answers))
    return asked[: WEIGHED if lm.beside else WEIGHED_ALONE]


def tokens_read(
    lm: ECGLM, samples: SampleBuilder, training: Sequence[Question], validation: Sequence[Question]
) -> int:
    """Return about how many tokens a model reads to be calibrated, for an estimate of the time.

    The parameters are those of `measure`.
    """
    certainty = Certainty(answer_groups(training), {}, {}, None, None, *[np.zeros(0, np.int64)] * 3)
    asked = to_weigh(certainty, lm, validation[:WEIGHED])
    plans = samples.plans([question for question, _ in asked])[0]
    if lm.beside:
        return sum(plan.length for plan in plans)
    # each answer is read behind a prompt of its own
    longest = max((plan.length for plan in plans), default=0)
    return longest * sum(len(answers) for _, answers in asked)


def answer_groups(questions: Sequence[Question]) -> list[dict]:
    """Questions that ask the same, with the answers that they can have.

    Those of a question file that says so (`closed`, and the same `topic`) ask the same in other words.
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
            reasoned.add(key)  # no two reasonings are the same: there is nothing to choose from
        answers.setdefault(key, Counter())[question.answer] += 1
    if sum(map(len, texts.values())) > MOST_TEXTS:
        return []
    made = []
    for key, some in texts.items():
        counted = answers[key]
        known = [answer for answer, _ in counted.most_common()]
        if {*known} < {"yes", "no"}:
            known += {"yes", "no"} - {*known}
        often = isinstance(key, tuple) or counted.total() >= SEEN * len(counted)
        made.append(
            {
                "texts": [*some],
                "answers": known if often and can_choose_from(known) and key not in reasoned else None,
            }
        )
    return made


def answer_log_probabilities(lm, samples, asked, batch, bar=None):
    """The logarithms of the probabilities of answers, of (Question, list of str) each."""
    prompts = PromptSet(samples.prompt, samples.tokenizer, samples.longest)
    for number, (question, _) in enumerate(asked):
        prompts.ask(number, question, [samples.own(segment) for segment in question.segments])
    made = [np.zeros(0)] * len(asked)
    lm.eval()
    for together in prompts.batches(range(len(asked)), 4 * batch, False):
        numbers = [number for (number,) in together]
        found = in_parts(numbers, len(numbers), lambda some: _weigh(lm, prompts, samples, asked, some))
        for number, logs in zip(numbers, itertools.chain.from_iterable(found), strict=True):
            made[number] = logs
        if bar:
            bar.advance(len(numbers))
    return made


def _weigh(lm, prompts, samples, asked, numbers):
    answers = [[samples.prompt.written(answer) for answer in asked[number][1]] for number in numbers]
    return lm.weigh([prompts.ids(number) for number in numbers], answers)


def fit_temperature(given: Sequence[tuple[np.ndarray, Sequence[str], Question]]) -> tuple[float, float]:
    """The temperature under which the truths are likeliest, and from which probability on an answer is sure.

    Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.

    Parameters
    ----------
    given : list of (float64 array, list of str, Question)
        Logarithms of the probabilities of answers, the answers, and the question with its true one.
    """
    known = [(logs, list(a).index(q.answer)) for logs, a, q in given if q.answer in a]
    temperatures = np.geomspace(0.25, 8, 61)
    losses = [
        -sum(math.log(max(softmax(logs / t)[truth], 1e-300)) for logs, truth in known) for t in temperatures
    ]
    temperature = float(temperatures[int(np.argmin(losses))]) if known else 1.0
    best, right = [], []
    for logs, answers, question in given:
        weights = softmax(logs / temperature)
        best.append(float(weights.max()))
        right.append(answers[int(weights.argmax())] == question.answer)
    order = np.argsort(-np.array(best), kind="stable")
    share = np.cumsum(np.array(right)[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero(share >= RIGHT)
    count = max(int(enough[-1]) + 1 if len(enough) else 0, math.ceil(COVERED * len(order)))
    return temperature, float(np.array(best)[order][count - 1])


def count_pairs(samples: SampleBuilder, vocabulary: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often tokens follow each other in the training split, and how often each token is there.

    Returns
    -------
    (keys, counts, single)
        int64 arrays: the pairs that are there more than once, rising, and their numbers; and of each token its number.
    """
    places = np.flatnonzero(np.asarray(samples.recorded["split"]) == "train")
    if len(places) > SEGMENTS:
        places = places[np.linspace(0, len(places) - 1, SEGMENTS).astype(int)]
    single, keys = np.zeros(vocabulary, np.int64), []
    for place in places:
        ecg = samples.own(place)
        if len(ecg):
            single += np.bincount(ecg, minlength=vocabulary)
            before = preceding_tokens(ecg, samples.tokenizer.lengths, samples.shape[1], vocabulary)
            keys.append(before * vocabulary + ecg)
    found, counts = np.unique(np.concatenate(keys) if keys else np.zeros(0, np.int64), return_counts=True)
    return found[counts > 1], counts[counts > 1], single


def _typical_ranges(made, samples, places):
    """Bits per token and mV of segments: median and 99.5th percentile, and 0.5th and 99.5th."""
    tokenizer, bits, moves = samples.tokenizer, [], []
    for place in places:
        ecg = samples.own(place)
        lo, hi = samples.recorded["lo"][place], samples.recorded["hi"][place]
        moves.append(float(np.median(lead_ranges(tokenizer.to_mv(samples.letters_of(place), lo, hi)))))
        if len(ecg):
            bits.append(made.bits_of(ecg, tokenizer.lengths, tokenizer.signal["samples"]))
    return (
        [float(x) for x in np.percentile(bits, [50, 99.5])] if bits else None,
        [float(x) for x in np.percentile(moves, [0.5, 99.5])],
    )
