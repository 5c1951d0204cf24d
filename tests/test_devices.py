"""The choice of a device and of its types, by what PyTorch, torchrun and Slurm say; nothing is computed on a GPU."""

import os
import threading

import numpy as np
import pytest
import torch
from test_finetune import SETTINGS, begun

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import cluster, devices, ranks
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import cost, optimizer
from ecgbyte_cli.training.plans import read_samples
from ecgbyte_cli.training.trainer import Trainer

LAUNCHED = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No launcher, whatever starts the tests; what a test sets is undone, and what the code sets too."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that there are some GPUs, of a compute capability."""

    def pretend(count, capability=(8, 0), apple=False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)

    return pretend


@pytest.mark.parametrize(
    ("count", "wanted", "device"),
    [
        *((0, None, "cpu"), (0, "auto", "cpu"), (1, "auto", "cuda"), (4, None, "cuda"), (4, "cpu", "cpu")),
        *((4, "cuda", "cuda"), (4, "cuda:3", "cuda:3"), (0, "mps", "mps"), (1, "mps", "mps")),
    ],
)
def test_a_device_that_is_there_is_taken(gpus, count, wanted, device):
    gpus(count, apple=True)
    assert devices.choose_device(wanted, "lora") == device


@pytest.mark.parametrize(
    ("count", "wanted", "method", "says"),
    [
        (1, "gpu", None, "it must be auto, cpu, cuda"),
        (1, "cuda:x", None, "it must be"),
        (0, "cuda", None, "finds no GPU: install its build for your GPU, or use --device cpu"),
        (1, "cuda:1", None, "this machine has one GPU, cuda:0"),
        (2, "cuda:2", None, "2 GPUs, cuda:0 to cuda:1"),
        (0, "mps", "full", "no Apple GPU"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpus, count, wanted, method, says):
    gpus(count)
    with pytest.raises(Failure, match=says):
        devices.choose_device(wanted, method)


def test_a_gpu_of_apple_takes_no_4_bit_weights(gpus, monkeypatch):
    gpus(0, apple=True)
    with pytest.raises(Failure, match="4-bit weights: use --method lora or full"):
        devices.choose_device("mps", "qlora")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Failure, match="one process"):
        devices.choose_device("mps", "lora")


def test_each_process_of_a_machine_has_a_gpu(gpus, monkeypatch):
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    gpus(2)
    assert devices.choose_device() == "cuda:1"
    with pytest.raises(Failure, match="each of 8 processes"):
        devices.choose_device("cuda:0")
    gpus(1)
    with pytest.raises(Failure, match="cuda:1: this machine has one GPU"):
        devices.choose_device("cuda")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert devices.choose_device("cuda") == "cuda:0"  # the one that Slurm shows to the task


def test_a_command_refuses_a_wrong_device(ecgbyte, tmp_path):
    wrong = ecgbyte("chat", tmp_path / "r.hea", "--device", "gpu")
    assert wrong.exit_code == 2 and "'gpu' must be auto, cpu, cuda, cuda:N" in wrong.stderr
    (tmp_path / "r.hea").write_text("")
    absent = ecgbyte("finetune", "--qa", "q.jsonl", "--device", "cuda:77", "--help")
    assert absent.exit_code == 0 and "--device" in absent.stdout


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[03-05,9],big1", "gpu03"),
        ("a-[1,4]", "a-1"),
        ("rack[2-3]n[10-12].local", "rack2n10.local"),
        ("x,y", "x"),
    ],
)
def test_srun_alone_starts_several_processes(monkeypatch, nodes, first):
    for name, value in {
        **{"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5"},
        **{"SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": nodes},
    }.items():
        monkeypatch.setenv(name, value)
    assert ranks.process_rank() == (5, 8) and ranks.local_rank() == 1
    assert os.environ["MASTER_ADDR"] == first and 20_000 <= int(os.environ["MASTER_PORT"]) < 40_000


