"""Labels of findings with several members: what a source does not cover is unknown, never no."""

import csv
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_cli.questions.findings import ALL_FINDINGS, FINDINGS, GENERIC, OF_SCP, OF_SNOMED, STATEMENTS
from ecgbyte_cli.questions.labels import NO, UNCERTAIN, YES, derive_labels
from ecgbyte_cli.questions.question_builder import alternatives, build_questions, verifiable
from ecgbyte_cli.questions.sources import csv_tables, ptbxl, wfdb_headers
from ecgbyte_cli.questions.sources.base import RecordFacts, Source
from ecgbyte_cli.readers import Recording
from ecgbyte_cli.stages.questions import QuestionsOptions, questions

HIDINGS = 1000
TOGETHER = 50  # hidings whose facts are labelled in one call
RECORDS = 16
MANY = [name for name, finding in ALL_FINDINGS.items() if len(finding.statements) > 1]


def facts(known, record="r"):
    return RecordFacts(record, record, "train", known)


def finding(name, **known):
    """The label of a finding that follows from what a source says: "yes", "no" or None."""
    found = derive_labels([facts(known)]).findings
    return {YES: "yes", NO: "no"}.get(int(found[name][0])) if name in found else None


def table(path, rows):
    with open(path, "w", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]))
        out.writeheader()
        out.writerows(rows)
    return path


def told(source):
    """Everything that yes and no, and choices, are drawn from: its name to the labels."""
    labels = derive_labels(source.facts)
    found = {f"verify {name}": column for name, _, _, column in verifiable(labels, source.words)}
    return found | {f"choose {name}": column for name, column in alternatives(labels).items()}


