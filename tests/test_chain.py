"""The commands together: every help text's example, and the whole way on real recordings."""

import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecgbyte_cli.__main__ import COMMANDS, main

ECGBYTE = Path(sys.executable).parent / "ecgbyte"


def run(*args, cwd):
    """Run the installed command in a folder, as a user would."""
    environment = {key: value for key, value in os.environ.items() if key != "ECGBYTE_WORK"}
    return subprocess.run(
        [ECGBYTE, *map(str, args)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )


def test_the_example_of_every_help_text_runs(tmp_path, monkeypatch):
    """In a folder with nothing but a reference tokenizer, one after the other in the table's order.

    In this process: a language model's libraries take seconds to import.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ECGBYTE_WORK", raising=False)
    (tmp_path / "tokenizer.pkl").write_bytes(pickle.dumps(({}, [([110, 110], 256)])))
    for name in COMMANDS:
        shown = CliRunner().invoke(main, [name, "-h"])
        assert shown.exit_code == 0, shown.stderr
        example = main.get_command(None, name).epilog.removeprefix("Example: ")
        assert " ".join(example.split()) in " ".join(shown.stdout.split())
        if name == "compare":  # two tables that stand for those of two models
            for copy in ("before.csv", "after.csv"):
                shutil.copy("findings.csv", copy)
            Path("labels.csv").write_text("record,LBBB\nsynth00001,yes\nsynth00002,no\n")
        if name == "score":  # of some model
            asked = map(json.loads, Path("controls/questions-wfdb.jsonl").read_text().splitlines())
            answers = (json.dumps({"id": question["id"], "answer": "no"}) + "\n" for question in asked)
            Path("answers.jsonl").write_text("".join(answers))
        # serve goes on until it is stopped (test_serve.py starts it and asks), push needs a Hub (test_hub.py)
        if name in ("serve", "push"):
            continue
        words = shlex.split(example.replace("--records 400", "--records 100"))  # 400 only take longer
        result = CliRunner().invoke(main, [*words[1:], "--json"])
        assert result.exit_code == 0, f"{example}: {result.stderr}"
        assert isinstance(json.loads(result.stdout), dict)


def test_real_recordings_go_the_whole_way(real_data, tmp_path):
    recordings = real_data / "cinc2021"
    results = {}
    for args in (["symbolize", recordings], ["learn", "--vocab", 5000], ["encode"], ["decode"]):
        result = run(*args, "--json", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        results[args[0]] = json.loads(result.stdout)
    assert results["symbolize"]["records"] == 25 and results["symbolize"]["symbols"] == 25 * 12 * 2500
    assert results["learn"]["vocab"] == 5000 and results["learn"]["merges"] == 5000 - 26
    assert results["encode"]["segments"] == 25 and results["encode"]["compression"] > 5
    assert 0 < results["decode"]["prd_percent"] < 50
    one_line = run(
        *(
            "--work",
            tmp_path / "again",
            "symbolize",
            recordings,
            "learn",
            "--vocab",
            5000,
            "encode",
            "--json",
        ),
        cwd=tmp_path,
    )
    chained = json.loads(one_line.stdout)
    assert chained["learn"]["sha256"] == results["learn"]["sha256"]
    assert chained["encode"]["tokens"] == results["encode"]["tokens"]
    info = json.loads(run("info", "--json", cwd=tmp_path).stdout)
    assert set(info["stages"]) == {"symbolize", "learn", "encode"} and "finetune" in info["next"]


def test_a_model_of_two_leads_reads_a_real_recording(real_data, small, ecgbyte):
    record = real_data / "cinc2021" / "HR06002.hea"
    args = ["chat", record, "-q", "What is the rhythm?", "--max-new", 4]
    result = ecgbyte(*args, work=small / "ecgbyte-work")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["symbolize", "nowhere"], "nowhere"),
        (["symbolize", "empty"], "empty"),
        (["learn"], "ecgbyte symbolize"),
        (["encode"], "ecgbyte symbolize"),
        (["decode"], "ecgbyte"),
        (["generate"], "ecgbyte symbolize"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ECGBYTE_WORK", raising=False)
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 1 and result.stdout == ""
    assert len(result.stderr.splitlines()) == 1 and said in result.stderr, result.stderr
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_corrupt_header_among_good_ones_is_skipped(small, tmp_path, ecgbyte):
    shutil.copytree(small / "data", tmp_path / "data")
    (tmp_path / "data" / "broken.hea").write_text("broken twelve 250 what\n")
    result = ecgbyte("symbolize", tmp_path / "data", "--profile", "resample", "--json")
    numbers = json.loads(result.stdout)
    assert result.exit_code == 0 and (numbers["records"], numbers["skipped"]) == (64, 1)
