"""Several processes of one training: they stop together, and wait for the first as long as it takes."""

import os
import signal

import pytest
import torch

from ecgbyte_cli.training import distributed as distributed_module
from ecgbyte_cli.training.distributed import StopSignal, process_group


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