def check(full, hidings):
    """No label that follows after a hiding contradicts the full source's; and some still follow."""
    records = {each.record: i for i, each in enumerate(full.facts)}
    known, hidings, kept = told(full), iter(hidings), 0
    for _ in range(HIDINGS // TOGETHER):
        some = [each for hidden in islice(hidings, TOGETHER) for each in hidden]
        places = np.array([records[each.record] for each in some])
        for name, found in told(Source(some, full.words)).items():
            kept += int((found == YES).sum() + (found == NO).sum())
            if name in known:
                whole = known[name][places]
                wrong = ((whole == YES) & (found == NO)) | ((whole == NO) & (found == YES))
                assert not wrong.any(), (name, some[wrong.argmax()].known)
    assert kept > 20 * HIDINGS


@pytest.mark.parametrize("consistent", [True, False])
def test_hidden_columns_of_a_table(tmp_path, consistent):
    """Tables that may contradict themselves too: any of yes, no and blank in every cell."""
    rng = np.random.default_rng(consistent)
    names = [
        *STATEMENTS,
        *(name for name in ALL_FINDINGS if name.upper() not in STATEMENTS),
        "Brugada pattern",
    ]
    rows = []
    for i in range(RECORDS):
        cells = dict(zip(names, rng.choice(["0", "1", ""], len(names), p=[0.6, 0.2, 0.2]), strict=True))
        if consistent:
            made = set(rng.choice(list(STATEMENTS), 4))
            there = made | {
                n for f in GENERIC if made & {*ALL_FINDINGS[f].statements} for n in (f, f.upper())
            }
            cells = {name: str(int(name in there)) if rng.random() < 0.9 else "" for name in names}
        rows.append({"record": f"r{i}", **cells})
    full = csv_tables.read_label_table(table(tmp_path / "t.csv", rows))
    called = csv_tables._names_of_columns()
    keys = {name: called.get(csv_tables._plain(name), (name,)) for name in names}

    def hidings():
        while True:
            shown = rng.choice(names, rng.integers(1, len(names)), replace=False)
            left = {key for name in shown for key in keys[name]}
            yield [facts({k: v for k, v in f.known.items() if k in left}, f.record) for f in full.facts]

    check(full, hidings())


def test_hidden_columns_of_code_15(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {"exam_id": str(i)} | {name: str(bool(rng.random() < 0.3)) for name in csv_tables.CODE15}
        for i in range(RECORDS)
    ]
    full = csv_tables.read_code15(table(tmp_path / "exams.csv", rows))
    keys = [csv_tables._names(name) for name in csv_tables.CODE15.values()]

    def hidings():
        while True:
            left = {key for names in keys if rng.random() < 0.7 for key in names}
            yield [facts({k: v for k, v in f.known.items() if k in left}, f.record) for f in full.facts]

    check(full, hidings())


def recording(name, *comments):
    return Recording(np.empty((0, 0), np.float32), 0.0, [], name, f"/d/{name}.hea", list(comments))


def test_hidden_codes_of_headers():
    """Who cannot write "inferior infarction" writes "infarction", if that is in the vocabulary."""
    rng = np.random.default_rng(0)
    code_of = {name: code for code, name in OF_SNOMED.items()}
    names = list(code_of)
    made = {f"r{i}": set(rng.choice(names, rng.integers(1, 6))) for i in range(RECORDS)}
    broader = {m: f.upper() for f in GENERIC for m in ALL_FINDINGS[f].statements if f.upper() in code_of}

    def written(hidden):
        lists = {}
        for record, of in made.items():
            shown = {broader.get(n, n) if n in hidden else n for n in of}
            if codes := [code_of[name] for name in sorted(shown - hidden)]:
                lists[record] = recording(record, f"Dx: {','.join(codes)}")
        return wfdb_headers.facts_of(lists.values())

    def hidings():
        while True:
            yield written(set(rng.choice(names, rng.integers(1, len(names) - 5), replace=False)))

    check(Source(written(set())), hidings())


def test_hidden_conditions_of_synthetic_records(monkeypatch):
    rng = np.random.default_rng(0)
    of, spoken = dict(wfdb_headers.CONDITIONS), set(wfdb_headers.SYNTHETIC)
    made = [recording(f"r{i}", f"Condition: {name}") for i, name in enumerate(of)] * 2
    full = Source(wfdb_headers.facts_of(made))

    def hidings():
        while True:
            hidden = set(rng.choice(sorted(spoken), rng.integers(1, 20), replace=False))
            monkeypatch.setattr(wfdb_headers, "SYNTHETIC", spoken - hidden)
            shown = {name: stated for name, stated in of.items() if stated[0] not in hidden}
            monkeypatch.setattr(wfdb_headers, "CONDITIONS", shown)
            yield wfdb_headers.facts_of(made)

    check(full, hidings())


def test_hidden_codes_and_columns_of_ptb_xl(monkeypatch):
    rng = np.random.default_rng(0)
    codes = list(OF_SCP)
    rows = [
        {
            "filename_hr": f"r{i}",
            "scp_codes": {str(code): float(rng.choice([0, 15, 50, 100])) for code in rng.choice(codes, 4)},
            "heart_axis": rng.choice(["", "MID", "LAD", "RAD", "SAG"]),
            "static_noise": rng.choice(["", " , V1-3, "]),
            "extra_beats": rng.choice(["", "VES", "SVES1", "2ES", "VES,SVES"], p=[0.6, 0.1, 0.1, 0.1, 0.1]),
            "pacemaker": rng.choice(["", "PACE????"]),
        }
        for i in range(RECORDS)
    ]
    columns = ["heart_axis", "static_noise", "extra_beats", "pacemaker"]
    monkeypatch.setattr(ptbxl, "read_patients", lambda path: {})

    def read(hidden, without):
        vocabulary = {code: name for code, name in OF_SCP.items() if code not in hidden}
        shown = [
            {name: cell for name, cell in row.items() if name not in without}
            | {"scp_codes": str({c: x for c, x in row["scp_codes"].items() if c not in hidden})}
            for row in rows
        ]
        monkeypatch.setattr(ptbxl, "OF_SCP", vocabulary)
        monkeypatch.setattr(ptbxl, "table_rows", lambda path, columns: enumerate(shown, 2))
        return ptbxl.read_ptbxl("ptbxl_database.csv")

    # PVC and PAC stay: a beat "of unstated origin" is one that neither of them states
    codes = [code for code in codes if code not in ("PVC", "PAC")]

    def hidings():
        while True:
            hidden = rng.choice(codes, rng.integers(1, len(codes)), replace=False)
            yield read({*hidden}, {*rng.choice(columns, rng.integers(0, 3))}).facts

    check(read(set(), set()), hidings())


def test_the_questions_of_a_reduced_table_agree_with_the_full_one_s(tmp_path):
    """The same through the whole command, as few times as is quick."""
    rng, names = (
        np.random.default_rng(0),
        ["SR", "SBRAD", "AFIB", "LVH", "VCLVH", "IRBBB", "CRBBB", "IMI", "mi"],
    )
    rows = []
    for i in range(60):
        cells = {name: int(rng.random() < 0.3) for name in names}
        rows.append({"record": f"r{i}", **cells, "mi": int(cells["IMI"] or rng.random() < 0.2)})

    def answers(shown):
        path = table(tmp_path / "t.csv", [{n: row[n] for n in ("record", *shown)} for row in rows])
        lines = build_questions(csv_tables.read_label_table(path), every_finding=True, cannot=0)
        return {(q["record"], q["finding"]): q["answer"] for q in lines if q["type"] == "finding-verify"}

    full = answers(names)
    assert {"sr", "mi", "lvh", "sbrad"} <= {name for _, name in full}
    for _ in range(12):
        reduced = answers(sorted(rng.choice(names, 4, replace=False)))
        both = full.keys() & reduced.keys()
        assert len(both) > 60 and all(full[key] == reduced[key] for key in both)


@pytest.mark.parametrize("name", MANY)
def test_a_finding_of_several_members(name):
    """Yes when any member is yes; no when all are; unknown when one is not covered."""
    members = ALL_FINDINGS[name].statements
    for member in members:
        assert finding(name, **{member: True}) == "yes"
        if not (name in GENERIC and member != name.upper()) and len(members) > 1:
            rest = {other: False for other in members if other != member and other != name.upper()}
            assert finding(name, **rest) is None
    assert finding(name, **dict.fromkeys(members, False)) == "no"
    if name != "sr":
        assert finding(name, **{name: False}) == "no" and finding(name, **{name: True}) == "yes"


def test_a_word_for_all_covers_each_kind():
    assert finding("imi", MI=False) == finding("ami", mi=False) == finding("crbbb", BBB=False) == "no"
    assert finding("crbbb", BBB=True) is finding("imi", MI=True) is finding("lvh", LVH=False) is None
    assert finding("bbb", CRBBB=False) is finding("mi", IMI=False) is finding("brady", SBRAD=False) is None
    # a blank cell is neither
    assert finding("bbb", BBB=False, CRBBB=True) is None and finding("mi", IMI=True) == "yes"


def test_sinus_rhythm_is_denied_by_another_rhythm_alone():
    assert finding("sr", SR=False) is finding("sr", AFIB=True) is finding("sr", SR=False, PACE=True) is None
    assert finding("sr", SR=False, AFIB=True) == "no"
    assert finding("sr", SR=False, AFIB=True, SBRAD=True) is None and finding("sr", SBRAD=True) == "yes"


def test_what_contradicts_itself_is_left_open_and_counted():
    of_no_kind = dict.fromkeys(ALL_FINDINGS["hyp"].statements, False)
    labels = derive_labels(
        [facts({"mi": False, "MI": False, "IMI": True}), facts({"hyp": True, **of_no_kind})]
    )
    assert labels.statements["IMI"][0] == labels.findings["mi"][0] == labels.findings["imi"][0] == UNCERTAIN
    assert labels.findings["hyp"][1] == UNCERTAIN
    assert labels.contradictions == {
        ("inferior myocardial infarction", "myocardial infarction"): 1,
        ("hypertrophy", "kind of it"): 1,
    }


def test_columns_are_known_by_findings_names_and_words(tmp_path, capsys):
    rows = [
        {"record": f"r{i}", "Hypertrophy": i % 2, "LVH": i % 2, "conduction disturbance": 0, "RBBB": i % 2}
        for i in range(8)
    ]
    result = questions(
        table(tmp_path / "t.csv", rows), QuestionsOptions(out=tmp_path / "qa.jsonl", every_finding=True)
    )
    said = capsys.readouterr().err
    assert "4 recordings" in said and "complete right bundle branch block" in said
    lines = [json.loads(line) for line in (tmp_path / "qa.jsonl").read_text().splitlines()]
    answers = {(q["record"], q["finding"]): q["answer"] for q in lines if "finding" in q}
    assert answers["r1", "lvh"] == "yes" and answers["r0", "lvh"] == "no" and answers["r0", "crbbb"] == "no"
    assert ("r1", "crbbb") not in answers and ("r1", "cd") not in answers
    assert not [q for q in lines if q["type"].endswith("-query") and q["type"] != "cannot-query"]
    assert result["by_finding"].keys() >= {"lvh", "crbbb"}


def test_two_columns_of_one_finding_that_differ(tmp_path, capsys):
    rows = [{"record": f"r{i}", "LBBB": i % 2, "clbbb": i // 2 % 2} for i in range(4)]
    found = csv_tables.read_label_table(table(tmp_path / "t.csv", rows)).facts
    assert [each.known["CLBBB"] for each in found] == [False, None, None, True]
    assert "LBBB and clbbb" in capsys.readouterr().err


def test_code_15_leaves_broad_findings_open(tmp_path):
    normal = {name: str(name == "normal_ecg") for name in csv_tables.CODE15}
    path = table(tmp_path / "exams.csv", [{"exam_id": "1", **normal}])
    known = told(csv_tables.read_code15(path))
    assert {name for name in ALL_FINDINGS if known.get(f"verify {name}", [None])[0] == NO} == {
        *("1avb", "crbbb", "clbbb", "sbrad", "stach", "afib")
    }
    assert known["verify normal"][0] == YES


def test_headers_deny_their_own_vocabulary_alone():
    af, lvh, strange, normal = "164889003", "164873001", "999999", "426783006"
    lists = {"E00001": [af], "E00002": [lvh], "E00003": [normal, strange], "HR00001": [normal]}
    found = wfdb_headers.facts_of(recording(name, f"Dx: {','.join(codes)}") for name, codes in lists.items())
    known = {each.record: each.known for each in found}
    assert known["E00001"] == {"AFIB": True, "LVH": False, "SR": False}
    assert known["E00002"] == {"AFIB": False, "LVH": True}  # its rhythm is not stated
    assert known["E00003"] == {"SR": True}  # the other code may be anything
    assert known["HR00001"] == {"SR": True}  # another database


def test_an_infarction_somewhere_is_an_infarction():
    codes = {"a": "54329005", "b": "164865005", "c": "426783006"}
    found = wfdb_headers.facts_of(recording(name, f"Dx: {code}") for name, code in codes.items())
    labels = derive_labels(found)
    assert labels.findings["mi"].tolist() == [YES, YES, NO]
    assert labels.findings["ami"].tolist()[::2] == [YES, NO] and labels.findings["ami"][1] not in (YES, NO)


def test_real_headers_as_tables(real_data, tmp_path):
    """Columns of the headers' own statements: what a table has no column for is never denied."""
    found = wfdb_headers.read_headers(
        sorted(map(str, (real_data / "cinc2021").glob("*.hea"))), real_data
    ).facts
    made = [{name for name, there in each.known.items() if there} for each in found]
    names, rng = sorted(set().union(*made)), np.random.default_rng(0)
    truth = derive_labels(found)
    for _ in range(40):
        shown = rng.choice(names, 6, replace=False)
        rows = [
            {"record": each.record, **{STATEMENTS[n].words: int(n in of) for n in shown}}
            for each, of in zip(found, made, strict=True)
        ]
        labels = derive_labels(csv_tables.read_label_table(table(tmp_path / "t.csv", rows)).facts)
        for name, column in labels.findings.items():
            if name == "sr" or name.upper() not in shown:  # its own column is about the very words
                assert not ((column == NO) & (truth.findings[name] == YES)).any(), (name, shown)


def test_real_ptb_xl_denies_what_it_covers(real_data):
    source = ptbxl.read_ptbxl(Path(real_data) / "ptbxl" / "ptbxl_database.csv")
    labels = derive_labels(source.facts)
    assert all((labels.findings[name] == NO).any() for name in ALL_FINDINGS if name != "brady")
    assert not (labels.findings["brady"] == NO).any() and not labels.contradictions
    other = np.array([any(f.known.get(r) for r in ("AFIB", "AFLT", "SVTAC", "PSVT")) for f in source.facts])
    assert other[labels.findings["sr"] == NO].all() and {*FINDINGS} <= labels.findings.keys()
