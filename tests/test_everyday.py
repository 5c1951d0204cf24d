"""Questions in everyday words: what they reach, in five languages, and what is suggested for others."""

import json

import numpy as np
import pytest

from ecgbyte_cli.inference import everyday
from ecgbyte_cli.inference.certainty import Certainty
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.inference.turn import Turn
from ecgbyte_cli.inference.understanding import MEASURED_INSTEAD, understand
from ecgbyte_cli.inference.witness import Witness, witness_of
from ecgbyte_cli.questions import everyday_words, findings
from ecgbyte_cli.questions.phrasings import CANNOT, QUERY, UNANSWERABLE

USEFUL = """Rhythm? Atrial fibrillation? Afib? LVH? Normal? PVCs? Pacemaker? Findings? Heart rate? PR interval?
QT interval? QTc? Is the QRS wide? Axis? Left axis deviation? Regular? Bundle branch block? Sinus rhythm?
Has there been a heart attack? Heart block? ST elevation? Describe this ECG. Interpret this ECG. How sure are you?
Why do you think so? Is this dangerous? Ist das Vorhofflimmern? Q waves? T wave inversion? Ischemia?"""
DECLINED = {  # and the words of a suggestion about the same thing
    "STEMI?": "Is there ST elevation?; Is there myocardial infarction?",
    "Hyperkalemia?": "electrolyte disturbance",
}


def questions_of(text):
    """Split a text at the ends of its questions."""
    return [
        part.strip() + mark for line in text.replace("\n", " ").split("?") for part, mark in split_dots(line)
    ]


def split_dots(line):
    *sentences, rest = line.split(".")
    return [(one, ".") for one in sentences] + ([(rest, "?")] if rest.strip() else [])


@pytest.fixture(scope="module")
def shipped():
    """The model that comes with the package."""
    return Session.open("ptbxl", device="cpu")


@pytest.fixture(scope="module")
def fibrillation(shipped, real_data):
    """A conversation about a recording with atrial fibrillation, with the answers to all the questions."""
    conversation = shipped.conversation([shipped.read(real_data / "ludb" / "data" / "110")])
    return {q: conversation.ask(q) for q in [*questions_of(USEFUL), *DECLINED]}


def test_thirty_two_everyday_questions_about_atrial_fibrillation(fibrillation):
    assert len(fibrillation) == 32
    useful = [question for question, turn in fibrillation.items() if not turn.declined]
    assert len(useful) >= 24 and {*questions_of(USEFUL)} <= {*useful}
    answers = {question: turn.answer for question, turn in fibrillation.items()}
    for question in ("Afib?", "Atrial fibrillation?", "Ist das Vorhofflimmern?"):
        assert answers[question] == "yes"
    assert answers["Rhythm?"] == "atrial fibrillation" and answers["Sinus rhythm?"] == "no"
    assert answers["Regular?"].startswith("no: irregular") and answers["Normal?"] == "no"
    assert "emergency" in answers["Is this dangerous?"]
    for question, words in DECLINED.items():
        turn = fibrillation[question]
        assert turn.declined and words in turn.answer, turn.answer
        assert not any(text in turn.answer for texts in UNANSWERABLE.values() for text in texts)


def test_a_report_names_rhythm_findings_measurements_and_probabilities(fibrillation):
    report = fibrillation["Describe this ECG."]
    assert report.composed == "report" and report.answer == fibrillation["Interpret this ECG."].answer
    lines = report.answer.split("\n")
    assert lines[0].startswith("The rhythm is atrial fibrillation (") and " %" in lines[0]
    # the rhythm is said once
    assert lines[1].startswith("Findings: ") and "atrial fibrillation" not in "".join(lines[1:3])
    assert "heart rate" in report.answer and "QRS axis" in report.answer and "not a diagnosis" in lines[-1]
    assert fibrillation["How sure are you?"].answer.startswith("The report names the probability")
    assert fibrillation["Why do you think so?"].answer.startswith(
        "I cannot give reasons in words for the report"
    )


@pytest.mark.parametrize(
    ("question", "name"),
    [
        ("afib", "afib"),
        ("Is there any evidence of A-fib on this EKG?", "afib"),
        ("¿Hay fibrilación auricular?", "afib"),
        ("Y a-t-il une fibrillation auriculaire ?", "afib"),
        ("C'è una fibrillazione atriale?", "afib"),
        ("Hat der Patient Vorhofflimmern?", "afib"),
        ("Gibt es einen Linksschenkelblock?", "clbbb"),
        ("BBB", "bbb"),
        ("right bundle branch block?", "rbbb"),
        ("Is this a heart attack?", "mi"),
        ("Est-ce un infarctus ?", "mi"),
        ("¿Es un infarto?", "mi"),
        ("Any extrasystoles?", "beats"),
        ("1st degree AV block?", "1avb"),
        ("AV block?", "avblock"),
    ],
)
def test_a_finding_in_everyday_words(question, name):
    assert everyday.recognise(question) == ("finding", name)


