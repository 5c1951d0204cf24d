"""Questions to ids and labels, and ids to batches."""

from collections import Counter
from functools import cached_property

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.prompt import leads_of
from ecgbyte_cli.questions import files as question_files
from ecgbyte_cli.workdir import read_array, read_json, read_table


class Samples:
    """Makes the ids and labels of questions.

    Parameters
    ----------
    work : WorkDir
    prompt : Prompt
    tokenizer : ECGTokenizer
    max_length : int
        In tokens, of prompt and answer together.
    long : str
        `trim` or `skip`: what becomes of longer ones.

    Attributes
    ----------
    longest : int
        Ids that a prompt may have, whatever its answer: `max_length` less the room of the longest answer.
    """

    def __init__(self, work, prompt, tokenizer, max_length, long):
        self.prompt, self.tokenizer, self.max_length, self.long = prompt, tokenizer, max_length, long
        self.longest = max_length
        self.tokens, self.segments = read_array(work.tokens), read_table(work.token_segments)
        self.samples_per_lead = read_table(work.symbol_segments)["samples"]
        self.segmenter = read_json(work.token_settings).get("segmenter", "longest")

    @cached_property
    def flat(self):
        """The ids of a flat line."""
        shape = (len(self.tokenizer.signal["leads"]), self.tokenizer.signal["samples"])
        return self.tokenizer.encode(np.zeros(shape, np.float32), self.segmenter)

    def __call__(self, question, instead=None, asked=False):
        """Ids and labels of a question, and how many ECG tokens were left out.

        Parameters
        ----------
        question : Question
        instead : str or None
            `no signal` or `flat line`, in the place of each of its ECGs.
        asked : bool
            Whether to end where the last answer begins.

        Raises
        ------
        Failure
            If the sample is too long.
        """
        ecgs = []
        for segment in question.segments:
            start, length = self.segments["offset"][segment], self.segments["length"][segment]
            ecgs.append(self.tokens[start : start + length])
        if instead:
            ecgs = [self.flat if instead == "flat line" else ecg[:0] for ecg in ecgs]
        leads = [
            leads_of(ecg, self.tokenizer.lengths, self.samples_per_lead[segment])
            for ecg, segment in zip(ecgs, question.segments, strict=True)
        ]
        turns = [*question.earlier, (question.question, None)] if asked else question.turns
        ids, labels, lost = self.prompt.fitted(ecgs, leads, turns, self.longest)
        if lost and self.long == "skip" and not instead:
            raise Failure(f"the prompt has {lost} tokens more than the {self.longest} that it may have")
        return ids, labels, lost

    def make_room(self, questions):
        """Fix how long a prompt may be: so that the longest of the questions' answers has room behind it."""
        room = max(map(self.prompt.room, {(*q.earlier, (q.question, q.answer)) for q in questions}))
        self.longest = self.max_length - room
        if self.longest < 1:
            raise Failure(
                f"the longest answer has {room} tokens, and a sample may have {self.max_length}: raise --max-length, "
                "or leave out such answers"
            )

    def fitting(self, questions, name, tell):
        """The questions whose samples are short enough, each with its length; and how many were shortened."""
        fit, trimmed = [], 0
        for question in questions:
            try:
                ids, _, lost = self(question)
            except Failure:
                continue
            fit.append((question, len(ids)))
            trimmed += lost > 0
        of = (
            f"of {len(questions)} {name} samples have prompts of more than {self.longest} tokens "
            f"(--max-length {self.max_length}, less the longest answer)"
        )
        if trimmed:
            tell(f"{trimmed} {of}: they lose ECG tokens from the end of each lead")
        if len(fit) < len(questions):
            tell(f"{len(questions) - len(fit)} {of}: left out")
        return fit, trimmed


def read_samples(work, qa, samples, seed, tell):
    """The questions of the training and of the validation split; this fixes how long prompts may be.

    Returns
    -------
    (list of (Question, int), list of (Question, int), dict)
        Each question with its length in tokens, those to validate in an order drawn by seed (see `spread`); and
        how many samples were trimmed and left_out.
    """
    read, segments = question_files.read(qa), read_table(work.symbol_segments)
    joined, unmatched = question_files.join(read, segments)
    if unmatched:
        tell(question_files.describe(unmatched, len(read)))
    for line in question_files.crossings(joined, segments, qa):
        tell(line)
    sides = {name: [q for q, _, _, split in joined if split == name] for name in ("train", "val")}
    if not sides["train"]:
        raise Failure(
            f"{qa} holds no question of the training split about an encoded record: see `ecgbyte info`"
        )
    samples.make_room(sides["train"] + sides["val"])
    training, trimmed = samples.fitting(sides["train"], "training", tell)
    validation, also_trimmed = samples.fitting(spread(sides["val"], seed), "validation", tell)
    if not training:
        raise Failure(
            f"no prompt of a training question of {qa} is at most {samples.longest} tokens long: raise --max-length"
        )
    left_out = len(sides["train"]) + len(sides["val"]) - len(training) - len(validation)
    return training, validation, {"trimmed": trimmed + also_trimmed, "left_out": left_out}


def spread(questions, seed):
    """Questions in an order drawn by seed, of which every beginning holds the types in about their shares."""
    random, seen = np.random.default_rng(seed), Counter()
    of_type, place = Counter(question.type for question in questions), {}
    order = random.permutation(len(questions)).tolist()
    for i in order:
        kind = questions[i].type
        place[i] = seen[kind] / of_type[kind]
        seen[kind] += 1
    return [questions[i] for i in sorted(order, key=place.__getitem__)]


def left_out(seed, step, count, share):
    """What stands in the place of the ECGs of the samples of a step, as seed and step have it.

    Returns
    -------
    list of str or None
        `no signal` for half of the share, `flat line` for the other half, and None for the rest.
    """
    drawn = np.random.default_rng([seed, step, 1]).random(count) / max(share, 1e-9)
    return [None if value >= 1 else "no signal" if value < 0.5 else "flat line" for value in drawn]


def batches(lengths, batch, seed):
    """Endless batches of sample numbers, of like length each, in an order that the seed decides.

    Each epoch shuffles the samples, sorts stretches of 50 batches by length, and shuffles the batches.
    """
    lengths, epoch = np.asarray(lengths), 0
    while True:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        stretches = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
        order = np.concatenate([s[np.argsort(lengths[s], kind="stable")] for s in stretches])
        groups = [order[i : i + batch] for i in range(0, len(order), batch)]
        for i in random.permutation(len(groups)):
            yield groups[i].tolist()
        epoch += 1


def collate(samples):
    """Samples of ids and labels as two int64 tensors (batch, n), padded on the right."""
    import torch

    width = max(len(ids) for ids, _ in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (i, label) in enumerate(samples):
        ids[row, : len(i)], labels[row, : len(i)] = torch.from_numpy(i), torch.from_numpy(label)
    return ids, labels
