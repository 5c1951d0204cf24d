"""Questions and answers about open recordings: what `ecgbyte chat` carries out."""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.conflicts import Conflict
from ecgbyte_cli.inference.measured_answers import MeasuredAnswer
from ecgbyte_cli.inference.measured_turns import conflicts_of, take_measured
from ecgbyte_cli.questions.reasoning import split_reasoning
from ecgbyte_cli.runtime.memory import out_of_memory
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.measure import measure_stretch
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.signal.tokenizer import ECGTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ecgbyte_cli.inference.certainty import Certainty
    from ecgbyte_cli.model.ecg_lm import ECGLM
    from ecgbyte_cli.model.prompt import Prompt


@dataclass
class ECG:
    """A recording that is open, and the stretch of it that the model reads."""

    recording: readers.Recording
    segments: list[tuple[float, np.ndarray]]  # of (start in s, float32 (leads, samples) in mV)
    number: int  # of the segment that is read
    tokens: np.ndarray
    signal: dict  # the tokenizer's settings
    compared: bool = False  # whether it was said in what it is unlike those that the model was trained on

    @property
    def seconds(self) -> tuple[float, float]:
        """Start and end of the segment that is read."""
        start = self.segments[self.number][0]
        return start, start + self.signal["segment_seconds"]

    def stretch(self) -> str:
        """What is read, in words."""
        start, end = self.seconds
        return f"{start:g} to {end:g} s, segment {self.number + 1} of {len(self.segments)}"

    @cached_property
    def measurement(self) -> Measurement:
        """The measurement of the stretch that is read, as it was recorded."""
        return measure_stretch(self.recording, *self.seconds)

    def lead(self, name: str) -> np.ndarray:
        """A lead over the stretch that is read, as recorded: float32 (samples,), mV."""
        recording = self.recording
        names = [lead.lower() for lead in recording.leads]
        if name.lower() in names:  # also what is no standard lead
            row = recording.signal[names.index(name.lower())]
        else:
            row = preprocess.pick(recording, [readers.lead_name(name)])[0]
        begin, end = (round(s * recording.fs) for s in self.seconds)
        return row[begin:end]


@dataclass
class RecordingLoader:
    """Opens recordings as a model needs them."""

    tokenizer: ECGTokenizer
    segmenter: str
    fs: float | None = None
    lead_names: list[str] | None = None
    units: str | None = None
    keep_identity: bool = False

    def read(self, path: str | os.PathLike) -> ECG:
        """Read, preprocess and encode a recording: the ECG of its first segment."""
        try:
            recording = readers.read(path, self.fs, self.lead_names, self.units, self.keep_identity)
            segments = preprocess.segments(recording, self.tokenizer.signal)
        except readers.Unusable as error:
            there = error.message != "not a known format" or os.path.exists(path)
            reason = error.message if there else "no such recording"
            raise Failure(f"{path} cannot be used: {reason}") from error
        return self.segment(recording, segments, 0)

    def segment(
        self, recording: readers.Recording, segments: list[tuple[float, np.ndarray]], number: int
    ) -> ECG:
        """The ECG of one segment of a recording that was read."""
        tokens = self.tokenizer.encode(segments[number][1], self.segmenter)
        return ECG(recording, segments, number, tokens, self.tokenizer.signal)