@pytest.mark.parametrize(
    ("question", "meant"),
    [
        ("Wie ist die Herzfrequenz?", ("question", "What is the heart rate?")),
        ("Quel est le rythme ?", ("question", "What is the rhythm?")),
        ("¿Cuál es el ritmo?", ("question", "What is the rhythm?")),
        ("Qual è il ritmo?", ("question", "What is the rhythm?")),
        ("Ist der Rhythmus regelmäßig?", ("question", "Is the rhythm regular?")),
        ("What do you see?", ("describe", "")),
        ("Was siehst du?", ("describe", "")),
        ("Beschreibe dieses EKG.", ("describe", "")),
        ("Should I worry?", ("safety", "")),
        ("Is this atrial fibrillation dangerous?", ("safety", "")),
        ("C'est grave ?", ("safety", "")),
        ("Why?", ("why", "")),
        ("Wie sicher bist du?", ("sure", "")),
        ("Wie sicher?", ("sure", "")),
    ],
)
def test_other_questions_in_everyday_words(question, meant):
    assert everyday.recognise(question) == meant


@pytest.mark.parametrize(
    "question",
    [
        "Is there no atrial fibrillation?",
        "Isn't there atrial fibrillation?",
        "Kein Vorhofflimmern?",
        "Will the patient get atrial fibrillation?",
        "How often was there atrial fibrillation?",
        "Atrial fibrillation or flutter?",
        "AF and LVH?",
        "How old is the patient's dog?",
        "",
        "???",
    ],
)
def test_a_question_with_an_unknown_word_is_not_guessed(question):
    assert everyday.recognise(question) is None


def test_every_wording_reaches_what_it_stands_for():
    """No wording is shadowed by one of another finding, and none is empty."""
    for name, wordings in everyday_words.EVERYDAY.items():
        for wording in wordings:
            assert everyday.recognise(wording) == ("finding", name), wording
    for text, wordings in everyday_words.EVERYDAY_QUESTIONS.items():
        for wording in (text, *wordings):
            assert everyday.recognise(wording) == ("question", text), wording
    for kind in ("describe", "safety", "sure", "why"):
        for wording in getattr(everyday_words, kind.upper()):
            assert everyday.recognise(wording).kind == kind, wording


def test_every_question_that_wordings_stand_for_has_an_answer(shipped):
    for question in (*everyday_words.EVERYDAY_QUESTIONS, *MEASURED_INSTEAD.values()):
        assert understand(question, shipped).by in ("model", "measurement"), question
    members = {member for some in everyday_words.GROUPS.values() for member in some}
    related = {name for names in everyday_words.RELATED for name in names.split()}
    known = {name.lower() for name in findings.STATEMENTS} | {*findings.ALL_FINDINGS}
    assert members | related <= known


def certain(groups):
    arrays = [np.zeros(0, np.int64)] * 3
    return Certainty(groups, {}, {}, None, None, *arrays)


def test_a_question_that_no_ecg_answers_is_never_suggested():
    groups = [{"texts": texts, "answers": [CANNOT, "no"]} for texts in UNANSWERABLE.values()]
    groups += [{"texts": ["Are there ST-T changes?"], "answers": ["no", "yes"]}]
    groups += [{"texts": QUERY["rhythm"], "answers": ["sinus rhythm", "atrial flutter"]}]
    made = certain(groups)
    known = everyday.known_findings(made)
    assert (
        everyday.suggest("Does the patient have potassium in the blood?", made, known)[0]
        == "Are there ST-T changes?"
    )
    for question in ("How old is the patient?", "Is the patient a smoker?", "xyz"):
        suggested = everyday.suggest(question, made, known)
        assert suggested and not {*suggested} & {text for texts in UNANSWERABLE.values() for text in texts}


def test_questions_that_no_finding_is_known_of_are_suggested_by_their_words():
    made = certain(
        [{"texts": ["Is it cold?"], "answers": None}, {"texts": ["Is it paced?"], "answers": None}]
    )
    assert everyday.suggest("Is it really paced?", made, {}) == ["Is it paced?"]
    assert everyday.suggest("What?", made, {}) == ["Is it cold?", "Is it paced?"]


def test_the_findings_of_a_model_come_from_its_folder():
    texts = ["Is there WPW?", "Is there Wolff-Parkinson-White pattern?"]
    made = certain([{"texts": texts, "answers": ["no", "yes"], "asked": "W"}])
    known = everyday.known_findings(made)
    assert {*known} == {"wpw"} and everyday.list_parts(made, known) == {"W": "Wolff-Parkinson-White pattern"}
    assert everyday.match_finding("wpw", made, known).text == "W"
    assert everyday.match_finding("afib", made, known) is None


