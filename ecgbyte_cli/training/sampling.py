"""The order of training samples: repetition, shuffling, batches of similar length, replaced ECGs."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ecgbyte_cli.questions.question_file import Question

EpochItem = tuple[int, int]  # epoch, and index of a plan
T = TypeVar("T")
RAREST = 0.001  # questions with a smaller share of yes are drawn like this share
# lead sets of watches and handheld recorders, monitors, Holter recorders, and the limb leads
LEAD_SETS = (("I",), ("II",), ("I", "II"), ("II", "V5"), ("V1", "V5"), ("II", "V1", "V5"), ("II", "V1"))


def recording_runs(recorded: Mapping[str, Sequence]) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each segment, the first segment of its recording and the recording's number of segments.

    Parameters
    ----------
    recorded : dict
        The columns of symbols/segments.parquet.

    Returns
    -------
    (int64 array, int64 array)
    """
    names = list(zip(recorded.get("path", recorded["record"]), recorded["record"], strict=True))
    first = np.arange(len(names))
    for i in range(1, len(names)):
        if names[i] == names[i - 1]:
            first[i] = first[i - 1]
    return first, np.bincount(first, minlength=len(names))[first]


def lead_subset(leads: Sequence[str], random: np.random.Generator) -> np.ndarray:
    """Draw some of the leads: half of the draws are a set of a common recorder, the others any leads, mostly few.

    Returns
    -------
    int64 array
        Their indices in `leads`, ascending.
    """
    sets = [[leads.index(lead) for lead in each] for each in LEAD_SETS if {*each} <= {*leads}]
    if sets and random.random() < 0.5:
        return np.array(sets[random.integers(len(sets))])
    share = 1 / np.arange(1, len(leads) + 1)
    count = 1 + random.choice(len(leads), p=share / share.sum())
    return np.sort(random.choice(len(leads), count, replace=False))


def drawing_chances(yes_shares: Sequence[float], count: float) -> np.ndarray:
    """Return the probability of asking each question whose answer is no, so that `count` are asked on average.

    The probability grows with the square root of the share of yes: a no teaches more when a yes is likely.

    Parameters
    ----------
    yes_shares : list of float
        How often the answer to each question is yes.
    count : float
        Mean number of questions to ask, at most the number of questions.

    Returns
    -------
    float64 array
    """
    wanted = np.sqrt(np.maximum(yes_shares, RAREST))
    chances, asked = np.zeros(len(wanted)), np.zeros(len(wanted), bool)
    while True:  # questions that are always asked leave less probability for the others
        chances[~asked] = wanted[~asked] * (count - asked.sum()) / max(wanted[~asked].sum(), 1e-9)
        if not (chances > 1).any():
            return chances
        asked |= chances >= 1
        chances[asked] = 1


def repeat_plans(plans: list[T], times: float, seed: Sequence[int]) -> list[T]:
    """Repeat plans; a fractional number repeats a random share of them."""
    whole, rest = divmod(times, 1)
    chosen = np.random.default_rng(seed).permutation(len(plans))[: round(rest * len(plans))]
    return plans * int(whole) + [plans[i] for i in sorted(chosen)]


def stratified_order(questions: Sequence[Question], seed: int) -> list[Question]:
    """Shuffle questions so that any prefix contains the types in about their overall shares."""
    random, seen = np.random.default_rng(seed), Counter[str]()
    of_type, place = Counter(question.type for question in questions), {}
    order = random.permutation(len(questions)).tolist()
    for i in order:
        kind = questions[i].type
        place[i] = seen[kind] / of_type[kind]
        seen[kind] += 1
    return [questions[i] for i in sorted(order, key=place.__getitem__)]


def first_with_same_ecgs(questions: Sequence[Question], count: int) -> list[Question]:
    """Return the first `count` questions and all others about the same ECGs, in their order."""
    segments = {question.segments for question in questions[:count]}
    return [question for question in questions if question.segments in segments]


def ecg_replacements(seed: int, step: int, count: int, share: float) -> list[str | None]:
    """Choose the replacement for each ECG of a step.

    Returns
    -------
    list of str or None
        `no signal` for half of the share, `flat line` for the other half, and None for the rest.
    """
    drawn = np.random.default_rng([seed, step, 1]).random(count) / max(share, 1e-9)
    return [None if value >= 1 else "no signal" if value < 0.5 else "flat line" for value in drawn]


def length_batches(lengths: Sequence[int], batch: int, seed: int) -> Iterator[list[EpochItem]]:
    """Yield endless batches of items of similar length, in a random order.

    Each epoch shuffles the items, sorts runs of 50 batches by length, and shuffles the batches.
    """
    sizes, epoch = np.asarray(lengths), 0
    while True:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(sizes))
        runs = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
        order = np.concatenate([run[np.argsort(sizes[run], kind="stable")] for run in runs])
        groups = [order[i : i + batch] for i in range(0, len(order), batch)]
        for i in random.permutation(len(groups)):
            yield [(epoch, int(k)) for k in groups[i]]
        epoch += 1
