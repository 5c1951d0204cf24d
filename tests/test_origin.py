"""Where merges come from: the letters beside them, other recordings, or an imported file."""

import json
import shutil

import numpy as np
import pytest

from ecgbyte_cli.signal import origin
from ecgbyte_cli.storage.files import read_table
from ecgbyte_cli.storage.workdir import WorkDir

SEGMENTS = {"segment": np.arange(10), "split": ["train", "test"] * 5}
LEARNED = "whose recordings the merges were learned from"


@pytest.mark.parametrize(
    ("split", "sample", "count"),
    [
        ("train", None, 5),
        ("all", None, 10),
        ("train", 3, 3),
        ("all", 0.5, 5),
        ("train", 0.01, 1),
        ("train", 99, 5),
    ],
)
def test_the_rows_that_are_learned_from(split, sample, count):
    rows = origin.rows_learned_from(SEGMENTS, split, sample, 0)
    assert len(rows) == count and (np.diff(rows) > 0).all()
    assert split == "all" or {SEGMENTS["split"][row] for row in rows} == {"train"}


@pytest.fixture
def copied(small, tmp_path):
    """A copy of the work folder with every stage run."""
    shutil.copytree(small / "ecgbyte-work", tmp_path / "work")
    return WorkDir(tmp_path / "work")


def test_merges_learned_here(copied, small, ecgbyte):
    table = read_table(copied.symbol_segments)
    training = {p for p, split in zip(table["patient"], table["split"], strict=True) if split == "train"}
    assert origin.patients_learned_from(copied) == training
    told = json.loads(ecgbyte("info", "--json").stdout)["stages"]["learn"]
    assert told["symbols"] > 0 and "learned_from" not in told
    # of all segments: the test side too
    assert ecgbyte("learn", "--vocab", 60, "--split", "all", "--overwrite").exit_code == 0
    assert origin.patients_learned_from(copied) == set(table["patient"])
    assert ecgbyte("learn", "--vocab", 60, "--sample", 3, "--overwrite").exit_code == 0
    assert len(origin.patients_learned_from(copied)) <= 3


def on_the_other_side(data, path):
    """Write test questions about every recording, whatever its split."""
    lines = [json.loads(line) for line in (data / "qa.jsonl").read_text().splitlines()]
    asked = [line | {"split": "test"} for line in lines[::8]]
    path.write_text("".join(json.dumps(line) + "\n" for line in asked))
    return path


def test_generate_says_it_of_merges_that_were_learned_here_alone(copied, small, tmp_path, ecgbyte):
    qa = on_the_other_side(small / "data", tmp_path / "qa.jsonl")
    asked = ["generate", "--model", copied.model, "--qa", qa, "--limit", 2, "--max-new", 4, "--overwrite"]
    result = ecgbyte(*asked)
    assert result.exit_code == 0 and LEARNED in result.stderr, result.stderr
    # the same recordings, with the merges of the model: what these were learned from is not known here
    there = tmp_path / "there"
    for args in (["symbolize", small / "data", "--like", copied.model, "--jobs", 1], ["encode"], asked):
        result = ecgbyte(*args, work=there)
        assert result.exit_code == 0, result.stderr
    assert LEARNED not in result.stderr
    told = json.loads(ecgbyte("info", "--json", work=there).stdout)["stages"]["learn"]
    assert told["learned_from"] == "other recordings" and told["vocab"] == 200
    assert "symbols" not in told and "tokens" not in told
    tuned = ["finetune", "--qa", qa, "--model", "tiny", "--steps", 1]
    assert LEARNED not in ecgbyte(*tuned, work=there).stderr


def test_letters_that_were_made_anew_are_others(copied, small, ecgbyte):
    again = [
        "symbolize",
        small / "data",
        "--profile",
        "resample",
        "--fs",
        100,
        "--leads",
        "II,V1",
        "--jobs",
        1,
    ]
    assert ecgbyte(*again, "--range", -1, 1, "--overwrite").exit_code == 0
    assert origin.learned_here(copied) is None and origin.patients_learned_from(copied) == set()


def test_merges_that_were_imported(copied, tmp_path, ecgbyte):
    (tmp_path / "merges.json").write_text(json.dumps({"merges": [["aa", 256]]}))
    result = ecgbyte("import-tokenizer", tmp_path / "merges.json", "--range", -1, 1, "--overwrite")
    assert result.exit_code == 0, result.stderr
    assert origin.patients_learned_from(copied) == set()
    told = json.loads(ecgbyte("info", "--json").stdout)["stages"]["learn"]
    assert told == {"vocab": 27, "merges": 1, "longest": 2, "learned_from": "an imported tokenizer"}


def test_merges_without_letters(copied, ecgbyte):
    shutil.rmtree(copied.symbols.parent)
    assert origin.learned_here(copied) is None
    assert "learned_from" not in json.loads(ecgbyte("info", "--json").stdout)["stages"]["learn"]