def test_a_broad_finding_is_a_list_of_the_members_that_are_known(fibrillation, shipped):
    turn = fibrillation["Heart block?"]
    assert turn.answer.startswith("none of these: first degree AV block, second degree AV block")
    assert len(turn.findings) == 4 and all(chance < 0.5 for chance in turn.findings.values())
    assert fibrillation["Bundle branch block?"].asked[0] == "bbb"  # a question of the training


def test_a_list_of_some_findings_makes_no_claim_about_others(fibrillation):
    assert "atrial fibrillation" in fibrillation["Findings?"].answer.split("; ")


def test_witness_compares_the_given_answer():
    best = ("no", 0.7), ("no", 0.6)
    seen = witness_of(0.95, 0.3, False, *best)
    assert seen == Witness(*best, 0.3, True) and not seen.note
    seen = witness_of(0.9, 0.73, True, *best)
    assert not seen.depends and "73 %" in seen.note
    assert witness_of(0.92, 0.73, True, *best).depends  # less than 80 % of the probability


def test_witness_of_a_real_answer(fibrillation, shipped):
    for question in ("Afib?", "Rhythm?", "LVH?"):
        turn = fibrillation[question]
        told = json.loads(json.dumps(turn.about()))["witness"]
        assert told["depends_on_ecg"] == turn.witness.depends
        ids, _ = shipped.prompt_of([np.zeros(0, np.int32)], [(turn.asked[0], None)], [])
        answers = shipped.match(turn.asked_as).answers
        (weights,) = shipped.weigh_prompts([ids], answers, [turn.asked[0]])
        assert told["without_ecg"]["probability"] == pytest.approx(weights.max(), abs=1e-6)
        assert told["same_answer_without_ecg"] == pytest.approx(
            weights[answers.index(turn.asked[1])], abs=1e-6
        )
    assert fibrillation["Afib?"].witness.depends and not fibrillation["Sinus rhythm?"].notes()


def test_two_ecgs_are_asked_about_separately(shipped, real_data):
    paths = [real_data / "ludb" / "data" / name for name in ("110", "2")]
    both = shipped.conversation([shipped.read(path) for path in paths])
    turn = both.ask("Afib?")
    alone = [shipped.ask(shipped.read(path), "Afib?") for path in paths]
    assert [part.answer for part in turn.separate] == [one.answer for one in alone] == ["yes", "no"]
    assert [part.probability for part in turn.separate] == pytest.approx([one.probability for one in alone])
    first, second = turn.answer.split("\n")
    assert first.startswith("110: yes (") and second.startswith("2: no (") and "%" in first and "%" in second
    told = turn.about()["separate"]
    assert [one["record"] for one in told] == ["110", "2"] and all(one["certainty"] for one in told)
    assert both.ask("Heart rate?").separate[1].measured
    assert both.ask("Is this dangerous?").composed == "safety"  # once, not for each


def test_only_the_last_answer_is_attributed(shipped, real_data):
    from ecgbyte_cli.failure import Failure
    from ecgbyte_cli.inference.conversation_report import attribute_answer

    conversation = shipped.conversation([shipped.read(real_data / "ludb" / "data" / "110")])
    turn = conversation.ask("Sinus rhythm?")
    found = attribute_answer(conversation, "gradient")
    assert found.turn is turn
    # the prompt that was attributed is the one that was asked, with the model's own answer
    assert turn.asked == ("sr", "no") and "sr" in "".join(found.words)
    for question in ("Hyperkalemia?", "Heart rate?", "Is this dangerous?"):
        conversation.ask(question)
        with pytest.raises(Failure, match="there is nothing to attribute"):
            attribute_answer(conversation, "gradient")
        with pytest.raises(Failure, match="did not come from the model"):
            conversation.ask_without_ecg()
    conversation.ask("Findings?")
    asked = conversation.ask_without_ecg()
    assert [name for name, _ in asked] == ["with the ECG", "without the ECG", "with a flat line"]
    assert isinstance(asked[1][1], Turn) and asked[1][1].findings["atrial fibrillation"] < 0.5


def test_a_contradiction_is_found_whatever_the_words_of_the_question(shipped, real_data):
    from ecgbyte_cli.inference.measured_turns import conflicts_of

    ecg = shipped.read(real_data / "ludb" / "data" / "110")  # irregular, without P waves
    usual, flipped = "Is there atrial fibrillation?", Turn("Ist das Vorhofflimmern?", "no", [ecg])
    flipped.asked_as, flipped.asked = usual, ("M", "no")
    assert [one.finding for one in conflicts_of(flipped, [])] == ["atrial fibrillation"]
    # the model's own answer counts where the answer shown is yes or no
    rhythm = Turn("Sinus rhythm?", "yes: sinus rhythm", [ecg], asked_as="What is the rhythm?")
    rhythm.asked = ("S", "sinus rhythm")
    assert [one.finding for one in conflicts_of(rhythm, [])] == ["sinus rhythm"]
