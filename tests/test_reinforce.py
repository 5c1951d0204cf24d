"""Training on sampled answers: rewards, the gradient against the slow way, and going on after a kill."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from ecgbyte_cli.model import model_folder, tiny
from ecgbyte_cli.model.ecg_lm import checkpoint_layers
from ecgbyte_cli.questions import Question
from ecgbyte_cli.questions.reasoning import split_reasoning
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training.grpo import GRPOTrainer
from ecgbyte_cli.training.plans import read_samples
from ecgbyte_cli.training.rewards import total_reward
from ecgbyte_cli.training.setup import load_for_training


def test_what_an_answer_is_worth():
    asked = Question("r", "What is seen?", "a, b", "query", None)
    thought = split_reasoning("<think>so</think>B, a")
    assert total_reward({"exact": 1.0}, thought, asked, (), 0.5) == 1
    assert total_reward({"exact": 1.0}, split_reasoning("a"), asked, (), 0.5) == 0
    assert total_reward({"f1": 1.0}, split_reasoning("a"), asked, (), 0.5) == pytest.approx(2 / 3)
    assert (
        total_reward({"form": 2.0}, thought, asked, (), 0.5) == 2
        and total_reward({"form": 1.0}, split_reasoning("a"), asked, (), 0) == 0
    )
    assert total_reward({"length": 1.0, "exact": 0.5}, thought, asked, (), 0.25) == pytest.approx(1.25)


@pytest.fixture
def learner(small, tmp_path):
    """A function that makes a Reinforcer of the small model, with some settings changed."""
    work = WorkDir(small / "ecgbyte-work")
    fixed = {"base": str(work.model), "method": "full", "positions": None, "max_length": 160, "long": "trim"}
    fixed |= {"augment": 0.0, "draw": None, "together": 4, "seed": 3, "rewards": {"exact": 1.0}, "answers": 6}
    fixed |= {
        "temperature": 1.3,
        "max_new": 12,
        "kl": 0.1,
        "batch": 4,
        "accumulate": 1,
        "lr": 1e-3,
        "patience": None,
    }

    def make(**changed):
        settings = fixed | changed
        lm, _, samples, _ = load_for_training(work, settings, "cpu")
        training, validation, _ = read_samples(work, small / "data" / "qa.jsonl", samples, 0, print)
        return GRPOTrainer(
            WorkDir(tmp_path), lm, samples, settings, 9, 3, training, validation[:8], print, None
        )

    return make


def test_the_gradient_is_that_of_every_answer_by_itself(learner):
    """Against the slow way: each sampled answer in a sequence of its own, equal ones as often as they came."""
    made = learner()
    with torch.no_grad():  # away from where it began, so that the distance counts
        for p in made.lm.parameters():
            p += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    questions = [q for plan in made.training[:3] for q in plan.questions]
    began, now = made.initial, {n: p.detach().clone() for n, p in made.lm.named_parameters()}
    sampled = made.sample(questions)
    assert sum(one.times for one in sampled) == 6 * len(questions) and len(sampled) < 6 * len(questions)

    def logs(one):
        ids = torch.from_numpy(np.concatenate([one.prompt, one.ids]))[None]
        logits = made.lm.base(**made.lm.inputs(ids)).logits[0, len(one.prompt) - 1 : -1]
        picked = (logits / 1.3).log_softmax(-1).gather(-1, ids[0, len(one.prompt) :, None])
        return picked[:, 0]

    total, loss = sum(one.times * len(one.ids) for one in sampled), 0.0
    made.lm.eval()
    for one in sampled:
        with torch.no_grad():
            for n, p in made.lm.named_parameters():
                p.copy_(began[n])
            before = logs(one)
            for n, p in made.lm.named_parameters():
                p.copy_(now[n])
        apart = before - logs(one)
        far = apart.exp() - apart - 1
        part = ((0.1 * one.times * far - one.advantage * logs(one)) / total).sum()
        part.backward()
        loss += part.item()
    slow = {n: p.grad.clone() for n, p in made.lm.named_parameters()}
    made.optimizer.zero_grad(set_to_none=True)
    kept = {}
    made.optimizer.step = lambda: kept.update({n: p.grad.clone() for n, p in made.lm.named_parameters()})
    clip = torch.nn.utils.clip_grad_norm_
    torch.nn.utils.clip_grad_norm_ = lambda *_: None
    try:
        (found, _), _ = made.update([[(0, i) for i in range(3)]])
    finally:
        torch.nn.utils.clip_grad_norm_ = clip
    assert found == pytest.approx(loss, rel=1e-4, abs=1e-6) and made.numbers["kl"] > 0
    for name, gradient in slow.items():
        torch.testing.assert_close(kept[name], gradient, rtol=1e-3, atol=1e-6)
    alone = learner(together=1)  # a reading for each answer
    alone.lm.load_state_dict({**alone.lm.state_dict(), **now})
    alone.training = made.training
    (apart, _), _ = alone.update([[(0, i) for i in range(3)]])
    assert apart == pytest.approx(loss, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("groups", "changed"), [([[0, 1], [2, 3]], {"batch": 2, "accumulate": 2}), ([[0, 1, 2, 3]], {})]
)
def test_accumulated_and_recomputed_batches_are_one_large_batch(learner, groups, changed):
    whole, other = learner(), learner(**changed)
    checkpoint_layers(other.lm.base)
    recomputed = []
    other.lm.base.model.layers[0].mlp.register_forward_pre_hook(
        lambda *_: recomputed.append(torch.is_grad_enabled())
    )
    losses = []
    for made, numbers in ((whole, [[0, 1, 2, 3]]), (other, groups)):
        (loss, _), _ = made.update([[(0, i) for i in group] for group in numbers])
        losses.append(loss)
    assert sum(recomputed) == 2 * len(groups)  # once forward and once backward
    assert losses[1] == pytest.approx(losses[0], rel=1e-5, abs=1e-7)
    assert other.numbers == pytest.approx(whole.numbers, rel=1e-5)
    for one, same in zip(whole.lm.parameters(), other.lm.parameters(), strict=True):
        assert (one - same).norm() <= 1e-4 * one.norm()


def test_advantages_are_those_of_the_group(learner):
    made = learner(answers=16)
    sampled = made.sample(list(made.training[0].questions[:1]))
    right = {one.ids: made.rated(made.training[0].questions[0], one.ids)[0] for one in sampled}
    rewards = np.repeat([right[one.ids] for one in sampled], [one.times for one in sampled])
    for one in sampled:
        expected = one.times * (right[one.ids] - rewards.mean()) / (rewards.std() + 1e-4)
        assert one.advantage == pytest.approx(expected)
    assert sum(one.advantage for one in sampled) == pytest.approx(0, abs=1e-9)


def test_what_is_rewarded_becomes_more(learner, monkeypatch):
    """Answers that begin with an n: nothing but the reward says so."""
    made = learner(kl=0.0, lr=3e-3, answers=12, batch=4)
    monkeypatch.setattr(
        GRPOTrainer, "rated", lambda self, _, ids: (float(self.samples.prompt.text(ids)[:1] == "n"), False)
    )
    rewards = []
    for step in range(9):
        made.update([[(0, i) for i in range(4 * step, 4 * step + 4)]])
        rewards.append(made.numbers["reward"])
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.15


def test_a_stop_does_not_wait_for_a_validation(learner, monkeypatch):
    made, asked = learner(), []

    def rewards(self, questions):
        asked.append(questions)
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the validation went on")

    monkeypatch.setattr(GRPOTrainer, "rewards", rewards)
    with pytest.raises(KeyboardInterrupt), made.stop:
        made.validation_reward(made.validation)
    with pytest.raises(KeyboardInterrupt), made.stop:  # it was asked before
        made.validation_reward(made.validation)
    assert len(asked) == 1


KILL = """
import os, signal, sys
from ecgbyte_cli.__main__ import main
from ecgbyte_cli.training.grpo import GRPOTrainer

