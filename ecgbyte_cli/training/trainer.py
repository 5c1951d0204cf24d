"""The training loop, on one process or several."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgbyte_cli.cli.output import progress
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.runtime.ranks import process_rank
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import checkpoint, training_log
from ecgbyte_cli.training.batch import Batch
from ecgbyte_cli.training.dataset import ReadingPlan, SampleBuilder
from ecgbyte_cli.training.distributed import StopSignal, any_process, sum_over_processes
from ecgbyte_cli.training.optimizer import make_optimizer, warmup_cosine
from ecgbyte_cli.training.sampling import EpochItem, ecg_replacements, first_with_same_ecgs, length_batches
from ecgbyte_cli.training.sharding import is_sharded
from ecgbyte_cli.training.validation import (
    ValidationLoss,
    format_ecg_loss,
    format_loss,
    sample_answers,
    validation_loss,
)

if TYPE_CHECKING:
    from ecgbyte_cli.model.ecg_lm import ECGLM

Losses = tuple[float | None, float | None]  # per text label, and per ECG token

CHECKPOINT_SECONDS = 600  # longest time between checkpoints
PICTURE_SECONDS = 30  # minimum seconds between loss plots: drawing one takes half a second
SHOWN = 3  # answers generated at each validation
VALIDATED, AT_THE_END = 128, 2000  # number of questions in an interim validation, and in the final one


class Trainer:
    """Run a training, with checkpoints, validations and a log.

    The settings and the number of a step determine its samples, learning rate and random numbers (dropout). So a
    checkpoint holds only weights, optimizer state and the losses so far, and a resumed run is
    bit-identical to an uninterrupted one.

    Parameters
    ----------
    work : WorkDir
    lm : ECGLM
    samples : SampleBuilder
    settings : dict
    steps, every : int
        Total number of updates, and updates between validations.
    training : list of ReadingPlan
    validation : list of Question or ReadingPlan
        Ordered so that any prefix is a representative sample. `ReadingPlan`s if there are no questions.
    tell : callable
        Prints a message (first process only).
    """

    label = "finetune"  # text beside the progress bar
    pending = False  # whether the current step still needs its validation

    def __init__(
        self,
        work: WorkDir,
        lm: "ECGLM",
        samples: SampleBuilder,
        settings: dict[str, Any],
        steps: int,
        every: int,
        training: Sequence[ReadingPlan],
        validation: Sequence[Any],
        tell: Callable[[str], object],
    ):
        import torch

        self.work, self.lm, self.samples, self.settings, self.tell = work, lm, samples, settings, tell
        self.steps, self.every, self.training, self.validation = steps, every, training, validation
        self.rank, self.processes = process_rank()
        self.sharded = is_sharded(lm)
        # all processes of a sharded model run, and save it, together
        self.joins_first = self.rank == 0 or self.sharded
        self.model: Any = self.synchronized()
        self.optimizer = make_optimizer(lm, settings)
        scaled = devices.half_type(lm.device) == torch.float16  # small gradients would underflow in float16
        self.scaler = torch.amp.GradScaler(lm.device.type, enabled=scaled)
        if lm.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(lm.device)  # forget the peak of the previous seed's run
        self.ahead = lm.device.type != "cpu"  # whether batches are prepared during the previous step
        self.ready: list[Batch] | None = None  # batches of the next step
        self.schedule = warmup_cosine(steps)
        self.step, self.seen, self.seconds = 0, 0, 0.0
        self.rows: list[dict[str, Any]] = []  # one per step: see `training_log`
        self.best: tuple[int, float] | None = None  # step and loss of the best validation
        self.waited = 0  # validations since the best one
        self.drawn = time.monotonic()  # time of the last loss plot
        self.stop = StopSignal(lm.device)

    def synchronized(self) -> Any:
        """Return the model wrapped so that it exchanges gradients with the other processes."""
        import torch

        if self.processes == 1 or self.sharded:
            return self.lm
        own = [self.lm.device] if self.lm.device.type == "cuda" else None
        return torch.nn.parallel.DistributedDataParallel(self.lm, device_ids=own)

    def run(self) -> None:
        """Train from the current step to the last, or until patience runs out. Call this inside `with self.stop:`.

        A checkpoint is written before each validation, which may take long: a stop skips the validation, and the
        resumed run starts with it.
        """
        batch, per_step = self.settings["batch"], self.settings["accumulate"] * self.processes
        batches = length_batches([plan.length for plan in self.training], batch, self.settings["seed"])
        batches = itertools.islice(batches, self.step * per_step, None)
        groups = itertools.pairwise([next(batches) for _ in range(per_step)] for _ in itertools.count())
        is_first, saved = self.rank == 0, time.monotonic()
        first_step = self.step if self.pending else self.step + 1
        self.lm.train()
        with contextlib.ExitStack() as stack:
            if is_first:
                events = stack.enter_context(
                    contextlib.closing(training_log.TensorBoardEvents(self.work.training, first_step))
                )
                bar = stack.enter_context(progress(self.label, self.steps, "steps"))
            while self.pending or (self.step < self.steps and not self.out_of_patience()):
                stopping, due = False, self.pending
                if not self.pending:
                    self.advance(*next(groups))
                    stopping = self.stop.agreed()
                    # save after the last step too, because the final validation may be interrupted
                    overdue = time.monotonic() - saved > CHECKPOINT_SECONDS
                    if self.sharded:  # all processes save a sharded model together
                        overdue = any_process(overdue, self.lm.device)
                    due = stopping or self.due(self.step) or overdue
                    if due:
                        self.save()
                        saved = time.monotonic()
                if self.pending and not stopping:
                    self.validate_step()
                if is_first and due:
                    self.write_log(stopping or time.monotonic() - self.drawn > PICTURE_SECONDS)
                if is_first and not self.pending:
                    events.add_row(self.rows[-1])
                    bar.update(self.step, self.status())
                if stopping:
                    # launchers kill all processes when one exits, so none exits before the checkpoint is complete
                    self.stop.check()
        if self.out_of_patience():
            self.tell(f"stopped at step {self.step}: no improvement in the last {self.waited} validations")

    def due(self, step: int) -> bool:
        """Return whether a validation and a checkpoint follow a step."""
        return step % self.every == 0 or step == self.steps

    def advance(
        self, groups: Sequence[Sequence[EpochItem]], following: Sequence[Sequence[EpochItem]]
    ) -> None:
        """Update the weights, log the step, and prepare the next step's batches in the meantime."""
        with self.preparing(groups, following):
            losses, rate = self.update(groups)
        if not all(math.isfinite(loss) for loss in losses if loss is not None):
            raise Failure(f"the loss is not finite at step {self.step}: try a lower --lr")
        self.rows.append(self.log_row(rate, losses))
        self.pending = bool(self.validation) and self.due(self.step)

    def validate_step(self) -> None:
        """Validate, and add the result to the log and the checkpoint of the current step."""
        with self.stop.at_once():
            loss = self.validate()
        self.rows[-1] |= self.log_validation(loss)
        self.pending = False
        if self.rank == 0:
            checkpoint.update_progress(self.work.checkpoint("step", self.step), self.progress())
            self.remove_old_checkpoints()

    def log_row(self, rate: float, losses: Losses) -> dict[str, Any]:
        """Return the log entries of a step."""
        return training_log.log_row(self.step, rate, losses)

    def log_validation(self, loss: Any) -> dict[str, Any]:
        """Return the log entries of a validation."""
        return training_log.log_validation(loss)

    def status(self) -> str:
        """Return the text beside the progress bar."""
        return f"loss {format_loss(self.recent_loss(50))}"

    def minutes(self, forward: float, learn: float, afterwards: int = 0) -> dict[str, float]:
        """Estimate the remaining minutes of the run.

        Parameters
        ----------
        forward, learn : float
            Seconds per token for a forward pass, and for a training step, on each process.
        afterwards : int
            Number of tokens that the calibration reads.

        Returns
        -------
        dict of str to float
            `training`, `validation` and `calibration`.
        """
        steps = self.steps - self.step
        validations = self.pending + sum(map(self.due, range(self.step + 1, self.steps + 1)))
        # the processes divide each validation, and the calibration of a model that is not sharded
        between, last = (
            sum(plan.length for plan in self.held_out(count)) / self.processes
            for count in (VALIDATED, AT_THE_END)
        )
        return {
            "training": learn * steps * self.tokens_per_step() / 60,
            "validation": forward * (validations * between + last) / 60,
            "calibration": forward * afterwards / (1 if self.sharded else self.processes) / 60,
        }

    def tokens_per_step(self) -> float:
        """Return the mean number of tokens per update, on each process."""
        mean = float(np.mean([plan.length for plan in self.training]))
        return mean * self.settings["batch"] * self.settings["accumulate"]

    def out_of_patience(self) -> bool:
        """Return whether the last `--patience` validations brought no improvement."""
        return bool(self.settings["patience"]) and self.waited >= self.settings["patience"]

    def update(self, groups: Sequence[Sequence[EpochItem]]) -> tuple[Losses, float]:
        """Update the weights once.

        Parameters
        ----------
        groups : list of list of (int, int)
            Epoch and index of each plan. The groups are divided among the processes.

        Returns
        -------
        ((float or None, float or None), float)
            Loss per text label and per ECG token over all groups, and the learning rate.
        """
        import torch

        start, device = time.perf_counter(), self.lm.device
        rate = self.set_rate()
        seeds = np.random.SeedSequence([self.settings["seed"], self.step, self.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        ready, self.ready = self.ready, None
        batches = ready or self.batches_of_step(groups, self.step)
        counts = np.array([batch.counts for batch in batches])
        totals = sum_over_processes(counts.sum(0).tolist(), device)
        # the loss is the mean over all labels of the step, and the gradients of the processes are averaged
        weights = (1, self.settings["ecg_loss"])
        factors = [w * self.processes / n if n else 0 for w, n in zip(weights, totals, strict=True)]
        summed = []
        for i, batch in enumerate(batches):
            # gradients are synchronised only on the last batch
            local = i + 1 < len(batches) and self.model is not self.lm
            with self.model.no_sync() if local else contextlib.nullcontext():
                with self.lm.autocast():
                    losses = self.model(*batch.to(device))
                self.scaler.scale(losses[0] * factors[0] + losses[1] * factors[1]).backward()
            summed.append(losses.detach())
        self.apply_gradients()
        # the only place where the host waits for the GPU; by now the whole step is queued
        loss_sums = torch.stack(summed).cpu().double().sum(0)
        tokens = sum(batch.ids.numel() for batch in batches)
        text, ecg, seen = sum_over_processes([*loss_sums.tolist(), tokens], device)
        self.seen += int(seen)
        self.seconds += time.perf_counter() - start
        return (text / totals[0] if totals[0] else None, ecg / totals[1] if totals[1] else None), rate

    @contextlib.contextmanager
    def preparing(
        self, groups: Sequence[Sequence[EpochItem]], following: Sequence[Sequence[EpochItem]]
    ) -> Iterator[None]:
        """Prepare the next step's batches in a thread, while a GPU runs the current step.

        No other thread makes batches at that time: text tokenizers and parallel kernels are not thread-safe.
        """
        step = self.step + 1
        if not self.ahead or step >= self.steps:
            yield
            return
        self.ready = self.ready or self.batches_of_step(groups, self.step)
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.batches_of_step, following, step)
            yield
            self.ready = ahead.result()

    def batches_of_step(self, groups: Sequence[Sequence[EpochItem]], step: int) -> list[Batch]:
        """Return this process's groups of a step as batches, with some ECGs replaced."""
        seed, learn_ecg = self.settings["seed"], self.settings["ecg_loss"] > 0
        count = sum(map(len, groups))
        replacements = iter(ecg_replacements(seed, step, count, self.settings["without_ecg"]))
        replaced = [[(epoch, i, next(replacements)) for epoch, i in group] for group in groups]
        batches = []
        for number in range(self.rank, len(replaced), self.processes):
            # the ECGs of a batch have the same leads, and so similar lengths
            leads = self.samples.draw_leads(np.random.default_rng([seed, step, number, 2]))
            readings = [
                self.samples.reading(
                    self.training[i], replacement, np.random.default_rng([seed, epoch, i]), learn_ecg, leads
                )
                for epoch, i, replacement in replaced[number]
            ]
            batches.append(self.samples.batch(readings))
        return [batch.pinned() for batch in batches] if self.lm.device.type == "cuda" else batches

    def set_rate(self) -> float:
        """Set the learning rate of the next step, and return it."""
        rate = self.settings["lr"] * self.schedule(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("times", 1.0)
        return rate

    def apply_gradients(self) -> None:
        """Clip the gradients, update the weights and clear the gradients."""
        import torch

        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_([p for p in self.lm.parameters() if p.requires_grad], 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def recent_loss(self, steps: int) -> float | None:
        """Return the mean training loss of the last steps: the text loss, or the ECG loss if there are no questions."""
        name = "train_loss" if self.settings["qa"] else "train_ecg_loss"
        # a step may contain only samples that generate an ECG
        losses = [row[name] for row in self.rows if name in row][-steps:]
        return float(np.mean(losses)) if losses else None

    def validate(self) -> Any:
        """Validate on some questions, report the loss, and keep the weights if they are the best so far."""
        validation = self.validation_loss(self.held_out(VALIDATED))
        text, ecg, bits = validation
        loss = ecg if text is None else text
        assert loss is not None, "there are validation samples"
        trained = f"training loss {format_loss(self.recent_loss(self.every))}, " if self.rows else ""
        self.tell(f"step {self.step}: {trained}validation loss {loss:.4f}{format_ecg_loss(ecg, bits)}")
        if self.settings["draw"]:  # generating ECGs is also an objective, with the same weight as in training
            loss = (text or 0.0) + self.settings["ecg_loss"] * (ecg or 0.0)
        if self.joins_first and self.settings["qa"]:
            max_new = 128 if self.settings["think"] else 32
            for line in sample_answers(self.lm, self.samples, self.validation[:SHOWN], max_new):
                self.tell(line)
        self.keep_if_best(loss)
        return validation

    def keep_if_best(self, loss: float) -> None:
        """Keep the weights if this loss is the lowest so far."""
        self.waited += 1
        if self.best is None or loss < self.best[1]:
            self.best, self.waited = (self.step, loss), 0
            if self.joins_first and self.step < self.steps:
                checkpoint.save_best(self.work.checkpoint("best", self.step), self.lm)

    def held_out(self, count: int) -> list[ReadingPlan]:
        """Return plans of the first `count` validation questions, or segments.

        If questions share readings, all other validation questions about the same ECGs are included. They cost little
        and make the choice of the best step much less noisy.
        """
        if not self.settings["qa"]:
            return list(self.validation[:count])
        shared = self.samples.together != 1
        questions = first_with_same_ecgs(self.validation, count) if shared else self.validation[:count]
        return self.samples.plans(questions)[0]

    def validation_loss(self, plans: Sequence[ReadingPlan], bar: Any = None) -> ValidationLoss:
        """Return the `validation_loss` of plans. A stop signal ends it immediately."""
        learn_ecg = self.settings["ecg_loss"] > 0
        with self.stop.at_once():
            return validation_loss(
                self.lm, self.samples, plans, self.settings["batch"], learn_ecg, bar, self.stop.check
            )

    def result(self) -> dict[str, Any]:
        """Load the best weights, and return the results of the run."""
        import torch

        self.load_best()
        plans = self.held_out(AT_THE_END)
        count = sum(max(1, len(plan.questions)) for plan in plans)
        shown = progress("validation", count, "questions") if self.rank == 0 else contextlib.nullcontext()
        with shown as bar:
            text, ecg, bits = self.validation_loss(plans, bar)
        cuda = self.lm.device.type == "cuda"
        return {
            "steps": self.step,
            "train_loss": self.recent_loss(max(1, self.step // 10)),
            "val_loss": text if self.settings["qa"] else ecg,
            "best_step": self.best[0] if self.best else self.step,
            "tokens_per_second": self.seen / self.seconds,
            "trainable_parameters": sum(p.numel() for p in self.lm.parameters() if p.requires_grad),
            "ecg_loss": ecg,
            "ecg_perplexity": ecg and math.exp(min(ecg, 700)),
            "bits_per_second": bits,
            "peak_gpu_mb": torch.cuda.max_memory_allocated(self.lm.device) / 2**20 if cuda else None,
            "seconds": self.seconds,
        }

    def load_best(self) -> None:
        """Load the best weights, and write the log."""
        if self.best and self.best[0] != self.step:
            checkpoint.load_weights(self.work.checkpoint("best", self.best[0]), self.lm)
            self.tell(f"keeping the model from step {self.best[0]} (lowest validation loss)")
        if self.rank == 0:
            self.write_log(picture=True)

    def write_log(self, picture: bool) -> None:
        """Write the losses as CSV, and plot them if `picture` is true."""
        training_log.write_loss_csv(self.work.loss_csv, self.rows)
        if picture:
            title = f"{self.settings['base']} ({self.settings['method']})"
            training_log.plot_losses(self.work.loss_picture, self.rows, title)
            self.drawn = time.monotonic()

    def save(self) -> None:
        """Write a checkpoint, then remove the previous one, so that a complete checkpoint always exists."""
        folder = self.work.checkpoint("step", self.step)
        if self.joins_first:
            checkpoint.save_checkpoint(folder, self.lm, self.optimizer, self.settings, self.progress())
        if self.rank == 0:
            self.remove_old_checkpoints()

    def restore(self, folder: Path) -> None:
        """Resume from a checkpoint."""
        progress = checkpoint.load_checkpoint(folder, self.lm, self.optimizer)
        self.step, self.seen, self.seconds = progress["step"], progress["seen"], progress["seconds"]
        self.rows, self.best, self.waited = progress["rows"], progress["best"], progress["waited"]
        self.pending = progress.get("pending", False)  # older versions validated before saving
        if progress.get("scaler"):
            self.scaler.load_state_dict(progress["scaler"])

    def progress(self) -> dict[str, Any]:
        """Return the progress for a checkpoint."""
        names = ("step", "seen", "seconds", "rows", "best", "waited", "pending")
        return {name: getattr(self, name) for name in names} | {"scaler": self.scaler.state_dict()}

    def remove_old_checkpoints(self) -> None:
        """Remove the checkpoints that are no longer needed."""
        checkpoint.remove_old_checkpoints(self.work, self.best[0] if self.best else None)
