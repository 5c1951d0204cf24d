"""Questions to ids and labels, and ids to batches."""

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.prompt import leads_of, trim
from ecgbyte_cli.questions import files as question_files
from ecgbyte_cli.workdir import read_array, read_table


class Samples:
    """Makes the ids and labels of questions.

    Parameters
    ----------
    work : WorkDir
    prompt : Prompt
    tokenizer : ECGTokenizer
    max_length : int
        In tokens.
    long : str
        `trim` or `skip`: what becomes of longer ones.
    """

    def __init__(self, work, prompt, tokenizer, max_length, long):
        self.prompt, self.tokenizer, self.max_length, self.long = prompt, tokenizer, max_length, long
        self.tokens, self.segments = read_array(work.tokens), read_table(work.token_segments)
        self.samples_per_lead = read_table(work.symbol_segments)["samples"]

    def __call__(self, question):
        """Ids, labels, and how many ECG tokens were left out; ids is None if the sample is too long."""
        ecgs = []
        for segment in question.segments:
            start, length = self.segments["offset"][segment], self.segments["length"][segment]
            ecgs.append(self.tokens[start : start + length])
        ids, labels = self.prompt.build(ecgs, question.turns)
        excess, tokens = len(ids) - self.max_length, sum(map(len, ecgs))
        if excess <= 0:
            return ids, labels, 0
        if self.long == "skip" or excess >= tokens:
            return None, None, excess
        leads = [
            leads_of(ecg, self.tokenizer.lengths, self.samples_per_lead[segment])
            for ecg, segment in zip(ecgs, question.segments, strict=True)
        ]
        return *self.prompt.build(trim(ecgs, leads, tokens - excess), question.turns), excess

    def fitting(self, questions, name, tell):
        """The questions whose samples are short enough, each with its length; and how many were shortened."""
        fit, trimmed = [], 0
        for question in questions:
            ids, _, lost = self(question)
            if ids is not None:
                fit.append((question, len(ids)))
                trimmed += lost > 0
        of = f"of {len(questions)} {name} samples are longer than {self.max_length} tokens"
        if trimmed:
            tell(f"{trimmed} {of}: they lose ECG tokens from the end of each lead")
        if len(fit) < len(questions):
            tell(f"{len(questions) - len(fit)} {of}: left out")
        return fit, trimmed


def read_samples(work, qa, samples, tell):
    """The questions of the training and of the validation split.

    Returns
    -------
    (list of (Question, int), list of (Question, int), dict)
        Each question with its length in tokens; and how many samples were trimmed and left_out.
    """
    read = question_files.read(qa)
    joined, unmatched = question_files.join(read, read_table(work.symbol_segments))
    if unmatched:
        tell(question_files.describe(unmatched, len(read)))
    sides = {name: [q for q, _, _, split in joined if split == name] for name in ("train", "val")}
    patients = [{patient for *_, patient, split in joined if split == name} for name in ("train", "val")]
    if both := patients[0] & patients[1]:
        tell(f"{len(both)} patients are in training and in validation, as {qa} has it: {min(both)}, …")
    if not sides["train"]:
        raise Failure(
            f"{qa} holds no question of the training split about an encoded record: see `ecgbyte info`"
        )
    training, trimmed = samples.fitting(sides["train"], "training", tell)
    validation, also_trimmed = samples.fitting(sides["val"], "validation", tell)
    if not training:
        raise Failure(
            f"no training question of {qa} is at most {samples.max_length} tokens long: raise --max-length"
        )
    left_out = len(sides["train"]) + len(sides["val"]) - len(training) - len(validation)
    return training, validation, {"trimmed": trimmed + also_trimmed, "left_out": left_out}


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
