"""Answers that contradict a measurement are found, each rule both ways; values that are missing contradict nothing."""

from dataclasses import replace

import pytest
from test_measured_answers import NORMAL

from ecgbyte_cli import Measurement
from ecgbyte_cli.inference.conflicts import RULES, answers_of, find_conflicts
from ecgbyte_cli.questions.findings import ALL_FINDINGS, STATEMENTS
from ecgbyte_cli.signal.measurement import Amplitudes

CRBBB, CLBBB = "complete right bundle branch block", "complete left bundle branch block"
IVCD, LVH = "non-specific intraventricular conduction disturbance", "left ventricular hypertrophy"
VOLTAGE = "voltage criteria for left ventricular hypertrophy"
NO_BLOCK = {CLBBB: "no", IVCD: "no"}
FIBRILLATION = {"pr_ms": None, "flags": ["irregular"], "quality": {"pr_ms": "no P waves"}}
# finding, answer, other answers, values that contradict it, values that do not
CASES = [
    ("sinus bradycardia", "yes", {}, {"rate_bpm": 61.0}, {"rate_bpm": 59.0}),
    ("bradycardia", "yes", {}, {"rate_bpm": 75.0}, {"rate_bpm": 60.0}),
    ("sinus bradycardia", "no", {}, {"rate_bpm": 49.0}, {"rate_bpm": 55.0}),
    ("sinus bradycardia", "no", {}, {"rate_bpm": 49.0}, {"rate_bpm": 49.0, **FIBRILLATION}),
    ("bradycardia", "no", {}, {"rate_bpm": 49.0}, {"rate_bpm": 55.0}),
    ("sinus tachycardia", "yes", {}, {"rate_bpm": 99.0}, {"rate_bpm": 101.0}),
    ("sinus tachycardia", "no", {}, {"rate_bpm": 110.0}, {"rate_bpm": 150.0}),  # may be flutter
    ("sinus tachycardia", "no", {}, {"rate_bpm": 110.0}, {"rate_bpm": 99.0}),
    ("first degree AV block", "yes", {}, {"pr_ms": 150.0}, {"pr_ms": 195.0}),
    ("first degree AV block", "no", {}, {"pr_ms": 211.0}, {"pr_ms": 209.0}),
    ("prolonged PR interval", "yes", {}, {"pr_ms": 150.0}, {"pr_ms": 201.0}),
    ("prolonged PR interval", "no", {}, {"pr_ms": 240.0}, {"pr_ms": 164.0}),
    (CRBBB, "yes", {}, {"qrs_ms": 96.0}, {"qrs_ms": 112.0}),
    (CLBBB, "yes", {}, {"qrs_ms": 96.0}, {"qrs_ms": 140.0}),
    (CRBBB, "no", NO_BLOCK, {"qrs_ms": 140.0}, {"qrs_ms": 125.0}),
    ("incomplete right bundle branch block", "yes", {}, {"qrs_ms": 140.0}, {"qrs_ms": 115.0}),
    ("incomplete left bundle branch block", "yes", {}, {"qrs_ms": 140.0}, {"qrs_ms": 115.0}),
    (IVCD, "yes", {}, {"qrs_ms": 90.0}, {"qrs_ms": 112.0}),
    ("atrial fibrillation", "yes", {}, {}, FIBRILLATION),
    ("atrial fibrillation", "no", {}, FIBRILLATION, {}),
    ("sinus rhythm", "yes", {}, FIBRILLATION, {}),
    ("long QT interval", "yes", {}, {}, {"qtcb_ms": 480.0, "qtcf_ms": 480.0}),
    ("long QT interval", "yes", {}, {}, {"qtcb_ms": 448.0, "qtcf_ms": 410.0}),
    ("long QT interval", "no", {}, {"qtcb_ms": 480.0, "qtcf_ms": 480.0}, {"qtcb_ms": 480.0, "qtcf_ms": 440.0}),
    (LVH, "yes", {}, {}, {"sokolow_mv": 3.6}),
    (LVH, "yes", {}, {}, {"leads": {"aVL": Amplitudes(1.2, 0.0)}}),
    (LVH, "no", {}, {"sokolow_mv": 4.0, "cornell_mv": 3.2}, {"sokolow_mv": 4.0}),
    (VOLTAGE, "yes", {}, {}, {"cornell_mv": 3.0}),
    (VOLTAGE, "no", {}, {"cornell_mv": 3.0}, {}),
    ("left axis deviation", "yes", {}, {"axis_qrs": 40.0}, {"axis_qrs": -28.0}),
    ("left axis deviation", "no", {}, {"axis_qrs": -60.0}, {"axis_qrs": -35.0}),
    ("right axis deviation", "yes", {}, {"axis_qrs": 40.0}, {"axis_qrs": 95.0}),
    ("right axis deviation", "no", {}, {"axis_qrs": 130.0}, {"axis_qrs": 95.0}),
    ("normal axis", "yes", {}, {"axis_qrs": -70.0}, {"axis_qrs": 80.0}),
    ("normal axis", "no", {}, {"axis_qrs": 40.0}, {"axis_qrs": -70.0}),
]  # fmt: skip


