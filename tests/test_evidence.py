"""The experiments on real recordings, on few of them and for seconds: every table and chart comes out."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples" / "experiments"
TABLES = (
    "headline",
    "time",
    "controls",
    "elsewhere",
    "shares",
    "tokenizers",
    "predicts",
    "hospitals",
    "places",
)


@pytest.fixture(scope="module")
def part(real_data, tmp_path_factory):
    """PTB-XL's layout with 32 recordings to train, 24 to validate and 24 to test, half of them normal."""
    root = tmp_path_factory.mktemp("part of ptb-xl")
    with open(real_data / "ptbxl" / "ptbxl_database.csv", newline="") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), reader.fieldnames
    kept = []
    for folds, count in ((range(1, 9), 32), ((9,), 24), ((10,), 24)):
        inside = [row for row in rows if int(row["strat_fold"]) in folds]
        for normal in (True, False):
            kept += [row for row in inside if ("'NORM'" in row["scp_codes"]) == normal][: count // 2]
    for row in kept:
        for end in (".hea", ".dat"):
            name = Path(row["filename_hr"] + end)
            (root / name.parent).mkdir(parents=True, exist_ok=True)
            source = real_data / "ptbxl" / name
            if source.exists():
                shutil.copy(source, root / name)
    with open(root / "ptbxl_database.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(kept)
    return root


def test_every_table_and_chart_comes_out_and_goes_on(part, real_data, tmp_path):
    page, out = tmp_path / "evidence.md", tmp_path / "out"
    page.write_text(
        "".join(f"BEFORE\n<!-- {name} -->\nto be replaced\n<!-- /{name} -->\nAFTER\n" for name in TABLES)
    )
    command = [sys.executable, EXAMPLES / "evidence.py", part, real_data / "cinc2021", "--out", out]
    command += ["--page", page, "--seconds", "0.5,1", "--shares", "0.5", "--seeds", "0", "--records", "1"]
    command += ["--tokenizers", "2"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    text = page.read_text()
    assert "to be replaced" not in text and text.count("AFTER") == len(TABLES)
    assert (tmp_path / "images" / "evidence.png").stat().st_size > 10_000
    assert (tmp_path / "images" / "evidence-places.png").stat().st_size > 10_000
    made = [json.loads(line) for line in (out / "two_stage.jsonl").open()]
    assert len(made) == 6 * 2 + 5
    for row in made:
        assert 0 <= row["test"]["auroc"] <= 1 and set(row["test"]["control"]) >= {"no signal", "noise"}
        # without a signal every recording is alike to it
        assert row["test"]["control"]["no signal"] == pytest.approx(0.5, abs=1e-6)
    longer = [row["steps"] for row in made if row["arm"] == "patches" and row["share"] == 1]
    assert longer == sorted(longer) and longer[0] < longer[-1]
    # one that was stopped goes on: what is there is not made again
    lines = (out / "two_stage.jsonl").read_text().splitlines(keepends=True)
    (out / "two_stage.jsonl").write_text("".join(lines[:-1]))
    again = [
        sys.executable,
        EXAMPLES / "two_stage.py",
        part,
        "--out",
        out,
        "--elsewhere",
        real_data / "cinc2021",
    ]
    again += ["--seconds", "0.5,1", "--shares", "0.5", "--seeds", "0"]
    subprocess.run(list(map(str, again)), check=True, capture_output=True)
    rest = (out / "two_stage.jsonl").read_text().splitlines(keepends=True)
    assert rest[:-1] == lines[:-1] and len(rest) == len(lines)
    assert json.loads(rest[-1]) == json.loads(lines[-1])


def test_noise_and_strangers_are_told_from_the_signal():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import numpy as np
        import two_stage
    finally:
        sys.path.remove(str(EXAMPLES))
    truth = np.array([True] * 6 + [False] * 6)
    odds = {"signal": np.arange(12)[::-1].astype(float), "noise": np.zeros(12)}
    found = two_stage.figures(truth, np.zeros(12, int), np.arange(12).astype(str), odds)
    assert found["auroc"] == 1 and found["control"] == {"noise": 0.5} and found["gain"] == 0.5
    assert found["gain_interval"] == [0.5, 0.5]
