"""A question in a conversation, and its answer."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ecgbyte_cli.inference.conflicts import AnswerConflict
from ecgbyte_cli.inference.measured_answers import MeasuredAnswer
from ecgbyte_cli.inference.witness import Witness, percent


@dataclass
class Turn:
    """A question and its answer."""

    question: str
    answer: str = ""
    ecgs: list = field(default_factory=list)  # open at the time
    earlier: list = field(default_factory=list)  # (question, answer) pairs that were part of the prompt
    prompt: np.ndarray | None = None  # ids of the prompt
    lost: int = 0  # ECG tokens that were left out of the prompt
    written: list = field(default_factory=list)  # ids of the answer
    # probability of the whole answer including the end token; calibrated if chosen from a list; None if stopped
    probability: float | None = None
    asked_as: str | None = None  # the matching training question or measured question
    asked: tuple[str, str] | None = None  # question and answer as worded in the prompt, if chosen from a list
    # the second likeliest of the possible answers
    other: tuple[str, float] | None = None
    sure: bool | None = None  # None if no threshold is known
    point: float | None = None  # the threshold for yes, if it is not 0.5
    findings: dict[str, float] | None = None  # for a list: the probability of each possible finding
    present: list[str] = field(default_factory=list)  # for a list: the findings in the answer
    reasoning: str = ""  # text before the answer
    declined: bool = False  # the model was not trained on this question
    composed: str | None = None  # kind of fixed sentences: report, safety, sure or why
    separate: list["Turn"] = field(default_factory=list)  # one per ECG, for a model that reads one at a time
    witness: Witness | None = None  # the model's answers without the ECG
    measured: MeasuredAnswer | None = None  # the answer, if it is a measured value
    # contradictions with the measurement, the recorder's own statements, and answers about the rhythm
    conflicts: list[AnswerConflict] = field(default_factory=list)
    first: float | None = None  # seconds until the first token
    seconds: float = 0.0
    stopped: bool = False
    error: str | None = None

    @property
    def attributable(self) -> bool:
        """Whether the model gave the answer to a single prompt, so that it can be attributed."""
        return self.prompt is not None and not self.stopped

    def certainty(self) -> str:
        """Describe the probability of a chosen answer; `measured` for a measured value."""
        if self.measured:
            return "measured"
        if self.findings:
            chances = self.findings
            likely = sorted(chances, key=lambda name: -chances[name])
            listed, others = ([n for n in likely if (n in self.present) == yes] for yes in (True, False))
            named = {name: f"{name} {percent(chance)}" for name, chance in chances.items()}
            unlisted = f"; next {named[others[0]]}" if others else ""
            named_first = ", ".join(named[name] for name in listed) or "none"
            return f"{'not sure: ' if self.sure is False else ''}{named_first}{unlisted}"
        if self.probability is None or self.other is None:
            return ""
        unsure = "not sure: " if self.sure is False else ""
        if self.point is not None:
            yes = self.probability if self.other[0].casefold() == "no" else self.other[1]
            return f"{unsure}probability of yes: {percent(yes)}; threshold for yes: {percent(self.point)}"
        # an answer may be chosen although another is more probable: see `Certainty.adjustments`
        preferred = ", preferred although less probable" if self.probability < self.other[1] else ""
        return f"{unsure}{percent(self.probability)}{preferred}; or {self.other[0]}, {percent(self.other[1])}"

    def notes(self) -> list[str]:
        """Return the notes to show with an answer: conflicts, and a warning if it may not depend on the ECG."""
        own = [conflict.text for conflict in self.conflicts]
        own += [self.witness.note] if self.witness and self.witness.note else []
        others = [f"{part.ecgs[0].recording.name}: {line}" for part in self.separate for line in part.notes()]
        return [*own, *others]

    def about(self) -> dict[str, Any]:
        """Return the turn for --json."""
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
        contents |= {"yes_from": self.point} if self.point is not None else {}
        contents |= {"measured": self.measured.as_json()} if self.measured else {}
        contents |= {"conflicts": [one.as_json() for one in self.conflicts]} if self.conflicts else {}
        contents |= {"witness": self.witness.as_json()} if self.witness else {}
        contents |= {"composed": self.composed} if self.composed else {}
        if self.separate:
            contents["separate"] = [
                {"record": turn.ecgs[0].recording.name, "certainty": turn.certainty(), **turn.about()}
                for turn in self.separate
            ]
        return {**contents, **({"error": self.error} if self.error else {})}
