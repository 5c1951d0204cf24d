"""Questions and answers about open recordings."""

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.conflicts import Conflict
from ecgbyte_cli.inference.measured_answers import MeasuredAnswer
from ecgbyte_cli.inference.measured_turns import conflicts_of, take_measured
from ecgbyte_cli.model.folder_checks import BUILT
from ecgbyte_cli.questions.reasoning import split_reasoning
from ecgbyte_cli.runtime.memory import out_of_memory
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.measure import measure_stretch
from ecgbyte_cli.signal.measured_lines import measured_line
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.signal.tokenizer import ECGTokenizer

if TYPE_CHECKING:
    from ecgbyte_cli.inference.certainty import Certainty, MatchedQuestion
    from ecgbyte_cli.inference.session import Session
    from ecgbyte_cli.model.prompt import Prompt

Show = Callable[[str], object]


@dataclass
class ECG:
    """An open recording, and the segment of it that the model reads."""

    recording: readers.Recording
    segments: list[tuple[float, np.ndarray]]  # of (start in s, float32 (leads, samples) in mV)
    number: int  # of the segment that the model reads
    tokens: np.ndarray
    signal: dict  # the tokenizer's settings
    compared: bool = False  # whether `Conversation.unlike` has compared it

    @property
    def seconds(self) -> tuple[float, float]:
        """Start and end of the segment, in s."""
        start = self.segments[self.number][0]
        return start, start + self.signal["segment_seconds"]

    def stretch(self) -> str:
        """Return a description of the segment."""
        start, end = self.seconds
        return f"{start:g} to {end:g} s, segment {self.number + 1} of {len(self.segments)}"

    @cached_property
    def measurement(self) -> Measurement:
        """The measurement of the open segment, as it was recorded."""
        return measure_stretch(self.recording, *self.seconds)

    @cached_property
    def line(self) -> str:
        """The measured values as a line, for models trained with them."""
        return measured_line(self.measurement)

    def lead(self, name: str) -> np.ndarray:
        """Return a lead over the segment, as recorded: float32 (samples,), mV."""
        recording = self.recording
        names = [lead.lower() for lead in recording.leads]
        if name.lower() in names:  # non-standard leads too
            row = recording.signal[names.index(name.lower())]
        else:
            row = preprocess.pick(recording, [readers.lead_name(name)])[0]
        begin, end = (round(s * recording.fs) for s in self.seconds)
        return row[begin:end]


@dataclass
class RecordingLoader:
    """Reads recordings as a model needs them."""

    tokenizer: ECGTokenizer
    segmenter: str
    fs: float | None = None
    lead_names: list[str] | None = None
    units: str | None = None
    keep_identity: bool = False

    def read(self, path: str | os.PathLike) -> ECG:
        """Read, preprocess and encode a recording; return the ECG of its first segment."""
        try:
            recording, segments = self.segments(path)
        except readers.Unusable as error:
            exists = error.message != "not a known format" or os.path.exists(path)
            reason = error.message if exists else "no such recording"
            raise Failure(f"{path} cannot be used: {reason}") from error
        return self.segment(recording, segments, 0)

    def segments(self, path: str | os.PathLike) -> tuple[readers.Recording, list[tuple[float, np.ndarray]]]:
        """Read and preprocess a recording; return it with its segments, or raise Unusable with the bare reason."""
        recording = readers.read_recording(path, self.fs, self.lead_names, self.units, self.keep_identity)
        return recording, preprocess.segments(recording, self.tokenizer.signal)

    def segment(
        self, recording: readers.Recording, segments: list[tuple[float, np.ndarray]], number: int
    ) -> ECG:
        """Encode one segment of a recording."""
        tokens = self.tokenizer.encode(segments[number][1], self.segmenter)
        return ECG(recording, segments, number, tokens, self.tokenizer.signal)


