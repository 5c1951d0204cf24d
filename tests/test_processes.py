"""Several processes of one training: they stop together, and wait for the first as long as it takes."""

import datetime
import os
import signal

import pytest
import torch

from ecgbyte_cli.model import processes
from ecgbyte_cli.model.processes import Stop, process_group


def test_one_process_stops_at_once_where_nothing_is_lost_and_else_when_asked():
    with pytest.raises(KeyboardInterrupt), Stop("cpu") as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.agreed()  # it goes on until here
        stop.check()
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt), Stop("cpu") as stop, stop.at_once(), stop.at_once():
            os.kill(os.getpid(), number)
            pytest.fail("it went on")
        assert signal.getsignal(number) == before
    with pytest.raises(KeyboardInterrupt), Stop("cpu") as stop:
        with stop.at_once():
            with stop.at_once():
                pass
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.agreed()
        os.kill(os.getpid(), signal.SIGINT)  # the same signal again
        pytest.fail("it went on")


def test_a_stop_that_nobody_asked_about_ends_the_block():
    with pytest.raises(KeyboardInterrupt), Stop("cpu"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_of_several_processes_all_stop_when_any_was_asked(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    of_the_other = [0, 0, 1, 1]
    monkeypatch.setattr(processes, "over_processes", lambda values, _: [values[0] + of_the_other.pop(0)])
    with Stop("cpu") as stop, stop.at_once():
        assert not stop.agreed()
    with pytest.raises(KeyboardInterrupt), Stop("cpu") as stop:
        stop.check()  # the other one was asked
    with pytest.raises(KeyboardInterrupt), Stop("cpu") as stop, stop.at_once():
        for _ in range(3):  # launchers repeat the signal; nobody leaves before all have agreed
            os.kill(os.getpid(), signal.SIGTERM)
        assert len(of_the_other) == 1
        stop.check()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_others_wait_for_the_first_in_a_group_without_a_limit(monkeypatch, device):
    """The first calibrates and writes the model, which may take longer than NCCL waits."""
    called, distributed = [], torch.distributed
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr("ecgbyte_cli.model.ecg_lm.best_device", lambda: device)
    monkeypatch.setattr(torch.cuda, "set_device", lambda name: called.append(name))
    monkeypatch.setattr(distributed, "init_process_group", called.append)
    monkeypatch.setattr(distributed, "new_group", lambda **given: given)
    monkeypatch.setattr(distributed, "barrier", called.append)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: called.append("left"))
    with process_group():
        pass
    *_, backend, group, left = called
    assert backend == {"cpu": "gloo", "cuda": "nccl"}[device] and left == "left"
    assert group["backend"] == "gloo" and group["timeout"] >= datetime.timedelta(days=1)
