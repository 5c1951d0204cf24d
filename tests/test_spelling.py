"""The nearest of some names."""

from pathlib import Path

import pytest

from ecgbyte_cli.__main__ import ALIASES, COMMANDS
from ecgbyte_cli.cli.spelling import nearest

NAMES = [*COMMANDS, *ALIASES]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("symbolise", "symbolize"),
        ("fine-tune", "finetune"),
        ("finetun", "finetune"),
        ("Fine_Tune", "finetune"),
        ("learn-merge", "learn-merges"),
        ("import_tokenizer", "import-tokenizer"),
        ("genrate", "generate"),
        ("question", "questions"),
        ("data", None),
        ("", None),
        ("-", None),
    ],
)
def test_the_nearest_name(word, name):
    assert nearest(word, NAMES) == name


def test_every_name_is_nearest_to_itself():
    assert [name for name in NAMES if nearest(name, NAMES) != name] == []


LINES = {
    "chat": ["record.hea"],
    "draw": ["sinus rhythm", "--out", "x"],
    "export": ["x"],
    "generate": [],
    "info": [],
    "explain": [],
    "plot": ["tokens", "record.hea"],
    "reinforce": [],
    "serve": ["data"],
    "finetune": ["--qa", "qa.jsonl"],
    "continue": ["record.hea"],
}


@pytest.mark.parametrize("command", LINES)
@pytest.mark.parametrize("name", ["ptb-xl", "PTB_XL", "ptbx"])
def test_a_misspelt_model_is_a_wrong_command_line(ecgbyte, tmp_path, monkeypatch, command, name):
    monkeypatch.chdir(tmp_path)
    result = ecgbyte(command, *LINES[command], "--model", name)
    assert result.exit_code == 2, result.stderr
    assert result.stderr.splitlines()[-1].endswith(f"there is no folder {name!r}. Did you mean 'ptbxl'?")


def test_other_models_that_are_misspelt(ecgbyte, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Did you mean 'ptbxl'?" in ecgbyte("symbolize", "data", "--like", "ptb-xl").stderr
    assert "Did you mean 'tiny'?" in ecgbyte("finetune", "--qa", "qa.jsonl", "--model", "Tiny").stderr


@pytest.mark.parametrize("name", ["gpt2", "someone/ptb-xl", "models/ptb-xl", "ptbxl", "distilgpt2"])
def test_other_names_are_left_alone(ecgbyte, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert "Did you mean" not in ecgbyte("info", "--model", name).stderr


def test_a_folder_of_that_name_is_the_model(ecgbyte, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ptb-xl").mkdir()
    assert "ptb-xl has no model" in ecgbyte("info", "--model", "ptb-xl").stderr
