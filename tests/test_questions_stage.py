"""ecgbyte questions: what each kind of source says, the balance, and what is left unasked."""

import ast
import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_cli.evaluation import metrics
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions import phrasings, question_file, question_segments, sources
from ecgbyte_cli.questions.findings import ALL_FINDINGS, FINDINGS, OF_SCP, OF_SNOMED, STATEMENTS, as_csv
from ecgbyte_cli.questions.question_builder import build_questions
from ecgbyte_cli.questions.sources import ptbxl
from ecgbyte_cli.questions.sources.base import (
    RecordFacts,
    Source,
    SourceKind,
    age_label,
    measurement_label,
    sex_label,
)
from ecgbyte_cli.readers import split_of
from ecgbyte_cli.stages.questions import QuestionsOptions, questions

ROOT = Path(__file__).resolve().parent.parent
# of the PhysioNet Challenge 2021: dx_mapping_scored.csv
SCORED = (
    "164889003 164890007 6374002 426627000 733534002 713427006 270492004 713426002 39732003 445118002 164909002 "
    "251146004 698252002 426783006 284470004 10370003 365413008 427172004 164947007 111975006 164917005 47665007 "
    "59118001 427393009 426177001 427084000 63593006 164934002 59931005 17338001"
).split()
# finding -> codes, as the trial of a CNN on PTB-XL had them
CODES = {
    "normal": "NORM",
    "mi": "IMI ASMI ILMI AMI ALMI INJAS LMI INJAL IPLMI IPMI PMI INJLA",
    "imi": "IMI ILMI IPLMI IPMI",
    "ami": "ASMI AMI ALMI INJAS INJAL",
    "sttc": "NDT NST_ DIG LNGQT ISC_ ISCAL ISCIN ISCIL ISCAS ISCLA ANEUR EL ISCAN",
    "lvh": "LVH VCLVH",
    "lafb": "LAFB",
    "irbbb": "IRBBB",
    "crbbb": "CRBBB",
    "clbbb": "CLBBB",
    "1avb": "1AVB LPR",
    "pvc": "PVC",
    "afib": "AFIB",
    "stach": "STACH",
    "sbrad": "SBRAD",
    "pace": "PACE",
    "lae": "LAO/LAE",
    "ivcd": "IVCD",
}
PTBXL = (
    "ecg_id,patient_id,age,sex,scp_codes,heart_axis,infarction_stadium1,infarction_stadium2,baseline_drift,"
    "static_noise,burst_noise,electrodes_problems,extra_beats,pacemaker,strat_fold,filename_lr,filename_hr"
).split(",")


def table(path, rows, names=None):
    """Write dicts as a CSV table."""
    names = names or list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="") as file:
        out = csv.DictWriter(file, names)
        out.writeheader()
        out.writerows(rows)
    return path


def ptb_xl(folder, *codes, **more):
    """Write a ptbxl_database.csv of a row for each dict of codes; folds go round."""
    rows = [
        {
            "ecg_id": i,
            "patient_id": f"{100 + i}.0",
            "scp_codes": str(of),
            "strat_fold": i % 10 + 1,
            "filename_hr": f"records500/00000/{i:05d}_hr",
            **{name: column[i] for name, column in more.items()},
        }
        for i, of in enumerate(codes)
    ]
    return table(folder / "ptbxl_database.csv", rows, PTBXL)


def known(folder, codes, **more):
    """What is known of a recording with these codes and columns."""
    path = ptb_xl(folder, codes, **{name: [text] for name, text in more.items()})
    return ptbxl.read_ptbxl(path).facts[0]


def asked(source, **options):
    """The questions about a source, as dicts."""
    source = Path(source)
    out = (source if source.is_dir() else source.parent) / "out" / "qa.jsonl"
    questions(source, QuestionsOptions(out=out, overwrite=True, **options))
    return [json.loads(line) for line in out.read_text().splitlines()]


def header(folder, name, *comments):
    lines = [f"{name} 1 500 5000", f"{name}.mat 16 1000/mV 16 0 0 0 0 I", *(f"# {text}" for text in comments)]
    (folder / f"{name}.hea").write_text("\n".join(lines) + "\n")


