"""Fixtures that several test files share."""

import importlib
import os
import signal
import sys
from pathlib import Path

import pytest
from browsing import browser, visit  # noqa: F401  (fixtures)
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("ECGBYTE_TEST_DATA", ROOT.parent / "shared" / "data"))
GOLDEN = DATA.parent / "golden" / "reference"

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would every command that a test starts
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _needed(path, what):
    if not path.is_dir():
        message = f"{what} are not at {path}: set ECGBYTE_TEST_DATA"
        # CI sets this where the data is there, so that a wrong path cannot pass as a skip
        if os.environ.get("ECGBYTE_REQUIRE_DATA"):
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def real_data():
    """The folder of real recordings; skips where it is absent."""
    return _needed(DATA, "the real recordings")


@pytest.fixture(scope="module")
def experiment():
    """Import a script of examples/experiments by its name; the scripts import each other."""
    folder = str(ROOT / "examples" / "experiments")
    sys.path.insert(0, folder)
    yield importlib.import_module
    sys.path.remove(folder)


@pytest.fixture(scope="session")
def golden():
    """What the reference implementation makes of the real recordings; skips where it is absent."""
    return _needed(GOLDEN, "the reference's results")


@pytest.fixture(scope="session")
def golden_elm():
    """What ECG-Bench and ELM make of the real recordings; skips where it is absent."""
    return _needed(GOLDEN.parent / "elm", "ELM's results")


@pytest.fixture
def ecgbyte(tmp_path):
    """Run `ecgbyte` in this process: ecgbyte("learn", "--vocab", 40) returns Click's result."""
    from ecgbyte_cli.__main__ import main

    def run(*args, work=tmp_path / "work", **options):
        return CliRunner().invoke(main, ["--work", str(work), *map(str, args)], **options)

    return run


@pytest.fixture
def coarse_integral(monkeypatch):
    """Integrated gradients in 8 steps, where not their precision is tested."""
    from ecgbyte_cli.inference import attribution

    monkeypatch.setattr(attribution, "STEPS", 8)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder with data/ (64 synthetic records), and a work folder with every stage run, on two leads at 100 Hz.

    Tests that write take a copy.
    """
    from ecgbyte_cli.__main__ import main

    root = tmp_path_factory.mktemp("small folder")
    commands = [
        ["synth", root / "data", "--records", 64, "--fs", 250],
        ["symbolize", root / "data", "--profile", "resample", "--fs", 100, "--leads", "II,V1"],
        ["learn", "--vocab", 200],
        ["encode"],
        ["finetune", "--qa", root / "data" / "qa.jsonl", "--model", "tiny", "--steps", 60, "--lr", 5e-3]
        + ["--ecg-loss", 0],
        ["generate", "--limit", 6, "--max-new", 8],
    ]
    for args in commands:
        result = CliRunner().invoke(main, ["--work", str(root / "ecgbyte-work"), *map(str, args), "--debug"])
        assert result.exit_code == 0, result.stderr
    return root
