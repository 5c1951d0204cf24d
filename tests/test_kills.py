"""Runs that are ended at any moment: the next ones end as if nothing had happened, and nothing is left.

ECGBYTE_KILLS says how often (4).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.testing import CliRunner

from ecgbyte_cli.__main__ import main
from ecgbyte_cli.storage.files import read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir

KILLS = int(os.environ.get("ECGBYTE_KILLS", 4))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STAGES = {
    "symbolize": [
        "symbolize",
        "data",
        "--leads",
        "II,V1",
        "--fs",
        "100",
        "--profile",
        "resample",
        "--jobs",
        "2",
    ],
    "learn": ["learn", "--vocab", "600"],
    "encode": ["encode"],
    "decode": ["decode", "--limit", "80"],
    "finetune": [
        "finetune",
        "--qa",
        "data/qa.jsonl",
        "--model",
        "tiny",
        "--steps",
        "8",
        "--every",
        "3",
    ],
    "generate": ["generate", "--limit", "8", "--max-new", "8"],
    "measure": ["measure", "data", "--out", "work/measures.csv", "--jobs", "2"],
}


# These need PyTorch. Only what is killed has a process of its own, with the libraries loaded before the stage begins.
LANGUAGE = ("finetune", "generate")
LOAD = "from ecgbyte_cli.model import tiny; tiny.build_tiny()\n"

# says when the stage begins: earlier signals are the business of test_console.py
COMMAND = """import os
from ecgbyte_cli.runtime import interrupts
def begin(before=interrupts.raise_them):
    before()
    os.write(1, b"begun\\n")
interrupts.raise_them = begin
from ecgbyte_cli.__main__ import main
main()"""


def start(folder, stage):
    """The process of a stage that begins now."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            LOAD * (stage in LANGUAGE) + COMMAND,
            "--work",
            folder / "work",
            *STAGES[stage],
        ],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "begun\n", process.stderr.read()
    return process


def run_here(folder, *words):
    """Run a command in this process, in a folder."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        result = CliRunner().invoke(main, ["--work", str(folder / "work"), *words])
    assert result.exit_code == 0, (words, result.stderr)


def alive(session):
    """The processes of a session that are not yet buried."""
    lines = subprocess.run(
        ["ps", "-eo", "pid=,sid=,stat="], capture_output=True, text=True
    ).stdout.splitlines()
    return [pid for pid, sid, state in map(str.split, lines) if int(sid) == session and state[0] != "Z"]


def outputs(work):
    """What the stages have made, but for the seconds they took."""
    work = WorkDir(work)
    made = {}
    for name, array, table, settings in (
        ("symbols", work.symbols, work.symbol_segments, work.symbol_settings),
        ("tokens", work.tokens, work.token_segments, work.token_settings),
    ):
        if settings.exists():
            made[name] = (
                np.load(array).tolist(),
                {k: list(v) for k, v in read_table(table).items() if k != "path"},
            )
    if work.ecg_tokenizer.exists():
        made["merges"] = read_json(work.ecg_tokenizer)["merges"]
    if work.decode_settings.exists():
        made["decoded"] = {
            p.name: p.read_bytes() for p in work.decoded.iterdir() if p.suffix in (".hea", ".dat")
        }
        made["errors"] = read_json(work.decode_settings)["result"]["rmse_uv"]
    if work.model_settings.exists():
        made["model"] = read_json(work.model_settings)["result"]["train_loss"]
    if work.metrics.exists():
        lines = map(json.loads, work.answers.read_text().splitlines())
        made["answers"] = [(row["record"], row["question"], row["answer"]) for row in lines]
    if (measures := work.root / "measures.csv").exists():
        made["measures"] = measures.read_text().replace(str(work.root.parent), "")
    return made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder with recordings and every stage run, and how long each took in s."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run_here(folder, "synth", "data", "--records", "120", "--fs", "250")
    lasted = {}
    for stage, words in STAGES.items():
        process = None if stage in LANGUAGE else start(folder, stage)
        began = time.monotonic()
        if process is None:
            run_here(folder, *words)
        else:
            said = process.communicate()
            assert process.returncode == 0, said
        lasted[stage] = time.monotonic() - began
    return folder, lasted


@pytest.mark.slow
def test_ended_at_any_moment_and_run_again(undisturbed, tmp_path):
    whole, lasted = undisturbed
    shutil.copytree(whole / "data", tmp_path / "data", copy_function=shutil.copy2)
    rng = np.random.default_rng(0)
    kills = [list(STAGES)[i % len(STAGES)] for i in range(max(KILLS, len(STAGES)))]
    for stage in STAGES:
        for k in range(kills.count(stage)):
            how = SIGNALS[(k + list(STAGES).index(stage)) % 3]
            process = start(tmp_path, stage)
            time.sleep(lasted[stage] * rng.uniform(0.05, 0.95))
            if k % 2:
                process.send_signal(how)
            else:  # as Ctrl-C in a terminal does
                os.killpg(process.pid, how)
            process.wait()  # its pipes may be held by workers that are still to go
            said = "" if how == signal.SIGKILL else process.stderr.read()
            case = f"{stage}, kill {k}, {how.name}: {said}"
            assert "Traceback" not in said and "exception set" not in said, case
            assert how == signal.SIGKILL or process.returncode in (0, 1), case
            until = time.monotonic() + 120
            while alive(process.pid) and time.monotonic() < until:
                time.sleep(0.1)
            assert not alive(process.pid), case
        run_here(tmp_path, *STAGES[stage])
        left = [p for p in (tmp_path / "work").rglob("*") if p.name.startswith(".") or p.name == "parts"]
        assert not left, (stage, left)
    assert outputs(tmp_path / "work") == outputs(whole / "work")