def verify(lines):
    """(record, finding) to the answers given."""
    answers = {}
    for line in lines:
        if line["type"].endswith("-verify"):
            answers.setdefault((line["record"], line["finding"]), set()).add(line["answer"])
    return answers


def test_the_example_table_is_the_package_s():
    assert (ROOT / "examples" / "findings.csv").read_text() == as_csv()
    rows = list(csv.DictReader(as_csv().splitlines()))
    assert {row["finding"]: set(row["scp"].split()) for row in rows} == {
        name: set(codes.split()) for name, codes in CODES.items()
    }


def test_the_table_is_in_order():
    assert {member for finding in ALL_FINDINGS.values() for member in finding.statements} <= STATEMENTS.keys()
    assert len(OF_SCP) == 71 == sum(len(s.scp) for s in STATEMENTS.values())
    assert len(OF_SNOMED) == sum(len(s.snomed) for s in STATEMENTS.values())
    for statement in STATEMENTS.values():
        assert metrics.split_labels(statement.words) == {statement.words.casefold()}  # one label
    words = Counter(s.words for name, s in STATEMENTS.items())
    assert [text for text, times in words.items() if times > 1] == []
    assert len(SCORED) == 30 and set(SCORED) <= OF_SNOMED.keys()
    for merged in ("59118001 713427006", "164909002 733534002", "63593006 284470004", "17338001 427172004"):
        assert len({OF_SNOMED[code] for code in merged.split()}) == 1


def test_every_wording_is_a_question_or_a_request():
    rng = np.random.default_rng(0)
    texts = [text for forms in phrasings.UNANSWERABLE.values() for text in forms]
    assert len(phrasings.UNANSWERABLE) >= 20 and len(set(texts)) == len(texts)
    texts += [
        phrasings.open_question(rng, topic, "static noise") for topic in phrasings.QUERY for _ in range(20)
    ]
    texts += [phrasings.verify_question(rng, n, f.words) for n, f in ALL_FINDINGS.items() for _ in range(50)]
    texts += [phrasings.choose_question(rng, "ST depression", "Q waves") for _ in range(20)]
    for text in texts:
        assert re.fullmatch(r"[A-Z0-9][^{}]*[?.]", text) and "  " not in text, text
    trained = {
        text for forms in (*phrasings.QUERY.values(), *phrasings.VERIFY_OWN.values()) for text in forms
    }
    assert not trained & {text for forms in phrasings.UNANSWERABLE.values() for text in forms}


def test_is_and_are():
    assert (
        phrasings.there_question("atrial fibrillation")
        == phrasings.there_question("a heart attack")
        == "Is there"
    )
    assert (
        phrasings.there_question("ischemic ST-T changes in the lateral leads")
        == phrasings.there_question("PVCs")
        == "Are there"
    )
    assert phrasings.there_question("subendocardial injury in the lateral leads") == "Is there"


@pytest.mark.parametrize(
    ("likelihood", "there"), [(0, True), (15, None), (49.9, None), (50, True), (100, True)]
)
def test_a_likelihood_under_50_is_uncertain(tmp_path, likelihood, there):
    facts = known(tmp_path, {"IMI": likelihood, "SR": 0.0})
    assert facts.known["IMI"] is there and facts.known["SR"] is True and facts.known["AFIB"] is False


def test_nobody_asks_about_what_is_uncertain(tmp_path):
    rows = [
        {"IMI": 35.0, "SR": 0.0},
        {"IMI": 100.0, "SR": 0.0},
        {"AFIB": 0.0},
        {"LAFB": 100.0, "SR": 0.0},
    ] * 10
    lines = asked(ptb_xl(tmp_path, *rows), every_finding=True)
    uncertain = {f"{i:05d}_hr" for i in range(0, 40, 4)}
    about = [line for line in lines if line["record"] in uncertain]
    assert {line["finding"] for line in about if "finding" in line} >= {"afib", "lafb"}
    for line in about:
        assert line.get("finding") not in ("imi", "mi")
        assert "infarction" not in str(line["answer"])
        assert line["type"] not in ("findings-query", "describe-query", "class-query")
    # an uncertain statement of a finding that another makes certain
    assert known(tmp_path, {"IMI": 35.0, "ILMI": 100.0}).known["ILMI"] is True
    answers = verify(
        asked(ptb_xl(tmp_path, *[{"IMI": 35.0, "ILMI": 100.0}, {"SR": 0.0}] * 10), every_finding=True)
    )
    assert answers["00000_hr", "imi"] == {"yes"} and answers["00001_hr", "imi"] == {"no"}


