"""Questions to ids and labels, and ids to batches."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.model.layout import lead_ranges
from ecgbyte_cli.model.prompt import IGNORED, trim_ecgs
from ecgbyte_cli.questions import question_file
from ecgbyte_cli.questions.reasoning import join_reasoning
from ecgbyte_cli.signal.origin import patients_learned_from
from ecgbyte_cli.storage.files import read_array, read_json, read_table
from ecgbyte_kernels.augment import varied

if TYPE_CHECKING:
    import torch
from ecgbyte_cli.training.sampling import _repeat_plans, recording_runs, stratified_order

NOTHING_ASKED = (("", None),)  # the turns of a reading that learns the ECG itself


class ReadingPlan(NamedTuple):
    """What is read together: some segments, and questions about them that begin with the very same ids."""

    segments: tuple[int, ...]
    questions: tuple  # of Question; none: the ECG itself is what is learned
    length: int  # in ids
    words: str | None = None  # from which the ECG is to be drawn


class Reading(NamedTuple):
    """A plan as ids: the ECGs once, and each question behind them, at positions as if it stood there alone."""

    ids: np.ndarray
    labels: np.ndarray
    positions: np.ndarray
    owner: np.ndarray  # 0 for what all questions begin with, k for the k-th


class Batch(NamedTuple):
    """Readings as tensors (batch, n), padded on the right: what a model is called with."""

    ids: "torch.Tensor"
    labels: "torch.Tensor"
    positions: "torch.Tensor | None"  # None: one after another
    owner: "torch.Tensor | None"  # None: no reading has several questions

    def to(self, device):
        return Batch(*(part if part is None else part.to(device) for part in self))


class SampleBuilder:
    """Makes the ids and labels of questions.

    Parameters
    ----------
    work : WorkDir
    prompt : Prompt
    tokenizer : ECGTokenizer
    max_length : int
        In tokens, of what is read together.
    long : str
        `trim` or `skip`: what becomes of questions whose prompts are longer.
    augment : float
        How much the letters of a segment are varied in training.
    together : int or None
        Questions behind one reading of their ECGs, at most; None: as many as fit into `max_length`.
    draw : str or None
        The type of the questions whose answers are turned round too: from the answer to the ECG.

    Attributes
    ----------
    longest : int
        Ids that a prompt may have, whatever its answer: `max_length` less the room of the longest answer.
    """

    def __init__(self, work, prompt, tokenizer, max_length, long, augment=0.0, together=None, draw=None):
        self.prompt, self.tokenizer, self.max_length, self.long = prompt, tokenizer, max_length, long
        self.longest, self.augment, self.together = max_length, augment, together
        self.draw = draw
        self.tokens, self.segments = read_array(work.tokens), read_table(work.token_segments)
        self.letters, self.recorded = read_array(work.symbols), read_table(work.symbol_segments)
        self.segmenter = read_json(work.token_settings).get("segmenter", "longest")
        self.shape = len(tokenizer.signal["leads"]), tokenizer.signal["samples"]
        self.first_of, self.count_of = recording_runs(self.recorded)

    @cached_property
    def flat(self):
        """The ids of a flat line."""
        return self.tokenizer.flat_line(self.segmenter)

    def _ecg(self, segment, instead=None, random=None):
        """The tokens of a segment, or what stands in its place; or, by random numbers, of its recording."""
        if instead:
            return self.flat if instead == "flat line" else np.zeros(0, np.int32)
        if random is not None:
            first, count = self.first_of[segment], self.count_of[segment]
            if not self.augment:
                segment = first + random.integers(count)
            else:
                letters = varied(
                    self._window(first, count, random), self.tokenizer.levels, random, self.augment
                )
                return self.tokenizer.encode(letters, self.segmenter)
        return self.own(segment)

    def own(self, segment):
        """The tokens of a segment, as it was encoded."""
        start, length = self.segments["offset"][segment], self.segments["length"][segment]
        return self.tokens[start : start + length]

    def letters_of(self, segment):
        """The letters of a segment, (leads, samples)."""
        at = self.recorded["offset"][segment]
        return self.letters[at : at + self.shape[0] * self.shape[1]].reshape(self.shape)

    def _window(self, first, count, random):
        """Letters of a stretch of a recording that begins anywhere; of one of a single segment, turned in time."""
        samples = self.shape[1]
        if count == 1:
            return np.roll(self.letters_of(first), -int(random.integers(samples)), axis=1)
        at = int(random.integers((count - 1) * samples + 1))
        segment, start = first + at // samples, at % samples
        if not start or not self._follows(segment):
            return self.letters_of(segment)
        both = np.concatenate([self.letters_of(segment), self.letters_of(segment + 1)], axis=1)
        return both[:, start : start + samples]

    def _follows(self, segment):
        """Whether the next segment goes on where this one ends, in the same letters."""
        start, lo, hi = (self.recorded[name][segment : segment + 2] for name in ("start", "lo", "hi"))
        seconds = self.tokenizer.signal["segment_seconds"]
        return abs(start[1] - start[0] - seconds) < 1e-6 and lo[0] == lo[1] and hi[0] == hi[1]

    def _read(self, segments, instead=None, random=None):
        """The tokens of segments, and the lead of each."""
        ecgs = [self._ecg(segment, instead, random) for segment in segments]
        return ecgs, [lead_ranges(ecg, self.tokenizer.lengths, self.shape[1]) for ecg in ecgs]

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
        turns = [*question.earlier, (question.question, None)] if asked else question.turns
        ids, labels, lost = self.prompt.fitted(*self._read(question.segments, instead), turns, self.longest)
        if lost and self.long == "skip" and not instead:
            raise Failure(f"the prompt has {lost} tokens more than the {self.longest} that it may have")
        return ids, labels, lost

    def shown(self, question):
        """A question as it is trained: a text, with what the loss counts in green, and what --json says of it."""
        ids, labels, lost = self(question)
        line, counted = self.prompt.shown(ids, labels)
        about = {"records": question.records, "tokens": len(ids), "trimmed": lost, "loss_on": counted}
        records = printable(", ".join(question.records))
        return f"{records} ({len(ids)} tokens, {lost} trimmed)\n{line}\nloss on: {counted}", about

    def reading(self, plan, instead=None, random=None, learn_ecg=False):
        """A plan as ids and labels.

        Parameters
        ----------
        plan : Plan
        instead : str or None
            As in a call.
        random : numpy.random.Generator or None
            Decides which segment of a recording is read, and how it is varied; None reads what was asked for, as
            it was encoded.
        learn_ecg : bool
            Whether the ECG's own tokens are labels too.

        Returns
        -------
        Reading
        """
        prompt, layout = self.prompt, self.prompt.layout
        if plan.words is not None:
            return self._drawn(plan)
        ecgs, leads = self._read(plan.segments, instead, random)
        turns = [question.turns for question in plan.questions] or [NOTHING_ASKED]
        parts = [prompt.parts(asked) for asked in turns]
        room = min(prompt.room(part, len(ecgs), self.longest) for part in parts)
        if sum(map(len, ecgs)) > room:
            ecgs, leads = trim_ecgs(ecgs, leads, room)
        begin = prompt.reading(parts[0][0], ecgs, leads)  # the same of all: see `plans`
        learned = (begin >= layout.first) & learn_ecg & (instead is None)
        ids, labels, places = [begin], [np.where(learned, begin, IGNORED)], [layout.positions(begin)]
        for _, tail, answer in parts if plan.questions else ():
            text, wanted = (np.concatenate(part) for part in zip(*tail, *answer, strict=True))
            ids.append(text)
            labels.append(wanted)
            places.append(places[0][-1] + 1 + np.arange(len(text)))
        owner = np.repeat(np.arange(len(ids)), [len(part) for part in ids])
        return Reading(*map(np.concatenate, (ids, labels, places)), owner)

    def _drawn(self, plan):
        """A plan to draw an ECG from words: as it was encoded, since what is varied would be drawn so."""
        (ecg,), leads = self._read(plan.segments)
        begin = self.prompt.reading(self.prompt.drawing(plan.words), [ecg], leads)
        labels = np.where(begin >= self.prompt.layout.first, begin, IGNORED)
        return Reading(begin, labels, self.prompt.layout.positions(begin), np.zeros(len(begin), np.int64))

    def batch(self, readings):
        """Readings as a Batch."""
        return collate(readings, self.prompt.layout)

    def letters_labelled(self, labels):
        """How many letters the ECG tokens among labels stand for."""
        ids = labels.numpy()
        first = self.prompt.layout.first
        return int(self.tokenizer.lengths[ids[ids >= first] - first].sum())

    def make_room(self, questions):
        """Fix how long a prompt may be: so that the longest of the questions' answers has room behind it."""
        room = max(map(self.prompt.answer_length, {(*q.earlier, (q.question, q.answer)) for q in questions}))
        self.longest = self.max_length - room
        if self.longest < 1:
            raise Failure(
                f"the longest answer has {room} tokens, and a sample may have {self.max_length}: raise --max-length, "
                "or leave out such answers"
            )

    def plans(self, questions):
        """Put questions about the same ECGs together.

        Returns
        -------
        (list of Plan, int, int)
            In the order in which their first questions came; and how many questions were trimmed, and left out.
        """
        alike: dict[tuple, list] = {}
        trimmed = left_out = 0
        for question in questions:
            head, tail, answer = parts = self.prompt.parts(question.turns)
            try:
                room = self.prompt.room(parts, len(question.segments), self.longest)
            except Failure:
                left_out += 1
                continue
            tokens = sum(int(self.segments["length"][segment]) for segment in question.segments)
            if tokens > room and self.long == "skip":
                left_out += 1
                continue
            trimmed += tokens > room
            own = sum(len(ids) for ids, _ in tail + answer)
            key = question.segments, min(tokens, room), head
            alike.setdefault(key, []).append((question, own))
        plans = []
        for (segments, tokens, head), asked in alike.items():
            begin = len(head) + tokens + len(segments) * (2 + self.prompt.layout.marks)
            plan, length = [], begin
            for question, own in asked:
                if plan and (length + own > self.max_length or len(plan) == self.together):
                    plans.append(ReadingPlan(segments, tuple(plan), length))
                    plan, length = [], begin
                plan.append(question)
                length += own
            plans.append(ReadingPlan(segments, tuple(plan), length))
        return plans + self.to_draw(questions)[0], trimmed, left_out

    def to_draw(self, questions):
        """Plans to draw the ECGs of questions from their answers; and how many ECGs are too long, and left out."""
        plans, too_long = {}, 0
        for question in questions:
            if self.draw is None or question.type != self.draw or len(question.segments) != 1:
                continue
            head = self.prompt.drawing(question.answer)
            length = (
                len(head) + 2 + self.prompt.layout.marks + int(self.segments["length"][question.segments[0]])
            )
            too_long += length > self.max_length
            if length <= self.max_length:
                plans[question.segments, question.answer] = ReadingPlan(
                    question.segments, (), length, question.answer
                )
        return [*plans.values()], too_long

    def alone(self, segments):
        """Plans that learn ECGs by themselves, one for each of some segments."""
        parts = self.prompt.parts(NOTHING_ASKED)
        text, room = len(parts[0]) + 2 + self.prompt.layout.marks, self.prompt.room(parts, 1, self.longest)
        lengths = np.minimum(np.asarray(self.segments["length"])[segments], room)
        return [ReadingPlan((int(i),), (), text + int(n)) for i, n in zip(segments, lengths, strict=True)]


