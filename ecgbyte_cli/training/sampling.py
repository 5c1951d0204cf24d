"""Choose which readings are trained on, how often, and in which batches."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    pass


def recording_runs(recorded):
    """Of each segment the first one of its recording, and how many that has: two int64 arrays."""
    names = list(zip(recorded.get("path", recorded["record"]), recorded["record"], strict=True))
    first = np.arange(len(names))
    for i in range(1, len(names)):
        if names[i] == names[i - 1]:
            first[i] = first[i - 1]
    return first, np.bincount(first, minlength=len(names))[first]


def _repeat_plans(plans, times, seed):
    """Plans, so many times each; what is left of a whole number is drawn."""
    whole, rest = divmod(times, 1)
    drawn = np.random.default_rng(seed).permutation(len(plans))[: round(rest * len(plans))]
    return plans * int(whole) + [plans[i] for i in sorted(drawn)]


def stratified_order(questions, seed):
    """Questions in an order drawn by seed, of which every beginning holds the types in about their shares."""
    random, seen = np.random.default_rng(seed), Counter()
    of_type, place = Counter(question.type for question in questions), {}
    order = random.permutation(len(questions)).tolist()
    for i in order:
        kind = questions[i].type
        place[i] = seen[kind] / of_type[kind]
        seen[kind] += 1
    return [questions[i] for i in sorted(order, key=place.__getitem__)]


def ecg_replacements(seed, step, count, share):
    """What stands in the place of the ECGs of the samples of a step, as seed and step have it.

    Returns
    -------
    list of str or None
        `no signal` for half of the share, `flat line` for the other half, and None for the rest.
    """
    drawn = np.random.default_rng([seed, step, 1]).random(count) / max(share, 1e-9)
    return [None if value >= 1 else "no signal" if value < 0.5 else "flat line" for value in drawn]


def length_batches(lengths, batch, seed):
    """Endless batches of (epoch, number), of like length each, in an order that the seed decides.

    Each epoch shuffles what is read, sorts stretches of 50 batches by length, and shuffles the batches.
    """
    lengths, epoch = np.asarray(lengths), 0
    while True:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        stretches = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
        order = np.concatenate([s[np.argsort(lengths[s], kind="stable")] for s in stretches])
        groups = [order[i : i + batch] for i in range(0, len(order), batch)]
        for i in random.permutation(len(groups)):
            yield [(epoch, int(k)) for k in groups[i]]
        epoch += 1
