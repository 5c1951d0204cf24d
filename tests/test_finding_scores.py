"""Scores of a table of findings against labels, and the files beside the table."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score, roc_curve

from ecgbyte_cli.evaluation import finding_report, finding_scores, finding_truth
from ecgbyte_cli.evaluation.finding_truth import FindingTable, LabelledFinding
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.questions.findings import ALL_FINDINGS
from ecgbyte_cli.render.score_figures import plot_reliability, plot_roc, roc_points
from ecgbyte_cli.storage.row_table import column_names, read_columns, row_writer

ROOT = Path(__file__).parents[1]


def labelled(count=300, patients=120, seed=0, shift=1.5, prevalence=0.3, ties=True, name="afib"):
    """A finding with scores that overlap, some of them equal, and several rows a patient."""
    random = np.random.default_rng(seed)
    truth = random.random(count) < prevalence
    chances = 1 / (1 + np.exp(-random.normal(shift * truth - 1, 1)))
    chances = chances.round(2) if ties else chances
    answer = np.select([chances >= 0.6, chances <= 0.4], ["yes", "no"], "unsure")
    people = np.array([f"p{random.integers(patients)}" for _ in range(count)])
    return LabelledFinding(name, name, chances, answer, truth, people)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_scikit_learns(ties):
    for seed in range(20):
        one = labelled(seed=seed, ties=ties)
        assert abs(finding_scores.area_of(one) - roc_auc_score(one.truth, one.probability)) < 1e-12


def test_roc_points_are_scikit_learns():
    one = labelled()
    false, hits, _ = roc_curve(one.truth, one.probability, drop_intermediate=False)
    assert np.allclose(roc_points(one.probability, one.truth), [false, hits])


def test_the_interval_is_that_of_a_bootstrap_over_patients():
    """Against the obvious version: draw patients, join their rows, and compute the AUROC from ranks."""
    one = labelled(count=120, patients=50)
    low, high = finding_scores.score_findings([one])["findings"]["afib"]["auroc_interval"]
    random, names = np.random.default_rng(7), np.unique(one.patients)
    rows = {name: np.flatnonzero(one.patients == name) for name in names}
    areas = []
    for _ in range(5000):
        some = np.concatenate([rows[name] for name in random.choice(names, len(names))])
        truth, count = one.truth[some], one.truth[some].sum()
        if 0 < count < len(some):
            above = rankdata(one.probability[some])[truth].sum() - count * (count + 1) / 2
            areas.append(above / (count * (len(some) - count)))
    assert np.abs(np.percentile(areas, [2.5, 97.5]) - [low, high]).max() < 0.01
    alone = one._replace(patients=np.array([f"q{i}" for i in range(120)]))
    assert finding_scores.score_findings([alone])["findings"]["afib"]["auroc_interval"] != [low, high]


def test_answers_are_counted_at_their_operating_point():
    answer = np.array(["yes", "yes", "yes", "no", "no", "unsure", "unsure", "no"])
    truth = np.array([1, 1, 0, 0, 1, 1, 0, 0], bool)
    scores = finding_scores.answer_scores(answer, truth)
    assert scores == {
        "answered": 0.75, "true_positives": 2, "false_positives": 1, "true_negatives": 2, "false_negatives": 1,
        "sensitivity": 2 / 3, "specificity": 2 / 3,
        "positive_predictive_value": 2 / 3, "negative_predictive_value": 2 / 3,
    }  # fmt: skip
    nothing = finding_scores.answer_scores(np.array(["unsure"]), np.array([True]))
    assert nothing["answered"] == 0 and nothing["sensitivity"] is None and nothing["specificity"] is None


def test_probabilities_are_scored():
    scores = finding_scores.probability_scores(np.array([0.9, 0.1, 0.0]), np.array([True, False, True]))
    assert scores["brier"] == pytest.approx((0.01 + 0.01 + 1) / 3)
    assert scores["log_loss"] == pytest.approx(-(2 * np.log(0.9) + np.log(1e-6)) / 3)
    assert scores["calibration_error"] == pytest.approx((0.1 + 0.1 + 1) / 3)


def test_findings_without_a_yes_have_no_auroc():
    none = labelled(name="pace")._replace(truth=np.zeros(300, bool))
    scores = finding_scores.score_findings([labelled(), none])
    assert scores["findings"]["pace"]["auroc"] is None and scores["mean_of"] == 1
    assert scores["mean_auroc"] == scores["findings"]["afib"]["auroc"]
    assert scores["mean_auroc_interval"] == scores["findings"]["afib"]["auroc_interval"]
    alone = finding_scores.score_findings([none])
    assert alone["mean_auroc"] is None and "no AUROC" in finding_report.mean_line(alone)
    lines = finding_report.score_lines(scores)
    assert all(len(line) == len(finding_report.HEADER) for line in lines) and lines[1][2] == "–"
    plot_roc([labelled(), none], [0.8, None]), plot_reliability([labelled(), none])


def table_of(records, **findings):
    """A table with a row for each record, and a probability for each finding."""
    count = len(records)
    chances = {name: np.array(values, float) for name, values in findings.items()}
    answers = {name: np.where(values > 0.5, "yes", "no") for name, values in chances.items()}
    paths = [f"in/{record}.hea" for record in records]
    return FindingTable([(record, "0") for record in records], paths, list(records), chances, answers), count


def labels_file(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_in_words_and_codes_and_unknown_cells(tmp_path):
    table, _ = table_of(["a", "b", "c"], afib=[0.9, 0.1, 0.2], clbbb=[0.8, 0.2, 0.3], lvh=[0.1, 0.2, 0.9])
    path = labels_file(
        tmp_path / "l.csv",
        "record,patient,Atrial Fibrillation,164909002,LVH\na.hea,p1,yes,1,\nb,p1,no,0,no\nc,p2,,1,1\n",
    )
    found = {one.name: one for one in finding_truth.join_truth(table, path)}
    assert found["afib"].truth.tolist() == [True, False] and found["afib"].patients.tolist() == ["p1", "p1"]
    assert found["clbbb"].truth.tolist() == [True, False, True]
    assert found["clbbb"].probability.tolist() == [0.8, 0.2, 0.3]
    # without a column for the other half of the finding, "no LVH" leaves it unknown
    assert found["lvh"].truth.tolist()[-1] and found["lvh"].patients.tolist()[-1] == "p2"


def test_a_column_of_ones_own_finds_the_question_trained_on_it(tmp_path, capsys):
    table, _ = table_of(["a", "b"], q_waves_in_v1=[0.9, 0.1])
    [one] = finding_truth.join_truth(
        table, labels_file(tmp_path / "l.csv", "record,Q_waves in V1\na,1\nb,0\n")
    )
    assert one.truth.tolist() == [True, False] and "matches no" not in capsys.readouterr().err


def test_names_that_match_nothing_are_named_with_the_nearest(tmp_path, capsys):
    table, _ = table_of(["a", "b"], afib=[0.9, 0.1])
    path = labels_file(
        tmp_path / "l.csv", "record,afib,atrial_fibrilation,lafb,age\na,1,1,0,60\nz,0,1,1,61\n"
    )
    finding_truth.join_truth(table, path)
    said = capsys.readouterr().err
    assert "'atrial_fibrilation' matches no known finding: did you mean 'afib'?" in said
    assert "does not answer about left anterior fascicular block" in said
    assert "1 recording has no label; 1 label has no recording" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record,lafb\na,1\n", "no label for a finding"),
        ("record,afib\nz,1\n", "no label for a recording"),
        ("Recording,afib\na,1\n", "no column `record`.* its first column is 'Recording'"),
        ("record,afib\na,1\nb,maybe\n", r"no column of yes and no .*afib \(line 3: 'maybe'\)"),
    ],
)
def test_labels_that_fit_nothing_are_refused(tmp_path, text, message):
    table, _ = table_of(["a"], afib=[0.9])
    with pytest.raises(Failure, match=message):
        finding_truth.join_truth(table, labels_file(tmp_path / "l.csv", text))


def test_a_name_of_several_recordings_is_left_out(tmp_path, capsys):
    table, _ = table_of(["a", "a", "b"], afib=[0.9, 0.8, 0.1])
    table = table._replace(paths=["one/a.hea", "two/a.hea", "one/b.hea"])
    [one] = finding_truth.join_truth(table, labels_file(tmp_path / "l.csv", "record,afib\na,1\nb,0\n"))
    assert (
        one.probability.tolist() == [0.1]
        and "1 label ignored, because several recordings share the name: a" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("column", "finding"),
    [
        ("left atrial hypertrophy", "lae"),
        ("left_atrial_dilation", "lae"),
        ("complete left bundle block", "clbbb"),
        ("atrial fibrilation", "afib"),
        ("shoe size", None),
    ],
)
def test_a_column_is_taken_for_the_finding_of_the_same_meaning(column, finding):
    spellings = {text: name for name, one in ALL_FINDINGS.items() for text in (name, one.words)}
    assert finding_truth._nearest_finding(column, spellings) == finding


def test_the_cell_that_leaves_a_column_out_is_named(tmp_path, capsys):
    table, _ = table_of(["a", "b"], afib=[0.9, 0.1])
    finding_truth.join_truth(table, labels_file(tmp_path / "l.csv", "record,afib,LVH\na,1,1\nb,0,maybe\n"))
    assert "left out: LVH (line 3: 'maybe')" in capsys.readouterr().err


def test_an_auroc_from_few_recordings_gets_a_remark():
    few = {"positives": 4, "recordings": 30, "auroc": 0.9}
    scores = {"findings": {"afib": few, "lvh": few | {"positives": 5}, "pvc": few | {"auroc": None}}}
    assert finding_report.few_line(scores) == "AUROC from fewer than 5 yes or 5 no, so unreliable: afib"
    scores["findings"]["lvh"] = few | {"positives": 26}
    assert finding_report.few_line(scores).endswith(": afib, lvh")
    assert finding_report.few_line({"findings": {}}) == ""


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_a_table_is_read_as_it_was_written(tmp_path, ending):
    path = tmp_path / f"t.{ending}"
    columns = {"record": str, "path": str, "patient": str, "segment": int, "p_afib": float, "afib": str}
    rows = [
        {"record": "=a", "path": "x/a", "patient": None, "segment": 0, "p_afib": 0.25, "afib": "no"},
        {"record": "b", "path": "x/b", "patient": "p", "segment": 1, "p_afib": 0.75, "afib": "unsure"},
    ]
    with row_writer(path, columns) as write:
        write(rows)
    assert column_names(path) == list(columns)
    table = finding_truth.read_finding_table(path)
    assert table.keys == [("=a", "0"), ("b", "1")] and table.patients == ["=a", "p"]
    assert table.probabilities["afib"].tolist() == [0.25, 0.75] and table.answers["afib"].tolist() == [
        "no",
        "unsure",
    ]
    with pytest.raises(Failure, match="no column rhythm"):
        read_columns(path, ["rhythm"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "no findings"),
        ("t.csv", "record,p_afib,afib\n", "no column path"),
        ("t.csv", "record,path,patient,segment,p_afib,afib\na,a,,0,much,no\n", "damaged"),
        ("t.csv", "record,path,patient,segment,p_afib,afib\na,a,,0,1.5,no\n", "not a probability"),
        ("t.csv", "record,path,patient,segment,p_afib,afib\na,a,,0,nan,no\n", "not a probability"),
        ("t.csv", "record,path,patient,segment,p_afib,afib\na,a\n", "damaged"),
        ("t.jsonl", "{", "damaged"),
        ("t.jsonl", "[]\n", "no findings"),
        ("t.parquet", "no table", "damaged|cannot be read"),
        ("t.txt", "", "must end in"),
    ],
)
def test_damaged_tables_are_told_in_a_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(Failure, match=message):
        finding_truth.read_finding_table(tmp_path / name)
    with pytest.raises(Failure):
        finding_truth.read_finding_table(tmp_path / f"missing-{name}")


@pytest.fixture(scope="module")
def ludb_labels():
    spec = importlib.util.spec_from_file_location("ludb_labels", ROOT / "examples" / "ludb_labels.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("stated", "finding", "value"),
    [
        (["rhythm: sinus rhythm.", "electric axis of the heart: normal."], "normal", True),
        (["rhythm: sinus rhythm.", "electric axis of the heart: vertical."], "normal", None),
        (["rhythm: atrial fibrillation."], "normal", False),
        (["rhythm: atrial fibrillation."], "afib", True),
        (["scar formation: inferior wall."], "mi", True),
        (["scar formation: inferior wall."], "imi", True),
        (["scar formation: inferior wall."], "ami", False),
        (["undefined ischemia/scar/supp.nstemi: lateral wall."], "mi", None),
        (["undefined ischemia/scar/supp.nstemi: lateral wall."], "imi", False),
        (["iii degree av-block."], "1avb", False),
        (["i degree av block."], "1avb", True),
        (["incomplete right bundle branch block."], "crbbb", False),
        (["early repolarization syndrome."], "sttc", None),
        (["unipolar ventricular pacing."], "pace", True),
    ],
)
def test_ludbs_diagnoses(ludb_labels, stated, finding, value):
    assert ludb_labels.FINDINGS[finding](stated) is value


def test_ludb_is_scored_in_two_commands(real_data, ludb_labels, tmp_path, ecgbyte, monkeypatch):
    """The table, and the same command with labels: the rows are not made again."""
    some = sorted((real_data / "ludb" / "data").glob("*.hea"))[:12]
    monkeypatch.setattr("sys.argv", ["ludb_labels.py", str(real_data / "ludb"), str(tmp_path / "labels.csv")])
    ludb_labels.main()
    out = tmp_path / "f.csv"
    program = ("findings", *some, "--model", "ptbxl", "--out", out, "--jobs", 1)
    assert ecgbyte(*program).exit_code == 0
    before = out.stat().st_mtime_ns
    result = ecgbyte(*program, "--truth", tmp_path / "labels.csv", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert out.stat().st_mtime_ns == before and "already" in result.stderr
    with open(tmp_path / "labels.csv", newline="") as file:
        truth = {row["record"]: row["afib"] for row in csv.DictReader(file)}
    with open(out, newline="") as file:
        rows = [row for row in csv.DictReader(file)]
    known = [(truth[row["record"]] == "yes", float(row["p_afib"])) for row in rows]
    assert told["scores"]["afib"]["positives"] == sum(yes for yes, _ in known) > 0
    assert told["auroc"]["afib"] == pytest.approx(roc_auc_score(*zip(*known, strict=True)), abs=1e-12)
    for path in finding_report.score_files(out).values():
        assert path.stat().st_size > 100
    shown = ecgbyte(*program, "--truth", tmp_path / "labels.csv")
    assert "sens" in shown.stdout and "mean AUROC of" in shown.stdout
    assert "other settings" in ecgbyte(*program, "--questions", "afib").stderr
