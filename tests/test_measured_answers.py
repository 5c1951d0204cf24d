"""Questions that a measurement answers, their answers, and questions that stay the model's."""

from dataclasses import replace

import numpy as np
import pytest

from ecgbyte_cli import Measurement, Recording
from ecgbyte_cli.inference.measured_answers import answer_measured
from ecgbyte_cli.inference.measured_wordings import match_measured
from ecgbyte_cli.questions.findings import ALL_FINDINGS, STATEMENTS
from ecgbyte_cli.questions.phrasings import UNANSWERABLE
from ecgbyte_cli.signal.measurement import Amplitudes
from ecgbyte_cli.signal.normal_limits import age_and_sex

QTC = ("qtcb_ms", "qtcf_ms")
WORDINGS = {
    ("rate_bpm",): (
        "What is the heart rate?", "heart rate?", "How fast is the heart?", "How fast does the heart beat?",
        "How high is the ventricular rate?", "HR", "What's the patient's pulse?",
        "How many beats per minute?",
        "Please give me the heart rate.", "What is the rate of the heart?", "How fast is the heart beating?",
        "Is the heart rate normal?", "Is the heart rate too fast?", "Is the pulse slow?",
        "Is the heart beating fast?",
        "Is the heart slow?",
    ),
    ("rr_ms",): ("What is the RR interval?", "mean R-R interval", "How long are the RR intervals?"),
    ("p_ms",): ("How long is the P wave?", "What is the P wave duration?", "P duration?",
     "Is the P-wave duration normal?",
                "How wide is the P wave?"),
    ("pr_ms",): (
        "How long is the PR interval?", "What is the PR interval?", "PR?", "PQ time",
        "What does the PR interval measure?",
        "Is the PR interval prolonged?", "Is the PR normal?", "Is there a prolonged PR interval?",
        "Is the P-R interval short?",
    ),
    ("qrs_ms",): (
        "Is the QRS wide?", "What is the QRS duration?", "How wide are the QRS complexes?",
        "How long is the QRS complex?",
        "QRS?", "Is the QRS complex narrow?", "Is the QRS duration within normal limits?",
        "Are the QRS complexes broad?",
    ),
    ("qt_ms",): ("What is the QT interval?", "QT", "How long is the QT interval?", "Is the QT prolonged?",
                 "Is there a long QT interval?", "What is the Q-T interval in this ECG?"),
    QTC: ("QTc", "What is the QTc?", "What is the corrected QT interval?", "Is the QTc normal?",
    "Is the QTc long?",
          "QT corrected for heart rate?", "Is the corrected QT short?"),
    ("qtcb_ms",): ("What is the QTc by Bazett's formula?", "QTcB"),
    ("qtcf_ms",): ("What is the QTc according to Fridericia?", "QTcF?"),
    ("axis_qrs",): (
        "What is the heart axis?", "What is the electrical axis of the heart?", "How does the axis lie?",
        "In which direction does the heart axis point?", "Left axis deviation?",
        "Is there right axis deviation?",
        "Is the axis normal?", "Is the heart axis normal?", "Does this ECG show a normal heart axis?",
        "QRS axis",
        "Is the axis deviated to the left?", "Is there axis deviation?",
    ),
    ("axis_p",): ("What is the P axis?", "What is the axis of the P wave?"),
    ("axis_t",): ("What is the T wave axis?",),
    ("sokolow_mv",): ("What is the Sokolow-Lyon index?", "Is the Sokolow criterion met?",
     "Sokolow-Lyon voltage"),
    ("cornell_mv",): ("What is the Cornell voltage?", "Is the Cornell criterion positive?"),
    ("sokolow_mv", "cornell_mv"): ("Are there voltage criteria for LVH?",
     "Are voltage criteria for left ventricular "
                                   "hypertrophy met?",
                                   "Does this ECG show voltage criteria for left ventricular hypertrophy?"),
    ("pr_ms", "qrs_ms", "qt_ms", *QTC): ("What are the intervals?", "What are the ECG intervals?"),
    ("pr_ms", "qrs_ms", "qt_ms"): ("What are the PR, QRS and QT intervals?", "PR, QRS, QT"),
    ("regular",): (
        "Is it regular?", "Is the rhythm regular?", "Is the rhythm irregular?",
        "Is the rhythm regular or irregular?",
        "How regular is the heartbeat?", "Are the RR intervals regular?", "Is the heart beating irregularly?",
        "Is the heart rate regular?",
    ),
    ("st",): (
        "ST elevation in V2?", "Is there ST elevation in lead V2?", "What is the ST level in II?",
        "Is the ST segment elevated in V3?",
        "Is there ST depression in V5 and V6?", "Which leads show ST elevation?",
        "Is the ST segment normal in aVL?",
        "What are the ST levels?", "How high is the ST segment in V2?",
        "In which leads is there ST depression?", "ST in lead I?",
    ),
}  # fmt: skip
NOT_MEASURED = (
    "Is there sinus bradycardia?", "Is there sinus tachycardia?", "What is the rhythm?", "Is the ECG normal?",
    "Is everything normal in this ECG?", "Is there first degree AV block?",
    "Is there left bundle branch block?",
    "Is there atrial fibrillation?", "Is there long QT syndrome?", "Why is the QT long?",
    "What does a long QT mean?",
    "What causes a wide QRS?", "Is there ST elevation?", "Is there anterior ST elevation?",
    "Is there left ventricular hypertrophy?",
    "Is there bradycardia?", "Is the rhythm normal?", "Is there sinus rhythm?",
    "Is there a regular sinus rhythm?",
    "Is the heart rate above 100 beats per minute?", "What is a normal heart rate?",
    "What is the normal range of the PR interval?",
    "Did the QT interval change?", "Is the QRS longer than before?", "Describe the QRS morphology.",
    "Are there Q waves?",
    "Is there poor R wave progression?", "Are the T waves inverted?", "Are there P waves?",
    "What is the diagnosis?",
    "How long is the recording?", "What is the blood pressure?", "How old is the patient?",
    "Is the heart normal?",
    "Is the patient's heart enlarged?", "Which leads are noisy?", "Is the QRS not wide?",
    "Is the QT drug induced?",
    "Should a long QT be treated?", "Was the heart rate higher during exercise?",
    "What is the maximum heart rate?",
    "Is there heart rate variability?", "Which rhythm does this ECG show?", "Is lead V2 normal?",
    "What is in lead II?",
    "Is the QT in V2 long?", "Is there low QRS voltage?", "Is the axis of rotation known?", "", "?", "the",
    "How many beats are there?", "Is the QRS normal?", "Is there an abnormal QRS?",
    "Is the PR segment depressed?",
)  # fmt: skip
NORMAL = Measurement(
    rate_bpm=72.4, rr_ms=828.7, rr_sd_ms=21.0, p_ms=104.2, pr_ms=163.9, qrs_ms=94.0, qt_ms=388.0,
    qtcb_ms=426.2, qtcf_ms=413.1,
    axis_p=50.0, axis_qrs=40.0, axis_t=35.0, sokolow_mv=2.134, cornell_mv=1.1,
    leads={"I": Amplitudes(0.5, -0.1, 0.01, 0.2), "aVL": Amplitudes(0.4, 0.0, 0.0, 0.1),
    "V2": Amplitudes(0.3, -1.0, 0.18, 0.4),
    "V5": Amplitudes(1.3, -0.2, -0.08, 0.3)},
)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "question"), [(names, text) for names, some in WORDINGS.items() for text in some]
)
def test_wordings_of_measured_questions(names, question):
    asked = match_measured(question)
    assert asked is not None and asked.names == names
    assert answer_measured(question, NORMAL).text


