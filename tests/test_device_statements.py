"""Statements of the recorder beside the answers of a model."""

import numpy as np
import pytest

from ecgbyte_cli.inference.device_statements import DeviceConflict, device_conflicts, stated_findings
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.questions.findings import ALL_FINDINGS, STATEMENTS
from ecgbyte_cli.readers import Recording

SINUS = ["Sinus bradycardia with 1st degree A-V block", "Otherwise normal ECG"]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("Sinus bradycardia with sinus arrhythmia with 1st degree A-V block",
         {"sinus bradycardia", "sinus arrhythmia", "first degree AV block"}),
        ("ATRIAL FIBRILLATION, V-rate 50-99", {"atrial fibrillation"}),
        ("Incomplete right bundle branch block", {"incomplete right bundle branch block"}),
        ("Right bundle-branch block", {"complete right bundle branch block"}),
        ("PROBABLE LEFT VENTRICULAR HYPERTROPHY", set()),
        ("Anterior infarct, possible inferior infarct", {"anterior myocardial infarction"}),
        ("Atrial fibrillation is no longer present", set()),
        ("Nonspecific T wave abnormality", set()),
        ("", set()),
    ],
)  # fmt: skip
def test_what_a_recorder_states(statement, words):
    assert {*stated_findings([statement])} == words


def test_its_phrases_stand_for_findings_that_exist():
    from ecgbyte_cli.inference.device_statements import PHRASES

    known = {one.words for one in [*ALL_FINDINGS.values(), *STATEMENTS.values()]}
    assert {words for _, words in PHRASES} <= known


@pytest.mark.parametrize(
    ("answers", "conflicts"),
    [
        ({"atrial fibrillation": "yes"}, [("atrial fibrillation", "yes")]),
        ({"rhythm": "atrial fibrillation"}, [("atrial fibrillation", "yes")]),
        ({"rhythm": "Sinus rhythm."}, []),  # bradycardia is a sinus rhythm
        ({"rhythm": "sinus tachycardia"}, [("sinus tachycardia", "yes")]),
        ({"sinus bradycardia": "no"}, [("sinus bradycardia", "no")]),
        ({"first degree AV block": "no", "sinus bradycardia": "yes"}, [("first degree AV block", "no")]),
        ({"left ventricular hypertrophy": "yes"}, []),  # what it leaves out is no denial
        ({}, []),
    ],
)
def test_answers_that_it_contradicts(answers, conflicts):
    found = device_conflicts(answers, SINUS)
    assert [(one.finding, one.answer) for one in found] == conflicts
    assert all(one.statement == SINUS[0] for one in found)
    assert device_conflicts(answers, []) == []


def test_a_conflict_in_words_and_json():
    one = DeviceConflict("atrial fibrillation", "yes", "Sinus bradycardia")
    assert one.text == (
        "conflict: the model answers yes to atrial fibrillation, but the recorder states “Sinus bradycardia”"
    )
    assert one.as_json()["statement"] == "Sinus bradycardia" and one.as_json()["text"] == one.text


@pytest.fixture(scope="module")
def stated():
    """A recording of noise, of which the recorder states something that the model answers no to."""
    signal = 0.1 * np.random.default_rng(0).standard_normal((12, 5000)).astype(np.float32)
    leads = "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6".split()
    comments = ["Statement: Left bundle branch block", "Statement: Atrial flutter"]
    recording = Recording(signal, 500.0, leads, "stated", "stated", comments)
    session = Session.open("ptbxl", device="cpu")
    from ecgbyte_cli.signal import preprocess

    return session, session.reader.segment(
        recording, preprocess.segments(recording, session.tokenizer.signal), 0
    )


def test_chat_the_report_and_the_table_name_the_conflict(stated):
    from ecgbyte_cli.inference.findings_reading import compose_report, read_findings

    session, ecg = stated
    turn = session.ask(ecg, "Is there atrial flutter?") if session.match("Is there atrial flutter?") else None
    turn = turn or session.ask(ecg, "Is there complete left bundle branch block?")
    assert turn.answer == "no" and any("the recorder states" in line for line in turn.notes())
    reading = read_findings(session, ecg)
    assert any("the recorder states" in one.text for one in reading.conflicts)
    assert "The recorder's own statements: Left bundle branch block; Atrial flutter." in compose_report(
        session, ecg
    )