def test_splits_are_the_folds(tmp_path):
    lines = asked(ptb_xl(tmp_path, *[{"AFIB": 0.0}, {"SR": 0.0}] * 30))
    for line in lines:
        fold = int(line["record"][:5]) % 10 + 1
        assert line["split"] == {9: "val", 10: "test"}.get(fold, "train")
        assert line["patient"] == str(100 + int(line["record"][:5]))
    assert Counter(line["split"] for line in lines).keys() == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        (" , I-AVF,  ", "I II III aVR aVL aVF"),
        ("v4-6", "V4 V5 V6"),
        (" , V3,5,6", "V3 V5 V6"),
        (" , V1V6", "V1 V6"),
        ("I,II,AVR,AVL.AVF,V1", "I II aVR aVL aVF V1"),
        (" , V4 stark", "V4"),
        (" , I - AVR,  ", "I II III aVR"),
        (" , I-V1, noisy recording,", "I II III aVR aVL aVF V1"),
        (" , alles", "I II III aVR aVL aVF V1 V2 V3 V4 V5 V6"),
        (" , stark,  ", None),
        ("napf,  ", None),
        (" , 1", None),
        ("I,2", None),
    ],
)
def test_leads_of_noise(text, leads):
    assert ptbxl.leads_of(text) == (leads and tuple(leads.split()))


def test_what_ptb_xl_says_beside_codes(tmp_path):
    facts = known(
        tmp_path,
        {"IMI": 100.0, "SR": 0.0},
        age="300.0",
        sex="1",
        heart_axis="ALAD",
        infarction_stadium1="Stadium III",
        infarction_stadium2="Stadium I",
        static_noise=" , I-AVR,  ",
        burst_noise="",
        electrodes_problems="V1???",
        extra_beats="SVES1,alles",
        pacemaker="PACE????, nan",
    )
    assert facts.answers == {
        "age": ["90 years or older"],
        "sex": ["female"],
        "stage": ["early", "old"],
        "leads of static noise": ["I", "II", "III", "aVR"],
    }
    assert (facts.known["LAD"], facts.known["RAD"], facts.known["NAX"]) == (True, False, False)
    assert (facts.known["STATIC"], facts.known["BURST"], facts.known["ELEC"]) == (True, False, None)
    assert (facts.known["STATIC-aVR"], facts.known["STATIC-V6"], facts.known["BURST-V6"]) == (
        True,
        False,
        False,
    )
    assert (facts.known["PAC"], facts.known["PVC"], facts.known["PACE"]) == (True, False, None)


@pytest.mark.parametrize(
    ("codes", "beats", "pvc", "pac", "prc"),
    [
        ({}, "VES1,alles", None, False, False),
        ({"PVC": 100.0}, "2ES", True, False, False),
        ({}, "1ES", None, None, True),
        ({}, "VES,SVES", None, True, False),
        ({}, "", False, False, False),
    ],
)
def test_extra_beats(tmp_path, codes, beats, pvc, pac, prc):
    facts = known(tmp_path, codes, extra_beats=beats).known
    assert (facts["PVC"], facts["PAC"], facts["PRC"]) == (pvc, pac, prc)


def test_a_description_in_english(tmp_path):
    path = ptb_xl(
        tmp_path,
        {"IMI": 100.0, "NDT": 100.0, "SR": 0.0, "PVC": 100.0},
        {"NORM": 100.0, "SBRAD": 0.0},
        {"NORM": 100.0, "SR": 0.0, "VCLVH": 0.0},
        heart_axis=["LAD", "", "MID"],
        baseline_drift=[" , V5,V6", "", " , V2"],
        static_noise=["", " , alles,  ", " , stark,  "],
    )
    said = {line["record"]: line for line in asked(path) if line["type"] == "describe-query"}
    assert [said[name]["answer"] for name in sorted(said)] == [
        "Sinus rhythm with left axis deviation. Inferior myocardial infarction and non-diagnostic T-wave "
        "abnormalities. Ventricular premature complexes. Baseline drift in leads V5 and V6.",
        "Sinus bradycardia. Normal ECG. Static noise in all leads.",
        "Sinus rhythm with normal axis. Voltage criteria for left ventricular hypertrophy. Otherwise normal ECG. "
        "Baseline drift in lead V2 and static noise.",
    ]
    findings = {line["record"]: line["answer"] for line in asked(path) if line["type"] == "findings-query"}
    assert findings["00000_hr"] == [
        "sinus rhythm",
        "inferior myocardial infarction",
        "non-diagnostic T-wave abnormalities",
        "ventricular premature complexes",
    ]