@dataclass
class Turn:
    """A question and its answer."""

    question: str
    answer: str = ""
    ecgs: list = field(default_factory=list)  # that were open
    earlier: list = field(default_factory=list)  # (question, answer) that the model was told again
    prompt: np.ndarray | None = None  # ids
    lost: int = 0  # ECG tokens that the prompt had no room for
    written: list = field(default_factory=list)  # ids of the answer
    # of the whole answer, its end included; calibrated where it was chosen; None of one that was stopped
    probability: float | None = None
    asked_as: str | None = None  # the question of the training that it was found to be
    other: tuple[str, float] | None = (
        None  # the second likeliest answer, of those that there are to choose from
    )
    sure: bool | None = None  # None where nothing says so
    findings: dict[str, float] | None = None  # of a list: all that might stand in it, and how likely each is
    reasoning: str = ""  # before the answer, of a model that was trained to
    declined: bool = False  # the model was not trained on this question
    measured: MeasuredAnswer | None = None  # the answer, where the model was not asked
    conflicts: list[Conflict] = field(default_factory=list)  # of the model's answer with the measurement
    first: float | None = None  # s to the first token
    seconds: float = 0.0
    stopped: bool = False
    error: str | None = None

    def certainty(self) -> str:
        """How sure an answer is that was chosen from several, in words; `measured` where it was measured."""
        if self.measured:
            return "measured"
        if self.findings:
            likely = sorted(self.findings.items(), key=lambda item: -item[1])
            count = sum(chance > 0.5 for _, chance in likely)
            said = [f"{name} {percent(chance)}" for name, chance in likely]
            unlisted = f"; next {said[count]}" if count < len(said) else ""
            return (
                f"{'not sure: ' if self.sure is False else ''}{', '.join(said[:count]) or 'none'}{unlisted}"
            )
        if self.probability is None or self.other is None:
            return ""
        unsure = "not sure: " if self.sure is False else ""
        return f"{unsure}{percent(self.probability)}; or {self.other[0]}, {percent(self.other[1])}"

    def about(self) -> dict:
        """What --json says about it."""
        known = {
            "question": self.question,
            "answer": self.answer,
            "probability": self.probability,
            "sure": self.sure,
            "runner_up": self.other and {"answer": self.other[0], "probability": self.other[1]},
            "findings": self.findings,
            "reasoning": self.reasoning,
            "declined": self.declined,
            "asked_as": self.asked_as,
            "tokens": len(self.written),
            "first_token_seconds": self.first,
            "seconds": self.seconds,
            "trimmed": self.lost,
        }
        known |= {"measured": self.measured.as_json()} if self.measured else {}
        known |= {"conflicts": [one.as_json() for one in self.conflicts]} if self.conflicts else {}
        return {**known, **({"error": self.error} if self.error else {})}


def percent(probability: float) -> str:
    """A probability in words: never 0 or 100 %."""
    if 0.01 <= probability <= 0.99:
        return f"{100 * probability:.0f} %"
    return "over 99 %" if probability > 0.5 else "under 1 %"