def read_samples(work, qa, samples, seed, tell, think=False, types=(), weights=None):
    """The questions of the training and of the validation split; this fixes how long prompts may be.

    With `think` answers stand behind their reasoning, where the file has one. `types` are those of the questions that
    are taken; none: all. Where `qa` is a list of files, `weights` say how often each is read in an epoch.

    Returns
    -------
    (list of Plan, list of Question, dict)
        The training questions, those to validate in an order drawn by seed (see `spread`); and how many samples
        were trimmed and left_out.
    """
    parts = (
        [question_file.read_questions(one) for one in qa] if weights else [question_file.read_questions(qa)]
    )
    read = [question for part in parts for question in part]
    kept = {question.type for question in question_file.filter_types(read, types or ())}
    if think and not any(question.reasoning for question in read if question.type in kept):
        raise Failure(f"--think: no question of {qa} has reasoning: `ecgbyte questions --think` writes it")
    segments, joined_parts, unmatched = read_table(work.symbol_segments), [], []
    for part in parts:
        asked = [_training_question(question, think) for question in part if question.type in kept]
        found, lost = question_file.join_segments(asked, segments)
        joined_parts.append(found)
        unmatched += lost
    found = [item for part in joined_parts for item in part]
    if unmatched:
        tell(question_file.describe_unmatched(unmatched, len(found) + len(unmatched)))
    for line in question_file.split_leaks(found, patients_learned_from(work), qa):
        tell(line)

    def side(items, name):
        return [question for question, _, _, split in items if split == name]

    sides = {name: side(found, name) for name in ("train", "val")}
    if not sides["train"]:
        raise Failure(
            f"{qa} holds no question of the training split about an encoded record: see `ecgbyte info`"
        )
    samples.make_room(sides["train"] + sides["val"])
    counts = {"trimmed": 0, "left_out": 0}
    plans: dict[str, list[ReadingPlan]] = {"train": [], "val": []}
    for name, what in (("train", "training"), ("val", "validation")):
        trimmed = left_out = 0
        for number, part in enumerate(joined_parts):
            some, shorter, fewer = samples.plans(side(part, name))
            often = weights[number] if weights and name == "train" else 1
            plans[name] += _repeat_plans(some, often, [seed, number])
            trimmed += shorter
            left_out += fewer
        of = (
            f"of {len(sides[name])} {what} samples have prompts of more than {samples.longest} tokens "
            f"(--max-length {samples.max_length}, less the longest answer)"
        )
        if trimmed:
            tell(f"{trimmed} {of}: they lose ECG tokens from the end of each lead")
        if left_out:
            tell(f"{left_out} {of}: left out")
        counts["trimmed"] += trimmed
        counts["left_out"] += left_out
    too_long = samples.to_draw(sides["train"])[1]
    if too_long:
        tell(f"{too_long} ECGs to draw are longer than --max-length {samples.max_length}: left out")
    if not plans["train"]:
        raise Failure(
            f"no prompt of a training question of {qa} is at most {samples.longest} tokens long: raise --max-length"
        )
    fit = {question for plan in plans["val"] for question in plan.questions}
    validation = [question for question in stratified_order(sides["val"], seed) if question in fit]
    return plans["train"], validation, counts


def _training_question(question, think):
    """A question with the answer that is learned: with its reasoning, or without."""
    if not question.reasoning:
        return question
    if think:
        return replace(question, answer=join_reasoning(question.reasoning, question.answer), labels=())
    return replace(question, reasoning="")


def collate(readings, layout):
    """Readings as a Batch; positions are left out where they count ids one by one."""
    import torch

    width = max(len(reading.ids) for reading in readings)
    shared = any(reading.owner[-1] > 1 for reading in readings)
    ids, positions, owner = torch.zeros(3, len(readings), width, dtype=torch.long).unbind()
    labels = torch.full_like(ids, IGNORED)
    for row, reading in enumerate(readings):
        for to, part in zip((ids, labels, positions, owner), reading, strict=True):
            to[row, : len(part)] = torch.from_numpy(part)
    return Batch(ids, labels, positions if shared or layout.unit else None, owner if shared else None)