def measured(changes):
    return replace(NORMAL, **{"flags": [], "quality": {}, **changes})


@pytest.mark.parametrize(("finding", "answer", "others", "against", "fitting"), CASES)
def test_each_rule_both_ways(finding, answer, others, against, fitting):
    answers = {finding: answer, **others}
    (conflict, *_) = find_conflicts(answers, measured(against), 60, "male")
    assert (conflict.finding, conflict.answer) == (finding, answer)
    assert conflict.source and conflict.rule in conflict.text and conflict.measured in conflict.text
    assert conflict.as_json()["text"] == conflict.text
    assert not find_conflicts(answers, measured(fitting), 60, "male")
    assert not find_conflicts(answers, Measurement(quality={"all": "no beats: noise"}), 60, "male")


def test_every_rule_has_a_case():
    cases = {(finding, answer) for finding, answer, *_ in CASES}
    assert {(finding, rule.answer) for rule in RULES for finding in rule.findings} <= cases | {(CLBBB, "no")}
    words = {one.words for one in (*ALL_FINDINGS.values(), *STATEMENTS.values())}
    assert {finding for rule in RULES for finding in rule.findings} <= words


def test_a_conflict_is_one_plain_sentence():
    (conflict,) = find_conflicts({"1avb": "yes"}, NORMAL)  # by the short name of a finding
    assert conflict.text == (
        "conflict: the model answers yes to first degree AV block, but PR 164 ms was measured; a first degree AV block "
        "has a PR interval above 200 ms (Kusumoto et al. 2019, ACC/AHA/HRS bradycardia guideline)"
    )


def test_a_rhythm_is_an_answer():
    assert find_conflicts({"rhythm": "sinus tachycardia"}, NORMAL)
    assert not find_conflicts({"rhythm": "sinus rhythm"}, NORMAL)
    assert not find_conflicts({"rhythm": "something else"}, NORMAL)


def test_a_wide_complex_needs_all_explanations_to_be_denied():
    wide = measured({"qrs_ms": 150.0})
    assert not find_conflicts({CRBBB: "no"}, wide)
    assert not find_conflicts({CRBBB: "no", CLBBB: "no", IVCD: "no", "pacemaker rhythm": "yes"}, wide)
    assert len(find_conflicts({CRBBB: "no", CLBBB: "no", IVCD: "no"}, wide)) == 2


def test_rules_for_adults_do_not_judge_children_and_sex_matters():
    assert not find_conflicts({"sinus tachycardia": "yes"}, measured({"rate_bpm": 95.0}), age=6)
    voltage = measured({"cornell_mv": 2.4})
    assert find_conflicts({VOLTAGE: "no"}, voltage, sex="female")
    assert not find_conflicts({VOLTAGE: "no"}, voltage, sex="male")
    assert not find_conflicts({VOLTAGE: "no"}, voltage)


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Is there sinus bradycardia?", "yes", {"sinus bradycardia": "yes"}),
        ("Does this ECG show first-degree AV block?", "No.", {"first degree AV block": "no"}),
        ("Is there AF in this ECG?", "no", {"atrial fibrillation": "no"}),
        ("Do you see PACs?", "no", {"supraventricular premature complexes": "no"}),
        ("What is the rhythm?", "sinus rhythm", {"rhythm": "sinus rhythm"}),
        ("Is there no atrial fibrillation?", "yes", {}),
        ("Is there atrial fibrillation?", "It seems so", {}),
        ("Describe the ECG.", "sinus rhythm", {}),
    ],
)
def test_what_an_answer_says(question, answer, expected):
    assert answers_of(question, answer) == expected
