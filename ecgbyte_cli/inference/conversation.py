"""Questions and answers about open recordings."""

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.everyday import suggest
from ecgbyte_cli.inference.findings_reading import compose_report
from ecgbyte_cli.inference.fixed_answers import answer_fixed
from ecgbyte_cli.inference.measured_turns import conflicts_of, take_measured
from ecgbyte_cli.inference.turn import Turn
from ecgbyte_cli.inference.understanding import NOTHING, understand
from ecgbyte_cli.inference.witness import NO_ECG, find_witness
from ecgbyte_cli.model.folder_checks import BUILT
from ecgbyte_cli.model.layout import Layout, lead_ranges
from ecgbyte_cli.questions.reasoning import split_reasoning
from ecgbyte_cli.runtime.memory import out_of_memory
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.long_recordings import is_stored
from ecgbyte_cli.signal.measure import measure_stretch
from ecgbyte_cli.signal.measured_lines import NOTHING as NOTHING_MEASURED
from ecgbyte_cli.signal.measured_lines import measured_line
from ecgbyte_cli.signal.measurement import Measurement

if TYPE_CHECKING:
    from ecgbyte_cli.inference.certainty import Certainty, MatchedQuestion
    from ecgbyte_cli.inference.session import Session
    from ecgbyte_cli.model.prompt import Prompt
    from ecgbyte_cli.signal.tokenizer import ECGTokenizer

Show = Callable[[str], object]
ABOUT_ALL = ("safety", "sure", "why")  # questions that are not about a single ECG


@dataclass
class ECG:
    """An open recording, and the segment of it that the model reads."""

    recording: readers.Recording
    segments: Sequence[tuple[float, np.ndarray]]  # (start in s, float32 (leads, samples) in mV)
    number: int  # index of the segment that the model reads
    tokens: np.ndarray
    tokenizer: "ECGTokenizer"
    compared: bool = False  # whether `Conversation.unlike` has compared it

    @property
    def signal(self) -> dict:
        """The tokenizer's settings."""
        return self.tokenizer.signal

    @cached_property
    def in_prompt(self) -> tuple[list[str], int]:
        """The leads in the prompt, and their token counts; an any-lead model skips flat leads."""
        layout, leads = Layout.of(0, self.tokenizer), self.signal["leads"]
        if not layout.marks:
            return leads, len(self.tokens)
        lead_of = lead_ranges(self.tokens, self.tokenizer.lengths, layout.samples)
        lead_of = lead_of[layout.read_tokens(self.tokens, lead_of)]
        return [leads[i] for i in np.unique(lead_of)], len(lead_of)

    @property
    def seconds(self) -> tuple[float, float]:
        """Start and end of the open segment, in s."""
        start = self.segments[self.number][0]
        return start, start + self.signal["segment_seconds"]

    def arrays(self) -> list[np.ndarray]:
        """Return the arrays in memory; none for a long recording, which stays in its file."""
        return [] if is_stored(self.recording) else [self.recording.signal, *(s for _, s in self.segments)]

    def stretch(self) -> str:
        """Describe the open segment: its times and number."""
        start, end = self.seconds
        return f"{start:g} to {end:g} s, segment {self.number + 1} of {len(self.segments)}"

    @cached_property
    def measurement(self) -> Measurement:
        """The measurement of the open segment, from the signal as recorded."""
        return measure_stretch(self.recording, *self.seconds)

    @cached_property
    def line(self) -> str:
        """The measured values as a line of text, for models trained with measured values."""
        return measured_line(self.measurement)

    def lead(self, name: str) -> np.ndarray:
        """Return a lead over the segment, as recorded: float32 (samples,), mV."""
        part = self.recording.part(*self.seconds)
        names = [lead.lower() for lead in part.leads]
        if name.lower() in names:  # includes non-standard leads
            return part.signal[names.index(name.lower())]
        return preprocess.pick(part, [readers.lead_name(name)])[0]


class WithoutSignal(ECG):
    """An ECG that is hidden from the model or replaced by a flat line, without measured values."""

    @property
    def line(self) -> str:
        return NOTHING_MEASURED