@dataclass
class Turn:
    """A question and its answer."""

    question: str
    answer: str = ""
    ecgs: list = field(default_factory=list)  # that were open
    earlier: list = field(default_factory=list)  # (question, answer) that were part of the prompt
    prompt: np.ndarray | None = None  # ids
    lost: int = 0  # ECG tokens that the prompt had no room for
    written: list = field(default_factory=list)  # ids of the answer
    # of the whole answer, its end included; calibrated where it was chosen; None if it was stopped
    probability: float | None = None
    asked_as: str | None = None  # the matching question of the training
    other: tuple[str, float] | None = (
        None  # the second likeliest answer, of those that there are to choose from
    )
    sure: bool | None = None  # None where no threshold is known
    findings: dict[str, float] | None = None  # of a list: the probability of each possible finding
    reasoning: str = ""  # before the answer
    declined: bool = False  # the model was not trained on this question
    measured: MeasuredAnswer | None = None  # the answer, if it is a measured value
    conflicts: list[Conflict] = field(default_factory=list)  # of the model's answer with the measurement
    first: float | None = None  # s to the first token
    seconds: float = 0.0
    stopped: bool = False
    error: str | None = None

    def certainty(self) -> str:
        """Return the probabilities of a chosen answer in words, or `measured` for a measured value."""
        if self.measured:
            return "measured"
        if self.findings:
            likely = sorted(self.findings.items(), key=lambda item: -item[1])
            count = sum(chance > 0.5 for _, chance in likely)
            named = [f"{name} {percent(chance)}" for name, chance in likely]
            unlisted = f"; next {named[count]}" if count < len(named) else ""
            return (
                f"{'not sure: ' if self.sure is False else ''}{', '.join(named[:count]) or 'none'}{unlisted}"
            )
        if self.probability is None or self.other is None:
            return ""
        unsure = "not sure: " if self.sure is False else ""
        return f"{unsure}{percent(self.probability)}; or {self.other[0]}, {percent(self.other[1])}"

    def about(self) -> dict[str, Any]:
        """Return the turn as --json prints it."""
        contents: dict[str, Any] = {
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
        contents |= {"measured": self.measured.as_json()} if self.measured else {}
        contents |= {"conflicts": [one.as_json() for one in self.conflicts]} if self.conflicts else {}
        return {**contents, **({"error": self.error} if self.error else {})}


def percent(probability: float) -> str:
    """Return a probability in words: never 0 or 100 %."""
    if 0.01 <= probability <= 0.99:
        return f"{100 * probability:.0f} %"
    return "over 99 %" if probability > 0.5 else "under 1 %"


class Conversation:
    """Questions and answers about open ECGs.

    Parameters
    ----------
    session : Session
    ecgs : list of ECG
    max_new : int
        Longest answer in tokens.

    Attributes
    ----------
    turns : list of (str, str)
        Earlier questions and answers that are part of the next prompt.
    log : list of Turn or str
        All turns and commands, in order.
    """

    def __init__(self, session: "Session", ecgs: list[ECG], max_new: int = 256):
        self.session, self.ecgs, self.max_new = session, ecgs, max_new
        self.turns: list[tuple[str, str]] = []
        self.log: list[Turn | str] = []

    def ask(
        self,
        question: str,
        show: Show = lambda piece: None,
        think: Show = lambda reasoning: None,
    ) -> Turn:
        """Answer a question.

        If training listed the answers to this question, the most probable of them is chosen. Otherwise the answer
        is written greedily, token by token. A model trained from scratch declines questions it was not trained on.

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
            Ctrl-C ends the answer early; then `stopped` is True.

        Raises
        ------
        Failure
            If the conversation is longer than the model can read, or memory does not suffice.
        """
        start = time.perf_counter()
        turn = Turn(question, ecgs=list(self.ecgs), earlier=list(self.turns))
        self.log.append(turn)
        if take_measured(turn, show):
            return turn
        matched = self.session.match(question) if len(self.ecgs) == 1 else None
        turn.asked_as = matched and matched.said
        try:
            if self._untrained(matched):
                return self._decline(turn, show)
            self._answer(turn, matched, show, think, start)
        except KeyboardInterrupt:
            turn.stopped = True
        except (RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200]
            if out_of_memory(error):
                self.session.cache, reason = type(self.session.cache)(), f"out of memory; {self._shorter()}"
            turn.error = f"the model cannot answer: {reason}"
            raise Failure(turn.error) from error
        except Failure as error:
            turn.error = error.message
            raise
        turn.seconds = time.perf_counter() - start
        turn.conflicts = conflicts_of(turn, self.log)
        if turn.answer and remembers_earlier_turns(self.session.about):
            self.turns.append((question, turn.answer))
        return turn

    def _shorter(self) -> str:
        """Return the advice for a prompt that is too long."""
        clear = ", or /clear the conversation" if self.turns or len(self.ecgs) > 1 else ""
        return f"ask a shorter question{clear}"

    def _answer(
        self, turn: Turn, matched: "MatchedQuestion | None", show: Show, think: Show, start: float
    ) -> None:
        """Build the prompt of a turn, and answer it."""
        text = matched.text if matched else turn.question
        most = getattr(self.session.lm.base.config, "max_position_embeddings", None) or sys.maxsize
        try:
            ids, turn.lost = self.session.prompt_ids(self.ecgs, [*self.turns, (text, None)])
        except Failure as error:  # the text alone is longer
            raise Failure(f"too long: {error.message}; {self._shorter()}") from error
        turn.prompt = ids
        if len(ids) >= most:
            raise Failure(
                f"too long: the model reads {most} tokens, and this makes {len(ids)}; {self._shorter()}"
            )
        if matched and matched.parts:
            self._list(turn, matched.parts, show, start)
        elif matched and matched.answers:
            self._choose(turn, ids, matched, show, start)
        else:
            self._write(turn, ids, min(self.max_new, most - len(ids)), show, think, start)

    def _write(self, turn: Turn, ids: np.ndarray, room: int, show: Show, think: Show, start: float) -> None:
        """Write an answer token by token, the most probable each time."""
        from ecgbyte_cli.model.decoding import ScoredPicks

        session, shown = self.session, ""
        tags: list[str] = session.about.get("think") or []
        prompt, reasoned = session.prompt, not tags
        picks = ScoredPicks(None, prompt.end_ids, 1)
        for (i,) in session.lm.stream([ids], prompt.end_ids, room, session.cache, picks):
            turn.first = turn.first or time.perf_counter() - start
            turn.written.append(i)
            turn.answer = prompt.text(turn.written)
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
        if not reasoned:  # it never closed its reasoning
            turn.answer = split_reasoning(turn.answer, tags).answer
        show(turn.answer[len(shown) :])
        turn.probability = math.exp(sum(picks.logs[0])) if picks.logs[0] else None

    def _choose(
        self, turn: Turn, ids: np.ndarray, matched: "MatchedQuestion", show: Show, start: float
    ) -> None:
        """Choose the most probable of the answers that a question can have."""
        answers = matched.answers or []
        (weights,) = self.session.weigh_prompts([ids], answers, [matched.text], self.session.cache)
        chosen = self.session.choose(matched.text, answers, weights)
        turn.answer, turn.probability, turn.sure = chosen.answer, chosen.probability, chosen.sure
        turn.other = chosen.other, chosen.other_probability
        turn.written = self.session.prompt.written(chosen.answer)[:-1].tolist()
        turn.first = time.perf_counter() - start
        show(turn.answer)

    def _list(self, turn: Turn, parts: dict[str, str], show: Show, start: float) -> None:
        """Put a list together from questions with yes and no."""
        answers = ["no", "yes"]
        prompts = [self.session.prompt_ids(turn.ecgs, [(part, None)])[0] for part in parts]
        weighed = self.session.weigh_prompts(prompts, answers, [*parts])
        chosen = [
            self.session.choose(part, answers, weights) for part, weights in zip(parts, weighed, strict=True)
        ]
        turn.findings = {words: one.yes or 0.0 for words, one in zip(parts.values(), chosen, strict=True)}
        turn.sure = None if chosen[0].sure is None else all(one.sure for one in chosen)
        turn.prompt = None  # there is no one prompt to attribute the answer to
        present = [words for words, one in zip(parts.values(), chosen, strict=True) if one.answer == "yes"]
        turn.answer = "; ".join(present) or "none of those that I know"
        turn.first = time.perf_counter() - start
        show(turn.answer)

    def _certainty(self) -> "Certainty":
        assert self.session.certainty  # a question was matched
        return self.session.certainty

    def _untrained(self, matched: "MatchedQuestion | None") -> bool:
        """Return whether the model declines a question."""
        return len(self.ecgs) == 1 and declines(self.session, matched)

    def _decline(self, turn: Turn, show: Show) -> Turn:
        """Answer with questions that can be asked instead."""
        like = "; ".join(self._certainty().like(turn.question))
        turn.declined = True
        turn.answer = f"I was not trained on this question. I can answer, for example: {like}"
        show(turn.answer)
        return turn

    def unlike(self) -> list[str]:
        """Return a line about each open recording that is unlike those of the training, once each."""
        lines, certainty = [], self.session.certainty
        for ecg in self.ecgs:
            if certainty and not ecg.compared:
                ecg.compared = True
                signal = ecg.segments[ecg.number][1]
                reasons = certainty.unlike(ecg.tokens, signal, self.session.tokenizer)
                if reasons:
                    lines.append(
                        f"{ecg.recording.name} is unlike the recordings that the model was trained on: "
                        f"{'; '.join(reasons)}. Answers may be wrong, however probable they look"
                    )
        return lines

    def open(self, path: str | os.PathLike) -> ECG:
        """Open another recording beside those open, and return its ECG."""
        self.ecgs.append(self.session.read(path))
        self.log.append(f"Opened {self.ecgs[-1].recording.name}.")
        return self.ecgs[-1]

    def segment(self, number: int) -> ECG:
        """Read another segment (1, 2, …) of the recording opened last, and forget earlier turns."""
        last = self.ecgs[-1]
        if not 1 <= number <= len(last.segments):
            raise Failure(f"{last.recording.name} has the segments 1 to {len(last.segments)}")
        self.ecgs[-1] = self.session.reader.segment(last.recording, last.segments, number - 1)
        self.turns = []
        self.log.append(f"Read {last.recording.name}, {self.ecgs[-1].stretch()}.")
        return self.ecgs[-1]

    def clear(self) -> None:
        """Forget earlier turns, and close all recordings but the one opened last."""
        self.ecgs, self.turns = self.ecgs[-1:], []
        self.log.append(f"Started afresh with {self.ecgs[0].recording.name}.")


def fit_prompt(
    prompt: "Prompt",
    tokenizer: ECGTokenizer,
    ecgs: list[np.ndarray],
    turns: Sequence[tuple[str, str | None]],
    longest: int | None,
    before: str = "",
) -> tuple[np.ndarray, np.ndarray, int]:
    """Call `Prompt.fitted` for whole ECGs; if `longest` is None nothing is trimmed."""
    from ecgbyte_cli.model.layout import lead_ranges

    leads = [lead_ranges(ecg, tokenizer.lengths, tokenizer.signal["samples"]) for ecg in ecgs]
    return prompt.fitted(ecgs, leads, turns, sys.maxsize if longest is None else longest, before)


def declines(session: "Session", matched: "MatchedQuestion | None") -> bool:
    """Return whether a model was trained from scratch on known questions about one ECG, of which this is none."""
    listed = session.certainty and session.certainty.groups
    return bool(listed) and not matched and not remembers_earlier_turns(session.about)


def remembers_earlier_turns(about: dict) -> bool:
    """Return whether earlier questions are part of the prompt.

    A model trained from scratch on single questions has never seen an earlier question; a base model that knows
    conversations has.
    """
    return about.get("conversations", about["base"] not in BUILT)
