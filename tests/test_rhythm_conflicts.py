"""Answers about the rhythm against yes/no answers about the same rhythms."""

from types import SimpleNamespace

import pytest

from ecgbyte_cli.inference import finding_table
from ecgbyte_cli.inference.measured_turns import conflicts_of
from ecgbyte_cli.inference.rhythm_conflicts import rhythm_conflicts
from ecgbyte_cli.inference.turn import Turn
from ecgbyte_cli.signal.measurement import Measurement


def ecg_of():
    recording = SimpleNamespace(all_comments=lambda key: [])
    return SimpleNamespace(measurement=Measurement(), recording=recording)


@pytest.mark.parametrize(
    ("rhythm", "finding", "answer", "contradicts"),
    [
        ("pacemaker rhythm", "pacemaker rhythm", "no", True),
        ("Pacemaker rhythm.", "pacemaker rhythm", "yes", False),
        ("sinus rhythm", "pacemaker rhythm", "yes", True),
        ("sinus rhythm", "pacemaker rhythm", "no", False),
        ("atrial flutter", "sinus tachycardia", "yes", True),
        ("sinus bradycardia", "sinus tachycardia", "yes", True),
        ("sinus bradycardia", "sinus rhythm", "yes", False),
        ("pacemaker rhythm", "atrial fibrillation", "yes", False),  # occur together
        ("sinus rhythm", "left ventricular hypertrophy", "yes", False),
    ],
)
def test_an_answer_contradicts_the_rhythm(rhythm, finding, answer, contradicts):
    found = rhythm_conflicts({"rhythm": rhythm, finding: answer})
    assert [(one.finding, one.answer) for one in found] == ([(finding, answer)] if contradicts else [])
    assert rhythm_conflicts({finding: answer}) == []


def test_the_table_names_the_conflict():
    said = {"pacemaker rhythm": "no", "rhythm": "pacemaker rhythm"}
    assert finding_table._conflicts(said, ecg_of()) == ["pacemaker rhythm no, but rhythm pacemaker rhythm"]


def test_chat_names_the_conflict_whichever_question_comes_first():
    ecg = ecg_of()
    verify = Turn("Is there a pacemaker rhythm?", "no", ecgs=[ecg])
    rhythm = Turn("What is the rhythm?", "pacemaker rhythm", ecgs=[ecg])
    for last, first in ((verify, rhythm), (rhythm, verify)):
        [found] = conflicts_of(last, [first])
        assert found.text == (
            "conflict: the model answers no to pacemaker rhythm, but answers pacemaker rhythm to the question about "
            "the rhythm"
        )
        assert found.as_json()["rhythm"] == "pacemaker rhythm"
    other = Turn("Is there atrial fibrillation?", "no", ecgs=[ecg])
    assert conflicts_of(other, [verify, rhythm]) == []  # not its own
