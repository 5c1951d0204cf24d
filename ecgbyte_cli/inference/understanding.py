"""Decide who answers a question: the measurement, the model, a report, or a fixed sentence."""

from typing import TYPE_CHECKING, NamedTuple

from ecgbyte_cli.inference.certainty import MatchedQuestion
from ecgbyte_cli.inference.everyday import match_finding, recognise
from ecgbyte_cli.inference.measured_wordings import match_measured

if TYPE_CHECKING:
    from ecgbyte_cli.inference.session import Session

# measured questions that replace findings unknown to the model
MEASURED_INSTEAD = {
    "ste": "In which leads is there ST elevation?",
    "std": "In which leads is there ST depression?",
    "lpr": "Is the PR interval long?",
    "lngqt": "Is the QT interval long?",
    "lad": "Is there left axis deviation?",
    "rad": "Is there right axis deviation?",
    "nax": "Is the axis normal?",
}


class Understood(NamedTuple):
    """Who answers a question, and in which wording.

    Attributes
    ----------
    by : str
        `measurement`, `model`, `report`, `safety`, `sure`, `why`, or `nothing`.
    question : str
        In the wording of the measured questions.
    matched : MatchedQuestion or None
        The matching training question.
    """

    by: str
    question: str = ""
    matched: MatchedQuestion | None = None


NOTHING = Understood("nothing")


def understand(question: str, session: "Session") -> Understood:
    """Return who answers a question about one ECG.

    A question in measured or training wording is tried first, then one in everyday words.
    """
    direct = _understand_usual(question, session)
    if direct is not NOTHING:
        return direct
    found = recognise(question)
    if found is None:
        return NOTHING
    if found.kind == "question":
        return _understand_usual(found.name, session)
    if found.kind != "finding":
        return _understand_about(found.kind, session)
    if session.certainty and (
        matched := match_finding(found.name, session.certainty, session.known_findings)
    ):
        return Understood("model", matched=matched)
    instead = MEASURED_INSTEAD.get(found.name)
    return Understood("measurement", instead) if instead else NOTHING


def _understand_usual(question: str, session: "Session") -> Understood:
    if match_measured(question):
        return Understood("measurement", question)
    matched = session.match(question)
    return Understood("model", matched=matched) if matched else NOTHING


def _understand_about(kind: str, session: "Session") -> Understood:
    """Return who answers a question about the whole ECG or about the last answer."""
    if kind == "describe":
        return Understood("report") if session.known_findings else NOTHING
    if kind == "safety" or not session.remembers_earlier_turns:
        return Understood(kind)
    return NOTHING