def test_there_are_enough_wordings():
    assert sum(map(len, WORDINGS.values())) >= 60 and len(set(NOT_MEASURED)) >= 40


@pytest.mark.parametrize("question", NOT_MEASURED)
def test_other_questions_stay_the_models(question):
    assert match_measured(question) is None and answer_measured(question, NORMAL) is None


def test_findings_and_what_no_ecg_tells_stay_the_models():
    """But prolonged PR, long QT, axis deviation and voltage criteria, which are measured."""
    words = {one.words for one in (*ALL_FINDINGS.values(), *STATEMENTS.values())}
    taken = {text for text in words if match_measured(f"Is there {text}?")}
    assert taken == {
        "prolonged PR interval", "long QT interval", "left axis deviation", "right axis deviation",
        "normal axis",
        "voltage criteria for left ventricular hypertrophy",
    }  # fmt: skip
    assert not any(match_measured(text) for some in UNANSWERABLE.values() for text in some)


@pytest.mark.parametrize(
    ("question", "changes", "age", "sex", "text"),
    [
        ("What is the heart rate?", {}, None, None, "heart rate 72 per minute, normal; normal heart rate: 60 to "),
        ("Is the heart slow?", {"rate_bpm": 48.2}, 50, None, "yes: heart rate 48 per minute, below the normal limit"),
        ("Is the PR interval prolonged?", {"pr_ms": 200.4}, None, None,
         "no: PR 200 ms, normal; normal PR: 120 to 200 ms"),
        ("Is the PR interval prolonged?", {"pr_ms": 201.0}, None, None, "yes: PR 201 ms, above"),
        ("Is the PR short?", {"pr_ms": 112.0}, None, None, "yes: PR 112 ms, below"),
        ("Is the QRS wide?", {"qrs_ms": 114.0}, None, None,
         "no: QRS 114 ms, above the normal limit; normal QRS: up to 110"),
        ("Is the QRS wide?", {"qrs_ms": 120.0}, None, None, "yes: QRS 120 ms"),
        ("Is the QRS narrow?", {}, None, None, "yes: QRS 94 ms"),
        ("Is the QRS wide?", {"qrs_ms": 100.0}, 9, None,
         "yes: QRS 100 ms, above the normal limit; normal QRS: below 100"),
        ("Is the QRS duration normal?", {"qrs_ms": 90.0}, 3, None,
         "no: QRS 90 ms, above the normal limit"),
        ("What is the QTc?", {}, 60, "male", "normal QTc: above 350 and below 450 ms (Rautaharju et al. 2009"),
        ("Is the QTc long?", {"qtcb_ms": 455.0, "qtcf_ms": 452.0}, 60, "male", "yes: "),
        ("Is the QTc long?", {"qtcb_ms": 455.0, "qtcf_ms": 452.0}, 60, "female", "no: "),
        ("Is the QTc long?", {"qtcb_ms": 455.0, "qtcf_ms": 452.0}, 60, None, "that depends on age or sex"),
        ("Is the QTc long?", {"qtcb_ms": 455.0}, 60, "male", "that depends on the formula: "),
        ("Is the QTc long?", {"qtcb_ms": 460.0, "qtcf_ms": 460.0}, None, None,
         "yes: QTc (Bazett) 460 ms, above"),
        ("QTc", {}, None, None, "above 350 (male), 360 (female) and below 450 (male), 460 (female) ms in adults"),
        ("QTc", {}, 8, None, "gives no QTc limits for children"),
        ("What is the QT interval?", {}, 40, "male",
         "QT 388 ms; QTc (Bazett) 426 ms, normal; QTc (Fri"),
        ("Left axis deviation?", {"axis_qrs": -31.0}, None, None,
         "yes: QRS axis -31 degrees, left axis deviation"),
        ("Left axis deviation?", {"axis_qrs": -30.0}, None, None, "no: QRS axis -30 degrees, normal"),
        ("Is there right axis deviation?", {"axis_qrs": 91.0}, None, None,
         "yes: QRS axis 91 degrees, right"),
        ("Is the axis normal?", {"axis_qrs": 120.0}, None, None, "no: "),
        ("What is the P axis?", {}, None, None, "P axis 50 degrees"),
        ("Is the Cornell criterion met?", {"cornell_mv": 2.4}, None, "female",
         "yes: Cornell voltage 2.40 mV, above"),
        ("Is the Cornell criterion met?", {"cornell_mv": 2.4}, None, "male", "no: "),
        ("Is the Cornell criterion met?", {"cornell_mv": 2.4}, None, None, "that depends on age or sex"),
        ("Are there voltage criteria for LVH?", {"sokolow_mv": 3.6}, None, "male",
         "yes: Sokolow-Lyon voltage 3.60"),
        ("Are there voltage criteria for LVH?", {}, None, "male", "no: "),
        ("ST elevation in V2?", {}, 60, "female",
         "yes: ST in V2 +0.18 mV, elevation; normal ST in V2 and V3: above"),
        ("ST elevation in V2?", {}, 30, "male", "no: ST in V2 +0.18 mV, normal"),
        ("ST elevation in V2?", {}, None, "male", "no: "),
        ("ST elevation in V2?", {}, None, None, "that depends on age or sex"),
        ("Is there ST depression in V5 or V2?", {}, 60, "male", "yes: "),
        ("Which leads show ST depression?", {}, 60, "male", "ST in V5 -0.08 mV, depression; normal ST in"),
        ("Which leads show ST elevation?", {}, 60, "male", "no lead with ST elevation"),
        ("ST level in aVF?", {}, None, None, "ST in aVF cannot be measured: no lead aVF"),
        ("ST level in V1?", {"flags": ["flat V1"]}, None, None, "ST in V1 cannot be measured: flat V1"),
        ("Is the rhythm regular?", {}, None, None, "yes: regular; RR 829 ms, standard deviation 21 ms"),
        ("Is the rhythm irregular?", {"flags": ["irregular"]}, None, None, "yes: irregular"),
        ("Is it regular?", {"flags": ["irregular"]}, None, None, "no: irregular"),
        ("Is it regular or irregular?", {}, None, None, "regular; RR"),
        ("PR?", {"pr_ms": None, "quality": {"pr_ms": "no P waves"}}, None, None,
         "PR cannot be measured: no P waves"),
    ],
)  # fmt: skip
def test_answers(question, changes, age, sex, text):
    measurement = replace(NORMAL, **{"quality": {}, "flags": [], **changes})
    answer = answer_measured(question, measurement, age, sex)
    assert answer.text.startswith(text) or text in answer.text
    if text.split(":")[0] in ("yes", "no"):
        assert answer.text.startswith(text)


