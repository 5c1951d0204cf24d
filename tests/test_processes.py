"""Several processes of one training: they stop together, share the work, and wait for the first to write."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from launching import Launcher
from safetensors.torch import load_file
from test_finetune import as_tiny, losses, untrained

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference import certainty
from ecgbyte_cli.model import model_folder, tiny
from ecgbyte_cli.training import distributed as distributed_module
from ecgbyte_cli.training.distributed import StopSignal, failing_together, process_group
from ecgbyte_cli.training.sharding import check_sharding


def test_one_process_stops_at_once_where_nothing_is_lost_and_else_when_asked():
    with pytest.raises(KeyboardInterrupt), StopSignal("cpu") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()  # it goes on until here
        stop.check()
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt), StopSignal("cpu") as stop, stop.at_once(), stop.at_once():
            os.kill(os.getpid(), number)
            pytest.fail("it went on")
        assert signal.getsignal(number) == before
    with pytest.raises(KeyboardInterrupt), StopSignal("cpu") as stop:
        with stop.at_once():
            with stop.at_once():
                pass
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()
        os.kill(os.getpid(), signal.SIGINT)  # the same signal again
        pytest.fail("it went on")


def test_a_stop_that_nobody_asked_about_ends_the_block():
    with pytest.raises(KeyboardInterrupt), StopSignal("cpu"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_of_several_processes_all_stop_when_any_was_asked(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    of_the_other = [0, 0, 1, 1]
    monkeypatch.setattr(
        distributed_module, "sum_over_processes", lambda values, _: [values[0] + of_the_other.pop(0)]
    )
    with StopSignal("cpu") as stop, stop.at_once():
        assert not stop.agreed()
    with pytest.raises(KeyboardInterrupt), StopSignal("cpu") as stop:
        stop.check()  # the other one was asked
    with pytest.raises(KeyboardInterrupt), StopSignal("cpu") as stop, stop.at_once():
        for _ in range(3):  # launchers repeat the signal; nobody leaves before all have agreed
            os.kill(os.getpid(), signal.SIGTERM)
        assert len(of_the_other) == 1
        stop.check()


class Store(dict):
    """As that of torch, which another process fills in the meantime."""

    def __init__(self, looks):
        self.looks = looks

    set = dict.__setitem__

    def check(self, names):
        self.looks -= 1
        if not self.looks:
            self.set("done", "")
        return all(name in self for name in names)


@pytest.mark.parametrize(("rank", "looks"), [(0, 9), (1, 4)])
@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "nccl")])
def test_all_wait_for_the_first_before_they_meet(monkeypatch, rank, looks, device, backend):
    """It calibrates and writes the model, which may take longer than NCCL lets the others wait in a barrier."""
    called, store, distributed = [], Store(looks), torch.distributed
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("ecgbyte_cli.runtime.devices.choose_device", lambda *_: device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(distributed_module.time, "sleep", lambda _: called.append("waits"))
    monkeypatch.setattr(distributed, "rendezvous", lambda _: iter([(store, rank, 2)]))
    monkeypatch.setattr(distributed, "PrefixStore", lambda _, store: store)
    monkeypatch.setattr(distributed, "init_process_group", lambda name, **_: called.append(name))
    monkeypatch.setattr(distributed, "barrier", lambda: called.append("meets"))
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: called.append("leaves"))
    with process_group(None, "lora"):
        called.append("trains")
    assert called == [backend, "trains", *["waits"] * (looks - 1 if rank else 0), "meets", "leaves"]


def test_a_failure_of_one_process_is_one_of_all(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    of_the_other = 0
    monkeypatch.setattr(
        distributed_module, "sum_over_processes", lambda values, _: [values[0] + of_the_other]
    )
    with failing_together("cpu"):
        pass
    with pytest.raises(RuntimeError, match="of my own"), failing_together("cpu"):
        raise RuntimeError("of my own")
    of_the_other = 1
    with pytest.raises(RuntimeError, match="another process"), failing_together("cpu"):
        pass
    monkeypatch.undo()
    monkeypatch.setenv("WORLD_SIZE", "2")  # and there is no group: the other has ended
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda _: torch.zeros(2) + torch.zeros(3))
    with pytest.raises(Failure, match="has ended"), failing_together("cpu"):
        pass


@pytest.fixture(scope="module")
def launch():
    with Launcher() as launcher:
        yield launcher


def finetuning(small, *more):
    args = ["finetune", "--qa", small / "data" / "qa.jsonl", "--model", "tiny", "--steps", 4, "--every", 2]
    return [*args, "--batch", 1, "--max-length", 80, "--json", *more]


def weights_of(work):
    files = sorted(file for file in (work / "model").rglob("*.safetensors") if file.name != certainty.PAIRS)
    assert len(files) == 2
    return {f"{file.name}:{key}": value for file in files for key, value in load_file(file).items()}


KILLS = [  # from the beginning of a training to its end
    ("loading", 1, 1),
    ("validation", 1, 1),
    ("checkpoint", 1, 0),  # that of step 2
    ("validation", 2, 1),  # behind step 2
    ("step", 2, 1),  # the last, after the checkpoint of step 2
    ("calibration", 1, 1),
    ("model", 1, 0),
]


def test_two_processes_killed_at_every_stage_end_as_if_undisturbed(small, tmp_path, launch):
    work, undisturbed = untrained(small, tmp_path / "work"), untrained(small, tmp_path / "undisturbed")
    args = finetuning(small)
    for number, (place, times, rank) in enumerate(KILLS):
        stop = {"place": place, "times": times, "rank": rank, "signal": "SIGKILL"}
        codes, stderr = launch(tmp_path / str(number), 2, (["--work", work, *args], stop))
        assert codes[rank] == [] and codes[1 - rank] in ([], [1]), stderr  # it may notice before it is killed
        assert not (work / "model").exists()
    codes, stderr = launch(tmp_path / "last", 2, (["--work", work, *args], None))
    assert codes == [[0], [0]] and "resuming after step 4 of 4" in stderr[0], stderr
    assert not stderr[1]  # the first process alone prints
    codes, stderr = launch(tmp_path / "whole", 2, (["--work", undisturbed, *args], None))
    assert codes == [[0], [0]], stderr
    assert losses(work) == losses(undisturbed) and len(losses(work)) == 4
    weights, others = weights_of(work), weights_of(undisturbed)
    assert weights.keys() == others.keys() and all(
        torch.equal(weights[name], others[name]) for name in others
    )
    assert {path.name.split(".")[0] for path in (work / "training").iterdir()} == {"loss", "events"}


def test_four_processes_stop_together_and_are_one_with_four_times_the_batches(small, tmp_path, launch):
    work, alone = untrained(small, tmp_path / "work"), untrained(small, tmp_path / "alone")
    args = ["--work", work, *finetuning(small)]
    places = [
        ("validation", 1, 3),
        ("step", 1, 2),
        ("step", 1, 0),
        ("validation", 2, 1),
        ("validation", 4, 3),  # the final one
    ]
    stops = [{"place": p, "times": n, "rank": r, "signal": "SIGTERM"} for p, n, r in places]
    codes, stderr = launch(tmp_path / "four", 4, *((args, stop) for stop in stops), (args, None))
    assert codes == [[1] * len(stops) + [0]] * 4, stderr
    assert [stderr[0].count(f"resuming after step {step} of 4") for step in (1, 2, 4)] == [1, 2, 1], stderr[0]
    codes, stderr = launch(
        tmp_path / "one", 1, (["--work", alone, *finetuning(small, "--accumulate", 4)], None)
    )
    assert codes == [[0]], stderr
    assert_same_training(work, alone)
    first, second = (
        json.loads((folder / "model" / "certainty.json").read_text()) for folder in (work, alone)
    )
    assert first["groups"] == second["groups"] and first["calibrated_on"] == second["calibrated_on"]
    assert first["temperature"] and first["temperature"] == pytest.approx(second["temperature"], rel=0.06)
    for text, point in first["points"].items():
        assert point == pytest.approx(second["points"][text], rel=0.02, abs=1e-3)


def assert_same_training(one, other):
    """The same losses and weights, but for rounding."""
    for row, beside in zip(losses(one), losses(other), strict=True):
        assert list(map(float, filter(None, row))) == pytest.approx(
            list(map(float, filter(None, beside))), rel=1e-5
        )
    weights, others = weights_of(one), weights_of(other)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        assert (value - others[name]).norm() <= 1e-4 * others[name].norm(), name


@pytest.mark.parametrize("case", ["full", "lora", "further"])
def test_a_sharded_training_is_that_of_one_process(small, tmp_path, launch, case):
    """It resumes as a sharded one and as a usual one, and the model folder is like any other."""
    work, alone = untrained(small, tmp_path / "work"), untrained(small, tmp_path / "alone")
    more = {
        "full": [],
        "lora": ["--method", "lora", "--dropout", 0],
        "further": ["--model", small / "ecgbyte-work" / "model", "--rehearse", 2, "--types", "rhythm"],
    }[case]
    if case == "lora":
        more += ["--model", as_tiny(tiny.build_tiny(), tmp_path / "base")]
    usual = ["--work", work, *finetuning(small, *more)]
    stop = {"place": "step", "times": 1, "rank": 1, "signal": "SIGTERM"}
    codes, stderr = launch(
        *(tmp_path / "two", 2, ([*usual, "--plan", "--shard"], None)),
        *(([*usual, "--shard"], stop), (usual, stop), ([*usual, "--shard"], None)),
    )
    assert codes == [[0, 1, 1, 0]] * 2, stderr
    assert "resuming after step 1 of 4" in stderr[0] and "resuming after step 2 of 4" in stderr[0]
    plan = json.loads((tmp_path / "two" / "stdout-0").read_text().splitlines()[0])
    if case == "full":
        assert plan["memory_mb"]["weights"] == plan["memory_mb"]["gradients"] == 1 and plan["checkpointing"]
    codes, stderr = launch(
        tmp_path / "one", 1, (["--work", alone, *finetuning(small, *more, "--accumulate", 2)], None)
    )
    assert codes == [[0]], stderr
    assert_same_training(work, alone)
    loaded, other = (model_folder.load_model(folder / "model", "cpu") for folder in (work, alone))
    assert loaded[3]["base_sha256"] == other[3]["base_sha256"]
    assert loaded[0].state_dict().keys() == other[0].state_dict().keys()


def test_a_training_that_cannot_be_sharded_says_so(monkeypatch):
    with pytest.raises(Failure, match="among several processes"):
        check_sharding(True, "full")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_sharding(True, "full")
    with pytest.raises(Failure, match="4-bit"):
        check_sharding(True, "qlora")
    check_sharding(False, "qlora")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # of `accelerate launch --use_fsdp`
    with pytest.raises(Failure, match="--use_fsdp does not work"):
        check_sharding(False, "full")


def rewards(work):
    with open(work / "reinforcing" / "reward.csv", newline="") as file:
        return [[float(value or 0) for value in row.values()] for row in csv.DictReader(file)]


def test_two_processes_reinforce_as_one_with_twice_the_batches(small, tmp_path, launch):
    ignored = shutil.ignore_patterns("answers", "training")
    work, alone = (
        Path(shutil.copytree(small / "ecgbyte-work", tmp_path / name, ignore=ignored))
        for name in ("work", "alone")
    )
    args = ["reinforce", "--model", work / "model", "--steps", 3, "--every", 2, "--batch", 1, "--answers", 3]
    args += ["--max-new", 6, "--temperature", 1.3, "--reward", "exact", "--reward", "length:0.5", "--json"]
    stop = {"place": "answers", "times": 2, "rank": 1, "signal": "SIGTERM"}
    two = ["--work", work, *args]
    codes, stderr = launch(tmp_path / "killed", 2, (two, stop | {"times": 1, "signal": "SIGKILL"}))
    assert codes[1] == [] and codes[0] in ([], [1]), stderr
    codes, stderr = launch(tmp_path / "two", 2, (two, stop), ([*two, "--checkpointing", "on"], None))
    assert codes == [[1, 0]] * 2 and "resuming after step 2 of 3" in stderr[0], stderr
    result = json.loads((tmp_path / "two" / "stdout-0").read_text().splitlines()[-1])
    codes, stderr = launch(tmp_path / "one", 1, (["--work", alone, *args, "--accumulate", 2], None))
    assert codes == [[0]], stderr
    # with the distance to the initial model, which follows from all weights
    np.testing.assert_allclose(rewards(work), rewards(alone), rtol=1e-4, atol=1e-9)
    assert len(rewards(work)) == result["steps"] == 3 and result["kl"] > 0
    assert (work / "reinforced" / "ecgbyte.json").exists()