class Conversation:
    """Questions and answers about the open ECGs.

    Parameters
    ----------
    lm, text_tokenizer
        What `ecg_lm.load` returns.
    reader : Reader
    about : dict
        What ecgbyte.json says, and the `folder` it is in.
    ecgs : list of ECG
    max_new : int
        Longest answer in tokens.
    certainty : Certainty or None
        What the model was trained to answer, and how far it can be believed; None of older models.

    Attributes
    ----------
    turns : list of (str, str)
        Earlier questions and answers that the model is told again.
    log : list of Turn or str
        All that happened, in order.
    """

    def __init__(
        self,
        lm: "ECGLM",
        text_tokenizer: "PreTrainedTokenizerBase",
        reader: RecordingLoader,
        about: dict,
        ecgs: list[ECG],
        max_new: int = 256,
        certainty: "Certainty | None" = None,
    ):
        from ecgbyte_cli.model.kv_cache import PromptCache
        from ecgbyte_cli.model.prompt import Prompt

        self.lm, self.reader, self.about, self.ecgs, self.max_new = lm, reader, about, ecgs, max_new
        self.prompt, self.cache = Prompt.of(about, text_tokenizer, lm.layout), PromptCache()
        self.certainty = certainty
        self.turns: list[tuple[str, str]] = []
        self.log: list[Turn | str] = []

    def ask(
        self,
        question: str,
        show: Callable[[str], object] = lambda piece: None,
        think: Callable[[str], object] = lambda reasoning: None,
    ) -> Turn:
        """Answer a question: by the likeliest of the answers that it can have, where training has a list of these.

        Else greedily, token by token; a model that was trained from nothing says of other questions that it was not
        trained on them.

        Parameters
        ----------
        question : str
        show : callable
            Called with each piece of the answer as soon as it is written.
        think : callable
            Called with the reasoning before the answer, if there is one.

        Returns
        -------
        Turn
            Ctrl-C ends it early, and it says so (`stopped`).

        Raises
        ------
        Failure
            If the conversation is longer than the model can read, or memory does not suffice.
        """
        start = time.perf_counter()
        known = self.certainty.match(question) if self.certainty and len(self.ecgs) == 1 else None
        words = known.text if known else question
        tokens, asked = [ecg.tokens for ecg in self.ecgs], [*self.turns, (words, None)]
        longest = self.about.get("prompt_tokens")
        most = getattr(self.lm.base.config, "max_position_embeddings", None) or sys.maxsize
        turn = Turn(question, ecgs=list(self.ecgs), earlier=list(self.turns))
        self.log.append(turn)
        if take_measured(turn, show):
            return turn
        turn.asked_as = known and known.said
        shorter = "ask a shorter question"
        if self.turns or len(self.ecgs) > 1:
            shorter += ", or /clear the conversation"
        try:
            if self._untrained(known):
                return self._decline(turn, show)
            try:
                ids, _, turn.lost = fit_prompt(self.prompt, self.reader.tokenizer, tokens, asked, longest)
            except Failure as error:  # the text alone is longer
                raise Failure(f"too long: {error.message}; {shorter}") from error
            turn.prompt = ids
            if len(ids) >= most:
                raise Failure(
                    f"too long: the model reads {most} tokens, and this makes {len(ids)}; {shorter}"
                )
            if known and known.parts:
                self._list(turn, known.parts, show, start)
            elif known and known.answers:
                self._choose(turn, known.answers, show, start)
            else:
                self._write(turn, min(self.max_new, most - len(ids)), show, think, start)
        except KeyboardInterrupt:
            turn.stopped = True
        except (RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            if out_of_memory(error):
                self.cache, reason = type(self.cache)(), f"out of memory; {shorter}"
            turn.error = f"the model cannot answer: {reason}"
            raise Failure(turn.error) from error
        except Failure as error:
            turn.error = error.message
            raise
        turn.seconds = time.perf_counter() - start
        turn.conflicts = conflicts_of(turn, self.log)
        if turn.answer and remembers_earlier_turns(self.about):
            self.turns.append((question, turn.answer))
        return turn

    def _write(self, turn, room, show, think, start):
        """Write an answer token by token, the likeliest each time."""
        from ecgbyte_cli.model.ecg_lm import ScoredPicks

        counted, shown, tags = ScoredPicks(None, self.prompt.end_ids, 1), "", self.about.get("think")
        reasoned = not tags
        for (i,) in self.lm.stream([turn.prompt], self.prompt.end_ids, room, self.cache, counted):
            turn.first = turn.first or time.perf_counter() - start
            turn.written.append(i)
            turn.answer = self.prompt.text(turn.written)
            if not reasoned:
                if tags[1] not in turn.answer:
                    continue
                reasoned = True
                turn.reasoning = turn.answer.partition(tags[1])[0].removeprefix(tags[0]).strip()
                think(turn.reasoning)
            turn.answer = split_reasoning(turn.answer, tags).answer if tags else turn.answer
            # a character of several bytes is not whole before its last one
            if turn.answer.startswith(shown) and not turn.answer.endswith("\ufffd"):
                show(turn.answer[len(shown) :])
                shown = turn.answer
        if not reasoned:  # it came to no end
            turn.answer = split_reasoning(turn.answer, tags).answer
        show(turn.answer[len(shown) :])
        turn.probability = math.exp(sum(counted.logs[0])) if counted.logs[0] else None

    def _choose(self, turn, answers, show, start):
        """Choose one of the answers that a question can have."""
        written = [self.prompt.written(answer) for answer in answers]
        (logs,) = self.lm.weigh([turn.prompt], [written], self.cache)
        chosen = self.certainty.choose(answers, self.certainty.weights(answers, logs))
        turn.answer, turn.probability, turn.sure = chosen.answer, chosen.probability, chosen.sure
        turn.other = chosen.other, chosen.other_probability
        turn.written = written[answers.index(chosen.answer)][:-1].tolist()
        turn.first = time.perf_counter() - start
        show(turn.answer)

    def _list(self, turn, parts, show, start):
        """Put a list together from questions with yes and no."""
        answers, ecgs = ["no", "yes"], [ecg.tokens for ecg in turn.ecgs]
        longest = self.about.get("prompt_tokens")
        asked = [
            fit_prompt(self.prompt, self.reader.tokenizer, ecgs, [(part, None)], longest)[0] for part in parts
        ]
        weighed = self.lm.weigh(asked, [[self.prompt.written(answer) for answer in answers]] * len(asked))
        chosen = [self.certainty.choose(answers, self.certainty.weights(answers, logs)) for logs in weighed]
        turn.findings = {words: one.yes for words, one in zip(parts.values(), chosen, strict=True)}
        turn.sure = None if chosen[0].sure is None else all(one.sure for one in chosen)
        turn.prompt = None  # there is no one prompt to attribute the answer to
        found = [words for words, one in zip(parts.values(), chosen, strict=True) if one.answer == "yes"]
        turn.answer = "; ".join(found) or "none of those that I know"
        turn.first = time.perf_counter() - start
        show(turn.answer)

    def _untrained(self, known):
        """Whether the model was trained from nothing, on questions that are known, and this is none of them."""
        listed = self.certainty and self.certainty.groups and len(self.ecgs) == 1
        return bool(listed) and not known and not remembers_earlier_turns(self.about)

    def _decline(self, turn, show):
        """Say what can be asked instead."""
        like = "; ".join(self.certainty.like(turn.question))
        turn.declined, turn.answer = (
            True,
            f"I was not trained on this question. I can answer, for example: {like}",
        )
        show(turn.answer)
        return turn

    def unlike(self) -> list[str]:
        """Lines about the open recordings that are unlike those that the model was trained on, each said once."""
        lines = []
        for ecg in self.ecgs:
            if self.certainty and not ecg.compared:
                ecg.compared = True
                said = self.certainty.unlike(ecg.tokens, ecg.segments[ecg.number][1], self.reader.tokenizer)
                if said:
                    lines.append(
                        f"{ecg.recording.name} is unlike the recordings that the model was trained on: "
                        f"{'; '.join(said)}. Answers may be wrong, however probable they look"
                    )
        return lines

    def open(self, path: str | os.PathLike) -> ECG:
        """Open another recording beside those open, and return its ECG."""
        self.ecgs.append(self.reader.read(path))
        self.log.append(f"Opened {self.ecgs[-1].recording.name}.")
        return self.ecgs[-1]

    def segment(self, number: int) -> ECG:
        """Read another segment (1, 2, …) of the recording opened last, and forget what was said."""
        last = self.ecgs[-1]
        if not 1 <= number <= len(last.segments):
            raise Failure(f"{last.recording.name} has the segments 1 to {len(last.segments)}")
        self.ecgs[-1] = self.reader.segment(last.recording, last.segments, number - 1)
        self.turns = []
        self.log.append(f"Read {last.recording.name}, {self.ecgs[-1].stretch()}.")
        return self.ecgs[-1]

    def clear(self) -> None:
        """Forget what was said, and close all recordings but the one opened last."""
        self.ecgs, self.turns = self.ecgs[-1:], []
        self.log.append(f"Started afresh with {self.ecgs[0].recording.name}.")


def fit_prompt(
    prompt: "Prompt",
    tokenizer: ECGTokenizer,
    ecgs: list[np.ndarray],
    turns: list[tuple[str, str | None]],
    longest: int | None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """`Prompt.fitted` for whole ECGs: ids, labels, and how many ECG tokens had no room; `longest` None trims none."""
    from ecgbyte_cli.model.layout import lead_ranges

    leads = [lead_ranges(ecg, tokenizer.lengths, tokenizer.signal["samples"]) for ecg in ecgs]
    return prompt.fitted(ecgs, leads, turns, sys.maxsize if longest is None else longest)


def remembers_earlier_turns(about: dict) -> bool:
    """Whether earlier questions are told again.

    A model trained from nothing on single questions has seen none with a question before it, and can make
    nothing of one; a model that knew conversations before can.
    """
    return about.get("conversations", about["base"] != "tiny")
