"""All answers of a model about one ECG, from a single reading of it, and the report composed from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgbyte_cli.inference.conflicts import AnswerConflict, find_conflicts
from ecgbyte_cli.inference.device_statements import device_conflicts, device_statements
from ecgbyte_cli.inference.everyday import RHYTHM, list_parts
from ecgbyte_cli.inference.measured_answers import describe_value, measured_value
from ecgbyte_cli.inference.rhythm_conflicts import rhythm_conflicts
from ecgbyte_cli.inference.witness import percent
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.signal.normal_limits import age_and_sex

if TYPE_CHECKING:
    from ecgbyte_cli.inference.conversation import ECG
    from ecgbyte_cli.inference.session import Session

REPORTED = ("rate_bpm", "pr_ms", "qrs_ms", "qt_ms", "qtcb_ms", "qtcf_ms")
MOST_UNLIKELY = 3  # findings below 0.5 that a report names
COMPOSED = "This report is composed of model answers and measurements. It is not a diagnosis."


@dataclass(frozen=True)
class FindingsReading:
    """The answers of a model to all of its questions about findings and the rhythm.

    Attributes
    ----------
    findings : dict of str to float
        The words of each finding mapped to its probability, in training order.
    present : list of str
        The words of the findings that the model answers with yes.
    rhythms : dict of str to float
        Each rhythm mapped to its probability: first the model's answer, then the most probable. Empty if the model
        was not trained on the rhythm question.
    conflicts : list of AnswerConflict
        Answers that the measurement, the recorder's own statements or the rhythm contradict.
    """

    findings: dict[str, float]
    present: list[str]
    rhythms: dict[str, float]
    conflicts: list[AnswerConflict]

    @property
    def rhythm(self) -> str | None:
        """The model's answer."""
        return next(iter(self.rhythms), None)

    def as_json(self) -> dict[str, Any]:
        """Return the reading for --json."""
        return {
            "findings": self.findings,
            "present": self.present,
            "rhythms": self.rhythms,
            "conflicts": [conflict.as_json() for conflict in self.conflicts],
        }


def read_findings(session: "Session", ecg: "ECG") -> FindingsReading:
    """Ask a model about all findings and the rhythm of an ECG.

    Returns
    -------
    FindingsReading
        Without findings if the model has no list of training questions.
    """
    certainty = session.certainty
    if certainty is None:
        return FindingsReading({}, [], {}, [])
    parts, rhythm = list_parts(certainty, session.known_findings), certainty.match(RHYTHM)
    prompts = [session.prompt_ids([ecg], [(part, None)])[0] for part in parts]
    weighed = session.weigh_prompts(prompts, ["no", "yes"], [*parts]) if prompts else []
    findings, answers = {}, {}
    for (text, words), weights in zip(parts.items(), weighed, strict=True):
        chosen = session.choose(text, ["no", "yes"], weights)
        findings[words], answers[words] = chosen.yes or 0.0, chosen.answer
    present = [words for words, answer in answers.items() if answer == "yes"]
    rhythms: dict[str, float] = {}
    if rhythm and rhythm.answers:
        ids, _ = session.prompt_ids([ecg], [(rhythm.text, None)])
        (weights,) = session.weigh_prompts([ids], rhythm.answers, [rhythm.text])
        ranked = [rhythm.answers[i] for i in np.argsort(-weights, kind="stable")]
        chances = dict(zip(rhythm.answers, weights.tolist(), strict=True))
        answers["rhythm"] = session.choose(rhythm.text, rhythm.answers, weights).answer
        rhythms = {one: chances[one] for one in dict.fromkeys([answers["rhythm"], *ranked])}
    return FindingsReading(findings, present, rhythms, conflicts_among(answers, ecg))


def conflicts_among(answers: Mapping[str, str], ecg: "ECG") -> list[AnswerConflict]:
    """Return the answers about an ECG that a measured value, the recorder or another answer contradicts.

    Parameters
    ----------
    answers : mapping of str to str
        Words of a finding mapped to `yes` or `no`; `rhythm` mapped to the words of a rhythm.
    ecg : ECG
    """
    measured = find_conflicts(answers, ecg.measurement, *age_and_sex(ecg.recording))
    stated = device_conflicts(answers, device_statements(ecg.recording))
    return [*measured, *stated, *rhythm_conflicts(answers)]


def compose_report(session: "Session", ecg: "ECG") -> str:
    """Describe an ECG in fixed sentences: rhythm, findings, axis, measured values, and conflicts."""
    reading, sentences = read_findings(session, ecg), []
    if reading.rhythm:
        likely, *others = reading.rhythms.items()
        preferred = ", preferred although less probable" if others and likely[1] < others[0][1] else ""
        other = f"; or {others[0][0]}, {percent(others[0][1])}" if others else ""
        sentences.append(f"The rhythm is {likely[0]} ({percent(likely[1])}{preferred}{other}).")
    sentences += _about_findings(reading)
    sentences += _about_measurement(ecg.measurement, *age_and_sex(ecg.recording))
    if stated := device_statements(ecg.recording):
        sentences.append(f"The recorder's own statements: {'; '.join(stated)}.")
    sentences += [f"{conflict.text[0].upper()}{conflict.text[1:]}." for conflict in reading.conflicts]
    return "\n".join([*sentences, COMPOSED])


def _about_findings(reading: FindingsReading) -> list[str]:
    """Return sentences about the findings that are present and the next likely ones, leaving out the rhythm."""
    if not reading.findings:
        return []
    ranked = sorted(reading.findings, key=lambda words: -reading.findings[words])
    rhythms = [*reading.rhythms]
    said = {*rhythms[:1], *(words for words in rhythms[1:2] if words not in reading.present)}
    ranked = [words for words in ranked if words not in said]
    present, others = ([w for w in ranked if (w in reading.present) == yes] for yes in (True, False))
    named = {words: f"{words} ({percent(chance)})" for words, chance in reading.findings.items()}
    first = "No finding that the model knows is likely."
    if present:
        first = f"Findings: {', '.join(named[words] for words in present)}."
    rest = [named[words] for words in others[:MOST_UNLIKELY]]
    return [first, *([f"Less likely: {', '.join(rest)}."] if rest else [])]


def _about_measurement(measurement: Measurement, age: float | None, sex: str | None) -> list[str]:
    """Return sentences about the axis and the measured values."""
    values = [describe_value(measured_value(name, measurement, age, sex)) for name in REPORTED]
    axis = describe_value(measured_value("axis_qrs", measurement, age, sex))
    if measurement.rate_bpm is None:
        return [f"Nothing could be measured: {measurement.quality.get('all', 'no beats')}."]
    regular = "irregular" if "irregular" in measurement.flags else "regular"
    return [f"Measured: {'; '.join([*values, axis])}; the rhythm is {regular}."]
