"""ecgbyte compare: paired differences between two tables, or two files of answers."""

import csv
import json

import numpy as np
import pytest
from scipy.stats import rankdata

from ecgbyte_cli.evaluation import comparison
from ecgbyte_cli.evaluation.finding_truth import LabelledFinding
from ecgbyte_cli.storage.row_table import row_writer

COLUMNS = {"record": str, "path": str, "patient": str, "segment": int}


def write_table(path, chances, names=("afib",), records=None, patients=2):
    """A table with a row for each probability, two rows a patient."""
    columns = COLUMNS | {key: kind for name in names for key, kind in ((f"p_{name}", float), (name, str))}
    rows = []
    for i, chance in enumerate(chances):
        record = records[i] if records else f"r{i}"
        row = {
            "record": record,
            "path": f"in/{record}",
            "patient": f"p{int(record[1:]) // patients}",
            "segment": 0,
        }
        said = "yes" if chance > 0.5 else "no"
        rows.append(
            row | {key: value for name in names for key, value in ((f"p_{name}", chance), (name, said))}
        )
    with row_writer(path, columns) as write:
        write(rows)
    return path


@pytest.fixture
def populations():
    """Labels of 200 recordings, and probabilities of a good and a poor model."""
    random = np.random.default_rng(0)
    truth = random.random(200) < 0.4
    good = 1 / (1 + np.exp(-random.normal(3 * truth - 1.5)))
    poor = 1 / (1 + np.exp(-random.normal(0.5 * truth)))
    return truth, good, poor


def labels(path, truth):
    path.write_text("record,afib\n" + "".join(f"r{i},{int(yes)}\n" for i, yes in enumerate(truth)))
    return path


def area(chances, truth):
    count = truth.sum()
    return (rankdata(chances)[truth].sum() - count * (count + 1) / 2) / (count * (len(truth) - count))