class Conversation:
    """Questions and answers about open ECGs.

    Parameters
    ----------
    session : Session
    ecgs : list of ECG
    max_new : int
        Longest answer, in tokens.

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

        If the training data list the possible answers, the most probable is chosen. Otherwise the answer is decoded
        greedily. A model trained from scratch declines questions outside its training data.

        Parameters
        ----------
        question : str
        show : callable
            Called with each piece of the answer as it is generated.
        think : callable
            Called with the reasoning that precedes the answer, if any.

        Returns
        -------
        Turn
            Ctrl-C ends the answer early; then `stopped` is True.

        Raises
        ------
        Failure
            If the conversation is longer than the model can read, or memory runs out.
        """
        turn = Turn(question, ecgs=list(self.ecgs), earlier=list(self.turns))
        self.log.append(turn)
        about_all = understand(question, self.session).by in ABOUT_ALL
        if 1 < len(self.ecgs) > self.session.about.get("most_ecgs", 1) and not about_all:
            return self._ask_each(turn, show)
        self._ask(turn, show, think)
        own = not (turn.measured or turn.composed or turn.declined)
        if turn.answer and own and self.session.remembers_earlier_turns:
            self.turns.append((question, turn.answer))
        return turn

    def _ask_each(self, turn: Turn, show: Show) -> Turn:
        """Ask about each ECG separately and combine the answers, for a model that reads one ECG at a time."""
        start = time.perf_counter()
        for ecg in turn.ecgs:
            part = Turn(turn.question, ecgs=[ecg])
            turn.separate.append(part)
            self._ask(part, lambda piece: None, lambda reasoning: None)
            sure = f" ({part.certainty()})" if part.certainty() else ""
            line = f"{ecg.recording.name}: {part.answer or '(no answer)'}{sure}"
            show(f"\n{line}" if turn.answer else line)
            turn.answer += f"\n{line}" if turn.answer else line
            if part.stopped:
                turn.stopped = True
                break
        turn.declined = all(part.declined for part in turn.separate)
        turn.first = turn.seconds = time.perf_counter() - start
        return turn

    def _ask(self, turn: Turn, show: Show, think: Show) -> None:
        """Answer a turn from its ECGs."""
        start = time.perf_counter()
        try:
            understood = understand(turn.question, self.session)
            if len(turn.ecgs) > 1 and understood.by not in ABOUT_ALL:
                understood = NOTHING
            turn.asked_as = understood.matched and understood.matched.wording
            if understood.by == "measurement" and take_measured(turn, understood.question, show):
                turn.asked_as = understood.question if understood.question != turn.question else None
                return
            if understood.by == "report" or understood.by in ABOUT_ALL:
                self._compose(turn, understood.by, show)
            elif self._untrained(turn, understood.matched):
                self._decline(turn, show)
            else:
                self._answer(turn, understood.matched, show, think, start)
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

    def _compose(self, turn: Turn, by: str, show: Show) -> None:
        """Answer with fixed sentences."""
        turn.composed = by
        report = by == "report"
        turn.answer = compose_report(self.session, turn.ecgs[0]) if report else answer_fixed(by, self.log)
        show(turn.answer)

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
            ids, turn.lost = self.session.prompt_ids(turn.ecgs, [*turn.earlier, (text, None)])
        except Failure as error:  # the text alone is too long
            raise Failure(f"too long: {error.message}; {self._shorter()}") from error
        turn.prompt = ids
        if len(ids) >= most:
            raise Failure(
                f"too long: the model can read {most} tokens, but this prompt has {len(ids)}; {self._shorter()}"
            )
        if matched and matched.parts:
            self._list(turn, matched, matched.parts, show, start)
        elif matched and matched.answers:
            self._choose(turn, ids, matched, show, start)
        else:
            self._write(turn, ids, min(self.max_new, most - len(ids)), show, think, start)

    def _write(self, turn: Turn, ids: np.ndarray, room: int, show: Show, think: Show, start: float) -> None:
        """Decode an answer greedily."""
        from ecgbyte_cli.model.decoding import RecordedPicks

        session, shown = self.session, ""
        tags: list[str] = session.about.get("think") or []
        prompt, reasoned = session.prompt, not tags
        picks = RecordedPicks(None, prompt.end_ids, 1)
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
            # a multi-byte character is incomplete until its last byte
            if turn.answer.startswith(shown) and not turn.answer.endswith("\ufffd"):
                show(turn.answer[len(shown) :])
                shown = turn.answer
        if not reasoned:  # the model did not close its reasoning
            turn.answer = split_reasoning(turn.answer, tags).answer
        show(turn.answer[len(shown) :])
        turn.probability = math.exp(sum(logs)) if (logs := picks.answers()[0][1]) else None

    def _choose(
        self, turn: Turn, ids: np.ndarray, matched: "MatchedQuestion", show: Show, start: float
    ) -> None:
        """Choose the most probable of the possible answers."""
        answers, session = matched.answers or [], self.session
        (weights,) = session.weigh_prompts([ids], answers, [matched.text], session.cache)
        chosen = session.choose(matched.text, answers, weights)
        turn.answer, turn.probability, turn.sure = chosen.answer, chosen.probability, chosen.sure
        turn.other, turn.point = (chosen.other, chosen.other_probability), chosen.point
        turn.asked = matched.text, chosen.answer
        turn.written = session.prompt.written(chosen.answer)[:-1].tolist()
        if matched.members:
            _answer_among(turn, answers, weights, matched.members)
        turn.witness = find_witness(session, matched.text, answers, weights, turn.earlier)
        turn.first = time.perf_counter() - start
        show(turn.answer)

    def _list(
        self, turn: Turn, matched: "MatchedQuestion", parts: dict[str, str], show: Show, start: float
    ) -> None:
        """Assemble a list from the answers to yes/no questions."""
        answers = ["no", "yes"]
        prompts = [self.session.prompt_ids(turn.ecgs, [(part, None)])[0] for part in parts]
        weighed = self.session.weigh_prompts(prompts, answers, [*parts])
        chosen = [
            self.session.choose(part, answers, weights) for part, weights in zip(parts, weighed, strict=True)
        ]
        turn.findings = {words: one.yes or 0.0 for words, one in zip(parts.values(), chosen, strict=True)}
        turn.sure = None if chosen[0].sure is None else all(one.sure for one in chosen)
        turn.prompt = None  # no single prompt exists to attribute the answer to
        turn.present = [w for w, one in zip(parts.values(), chosen, strict=True) if one.answer == "yes"]
        whole = "none of those that I know" if matched.text else f"none of these: {', '.join(parts.values())}"
        turn.answer = "; ".join(turn.present) or whole
        turn.first = time.perf_counter() - start
        show(turn.answer)

    def _certainty(self) -> "Certainty":
        assert self.session.certainty  # the question matched one of its questions
        return self.session.certainty

    def _untrained(self, turn: Turn, matched: "MatchedQuestion | None") -> bool:
        """Return whether the model declines a question."""
        return len(turn.ecgs) == 1 and declines(self.session, matched)

    def _decline(self, turn: Turn, show: Show) -> None:
        """Decline, and suggest questions that the model can answer."""
        like = "; ".join(suggest(turn.question, self._certainty(), self.session.known_findings))
        turn.declined = True
        turn.answer = f"I was not trained on this question. I can answer, for example: {like}"
        show(turn.answer)

    def ask_without_ecg(self) -> list[tuple[str, Turn]]:
        """Ask the last question without the ECG and with a flat line; return (name, turn) pairs.

        Raises
        ------
        Failure
            If the last answer did not come from the model.
        """
        turns = [entry for entry in self.log if isinstance(entry, Turn) and not entry.error]
        last = turns[-1].separate[-1] if turns and turns[-1].separate else turns[-1] if turns else None
        if last is None or not (last.attributable or last.findings):
            raise Failure(
                "the last answer did not come from the model: ask about a finding or the rhythm first"
            )
        asked = [("with the ECG", last)]
        flat = self.session.tokenizer.flat_line(self.session.segmenter)
        matched = understand(last.question, self.session).matched if len(last.ecgs) == 1 else None
        for name, tokens in (("without the ECG", NO_ECG), ("with a flat line", flat)):
            parts = [(ecg.recording, ecg.segments, ecg.number, tokens, ecg.tokenizer) for ecg in last.ecgs]
            turn = Turn(last.question, ecgs=[WithoutSignal(*part) for part in parts])
            turn.earlier = last.earlier
            self._answer(turn, matched, lambda piece: None, lambda reasoning: None, time.perf_counter())
            asked.append((name, turn))
        return asked

    def unlike(self) -> list[str]:
        """Return one warning, once, for each open recording unlike the training data."""
        lines, certainty = [], self.session.certainty
        for ecg in self.ecgs:
            if certainty and not ecg.compared:
                ecg.compared = True
                signal = ecg.segments[ecg.number][1]
                reasons = certainty.unlike(ecg.tokens, signal, self.session.tokenizer)
                if reasons:
                    lines.append(
                        f"{ecg.recording.name} is unlike the recordings that the model was trained on: "
                        f"{'; '.join(reasons)}. Answers may be wrong even if their probability is high"
                    )
        return lines

    def open(self, path: str | os.PathLike) -> ECG:
        """Open another recording alongside the others, and return its ECG."""
        self.ecgs.append(self.session.read(path))
        self.log.append(f"Opened {self.ecgs[-1].recording.name}.")
        return self.ecgs[-1]

    def segment(self, number: int) -> ECG:
        """Read another segment (1, 2, …) of the last opened recording, and forget earlier turns."""
        last = self.ecgs[-1]
        if not 1 <= number <= len(last.segments):
            raise Failure(f"{last.recording.name} has the segments 1 to {len(last.segments)}")
        try:
            self.ecgs[-1] = self.session.reader.segment(last.recording, last.segments, number - 1)
        except readers.Unusable as error:  # a segment of a long recording is read only now
            raise Failure(error.about(f"segment {number} of {last.recording.name}")) from error
        self.turns = []
        self.log.append(f"Read {last.recording.name}, {self.ecgs[-1].stretch()}.")
        return self.ecgs[-1]

    def clear(self) -> None:
        """Forget earlier turns, and close all recordings except the last opened."""
        self.ecgs, self.turns = self.ecgs[-1:], []
        self.log.append(f"Started afresh with {self.ecgs[0].recording.name}.")