original = GRPOTrainer.update
def killed(self, groups):
    if self.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, groups)
GRPOTrainer.update = killed
main(sys.argv[1:])
"""


def course(work):
    with open(work / "reinforcing" / "reward.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_killed_one_goes_on_with_the_same_rewards(small, tmp_path, ecgbyte):
    works = [tmp_path / name for name in ("killed", "undisturbed")]
    for work in works:
        shutil.copytree(small / "ecgbyte-work", work, ignore=shutil.ignore_patterns("answers", "training"))
    args = [
        "reinforce",
        "--model",
        works[0] / "model",
        "--steps",
        5,
        "--every",
        2,
        "--batch",
        2,
        "--answers",
        4,
    ]
    args += ["--max-new", 8, "--reward", "exact", "--reward", "length:0.1", "--json"]
    before = (works[0] / "model" / "ecgbyte.json").read_bytes()
    whole = ecgbyte(*args, work=works[1])
    assert whole.exit_code == 0, whole.stderr
    command = [sys.executable, "-c", KILL, "--work", works[0], *args]
    run = subprocess.run(list(map(str, command)), capture_output=True)
    assert run.returncode == -signal.SIGKILL and not (works[0] / "reinforced").exists()
    other = ecgbyte(*args, "--kl", 1, work=works[0])
    assert other.exit_code == 1 and "other settings (kl)" in other.stderr
    resumed = ecgbyte(*args, work=works[0])
    assert resumed.exit_code == 0 and "resuming after step 2 of 5" in resumed.stderr, resumed.stderr
    assert course(works[0]) == course(works[1]) and len(course(works[0])) == 5
    numbers = json.loads(resumed.stdout)
    assert {k: v for k, v in numbers.items() if k not in ("model", "seconds")} == {
        k: v for k, v in json.loads(whole.stdout).items() if k not in ("model", "seconds")
    }
    one, other = (model_folder.load_model(work / "reinforced", "cpu")[0].state_dict() for work in works)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (works[0] / "reinforcing" / "reward.png").stat().st_size > 10_000
    # the model that it began with is as it was, and the new one answers
    assert (works[0] / "model" / "ecgbyte.json").read_bytes() == before
    assert "nothing to do" in ecgbyte(*args, work=works[0]).stderr
    answered = ecgbyte(
        *(
            "generate",
            "--model",
            works[0] / "reinforced",
            "--limit",
            3,
            "--no-controls",
            "--max-new",
            4,
            "--json",
        ),
        work=works[0],
    )
    assert answered.exit_code == 0 and json.loads(answered.stdout)["questions"] == 3, answered.stderr


def test_an_adapter_is_reinforced_as_an_adapter(small, tmp_path, ecgbyte):
    work = tmp_path / "work"
    shutil.copytree(
        small / "ecgbyte-work", work, ignore=shutil.ignore_patterns("answers", "training", "model")
    )
    base, text_tokenizer = tiny.build_tiny()
    base.save_pretrained(tmp_path / "base"), text_tokenizer.save_pretrained(tmp_path / "base")
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", tmp_path / "base", "--method", "lora"]
    assert ecgbyte(*args, "--steps", 2, "--batch", 1, "--max-length", 160, work=work).exit_code == 0
    made = ecgbyte(
        "reinforce", "--steps", 2, "--batch", 2, "--answers", 3, "--max-new", 4, "--json", work=work
    )
    assert made.exit_code == 0, made.stderr
    _, _, _, about = model_folder.load_model(work / "reinforced", "cpu")
    assert about["method"] == "lora" and about["base"] == str((tmp_path / "base").resolve())
    assert json.loads(made.stdout)["trainable_parameters"] < sum(p.numel() for p in base.parameters())


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--reward", "kind"], 2, "'kind' is none of exact, f1, form, length"),
        (["--reward", "exact:much"], 2, "'exact:much' is none of exact"),
        (["--reward", "form"], 1, "does not write its reasoning"),
        (["--model", "nowhere"], 1, "nowhere has no model"),
        (["--qa", "nowhere.jsonl"], 1, "nowhere.jsonl"),
    ],
)
def test_bad_input_gets_one_line(small, ecgbyte, args, code, said):
    result = ecgbyte("reinforce", *args, work=small / "ecgbyte-work")
    assert result.exit_code == code and said in result.stderr.splitlines()[-1]