def test_a_better_model_is_found_whatever_the_order_of_its_rows(tmp_path, populations, ecgbyte):
    truth, good, poor = populations
    a = write_table(tmp_path / "a.csv", poor)
    order = np.random.default_rng(1).permutation(200)
    b = write_table(tmp_path / "b.parquet", good[order], records=[f"r{i}" for i in order])
    out = tmp_path / "d.csv"
    program = ("compare", a, b, "--truth", labels(tmp_path / "l.csv", truth), "--out", out)
    result = ecgbyte(*program, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    found = {(one["name"], one["measure"]): one for one in told["differences"]}
    assert told["pairs"] == 200 and told["out"] == str(out)
    assert set(found) == {("afib", "AUROC"), ("all", "AUROC"), ("afib", "right"), ("all", "right")}
    difference = found["afib", "AUROC"]
    assert difference["b"] - difference["a"] == difference["difference"]
    assert difference["difference"] == pytest.approx(area(good, truth) - area(poor, truth), abs=1e-12)
    assert difference["patients"] == 100 and difference["verdict"] == "B is higher" and difference["low"] > 0
    assert found["afib", "right"]["b"] == pytest.approx(((good > 0.5) == truth).mean())
    with open(out, newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == [
            one["verdict"] for one in told["differences"]
        ]
    assert "--overwrite" in ecgbyte(*program).stderr
    shown = ecgbyte(*program, "--overwrite")
    assert "differences are clear" in shown.stdout


def test_too_few_recordings_are_told(tmp_path, populations, ecgbyte):
    truth, good, poor = (part[:16] for part in populations)
    a, b = (
        write_table(tmp_path / "a.csv", poor),
        write_table(tmp_path / "b.csv", poor * 0.7 + poor[::-1] * 0.3),
    )
    result = ecgbyte("compare", a, b, "--truth", labels(tmp_path / "l.csv", truth))
    assert (
        result.exit_code == 0 and "too few to tell" in result.stdout and "too few recordings" in result.stdout
    )
    same = ecgbyte("compare", a, a, "--truth", labels(tmp_path / "l.csv", truth))
    assert "The two are the same" in same.stdout


def test_tables_without_labels(tmp_path, populations, ecgbyte):
    _, good, _ = populations
    a = write_table(tmp_path / "a.csv", good, ("afib", "lvh"))
    b = write_table(tmp_path / "b.csv", np.minimum(good + 0.1, 1), ("afib", "pace"))
    result = ecgbyte("compare", a, b, "--json")
    [chance, yes] = json.loads(result.stdout)["differences"]
    assert (
        chance["measure"] == "probability" and chance["verdict"] == "B is higher" and yes["measure"] == "yes"
    )
    assert chance["difference"] == pytest.approx((np.minimum(good + 0.1, 1) - good).mean())
    assert (
        "only one of the tables has lvh, pace" in result.stderr
        and "of the answers are the same" in result.stderr
    )


def test_the_interval_is_paired_and_by_patient(populations):
    """Against the obvious version: draw patients for both models at once."""
    truth, good, poor = populations
    patients = np.array([f"p{i // 4}" for i in range(200)])
    one, other = (
        LabelledFinding("afib", "", part, np.full(200, "no"), truth, patients) for part in (poor, good)
    )
    found = next(
        d for d in comparison.compare_labelled([one], [other]) if d.name == "afib" and d.measure == "AUROC"
    )
    random, rows = np.random.default_rng(3), np.arange(200).reshape(50, 4)
    steps = []
    for _ in range(3000):
        some = rows[random.integers(50, size=50)].ravel()
        steps.append(area(good[some], truth[some]) - area(poor[some], truth[some]))
    assert np.abs(np.percentile(steps, [2.5, 97.5]) - [found.low, found.high]).max() < 0.01


def answers(path, said, chances=None, records=None):
    """A file of answers: two questions about each record."""
    lines = []
    for i, (answer, truth) in enumerate(said):
        line = {"record": f"r{i // 2}", "patient": f"p{i // 2}", "question": f"q{i % 2}", "truth": truth}
        line |= {"answer": answer, "type": "single-verify", "topic": "afib"}
        line |= {"p_yes": None if chances is None else chances[i]}
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_files_of_answers(tmp_path, ecgbyte):
    random = np.random.default_rng(0)
    truth = np.where(random.random(80) < 0.5, "yes", "no")
    a = answers(tmp_path / "a.jsonl", [("yes", yes) for yes in truth], random.random(80))
    b = answers(tmp_path / "b.jsonl", [(yes, yes) for yes in truth], np.where(truth == "yes", 0.9, 0.1))
    result = ecgbyte("compare", a, b, "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    found = {(one["name"], one["measure"]): one for one in told["differences"]}
    assert told["pairs"] == 80
    match = found["all", "exact match"]
    assert match["difference"] == pytest.approx((truth == "no").mean()) and match["verdict"] == "B is higher"
    assert match["patients"] == 40 and found["single-verify", "exact match"] | {"name": "all"} == match
    assert found["afib", "AUROC"]["b"] == 1
    assert "true answers" in ecgbyte("compare", a, b, "--truth", "l.csv").stderr


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (lambda path: write_table(path / "b.csv", [0.1, 0.2, 0.3]), "lacks 1 of the 3 rows"),
        (lambda path: write_table(path / "b.csv", [0.1], records=["r1"]), "lacks 1 of the 2 rows"),
        (lambda path: write_table(path / "b.csv", [0.1, 0.2], records=["r1", "r7"]), "lacks 1 of the 2 rows"),
        (
            lambda path: write_table(path / "b.csv", [0.1, 0.2, 0.3], records=["r0", "r1", "r1"]),
            "two rows for the same",
        ),
        (lambda path: write_table(path / "b.csv", [0.1, 0.2], ("pace",)), "no finding in common"),
        (lambda path: answers(path / "b.jsonl", [("yes", "no")]), "different kinds"),
        (lambda path: path / "none.csv", "cannot be read"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_line(tmp_path, ecgbyte, b, message):
    result = ecgbyte("compare", write_table(tmp_path / "a.csv", [0.1, 0.9]), b(tmp_path))
    assert result.exit_code == 1 and message in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "line", ["{", '{"record": "r0"}', '{"record": "r0", "question": "", "truth": "", "answer": 1}']
)
def test_damaged_answers_are_told_in_a_line(tmp_path, ecgbyte, line):
    a = answers(tmp_path / "a.jsonl", [("yes", "no")])
    b = tmp_path / "b.jsonl"
    b.write_text(a.read_text() + line + "\n")
    result = ecgbyte("compare", a, b)
    assert result.exit_code == 1 and "line 2 is not an answer" in result.stderr