RARE = [
    {"AFIB": 0.0},
    *[{"SR": 0.0, "NORM": 100.0}] * 5,
    {"SBRAD": 0.0},
    {"STACH": 0.0},
    {"LAFB": 100.0, "SR": 0.0},
] * 40


def test_yes_and_no_are_equally_frequent(tmp_path):
    lines = asked(ptb_xl(tmp_path, *RARE))
    counts = Counter((q["split"], q["finding"], q["answer"]) for q in lines if q["type"] == "finding-verify")
    assert counts["train", "afib", "yes"] == 32 and counts["test", "lafb", "no"] == 4
    for (side, finding, answer), times in counts.items():
        assert counts[side, finding, {"yes": "no", "no": "yes"}[answer]] == times
    pairs = Counter()
    for line in lines:
        if line["type"] == "rhythm-choose" and line["answer"] not in ("both", "none"):
            pair = frozenset(
                words
                for words in ("sinus bradycardia", "sinus tachycardia", "atrial fibrillation")
                if words in line["question"].lower()
            )
            pairs[line["split"], pair, line["answer"]] += 1
    assert pairs
    for (side, pair, answer), times in pairs.items():
        assert {pairs[side, pair, other] for other in pair} == {times}, (side, pair, answer)


def test_the_cap(tmp_path):
    path = ptb_xl(tmp_path, *RARE)
    lines = asked(path, cap=7)
    answers = Counter(
        (q["split"], q["type"], q.get("finding"), str(q["answer"]))
        for q in lines
        if not q["type"].endswith("choose") and q["type"] != "cannot-query"
    )
    assert max(answers.values()) == 7
    assert len(lines) < len(asked(path)) / 2


def test_every_finding_is_asked_of_every_record(tmp_path):
    path = ptb_xl(tmp_path, *RARE)
    answers = verify(asked(path, every_finding=True, cap=3))
    for i, codes in enumerate(RARE):
        for finding, of in CODES.items():
            assert answers[f"{i:05d}_hr", finding] == {"yes" if codes.keys() & set(of.split()) else "no"}


def test_the_seed_decides(tmp_path):
    path = ptb_xl(tmp_path, *RARE)
    first, again, other = asked(path), asked(path), asked(path, seed=2)
    assert first == again and first != other
    assert [q["record"] for q in first] == sorted(q["record"] for q in first)
    # several wordings of each question, with the same answers
    rhythm = {q["question"] for q in first if q["type"] == "rhythm-query"}
    assert rhythm == set(phrasings.QUERY["rhythm"])


def test_questions_that_no_ecg_answers(tmp_path):
    path = ptb_xl(tmp_path, *RARE)
    lines = asked(path, cannot=0.1)
    for side in ("train", "val", "test"):
        here = [q for q in lines if q["split"] == side]
        cannot = [q for q in here if q["type"] == "cannot-query"]
        assert {q["answer"] for q in cannot} == {phrasings.CANNOT}
        assert 0.08 < len(cannot) / len(here) <= 0.101
    assert len({q["question"] for q in lines if q["type"] == "cannot-query"}) > 40
    assert not [q for q in asked(path, cannot=0) if q["type"] == "cannot-query"]


