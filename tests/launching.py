"""Processes of one training on the CPU, as torchrun starts them, without the time that their imports take.

`Launcher` starts this file once. It imports everything and forks the processes of each launch, which run commands of
ecgbyte one after another. As under a launcher, all processes are ended when one of them dies.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

# what a training imports, and PyTorch in its optimizers and its parallel modules
IMPORTED = (
    *("ecgbyte_cli.stages.finetune", "ecgbyte_cli.stages.reinforce", "ecgbyte_cli.training.setup"),
    *(
        "ecgbyte_cli.training.calibration",
        "ecgbyte_cli.training.grpo",
        "matplotlib.backends.backend_agg",
        "peft",
    ),
    *("torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor", "torch.utils.checkpoint"),
)
LONGEST = 900  # seconds of a launch


class Launcher:
    """Launch processes. Use it in a `with` statement."""

    def __enter__(self):
        self.helper = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        return self

    def __exit__(self, *_):
        self.helper.stdin.close()
        self.helper.wait(60)

    def __call__(self, folder, processes, *commands):
        """Run commands on several processes, and return what each process did.

        Parameters
        ----------
        folder : Path
            Gets the output of the processes.
        processes : int
        *commands : (list of str, dict or None)
            Arguments of ecgbyte, and where a process gets a signal: `place` (a name of PLACES), `times` (at which
            call), `rank`, `signal`.

        Returns
        -------
        (list of list of int, list of str)
            Of each process: the exit codes of its commands, shorter if it died; and its standard error.
        """
        folder.mkdir()
        commands = [([str(arg) for arg in args], stop) for args, stop in commands]
        self.helper.stdin.write(json.dumps([str(folder), processes, commands]) + "\n")
        self.helper.stdin.flush()
        assert self.helper.stdout.readline() == "done\n"
        codes = [list(map(int, (folder / f"codes-{rank}").read_text().split())) for rank in range(processes)]
        return codes, [(folder / f"stderr-{rank}").read_text() for rank in range(processes)]


def places():
    """Return where a process can get a signal: by name, an object and the name of its function."""
    from ecgbyte_cli.model import model_folder
    from ecgbyte_cli.model.ecg_lm import ECGLM
    from ecgbyte_cli.training import checkpoint, setup, trainer
    from ecgbyte_cli.training.grpo import GRPOTrainer

    return {
        "loading": (setup, "plan_training"),
        "validation": (trainer, "validation_loss"),
        "step": (trainer.Trainer, "update"),
        "answers": (GRPOTrainer, "sample"),
        "checkpoint": (checkpoint, "save_weights"),
        "calibration": (ECGLM, "weigh"),
        "model": (model_folder, "save_model"),
    }


@contextlib.contextmanager
def signalled(stop, rank):
    """Send a signal to this process where `stop` says, within the block."""
    if not stop or stop["rank"] != rank:
        yield
        return
    owner, name = places()[stop["place"]]
    original, calls = getattr(owner, name), 0

    def counted(*args, **options):
        nonlocal calls
        calls += 1
        if calls == stop["times"]:
            os.kill(os.getpid(), signal.Signals[stop["signal"]])
        return original(*args, **options)

    setattr(owner, name, counted)
    try:
        yield
    finally:
        setattr(owner, name, original)


def run_commands(folder, rank, commands):
    """Run the commands of a process, and write its exit codes."""
    from ecgbyte_cli.__main__ import main
    from ecgbyte_cli.training import calibration, trainer

    trainer.SHOWN, trainer.AT_THE_END, calibration.WEIGHED = 1, 12, 12  # little, beside what is tested
    calibration.LEAST, calibration.LEAST_EACH = 4, 2
    for name in ("stdout", "stderr"):
        with open(folder / f"{name}-{rank}", "w") as file:
            os.dup2(file.fileno(), getattr(sys, name).fileno())
    with open(folder / f"codes-{rank}", "a") as file:
        for args, stop in commands:
            with signalled(stop, rank):
                try:
                    main(args)
                except SystemExit as end:
                    code = end.code or 0
            file.write(f"{code}\n")
            file.flush()
            if code and not stop:  # the others would wait for this process
                os._exit(1)


def fork(folder, processes, commands):
    """Run commands on several processes, and end all when one dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = {}
    for rank in range(processes):
        (folder / f"codes-{rank}").touch()
        if child := os.fork():
            running[child] = rank
            continue
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        code = 1
        try:
            run_commands(folder, rank, commands)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + LONGEST
    while running:
        child, status = os.waitpid(-1, os.WNOHANG)
        running.pop(child, None)
        if status or time.monotonic() > end:
            for other in running:
                os.kill(other, signal.SIGKILL)
        time.sleep(0 if child else 0.02)


def serve():
    """Fork the processes of each launch that standard input names."""
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("ecgbyte_cli.model.tiny").build_tiny()
    for line in sys.stdin:
        folder, processes, commands = json.loads(line)
        fork(Path(folder), processes, commands)
        print("done", flush=True)


if __name__ == "__main__":
    serve()
