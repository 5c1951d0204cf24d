"""Samples: questions converted to ids, labels and batches."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.model.layout import lead_ranges
from ecgbyte_cli.model.prompt import IGNORED, Prompt, trim_ecgs
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.signal.measured_lines import NOTHING, joined_lines
from ecgbyte_cli.signal.segment_lines import segment_lines
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_array, read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.batch import Batch, Reading, collate
from ecgbyte_cli.training.sampling import drawing_chances, lead_subset, recording_runs
from ecgbyte_kernels.augment import varied, varied_signal

if TYPE_CHECKING:
    import torch

NOTHING_ASKED = (("", None),)  # turns of a reading without questions


class ReadingPlan(NamedTuple):
    """Segments to read once, and questions about them whose prompts share a start."""

    segments: tuple[int, ...]
    questions: tuple[Question, ...]  # empty: train on the ECG itself
    length: int  # number of ids
    words: str | None = None  # generate the ECG from these words


class SampleBuilder:
    """Convert questions to ids and labels.

    Parameters
    ----------
    work : WorkDir
    prompt : Prompt
    tokenizer : ECGTokenizer
    max_length : int
        Longest reading in tokens.
    long : {"trim", "skip"}
        Whether longer prompts lose ECG tokens, or their questions are skipped.
    augment : float
        Strength of the random variation of ECGs in training.
    together : int or None
        Most questions packed with one ECG; None: as many as fit into `max_length`.
    draw : str or None
        Type of the questions that also train the reverse task: generating the ECG from the answer.
    vary_leads : float
        Share of the batches that contain only some of the leads.
    ask : int or None
        Mean number of questions answered no that are sampled each time an ECG is used; None: all.
    measured : bool
        Whether the measured values precede the ECGs, as text.

    Attributes
    ----------
    longest : int
        Longest prompt in ids, for any answer: `max_length` minus the length of the longest answer.
    yes_share : dict of str to float
        How often the answer to a question is yes in the training set.
    """

    def __init__(
        self,
        work: WorkDir,
        prompt: Prompt,
        tokenizer: ECGTokenizer,
        max_length: int,
        long: str,
        augment: float = 0.0,
        together: int | None = None,
        draw: str | None = None,
        vary_leads: float = 0.0,
        ask: int | None = None,
        measured: bool = False,
    ):
        self.prompt, self.tokenizer, self.max_length, self.long = prompt, tokenizer, max_length, long
        self.longest, self.augment, self.together = max_length, augment, together
        self.draw, self.vary_leads, self.question_count = draw, vary_leads, ask
        self.yes_share: dict[str, float] = {}
        self.lines = segment_lines(work) if measured else None
        self.tokens, self.segments = read_array(work.tokens), read_table(work.token_segments)
        self.letters, self.recorded = read_array(work.symbols), read_table(work.symbol_segments)
        self.signals = read_array(work.signals) if work.signals.exists() else None
        self.segmenter = read_json(work.token_settings).get("segmenter", "longest")
        self.shape = len(tokenizer.signal["leads"]), tokenizer.signal["samples"]
        self.first_of, self.count_of = recording_runs(self.recorded)

    @cached_property
    def flat(self) -> np.ndarray:
        """The tokens of a flat line."""
        return self.tokenizer.flat_line(self.segmenter)

    def _ecg(
        self, segment: int, instead: str | None = None, random: np.random.Generator | None = None
    ) -> tuple[np.ndarray, int]:
        """Return the tokens of a segment, of its replacement, or, with `random`, of a random window of its recording.

        The second value is the segment that contains most of them.
        """
        if instead:
            return self.flat if instead == "flat line" else np.zeros(0, np.int32), segment
        if random is None:
            return self.own(segment), segment
        first, count = self.first_of[segment], self.count_of[segment]
        if not self.augment:
            segment = first + random.integers(count)
            return self.own(segment), segment
        window, segment = self._window(first, count, random)
        if self.signals is None:
            letters = varied(window, self.tokenizer.levels, random, self.augment)
        else:
            fs = self.tokenizer.signal["fs"]
            # measured values, such as the axis, are of the electrodes as they were
            leads = self.tokenizer.signal["leads"] if self.lines is None else ()
            letters = self.tokenizer.letters(varied_signal(window, fs, leads, random, self.augment))
        return self.tokenizer.encode(letters, self.segmenter), segment

    def own(self, segment: int) -> np.ndarray:
        """Return the tokens of a segment, as `ecgbyte encode` wrote them."""
        start, length = self.segments["offset"][segment], self.segments["length"][segment]
        return self.tokens[start : start + length]

    def letters_of(self, segment: int) -> np.ndarray:
        """Return the letters of a segment, (leads, samples)."""
        return self._stored(self.letters, segment)

    def _stored(self, values: np.ndarray, segment: int) -> np.ndarray:
        """Return the slice of letters or signals that belongs to a segment, (leads, samples)."""
        start = self.recorded["offset"][segment]
        return values[start : start + self.shape[0] * self.shape[1]].reshape(self.shape)

    def _window(self, first: int, count: int, random: np.random.Generator) -> tuple[np.ndarray, int]:
        """Return a random window of a recording, and the segment that contains most of it.

        The window is in mV if signals were kept, otherwise letters. A single segment is rotated in time.
        """
        samples, values = self.shape[1], self.letters if self.signals is None else self.signals
        if count == 1:
            return np.roll(self._stored(values, first), -int(random.integers(samples)), axis=1), first
        at = int(random.integers((count - 1) * samples + 1))
        segment, start = first + at // samples, at % samples
        if not start or not self._follows(segment):
            return self._stored(values, segment), segment
        both = np.concatenate([self._stored(values, segment), self._stored(values, segment + 1)], axis=1)
        return both[:, start : start + samples], segment + (2 * start > samples)

    def _follows(self, segment: int) -> bool:
        """Return whether the next segment starts where this segment ends, with the same quantization."""
        start, lo, hi = (self.recorded[name][segment : segment + 2] for name in ("start", "lo", "hi"))
        seconds = self.tokenizer.signal["segment_seconds"]
        return abs(start[1] - start[0] - seconds) < 1e-6 and lo[0] == lo[1] and hi[0] == hi[1]

    def _read(
        self,
        segments: Sequence[int],
        instead: str | None = None,
        random: np.random.Generator | None = None,
        leads: np.ndarray | None = None,
    ) -> tuple[list[np.ndarray], list[np.ndarray], str]:
        """Return the tokens of segments, the lead of each token, and the text before the ECGs.

        With `leads`, only these leads' tokens are returned.
        """
        ecgs, read = zip(*(self._ecg(segment, instead, random) for segment in segments), strict=True)
        lead_of = [lead_ranges(ecg, self.tokenizer.lengths, self.shape[1]) for ecg in ecgs]
        kept = [slice(None) if leads is None else np.isin(of, leads) for of in lead_of]
        tokens = [ecg[k] for ecg, k in zip(ecgs, kept, strict=True)]
        lead_of = [of[k] for of, k in zip(lead_of, kept, strict=True)]
        return tokens, lead_of, joined_lines(self.lines_of(read, instead))

    def lines_of(self, segments: Sequence[int], instead: str | None = None) -> list[str]:
        """Return the line of measured values of each segment, or of its replacement; empty if not `measured`."""
        if self.lines is None:
            return []
        return [NOTHING if instead else self.lines[segment] for segment in segments]

    def _longest_before(self, segments: Sequence[int]) -> str:
        """Return the longest text before the ECGs, over all segments of the recordings."""
        if self.lines is None:
            return ""
        runs = [(self.first_of[segment], self.count_of[segment]) for segment in segments]
        return joined_lines(max(self.lines[i : i + n], key=len) for i, n in runs)

    def draw_leads(self, random: np.random.Generator) -> np.ndarray | None:
        """Return random lead indices for a batch; None for all leads.

        Half of the draws are sets of common recorders (`sampling.LEAD_SETS`); the others are any leads, mostly few.
        """
        if random.random() >= self.vary_leads:
            return None
        return lead_subset(self.tokenizer.signal["leads"], random)

    def _asked(
        self, plan: ReadingPlan, random: np.random.Generator | None
    ) -> tuple[tuple[Question, ...], list[float]]:
        """Sample the questions of a plan for one reading, and return their weights."""
        count, questions = self.question_count, plan.questions
        weights = np.array([question.weight for question in questions])
        denied = [i for i in np.flatnonzero(weights == 1) if questions[i].answer == "no"]
        if random is None or count is None or len(denied) <= count:
            return questions, weights.tolist()
        chance = np.ones(len(questions))
        chance[denied] = drawing_chances([self.yes_share[questions[i].question] for i in denied], count)
        asked = np.flatnonzero(random.random(len(questions)) < chance)
        return tuple(questions[i] for i in asked), (weights / chance)[asked].tolist()

    def __call__(
        self, question: Question, instead: str | None = None, asked: bool = False
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Convert one question.

        Parameters
        ----------
        question : Question
        instead : {"no signal", "flat line"} or None
            Replacement for all of its ECGs.
        asked : bool
            Whether to stop before the last answer.

        Returns
        -------
        (int64 array, int64 array, int)
            Ids, labels, and the number of trimmed ECG tokens.

        Raises
        ------
        Failure
            If the sample is too long.
        """
        turns = [*question.earlier, (question.question, None)] if asked else question.turns
        ecgs, leads, before = self._read(question.segments, instead)
        ids, labels, lost = self.prompt.fitted(ecgs, leads, turns, self.longest, before)
        if lost and self.long == "skip" and not instead:
            raise Failure(f"the prompt is {lost} tokens longer than the maximum of {self.longest}")
        return ids, labels, lost

    def shown(self, question: Question) -> tuple[str, dict[str, Any]]:
        """Return a training sample as text, with the tokens of the loss in green, and as an entry for --json."""
        ids, labels, lost = self(question)
        line, counted = self.prompt.shown(ids, labels)
        about = {"records": question.records, "tokens": len(ids), "trimmed": lost, "loss_on": counted}
        records = printable(", ".join(question.records))
        return f"{records} ({len(ids)} tokens, {lost} trimmed)\n{line}\nloss on: {counted}", about

    def reading(
        self,
        plan: ReadingPlan,
        instead: str | None = None,
        random: np.random.Generator | None = None,
        learn_ecg: bool = False,
        leads: np.ndarray | None = None,
    ) -> Reading:
        """Convert a plan.

        Parameters
        ----------
        plan : ReadingPlan
        instead : {"no signal", "flat line"} or None
            Replacement for each ECG.
        random : numpy.random.Generator or None
            Chooses a window of the recording and its variation; None: the plan's own segments, as encoded.
        learn_ecg : bool
            Whether the ECG tokens are labels too.
        leads : int array or None
            Indices of the leads that are read; None: all.
        """
        prompt, layout = self.prompt, self.prompt.layout
        if plan.words is not None:
            return self._drawing(plan)
        ecgs, lead_of, before = self._read(plan.segments, instead, random, leads)
        questions, weights = self._asked(plan, random)
        parts = [prompt.parts(question.turns, before) for question in questions]
        parts = parts or [prompt.parts(NOTHING_ASKED)]
        room = min(prompt.room(part, len(ecgs), self.longest) for part in parts)
        if sum(map(len, ecgs)) > room:
            ecgs, lead_of = trim_ecgs(ecgs, lead_of, room)
        begin = prompt.reading(parts[0][0], ecgs, lead_of)  # shared by all questions: see `plans`
        learned = (begin >= layout.first) & learn_ecg & (instead is None)
        ids, labels = [begin], [np.where(learned, begin, IGNORED)]
        positions = [layout.positions(begin)]
        for _, tail, answer in parts if questions else ():
            text, text_labels = (np.concatenate(part) for part in zip(*tail, *answer, strict=True))
            ids.append(text)
            labels.append(text_labels)
            positions.append(positions[0][-1] + 1 + np.arange(len(text)))
        lengths = [len(part) for part in ids]
        owner = np.repeat(np.arange(len(ids)), lengths)
        weight = None
        if {*weights} - {1.0}:
            weight = np.repeat(np.array([1.0, *weights], np.float32), lengths)
        return Reading(np.concatenate(ids), np.concatenate(labels), np.concatenate(positions), owner, weight)

    def _drawing(self, plan: ReadingPlan) -> Reading:
        """Convert a plan to generate an ECG from words. The ECG is not varied: the model would learn the variation."""
        assert plan.words is not None
        (ecg,), leads, _ = self._read(plan.segments)
        begin = self.prompt.reading(self.prompt.drawing(plan.words), [ecg], leads)
        labels = np.where(begin >= self.prompt.layout.first, begin, IGNORED)
        return Reading(begin, labels, self.prompt.layout.positions(begin), np.zeros(len(begin), np.int64))

    def batch(self, readings: Sequence[Reading]) -> Batch:
        """Pad and stack readings."""
        return collate(readings, self.prompt.layout)

    def letters_labelled(self, labels: "torch.Tensor") -> int:
        """Return the number of letters that the ECG tokens among the labels stand for."""
        ids = labels.numpy()
        first = self.prompt.layout.first
        return int(self.tokenizer.lengths[ids[ids >= first] - first].sum())

    def make_room(self, questions: Iterable[Question]) -> None:
        """Set `longest`, the longest prompt, so that the longest answer fits after it."""
        room = max(map(self.prompt.answer_length, {(*q.earlier, (q.question, q.answer)) for q in questions}))
        self.longest = self.max_length - room
        if self.longest < 1:
            raise Failure(
                f"the longest answer has {room} tokens, but the limit is {self.max_length}: raise --max-length, "
                "or remove such answers"
            )

    def count_answers(self, questions: Iterable[Question]) -> None:
        """Set `yes_share` from the training questions."""
        asked, yes = Counter[str](), Counter[str]()
        for question in questions:
            asked[question.question] += 1
            yes[question.question] += question.answer == "yes"
        self.yes_share = {text: yes[text] / times for text, times in asked.items()}

    def plans(self, questions: Sequence[Question]) -> tuple[list[ReadingPlan], int, int]:
        """Group questions about the same ECGs.

        Returns
        -------
        (list of ReadingPlan, int, int)
            Plans in the order of their first questions, and the numbers of trimmed and of skipped questions.
        """
        groups: dict[tuple, list[tuple[Question, int]]] = {}
        trimmed = left_out = 0
        for question in questions:
            head, tail, answer = parts = self.prompt.parts(
                question.turns, self._longest_before(question.segments)
            )
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
            groups.setdefault(key, []).append((question, own))
        plans = []
        for (segments, tokens, head), group in groups.items():
            begin = len(head) + tokens + len(segments) * (2 + self.prompt.layout.marks)
            together: list[Question] = []
            length = begin
            for question, own in group:
                if together and (length + own > self.max_length or len(together) == self.together):
                    plans.append(ReadingPlan(segments, tuple(together), length))
                    together, length = [], begin
                together.append(question)
                length += own
            plans.append(ReadingPlan(segments, tuple(together), length))
        return plans + self.to_draw(questions)[0], trimmed, left_out

    def to_draw(self, questions: Sequence[Question]) -> tuple[list[ReadingPlan], int]:
        """Return plans to generate the ECGs of questions from their answers, and the number of too long ECGs."""
        plans: dict[tuple, ReadingPlan] = {}
        too_long = 0
        for question in questions:
            if self.draw is None or question.type != self.draw or len(question.segments) != 1:
                continue
            head, marks = self.prompt.drawing(question.answer), 2 + self.prompt.layout.marks
            length = len(head) + marks + int(self.segments["length"][question.segments[0]])
            too_long += length > self.max_length
            if length <= self.max_length:
                key = question.segments, question.answer
                plans[key] = ReadingPlan(question.segments, (), length, question.answer)
        return [*plans.values()], too_long

    def alone(self, segments: Sequence[int] | np.ndarray) -> list[ReadingPlan]:
        """Return plans that train on ECGs without questions, one per segment."""
        parts = self.prompt.parts(NOTHING_ASKED)
        text, room = len(parts[0]) + 2 + self.prompt.layout.marks, self.prompt.room(parts, 1, self.longest)
        lengths = np.minimum(np.asarray(self.segments["length"])[segments], room)
        return [ReadingPlan((int(i),), (), text + int(n)) for i, n in zip(segments, lengths, strict=True)]