def test_broad_words_are_not_denied(tmp_path):
    """Whoever has sinus bradycardia has sinus rhythm, whatever the code."""
    rows = [{"SBRAD": 0.0}, {"AFIB": 0.0}, {"SR": 0.0, "VCLVH": 0.0}, {"SR": 0.0, "LVH": 100.0}] * 20
    lines = asked(ptb_xl(tmp_path, *rows))
    answers = verify(lines)
    assert all(answers.get((f"{i:05d}_hr", "sr"), {"yes"}) == {"yes"} for i in range(0, 80, 4))
    assert "no" in {answer for (_, finding), given in answers.items() for answer in given if finding == "sr"}
    for line in lines:
        if line["type"] == "finding-choose" and int(line["record"][:5]) % 4 == 2:
            assert "left ventricular hypertrophy" not in line["question"].lower()


def test_snomed_codes_in_headers(tmp_path):
    for i in range(40):
        dx = ["426783006", "164889003,59118001", "164865005,426783006", "427084000,713427006,999"][i % 4]
        header(tmp_path, f"A{i:04d}", f"Age: {20 + i}", "Sex: Female", f"Dx: {dx}")
    header(tmp_path, "B0000", "Dx: Unknown")
    header(tmp_path, "C0000", "no codes at all")
    lines = asked(tmp_path, every_finding=True)
    assert {q["record"] for q in lines} == {f"A{i:04d}" for i in range(40)}
    answers = verify(lines)
    # the Challenge counts RBBB and CRBBB as one
    assert answers["A0001", "crbbb"] == answers["A0003", "crbbb"] == answers["A0001", "afib"] == {"yes"}
    # an infarction of unstated place leaves the place open; nobody looked for what no header has
    assert (
        answers["A0002", "mi"] == {"yes"}
        and ("A0002", "imi") not in answers
        and ("A0002", "ami") not in answers
    )
    assert not [key for key in answers if key[1] in ("ivcd", "normal")]
    # one code of A0003 is not in the table
    lists = {q["record"]: q["answer"] for q in lines if q["type"] == "findings-query"}
    assert lists["A0001"] == ["atrial fibrillation", "complete right bundle branch block"]
    assert "A0003" not in lists
    ages = {q["record"]: q["answer"] for q in lines if q["type"] == "age-query"}
    assert ages["A0001"] == "20 to 29 years" and ages["A0030"] == "50 to 59 years"
    for line in lines:
        assert line["patient"] == line["record"] and line["split"] == split_of(line["record"])


def test_synthetic_records(ecgbyte, tmp_path):
    assert ecgbyte("synth", tmp_path / "data", "--records", 40).exit_code == 0
    lines = asked(tmp_path / "data")
    qa = question_file.read_questions(tmp_path / "data" / "qa.jsonl")
    truth = {q.record: (q.answer, q.split) for q in qa if q.type == "rhythm"}
    assert {q["record"]: q["split"] for q in lines}.items() <= {
        r: side for r, (_, side) in truth.items()
    }.items()
    for line in lines:
        condition = truth[line["record"]][0]
        if line.get("finding") == "afib":
            assert (line["answer"] == "yes") == (condition == "atrial fibrillation")
        if line["type"] == "rhythm-query":
            assert line["answer"] == condition
        if line["type"] == "pr-query" and condition == "first-degree AV block":
            assert line["answer"] == "over 200 ms"
    assert {"rate-query", "pr-query"} <= {q["type"] for q in lines}


