"""The page for a hospital's own recordings: each of its commands runs, in the order of the page."""

import csv
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from ecgbyte_cli.__main__ import main

PAGE = (Path(__file__).parents[1] / "docs" / "your-hospital.md").read_text(encoding="utf-8")
LINES = re.findall(r"^ {4}ecgbyte (.*)$", PAGE, re.MULTILINE)
CONDITIONS = {
    "afib": "atrial fibrillation",
    "LBBB": "left bundle branch block",
    "sinus bradycardia": "sinus bradycardia",
}


def write_labels(folder, path):
    """Write a table of labels from the conditions in the headers of synthetic recordings."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["record", *CONDITIONS])
        for header in sorted(folder.glob("*.hea")):
            shown = re.search("# *condition: *(.*)", header.read_text(), re.IGNORECASE)[1].strip().lower()
            rows.writerow(
                [header.stem, *("yes" if shown == words else "no" for words in CONDITIONS.values())]
            )


@pytest.mark.slow
def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(LINES) >= 14
    for line in LINES:
        words = shlex.split(line.replace("--steps 300", "--steps 2"), comments=True)
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (line, result.stderr)
        if words[0] == "synth":
            folder = Path(words[1])
            write_labels(folder, tmp_path / ("labels.csv" if folder.name == "data" else "held-out.csv"))
        if "--truth" in words and words[0] == "findings":
            assert "already" in result.stderr and "mean AUROC of 3 findings" in result.stdout
    made = {path.name for path in tmp_path.iterdir()}
    assert {"site.json", "states.npy", "findings.csv.roc.png", "findings.csv.scores.csv", "scores"} <= made
    assert "confidence" in (tmp_path / "site.json").read_text()
    assert "pairs." in result.stdout  # of the comparison, which is the last


def test_the_table_of_labels_on_the_page_is_one():
    """The example of labels has columns that are known."""
    from ecgbyte_cli.questions.sources.csv_tables import _names_of_columns, _plain

    block = re.search(r"^ {4}record,(.*)$", PAGE, re.MULTILINE)[1].split(",")
    assert block[0] == "patient" and all(_plain(name) in _names_of_columns() for name in block[1:])