def test_parts_of_an_answer():
    answer = answer_measured("What is the PR interval?", NORMAL)
    (value,) = answer.values
    assert (value.name, value.value, value.unit, value.low, value.high) == ("pr_ms", 164, "ms", 120, 200)
    assert value.verdict == "normal" and "Kusumoto" in value.source and answer.source == value.source
    assert (answer.value, answer.unit) == (164, "ms") and answer.as_json()[0]["name"] == "pr_ms"


@pytest.mark.parametrize("question", [some[0] for some in WORDINGS.values()])
def test_what_was_not_measured_says_why(question):
    answer = answer_measured(question, Measurement(quality={"all": "too short: 1 s of 2.5 s"}))
    assert "cannot be measured: too short: 1 s of 2.5 s" in answer.text
    assert all(one.value is None and one.reason for one in answer.values) and not answer.text.startswith(
        ("yes", "no:")
    )


@pytest.mark.parametrize(
    ("comments", "expected"),
    [
        (["Age: 59", "Sex: Female"], (59, "female")),
        (["<age>: 64", "<sex>: M"], (64, "male")),
        (["age: 7 years", "sex: f"], (7, "female")),
        (["Age: NaN", "Sex: Unknown"], (None, None)),
        (["Age: 300"], (None, None)),
        ([], (None, None)),
    ],
)
def test_age_and_sex_in_a_header(comments, expected):
    recording = Recording(np.zeros((1, 10), np.float32), 100.0, ["I"], "x", "x", comments=comments)
    assert age_and_sex(recording) == expected