def test_code_15(tmp_path):
    rows = [
        {
            "exam_id": str(1000 + i),
            "age": "38",
            "is_male": str(i % 2 == 0),
            "1dAVb": str(i % 5 == 0),
            "RBBB": "False",
            "LBBB": str(i % 4 == 0),
            "SB": "False",
            "ST": "False",
            "AF": str(i % 3 == 0),
            "patient_id": str(5 + i // 2),
            "death": "False",
            "normal_ecg": str(i % 2 == 1),
            "trace_file": "exams_part0.hdf5",
        }
        for i in range(60)
    ]
    table(tmp_path / "exams.csv", rows)
    lines = asked(tmp_path, every_finding=True)
    assert lines == asked(tmp_path / "exams.csv", every_finding=True)
    answers = verify(lines)
    for i in range(60):
        assert answers[str(1000 + i), "afib"] == {"yes" if i % 3 == 0 else "no"}
        assert answers[str(1000 + i), "1avb"] == {"yes" if i % 5 == 0 else "no"}
    assert {q["answer"] for q in lines if q["type"] == "sex-query" and q["record"] == "1000"} <= {"male"}
    assert all(q["patient"] == str(5 + (int(q["record"]) - 1000) // 2) for q in lines)
    assert all(q["split"] == split_of(q["patient"]) for q in lines)
    assert {q["type"] for q in lines} <= {
        *("finding-verify", "finding-choose", "rhythm-choose", "age-query", "sex-query", "cannot-query")
    }


def test_any_table_of_yes_and_no(tmp_path, capsys):
    rows = [
        {
            "record": f"{i:05d}",
            "split": ["train", "valid", "test"][i % 3],
            "LBBB": ["yes", "no"][i // 3 % 2],
            "brugada_pattern": ["1", "0", ""][i // 3 % 3],
            "heart_rate": "71.5",
            "pr_interval": "0.21",
            "remark": "free text",
        }
        for i in range(36)
    ]
    path = table(tmp_path / "mine.csv", rows)
    lines = asked(path, cannot=0)
    assert "remark" in capsys.readouterr().err
    answers = verify(lines)
    assert {q["record"] for q in lines} == {f"{i:05d}" for i in range(36)}  # 00016 is not 16
    for i in range(36):
        assert answers[f"{i:05d}", "clbbb"] == {["yes", "no"][i // 3 % 2]}
        assert answers.get((f"{i:05d}", "brugada_pattern")) == [{"yes"}, {"no"}, None][i // 3 % 3]
    assert any("brugada pattern" in q["question"] for q in lines)
    assert {q["answer"] for q in lines if q["type"] == "rate-query"} == {"70 to 79 beats per minute"}
    assert {q["answer"] for q in lines if q["type"] == "pr-query"} == {"over 200 ms"}
    assert {q["split"] for q in lines if int(q["record"]) % 3 == 1} == {"val"}


def test_without_patients_the_record_is_split_by_its_name(tmp_path):
    path = table(tmp_path / "mine.csv", [{"record": f"r{i}.hea", "afib": str(i % 2)} for i in range(200)])
    lines = asked(path)
    assert all(q["split"] == split_of(q["record"]) and q["record"] == q["patient"] for q in lines)
    assert {q["record"] for q in lines} <= {f"r{i}" for i in range(200)}
    table(path, [{"record": f"r{i}", "patient": f"p{i // 4}", "afib": str(i % 2)} for i in range(200)])
    assert all(q["patient"] == f"p{int(q['record'][1:]) // 4}" for q in asked(path))
    assert all(q["split"] == split_of(q["patient"]) for q in asked(path))


PTB, NAMES = "ptbxl_database.csv", "scp_codes,filename_hr,strat_fold,patient_id,filename_lr"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.csv", "a,b\n1,2\n", "no source of questions"),
        ("a.csv", "", "no source of questions"),
        ("a.csv", "record,note\na,free\n", "no column of yes and no"),
        ("a.csv", "record,afib\na,yes\na,no\n", "line 3: record a was in line 2"),
        ("a.csv", "record,afib\na,yes\n,no\n", "line 3: record is empty"),
        ("a.csv", "record,afib\na,yes,no\n", "line 2: has more cells"),
        ("a.csv", "record,afib,split\na,yes,side\nb,no,train\n", "line 2: split 'side'"),
        ("a.csv", "record,afib,strat_fold\na,yes,1\nb,no,11\n", "line 3: strat_fold '11'"),
        ("a.csv", "record,afib,strat_fold,split\na,yes,1,test\n", "two sides"),
        (PTB, f"{NAMES}\n{{'SR': 0.0}},a,2.5,1,b\n", "line 2: strat_fold '2.5'"),
        ("a.csv", "record,afib\na,yes\nb,yes\n", "need a yes and a no"),
        ("a.csv", b"record,afib\n\xff\xfe,yes\n", "not UTF-8"),
        ("a.csv", b"record,afib\na,\0\n", "a.csv"),
        (PTB, f"{NAMES}\n__import__('os'),a,1,1,b\n", "line 2"),
        (PTB, f"{NAMES}\n{{'XYZ': 100.0}},a,1,1,b\n", "XYZ"),
        (PTB, f"{NAMES}\n{{'SR': 101}},a,1,1,b\n", "line 2"),
        (PTB, f"{NAMES}\n{'[' * 5000},a,1,1,b\n", "5000"),
        (PTB, f"{NAMES}\n{'[' * 4000},a,1,1,b\n", "line 2"),
        (PTB, f"{NAMES}\n{{'SR': 0.0}},,1,1,b\n", "filename_hr"),
    ],
)  # fmt: skip
def test_a_bad_table_is_one_clear_line(ecgbyte, tmp_path, name, text, said):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    result = ecgbyte("questions", path, "--out", tmp_path / "qa.jsonl", "--cannot", 0)
    assert result.exit_code == 1 and result.stdout == "", result.stderr
    assert result.stderr.startswith("ecgbyte: ") and result.stderr.count("\n") == 1
    assert said in result.stderr and "Error" not in result.stderr
    assert not (tmp_path / "qa.jsonl").exists()


def test_what_is_no_source(ecgbyte, tmp_path):
    (tmp_path / "empty").mkdir()
    header(tmp_path, "a", "nothing")
    for source, said in (
        (tmp_path / "gone", "is not there"),
        (tmp_path / "empty", "contains no"),
        (tmp_path, "Dx"),
    ):
        result = ecgbyte("questions", source, "--out", tmp_path / "qa.jsonl")
        assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1
    result = ecgbyte("questions", ptb_xl(tmp_path, *RARE), "--out", tmp_path)
    assert result.exit_code == 1 and "is a folder" in result.stderr


def test_a_file_is_not_replaced_unasked(tmp_path):
    path, out = ptb_xl(tmp_path, *RARE), tmp_path / "qa.jsonl"
    first = questions(path, QuestionsOptions(out=out))
    assert questions(path, QuestionsOptions(out=out))["questions"] == first["questions"]  # the same again
    with pytest.raises(Failure, match="has other content"):
        questions(path, QuestionsOptions(out=out, seed=2))
    questions(path, QuestionsOptions(out=out, seed=2, overwrite=True))


def test_the_command_prints_counts(ecgbyte, tmp_path):
    path, out = ptb_xl(tmp_path, *RARE), tmp_path / "qa.jsonl"
    result = ecgbyte("questions", path, "--out", out, "--json")
    about = json.loads(result.stdout)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert about["records"] == len(RARE) and about["questions"] == len(lines)
    assert about["by_type"] == Counter(q["type"] for q in lines)
    assert about["by_split"] == Counter(q["split"] for q in lines)
    assert about["by_finding"]["afib"] == {"yes": 40, "no": 40}
    shown = ecgbyte("questions", path, "--out", out).stdout
    assert re.search(r"^rhythm-query +\d+ +\d+ +\d+ +\d+$", shown, re.MULTILINE)
    assert re.search(r"^afib +40 +40$", shown, re.MULTILINE)


def test_the_file_is_read_and_joined(tmp_path):
    asked(ptb_xl(tmp_path, *RARE))
    read = question_file.read_questions(tmp_path / "out" / "qa.jsonl")
    records = [f"HR{i:05d}" for i in range(len(RARE))]  # as the Challenge calls them
    segments = {"record": records, "patient": records, "split": ["train"] * len(records)}
    joined, unmatched = question_segments.join_segments(read, segments)
    assert len(joined) == len(read) and not unmatched
    assert {side for *_, side in joined} == {"train", "val", "test"}
    words = {q.type.rpartition("-")[2] for q in read}
    assert words == {"verify", "choose", "query"}
    normal = next(q for q in read if q.type == "findings-query" and "normal" in q.answer)
    assert metrics.split_labels(normal.answer) == {"sinus rhythm", "normal ecg"}


def test_ranges():
    assert [age_label(text) for text in ("0", "9.0", "89", "90", "300", "-1", "250", "nan", "", None)] == [
        *(
            ["0 to 9 years"],
            ["0 to 9 years"],
            ["80 to 89 years"],
            ["90 years or older"],
            ["90 years or older"],
        ),
        *[None] * 5,
    ]
    assert [sex_label(text) for text in ("Male", "f", "1", "Unknown", None)] == [
        ["male"],
        ["female"],
        None,
        None,
        None,
    ]
    assert measurement_label("rate", "39.9") == ["under 40 beats per minute"]
    assert measurement_label("rate", "150") == ["150 beats per minute or more"]
    assert measurement_label("rate", "99.6") == ["90 to 99 beats per minute"]
    assert [measurement_label("pr", text) for text in ("0.2", "200", "0.201", "119")] == [
        *(["120 to 200 ms"], ["120 to 200 ms"], ["over 200 ms"], ["under 120 ms"])
    ]
    assert measurement_label("qrs", "0.12") == ["120 ms or more"] and measurement_label("qrs", "none") is None


def test_the_findings_of_ptb_xl(real_data):
    """As many as the trial's codes, but those of a likelihood between 0 and 50."""
    path = real_data / "ptbxl" / "ptbxl_database.csv"
    with open(path, newline="") as file:
        rows = [ast.literal_eval(row["scp_codes"]) for row in csv.DictReader(file)]
    lines = build_questions(ptbxl.read_ptbxl(path), every_finding=True)
    answers = Counter((q["finding"], q["answer"]) for q in lines if q.get("finding") in FINDINGS)
    for finding, of in CODES.items():
        given = [[row[code] for code in of.split() if code in row] for row in rows]
        stated = sum(any(x == 0 or x >= 50 for x in likelihoods) for likelihoods in given)
        absent = sum(not likelihoods for likelihoods in given)
        assert answers[finding, "yes"] == stated, finding
        # the columns of extra beats and pacemakers leave some more open
        assert absent - 65 < answers[finding, "no"] <= absent if finding == "pvc" else True
        assert finding in ("pvc", "pace") or answers[finding, "no"] == absent, finding
    assert {q["split"] for q in lines} == {"train", "val", "test"}


def test_topics_are_ptb_xl_s(real_data):
    with open(real_data / "ptbxl" / "scp_statements.csv", newline="") as file:
        for row in csv.DictReader(file):
            topic = STATEMENTS[OF_SCP[row[""]]].topic
            if topic != "beats":  # of form there
                assert topic == (row["diagnostic_class"] or ("form" if row["form"] else "rhythm")), row[""]


def test_noise_is_where_ecg_qa_has_it(real_data):
    """Its questions about noise in a lead, but where the column has question marks."""
    facts = {
        each.record: each.known for each in ptbxl.read_ptbxl(real_data / "ptbxl" / "ptbxl_database.csv").facts
    }
    kinds = {s.words: name for name, s in STATEMENTS.items() if s.topic == "noise"}
    compared = 0
    for path in (real_data / "ecg-qa" / "ptbxl" / "template").glob("*/*.json"):
        for item in json.loads(path.read_text()):
            match = re.fullmatch(r"Does this ECG show ([a-z ]+) in lead (\w+)\?", item["question"])
            if match and match[1] in kinds:
                there = facts[f"{item['ecg_id'][0]:05d}_hr"].get(f"{kinds[match[1]]}-{match[2]}")
                assert item["answer"] == ["yes" if there else "no"], item
                compared += 1
    assert compared > 500


def test_the_challenge_s_recordings(real_data, tmp_path):
    result = questions(
        real_data / "cinc2021", QuestionsOptions(out=tmp_path / "qa.jsonl", every_finding=True)
    )
    assert result["records"] == 25
    answers = verify(map(json.loads, (tmp_path / "qa.jsonl").read_text().splitlines()))
    assert answers["HR06002", "irbbb"] == answers["HR06002", "sbrad"] == {"yes"}
    assert answers["HR06002", "stach"] == {"no"}


def test_a_source_is_a_reader_and_a_row(tmp_path, monkeypatch):
    def read_toy(path):
        return Source([RecordFacts("r", "p", "train", {"AFIB": True})])

    toy = SourceKind("a toy", read_toy, [{"toy", "label"}], "toy.csv")
    monkeypatch.setattr(sources, "SOURCES", (toy, *sources.SOURCES))
    (tmp_path / "toy.csv").write_text("# exported\ntoy,label\n1,2\n")
    for path in (tmp_path, tmp_path / "toy.csv"):
        assert [facts.record for facts in sources.read_source(path).facts] == ["r"]
    (tmp_path / "toy.csv").write_text("toy,other\n1,2\n")
    with pytest.raises(Failure, match="no column `record`.* is no source of questions: name PTB-XL's folder"):
        sources.read_source(tmp_path)