def test_a_batch_script_of_slurm_is_one_process(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert ranks.process_rank() == (0, 1)


def test_torchrun_in_srun_is_in_charge(monkeypatch):
    for name, value in {
        **LAUNCHED,
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert ranks.process_rank() == (5, 8)


def test_nodes_in_another_form_are_refused(monkeypatch):
    for name, value in {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "gpu[;]")
    with pytest.raises(Failure, match="set MASTER_ADDR"):
        ranks.process_rank()


@pytest.mark.parametrize(
    ("capability", "half"), [((7, 0), "float16"), ((7, 5), "float16"), ((9, 0), "bfloat16")]
)
def test_older_gpus_compute_in_float16(gpus, capability, half):
    gpus(1, capability)
    assert devices.half_type("cuda:0") == getattr(torch, half)
    assert devices.half_type("mps") is None


def test_workers_share_the_gpus_of_their_machine(gpus):
    gpus(2)
    workers = {f"tcp://a:{port}": {"host": "a"} for port in (30, 10, 20)} | {"tcp://b:5": {"host": "b"}}
    given = {address: devices.gpu_of_worker(workers, address) for address in workers}
    assert given == {
        "tcp://a:10": "cuda:0",
        "tcp://a:20": "cuda:1",
        "tcp://a:30": "cuda:0",
        "tcp://b:5": "cuda:0",
    }
    gpus(1)
    assert devices.gpu_of_worker(workers, "tcp://a:10") is None
    assert cluster.device_here("cpu") == "cpu" and cluster.device_here(None) is None  # not on a worker


@pytest.fixture
def trainer(small, tmp_path):
    """Return a function that begins a training of one batch a step."""
    work, settings = (
        WorkDir(small / "ecgbyte-work"),
        SETTINGS | {"batch": 1, "accumulate": 1, "without_ecg": 0.0},
    )
    _, samples = begun(work, 80)
    read = read_samples(work, small / "data" / "qa.jsonl", samples, 0, print)[:2]

    def begin():
        lm, samples = begun(work, 80)
        return Trainer(WorkDir(tmp_path), lm, samples, settings | {"qa": "…"}, 4, 9, *read, print)

    return begin


def test_float16_scales_the_gradients_and_resumes(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "half_type", lambda _: torch.float16)
    before, after = trainer(), trainer()
    before.scaler.load_state_dict(before.scaler.state_dict() | {"scale": 2.0**127})
    before.update([[(0, 0)]])
    assert before.scaler.get_scale() == 2.0**126  # the step overflowed, and is left out
    for one, other in zip(before.lm.parameters(), after.lm.parameters(), strict=True):
        assert torch.equal(one, other)
    before.scaler.load_state_dict(before.scaler.state_dict() | {"scale": 4.0})
    before.update([[(0, 1)]])
    before.save()
    after.restore(next(tmp_path.glob("training/step-*")))
    assert after.scaler.state_dict() == before.scaler.state_dict()
    assert before.update([[(0, 2)]]) == after.update([[(0, 2)]])
    for one, other in zip(before.lm.parameters(), after.lm.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_plan_measures_an_update_that_does_not_overflow(trainer, monkeypatch):
    monkeypatch.setattr(devices, "half_type", lambda _: torch.float16)
    made = trainer()
    made.scaler.load_state_dict(made.scaler.state_dict() | {"scale": 2.0**127, "backoff_factor": 2.0**-62})
    memory = cost._measure_memory(made, np.arange(2))
    assert made.scaler.get_scale() < 2.0**127
    assert memory["optimizer"] == pytest.approx(2 * memory["gradients"], rel=0.01)


def test_the_state_of_the_ecg_rows_has_32_bits(trainer, monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(optimizer, "in_8_bits", lambda *_: True)
    made = trainer()
    made.update([[(0, 0)]])
    kinds = {
        name: made.optimizer.state[p]["state1"].dtype
        for name, p in made.lm.named_parameters()
        if p.numel() >= 4096  # bitsandbytes keeps smaller ones in 32 bits
    }
    assert kinds.pop("ecg_rows.weight") == torch.float32
    assert kinds and set(kinds.values()) == {torch.uint8}


def test_the_next_batches_are_prepared_during_a_step(trainer):
    plain, ahead = trainer(), trainer()
    groups = [[[(0, number)]] for number in range(4)]
    build, threads = ahead.batches_of_step, []

    def watched(*args):
        threads.append(threading.current_thread() is threading.main_thread())
        return build(*args)

    ahead.ahead, ahead.batches_of_step = True, watched
    for now, following in zip(groups, [*groups[1:], groups[0]], strict=True):
        with ahead.preparing(now, following):
            made = ahead.update(now)
        assert made == plain.update(now)
    assert threads == [True, False, False, False] and ahead.ready is None  # none behind the last step
