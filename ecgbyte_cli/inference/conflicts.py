"""Find answers of a model that contradict measured values: a table of rules with their sources.

A conflict needs a value that exceeds its limit by more than a margin, because measurements have errors
(docs/measure.md). A value that could not be measured causes no conflict.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import NamedTuple

from ecgbyte_cli.inference.certainty import question_keywords
from ecgbyte_cli.inference.measured_answers import LABELS
from ecgbyte_cli.questions.findings import ALL_FINDINGS, STATEMENTS
from ecgbyte_cli.questions.phrasings import ALSO
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.signal.normal_limits import (
    ADULT,
    CASALE,
    HINDRICKS,
    KUSUMOTO,
    PAGE,
    RAUTAHARJU,
    SOKOLOW,
    SPODICK,
    SURAWICZ,
    WIDE_QRS,
    limits_for,
    verdict_of,
)

MS, DEGREES, MV = 10.0, 10.0, 0.1  # margins: about the standard deviation of the errors, rounded up
SLOW, FAST = (
    50.0,
    135.0,
)  # beats per minute: well below SPODICK; at rates above FAST, flutter waves may be taken for P waves


@dataclass(frozen=True)
class AnswerConflict:
    """An answer that contradicts a measurement, a statement of the recorder, or another answer.

    Attributes
    ----------
    finding : str
        The finding in question, such as `sinus bradycardia`.
    answer : str
        `yes` or `no`.
    """

    finding: str
    answer: str

    @property
    def reason(self) -> str:
        """The reason in a clause."""
        raise NotImplementedError

    @property
    def brief(self) -> str:
        """The reason in a few words, for a table cell."""
        return self.reason

    @property
    def text(self) -> str:
        """Answer and reason in one sentence."""
        return f"conflict: the model answers {self.answer} to {self.finding}, but {self.reason}"

    def as_json(self) -> dict[str, str]:
        """Return the conflict for --json."""
        return {**asdict(self), "text": self.text}


@dataclass(frozen=True)
class Conflict(AnswerConflict):
    """An answer that contradicts a measurement.

    Attributes
    ----------
    measured : str
        The measured values, with units.
    rule : str
    source : str
    """

    measured: str
    rule: str
    source: str

    @property
    def reason(self) -> str:
        """The reason in a clause."""
        return f"{self.measured} was measured; {self.rule} ({self.source})"

    @property
    def brief(self) -> str:
        """The reason in a few words, for a table cell."""
        return self.measured


class Case(NamedTuple):
    """The input of a rule."""

    measured: Measurement
    answers: Mapping[str, str]
    age: float | None
    sex: str | None

    @property
    def adult(self) -> bool:
        return self.age is None or self.age >= ADULT

    @property
    def regular(self) -> bool:
        return self.measured.rr_sd_ms is not None and "irregular" not in self.measured.flags

    @property
    def irregular_without_p(self) -> bool:
        """Whether P waves were looked for and not found in an irregular rhythm."""
        return "irregular" in self.measured.flags and self.measured.quality.get("pr_ms") == "no P waves"

    @property
    def low_avl(self) -> bool:
        """Whether R in aVL was measured, and is below the limit of hypertrophy (SOKOLOW)."""
        lead = self.measured.leads.get("aVL")
        return lead is not None and lead.r_mv is not None and lead.r_mv < 1.1 - MV

    def between(self, name: str, low: float, high: float = float("inf")) -> bool:
        """Return whether a value was measured and lies between `low` and `high`."""
        value = getattr(self.measured, name)
        return value is not None and low < value < high

    def below(self, name: str, high: float) -> bool:
        return self.between(name, -float("inf"), high)

    def verdicts(self, names: tuple[str, str], margin: float) -> list[str | None]:
        """Compare two values with their limits: `low`, `normal`, `high`, or None if margin or sex leave it open."""
        found: list[str | None] = []
        for name in names:
            value, limits = getattr(self.measured, name), limits_for(name, self.age, self.sex)
            around = (
                {verdict_of(value + step, limits) for step in (-margin, margin)}
                if value is not None
                else {None}
            )
            found.append(around.pop() if len(around) == 1 else None)
        return found

    def says(self, *findings: str, answer: str) -> bool:
        return all(self.answers.get(finding) == answer for finding in findings)


class Rule(NamedTuple):
    """A rule: when an answer about a finding contradicts the measurement."""

    findings: tuple[str, ...]
    answer: str
    contradicted: Callable[[Case], bool]
    values: tuple[str, ...]  # shown as evidence
    rule: str
    source: str


QTC, VOLTAGES = ("qtcb_ms", "qtcf_ms"), ("sokolow_mv", "cornell_mv")
CRBBB, CLBBB = "complete right bundle branch block", "complete left bundle branch block"
IVCD = "non-specific intraventricular conduction disturbance"
LVH, VOLTAGE_LVH = "left ventricular hypertrophy", "voltage criteria for left ventricular hypertrophy"
LVH_SOURCE = f"{SOKOLOW}; {CASALE}"
AV_BLOCK = ("first degree AV block", "prolonged PR interval")
LAD, RAD, NORMAL_AXIS = "left axis deviation", "right axis deviation", "normal axis"
RULES = (
    Rule(("sinus bradycardia", "bradycardia"), "yes", lambda c: c.adult and c.between("rate_bpm", 60),
         ("rate_bpm",), "bradycardia is a rate below 60", SPODICK),
    Rule(("sinus bradycardia", "bradycardia"), "no",
         lambda c: c.adult and c.below("rate_bpm", SLOW) and c.regular and c.between("pr_ms", 0),
         ("rate_bpm", "pr_ms"), "a rate below 60 with P waves before the complexes is sinus bradycardia", SPODICK),
    Rule(("sinus tachycardia",), "yes", lambda c: c.adult and c.below("rate_bpm", 100),
         ("rate_bpm",), "sinus tachycardia is a rate above 100", PAGE),
    Rule(("sinus tachycardia",), "no",
         lambda c: c.adult and c.between("rate_bpm", 100, FAST) and c.regular and c.between("pr_ms", 0),
         ("rate_bpm", "pr_ms"), "a regular rate above 100 with P waves before the QRS is sinus tachycardia", PAGE),
    Rule(AV_BLOCK, "yes", lambda c: c.adult and c.below("pr_ms", 200 - MS),
         ("pr_ms",), "a first degree AV block has a PR interval above 200 ms", KUSUMOTO),
    Rule(AV_BLOCK, "no", lambda c: c.adult and c.between("pr_ms", 200 + MS),
         ("pr_ms",), "a PR interval above 200 ms is a first degree AV block", KUSUMOTO),
    Rule((CRBBB, CLBBB), "yes", lambda c: c.adult and c.below("qrs_ms", WIDE_QRS - MS),
         ("qrs_ms",), "a complete bundle branch block has a QRS duration of 120 ms or more", SURAWICZ),
    Rule((CRBBB, CLBBB), "no",
         lambda c: c.adult and c.between("qrs_ms", WIDE_QRS + MS)
         and c.says(CRBBB, CLBBB, IVCD, answer="no") and not c.says("pacemaker rhythm", answer="yes"),
         ("qrs_ms",), "a QRS duration of 120 ms or more is a block or a conduction disturbance", SURAWICZ),
    Rule(("incomplete right bundle branch block", "incomplete left bundle branch block"), "yes",
         lambda c: c.adult and c.between("qrs_ms", WIDE_QRS + MS),
         ("qrs_ms",), "an incomplete bundle branch block has a QRS duration below 120 ms", SURAWICZ),
    Rule((IVCD,), "yes", lambda c: c.adult and c.below("qrs_ms", 110 - MS),
         ("qrs_ms",), "an intraventricular conduction disturbance has a QRS duration above 110 ms", SURAWICZ),
    Rule(("atrial fibrillation",), "yes", lambda c: c.regular and c.between("pr_ms", 0),
         ("rr_ms", "rr_sd_ms", "pr_ms"), "atrial fibrillation is irregular and has no P waves", HINDRICKS),
    Rule(("atrial fibrillation",), "no",
         lambda c: c.irregular_without_p and not c.says("atrial flutter", answer="yes"),
         ("rr_ms", "rr_sd_ms"), "an irregular rhythm without P waves is atrial fibrillation", HINDRICKS),
    Rule(("sinus rhythm",), "yes", lambda c: c.irregular_without_p,
         ("rr_ms", "rr_sd_ms"), "an irregular rhythm without P waves is atrial fibrillation", HINDRICKS),
    Rule(("long QT interval",), "yes",
         lambda c: c.adult and set(c.verdicts(QTC, MS)) <= {"low", "normal"},
         QTC, "QTc is long from 450 ms (men) or 460 ms (women)", RAUTAHARJU),
    Rule(("long QT interval",), "no",
         lambda c: c.adult and c.verdicts(QTC, MS) == ["high", "high"] and c.below("qrs_ms", WIDE_QRS),
         QTC, "QTc is long from 450 ms (men) or 460 ms (women)", RAUTAHARJU),
    Rule((LVH, VOLTAGE_LVH), "yes",
         lambda c: c.adult and c.verdicts(VOLTAGES, MV) == ["normal", "normal"] and c.low_avl,
         VOLTAGES, "neither the Sokolow-Lyon nor the Cornell criterion is met, nor R in aVL above 1.1 mV", LVH_SOURCE),
    Rule((LVH,), "no", lambda c: c.adult and c.verdicts(VOLTAGES, MV) == ["high", "high"],
         VOLTAGES, "the Sokolow-Lyon and the Cornell criterion are met", LVH_SOURCE),
    Rule((VOLTAGE_LVH,), "no", lambda c: c.adult and "high" in c.verdicts(VOLTAGES, MV),
         VOLTAGES, "the Sokolow-Lyon or the Cornell criterion is met", LVH_SOURCE),
    Rule((LAD,), "yes", lambda c: c.adult and c.between("axis_qrs", -30 + DEGREES, 180 - DEGREES),
         ("axis_qrs",), "a left axis lies beyond -30 degrees", SURAWICZ),
    Rule((LAD,), "no", lambda c: c.adult and c.between("axis_qrs", -90 + DEGREES, -30 - DEGREES),
         ("axis_qrs",), "an axis beyond -30 degrees is a left axis deviation", SURAWICZ),
    Rule((RAD,), "yes", lambda c: c.adult and c.between("axis_qrs", -90 + DEGREES, 90 - DEGREES),
         ("axis_qrs",), "a right axis lies beyond 90 degrees", SURAWICZ),
    Rule((RAD,), "no", lambda c: c.adult and c.between("axis_qrs", 90 + DEGREES, 180),
         ("axis_qrs",), "an axis beyond 90 degrees is a right axis deviation", SURAWICZ),
    Rule((NORMAL_AXIS,), "yes",
         lambda c: c.adult and (c.below("axis_qrs", -30 - DEGREES) or c.between("axis_qrs", 90 + DEGREES)),
         ("axis_qrs",), "a normal axis lies between -30 and 90 degrees", SURAWICZ),
    Rule((NORMAL_AXIS,), "no", lambda c: c.adult and c.between("axis_qrs", -30 + DEGREES, 90 - DEGREES),
         ("axis_qrs",), "a normal axis lies between -30 and 90 degrees", SURAWICZ),
)  # fmt: skip


def find_conflicts(
    answers: Mapping[str, str], measurement: Measurement, age: float | None = None, sex: str | None = None
) -> list[Conflict]:
    """Find the answers that a measurement contradicts.

    Parameters
    ----------
    answers : mapping of str to str
        Words of a finding, or its short name, mapped to `yes` or `no`; `rhythm` mapped to the words of a rhythm.
    measurement : Measurement
        The result of `measure`.
    age : float or None
        Years. None means an adult of unknown age; most rules apply to adults only.
    sex : str or None
        `male`, `female`, or None if unknown.

    Returns
    -------
    list of Conflict
        In the order of the rules.
    """
    case = Case(measurement, _in_words(answers), age, sex)
    return [
        Conflict(finding, rule.answer, _shown(rule.values, measurement), rule.rule, rule.source)
        for rule in RULES
        for finding in rule.findings
        if case.says(finding, answer=rule.answer) and rule.contradicted(case)
    ]


def own_conflicts(
    own: Mapping[str, str],
    answers: Mapping[str, str],
    measurement: Measurement,
    age: float | None = None,
    sex: str | None = None,
) -> list[Conflict]:
    """Find the conflicts of one answer. A rule that needs several answers also uses those about the same ECG.

    Parameters
    ----------
    own : mapping of str to str
        The findings of this answer, from `answers_of`.
    answers : mapping of str to str
        The findings of the other answers.
    measurement, age, sex
        See `find_conflicts`.
    """
    findings = {own["rhythm"].strip().rstrip(".").lower()} if "rhythm" in own else {*own}
    conflicts = find_conflicts({**answers, **own}, measurement, age, sex)
    return [conflict for conflict in conflicts if conflict.finding in findings]


def answers_of(question: str, answer: str) -> dict[str, str]:
    """Return the findings of an answer: words mapped to `yes` or `no`, `rhythm` to a rhythm; or an empty dict."""
    keywords = question_keywords(question)
    if keywords in _RHYTHM:
        return {"rhythm": answer}
    said = answer.strip().rstrip(".").lower()
    finding = _FINDINGS.get(keywords)
    return {finding: said} if finding and said in ("yes", "no") else {}


def _in_words(answers: Mapping[str, str]) -> dict[str, str]:
    words = {name: one.words for name, one in ALL_FINDINGS.items()}
    by_words = {
        words.get(name, name): answer.strip().lower() for name, answer in answers.items() if name != "rhythm"
    }
    rhythm = answers.get("rhythm", "").strip().rstrip(".").lower()
    return {rhythm: "yes", **by_words} if rhythm else by_words


def _shown(names: tuple[str, ...], measurement: Measurement) -> str:
    values = [(LABELS[name], getattr(measurement, name)) for name in names]
    return ", ".join(
        f"{label} {value:.{digits}f} {unit}" for (label, unit, digits), value in values if value is not None
    )


def _asked_about() -> dict[tuple[str, ...], str]:
    """Map the keywords of each wording of a finding to its words."""
    named = {name: one.words for name, one in ALL_FINDINGS.items()}
    every = [one.words for one in STATEMENTS.values()] + [one.words for one in ALL_FINDINGS.values()]
    wordings = {words: [words] for words in every}
    for name, others in ALSO.items():
        words = named.get(name) or STATEMENTS[name.upper()].words
        wordings[words] = [*wordings[words], *others]
    return {question_keywords(text): words for words, some in wordings.items() for text in some}


_FINDINGS = _asked_about()
_RHYTHM = {question_keywords(text) for text in ("What is the rhythm?", "Which rhythm is this?", "Name the rhythm.",
           "What is the heart rhythm?", "What rhythm?", "rhythm")}  # fmt: skip