def fit_prompt(
    prompt: "Prompt",
    tokenizer: "ECGTokenizer",
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
    """Return whether a model from scratch knows single-ECG questions only, and this question is not one of them."""
    listed = session.certainty and session.certainty.groups
    return bool(listed) and not matched and not remembers_earlier_turns(session.about)


def _answer_among(turn: Turn, answers: list[str], weights: np.ndarray, members: tuple[str, ...]) -> None:
    """Answer yes or no to whether the rhythm is one of `members`, and name the most probable rhythm of that group."""
    among = np.array([answer in members for answer in answers])
    chance = float(weights[among].sum())
    yes = chance > 0.5
    likeliest = answers[int(np.where(among == yes, weights, -1).argmax())]
    turn.answer = f"{'yes' if yes else 'no'}: {likeliest}"
    turn.probability, turn.other = (chance, ("no", 1 - chance)) if yes else (1 - chance, ("yes", chance))


def origin(about: dict) -> str:
    """Return the name of a model and of its base model."""
    base = about["base"]
    return f"{about['folder']}, {'trained from scratch' if base in BUILT else f'from {base}'}"


def remembers_earlier_turns(about: dict) -> bool:
    """Return whether earlier turns are part of the prompt.

    Models trained from scratch on single questions have never seen an earlier turn. Base models that know
    conversations have.
    """
    return about.get("conversations", about["base"] not in BUILT)
