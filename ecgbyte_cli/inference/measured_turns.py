"""Measurements in a conversation: answer questions with them, and check answers against them."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ecgbyte_cli.inference.conflicts import AnswerConflict, answers_of, own_conflicts
from ecgbyte_cli.inference.device_statements import device_conflicts, device_statements
from ecgbyte_cli.inference.measured_answers import MeasuredAnswer, answer_measured
from ecgbyte_cli.inference.measured_wordings import match_measured
from ecgbyte_cli.inference.rhythm_conflicts import rhythm_conflicts
from ecgbyte_cli.signal.normal_limits import age_and_sex


class AskedTurn(Protocol):
    """The attributes of a conversation's `Turn` that this module uses."""

    question: str
    answer: str
    asked_as: str | None
    asked: tuple[str, str] | None
    ecgs: list  # list of ECG
    findings: dict[str, float] | None
    measured: MeasuredAnswer | None
    declined: bool
    stopped: bool
    error: str | None
    first: float | None
    seconds: float


def take_measured(turn: AskedTurn, question: str, show: Callable[[str], object]) -> bool:
    """Answer a turn from the measurement of its ECG; return False if that is not possible.

    Parameters
    ----------
    turn : Turn
        Its `ecgs` must be set. Questions about several ECGs are not answered.
    question : str
        In the wording of the measured questions.
    show : callable
        Called with the answer.
    """
    if len(turn.ecgs) != 1 or match_measured(question) is None:
        return False
    start = time.perf_counter()
    (ecg,) = turn.ecgs
    turn.measured = answer_measured(question, ecg.measurement, *age_and_sex(ecg.recording))
    if turn.measured is None:
        return False
    turn.answer = turn.measured.text
    turn.first = turn.seconds = time.perf_counter() - start
    show(turn.answer)
    return True


def conflicts_of(turn: AskedTurn, log: Sequence[AskedTurn | str]) -> list[AnswerConflict]:
    """Return the conflicts of a turn's answer with the measurement, the recorder's statements and earlier answers.

    Parameters
    ----------
    turn : Turn
    The conversation so far. A rule that needs several answers also uses those about the same ECG, and all of
    them are compared with the rhythm.
        The conversation so far. Its answers about the same ECG count where a rule needs several, and against the
        rhythm.
    """
    said = _said(turn)
    if len(turn.ecgs) != 1 or not said:
        return []
    (ecg,) = turn.ecgs
    answers: dict[str, str] = {}
    for earlier in log:
        if not isinstance(earlier, str) and len(earlier.ecgs) == 1 and earlier.ecgs[0] is ecg:
            answers |= _said(earlier)
    measured = own_conflicts(said, answers, ecg.measurement, *age_and_sex(ecg.recording))
    stated = device_conflicts(said, device_statements(ecg.recording))
    return [*measured, *stated, *rhythm_conflicts(answers, said)]


def _said(turn: AskedTurn) -> dict[str, str]:
    """Return the findings in a turn's answer."""
    if turn.measured or turn.declined or turn.stopped or turn.error:
        return {}
    if turn.findings:
        listed = turn.answer.split("; ")
        return {words: "yes" if words in listed else "no" for words in turn.findings}
    # worded as in the training data, together with the model's own answer
    return answers_of(turn.asked_as or turn.question, turn.asked[1] if turn.asked else turn.answer)
