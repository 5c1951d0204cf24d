"""The training loop and its checkpoints, on one process or several."""

import contextlib
import itertools
import math
import shutil
import time

import numpy as np

from ecgbyte_cli.cli.output import progress
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import atomic_folder, read_json, write_json
from ecgbyte_cli.storage.manifest import completed_result, used_settings
from ecgbyte_cli.training import checkpoint, training_log
from ecgbyte_cli.training.distributed import StopSignal, process_rank, sum_over_processes
from ecgbyte_cli.training.optimizer import make_optimizer, warmup_cosine
from ecgbyte_cli.training.sampling import ecg_replacements, length_batches
from ecgbyte_cli.training.validation import (
    autocast,
    count_labels,
    format_ecg_loss,
    format_loss,
    sample_answers,
    validation_loss,
)

TENSORBOARD = {
    "train_loss": "loss/training",
    "val_loss": "loss/validation",
    "learning_rate": "learning rate",
    "train_ecg_loss": "ECG loss/training",
    "val_ecg_loss": "ECG loss/validation",
    "val_ecg_perplexity": "ECG perplexity/validation",
    "val_bits_per_second": "bits per second and lead/validation",
    "reward": "reward/training",
    "val_reward": "reward/validation",
    "exact": "exact match/training",
    "answer_tokens": "tokens an answer",
    "kl": "KL to the model at the beginning",
}
# of the options that stand in the settings as they were given; the command's help explains None
DEFAULTS = {
    **{"ecg_rows": "train", "ecg_init": "signal", "positions": None, "ecg_loss": None, "draw": None},
    **{"think": False, "types": (), "weights": None, "system": None, "augment": 0.0, "dropout": None},
    **{"rank": None, "alpha": None, "steps": None, "batch": 4, "accumulate": 1, "together": None, "lr": None},
    **{"rows_lr": None, "weight_decay": None, "max_length": 4096, "long": "trim", "without_ecg": 0.1},
    **{"every": None, "patience": None, "seed": 0},
}
CHECKPOINT_SECONDS = 600  # a checkpoint at least so often
SHOWN = 3  # answers generated at each validation
VALIDATED, AT_THE_END = 128, 2000  # questions of a validation between steps, and of the one after the last


def unfinished_checkpoint(work, settings, overwrite):
    """The newest checkpoint of a training with these settings that was not finished, or None.

    Raises
    ------
    Failure
        If there is one with other settings and no finished model, and `overwrite` is false.
    """
    checkpoint = work.checkpoints("step")
    if overwrite or not checkpoint:
        return None
    state = checkpoint[-1] / "state.json"
    if used_settings(read_json(state)["settings"]) == used_settings(settings):
        return checkpoint[-1]
    if not work.model_settings.exists():
        completed_result(state, settings, overwrite, "an unfinished training")  # says what differs
    return None


class Trainer:
    """The loop, its checkpoints, and what it writes about itself.

    What happens at a step follows from the settings and the number of the step alone: the order of the samples,
    the learning rate and the random numbers (dropout) are made anew from them. So a checkpoint holds weights,
    the optimizer's state and the losses so far, and a training that goes on from it is the same, bit by bit.

    Parameters
    ----------
    work : WorkDir
    lm : ECGLM
    samples : Samples
    settings : dict
    steps, every : int
        Updates in all, and between validations.
    training : list of Plan
    validation : list of Question
        So that any beginning stands for all; of a training without questions, of segments.
    tell : callable
        Prints a remark, on the first process.
    """

    what = "finetune"
    pending = False  # whether the validation of the step reached is still to come

    def __init__(self, work, lm, samples, settings, steps, every, training, validation, tell):
        import torch

        self.work, self.lm, self.samples, self.settings, self.tell = work, lm, samples, settings, tell
        self.steps, self.every, self.training, self.validation = steps, every, training, validation
        self.rank, self.processes = process_rank()
        self.model = lm
        if self.processes > 1:
            on = [lm.device] if lm.device.type == "cuda" else None
            self.model = torch.nn.parallel.DistributedDataParallel(lm, device_ids=on)
        self.optimizer = make_optimizer(lm, settings)
        self.factor = warmup_cosine(steps)
        self.step, self.seen, self.seconds = 0, 0, 0.0
        self.rows = []  # as curves.row makes them
        self.best, self.waited = None, 0  # (step, loss) of the best validation, and how many came after it
        self.stop = StopSignal(lm.device)

    def run(self):
        """Train from the step reached to the last, or until patience ends; to be called within `self.stop`.

        A checkpoint is written before a validation, which may take long: a stop leaves the validation out, and the
        training that goes on makes up for it.
        """
        batch, per_step = self.settings["batch"], self.settings["accumulate"] * self.processes
        order = length_batches([plan.length for plan in self.training], batch, self.settings["seed"])
        order = itertools.islice(order, self.step * per_step, None)
        first, saved = self.rank == 0, time.monotonic()
        begun = self.step if self.pending else self.step + 1
        self.lm.train()
        with contextlib.ExitStack() as stack:
            if first:
                events = stack.enter_context(
                    contextlib.closing(training_log.TensorBoardEvents(self.work.training, begun))
                )
                bar = stack.enter_context(progress(self.what, self.steps, "steps"))
            while self.pending or (self.step < self.steps and not self.out_of_patience()):
                stopping, due = False, self.pending
                if not self.pending:
                    self.advance([next(order) for _ in range(per_step)])
                    stopping = self.stop.agreed()
                    # after the last step too: what comes then may be interrupted
                    due = stopping or self.due(self.step) or time.monotonic() - saved > CHECKPOINT_SECONDS
                    if first and due:
                        self.save()
                        saved = time.monotonic()
                if self.pending and not stopping:
                    self.check_up()
                if first and due:
                    self.draw()
                if first and not self.pending:
                    row = self.rows[-1]
                    events.scalars(self.step, {TENSORBOARD[k]: v for k, v in row.items() if k != "step"})
                    bar.update(self.step, self.how())
                if stopping:
                    # launchers end all processes when one has left: none leaves before the checkpoint is whole
                    self.stop.check()
        if self.out_of_patience():
            self.tell(f"stopped at step {self.step}: {self.waited} validations were no better")

    def due(self, step):
        """Whether a validation and a checkpoint follow a step."""
        return step % self.every == 0 or step == self.steps

    def advance(self, groups):
        """Make an update and keep a row about it."""
        losses, rate = self.update(groups)
        if not all(math.isfinite(loss) for loss in losses if loss is not None):
            raise Failure(f"the loss is no longer finite at step {self.step}: try a smaller --lr")
        self.rows.append(self.row(rate, losses))
        self.pending = bool(self.validation) and self.due(self.step)

    def check_up(self):
        """Validate, and add to the row and the checkpoint of the step how it went."""
        with self.stop.at_once():
            val = self.validate()
        self.rows[-1] |= self.of_validation(val)
        self.pending = False
        if self.rank == 0:
            path = self.work.checkpoint("step", self.step) / "state.json"
            kept = read_json(path)
            write_json(path, kept | {"result": kept["result"] | self.state()})
            self.tidy()

    def row(self, rate, losses):
        """What is kept of a step."""
        return training_log.log_row(self.step, rate, losses)

    def of_validation(self, val):
        """What is kept of a validation."""
        return training_log.log_validation(val)

    def how(self):
        """How it goes, in a word."""
        return f"loss {format_loss(self.recent(50))}"

    def minutes(self, forward, again, afterwards=0):
        """About how long the training will take from the step reached, validations and calibration included.

        Parameters
        ----------
        forward : float
            Seconds that a token takes forward.
        again : bool
            Whether the backward pass computes the layers again. It takes twice as long as forward without.
        afterwards : int
            Tokens that are read after the training, on one process.
        """
        a_step = np.mean([plan.length for plan in self.training])
        a_step *= self.settings["batch"] * self.settings["accumulate"]
        learned = a_step * (self.steps - self.step) * (4 if again else 3)
        validations = self.pending + sum(map(self.due, range(self.step + 1, self.steps + 1)))
        # processes share what is validated
        between, last = (
            sum(plan.length for plan in self.held_out(most)) / self.processes
            for most in (VALIDATED, AT_THE_END)
        )
        return forward * (learned + validations * between + last + afterwards) / 60

    def out_of_patience(self):
        """Whether as many validations in a row were no better as `--patience` allows."""
        return bool(self.settings["patience"]) and self.waited >= self.settings["patience"]

    def update(self, groups):
        """Make one update of the weights from groups of sample numbers, of which every process takes its share.

        Parameters
        ----------
        groups : list of list of (int, int)
            Epoch and number of each plan.

        Returns
        -------
        ((float or None, float or None), float)
            Loss per labelled token of text and of the ECG over all groups, and the learning rate.
        """
        import torch

        start, device = time.perf_counter(), self.lm.device
        rate = self.set_rate()
        seeds = np.random.SeedSequence([self.settings["seed"], self.step, self.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        instead = iter(
            ecg_replacements(
                self.settings["seed"], self.step, sum(map(len, groups)), self.settings["without_ecg"]
            )
        )
        made = [[(epoch, i, next(instead)) for epoch, i in group] for group in groups]
        weight = self.settings["ecg_loss"]
        parts = [
            self.samples.batch(
                [
                    self.samples.reading(
                        self.training[i],
                        other,
                        np.random.default_rng([self.settings["seed"], epoch, i]),
                        learn_ecg=weight > 0,
                    )
                    for epoch, i, other in group
                ]
            )
            for group in made[self.rank :: self.processes]
        ]
        counted = np.array([count_labels(part, self.lm) for part in parts])
        totals = sum_over_processes(counted.sum(0).tolist(), device)
        # the mean over all labelled tokens of the step; processes: their gradients are averaged
        factors = torch.tensor(
            [w * self.processes / n if n else 0 for w, n in zip((1, weight), totals, strict=True)],
            device=device,
        )
        sums = torch.zeros(2, dtype=torch.float64)
        for i, part in enumerate(parts):
            alone = i + 1 < len(parts) and self.processes > 1  # gradients are exchanged with the last group
            with self.model.no_sync() if alone else contextlib.nullcontext():
                with autocast(self.lm):
                    losses = self.model(*part.to(device))
                (losses * factors).sum().backward()
            sums += losses.detach().double().cpu()
        self.move()
        *sums, seen = sum_over_processes([*sums.tolist(), sum(part.ids.numel() for part in parts)], device)
        self.seen += int(seen)
        self.seconds += time.perf_counter() - start
        return tuple(x / n if n else None for x, n in zip(sums, totals, strict=True)), rate

    def set_rate(self):
        """Set the learning rate of the step that comes, and return it."""
        rate = self.settings["lr"] * self.factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("times", 1.0)
        return rate

    def move(self):
        """Take the step that the gradients say, if they are not too large, and forget them."""
        import torch

        torch.nn.utils.clip_grad_norm_([p for p in self.lm.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1

    def recent(self, steps):
        """The mean training loss of the last steps: of the text, or of the ECG where that is all; None of none."""
        name = "train_loss" if self.settings["qa"] else "train_ecg_loss"
        # a step may have had drawings alone
        some = [row[name] for row in self.rows if name in row][-steps:]
        return float(np.mean(some)) if some else None

    def validate(self):
        """Validate on some questions, say how it went, and keep the weights if they are the best so far."""
        val = self.validated(self.held_out(VALIDATED))
        text, ecg, bits = val
        loss = ecg if text is None else text
        trained = f"training loss {format_loss(self.recent(self.every))}, " if self.rows else ""
        self.tell(f"step {self.step}: {trained}validation loss {loss:.4f}{format_ecg_loss(ecg, bits)}")
        if self.settings["draw"]:  # then the ECG is an aim too, and counts as it does in training
            loss = text + self.settings["ecg_loss"] * ecg
        if self.rank == 0 and self.settings["qa"]:
            room = 128 if self.settings["think"] else 32
            for line in sample_answers(self.lm, self.samples, self.validation[:SHOWN], room):
                self.tell(line)
        self.weigh(loss)
        return val

    def weigh(self, loss):
        """Keep the weights if they are the best so far."""
        self.waited += 1
        if self.best is None or loss < self.best[1]:
            self.best, self.waited = (self.step, loss), 0
            if self.rank == 0 and self.step < self.steps:
                with atomic_folder(self.work.checkpoint("best", self.step)) as folder:
                    self.save_weights(folder)

    def held_out(self, most):
        """The first so many questions of validation, with all others about their ECGs where these are read once for
        all; or segments. The others cost little, and make the choice of the best step much less a matter of luck."""
        some = self.validation[:most]
        if not self.settings["qa"]:
            return some
        if self.samples.together != 1:
            read = {question.segments for question in some}
            some = [question for question in self.validation if question.segments in read]
        return self.samples.plans(some)[0]

    def validated(self, plans, bar=None):
        """`validation_loss` of what was held out."""
        learn = self.settings["ecg_loss"] > 0
        with self.stop.at_once():
            return validation_loss(
                self.lm, self.samples, plans, self.settings["batch"], learn, bar, self.stop.check
            )

    def result(self):
        """Put the best weights back, and return what came out."""
        import torch

        self.put_back()
        some = self.held_out(AT_THE_END)
        count = sum(max(1, len(plan.questions)) for plan in some)
        shown = progress("validation", count, "questions") if self.rank == 0 else contextlib.nullcontext()
        with shown as bar:
            text, ecg, bits = self.validated(some, bar)
        cuda = self.lm.device.type == "cuda"
        return {
            "steps": self.step,
            "train_loss": self.recent(max(1, self.step // 10)),
            "val_loss": text if self.settings["qa"] else ecg,
            "best_step": self.best[0] if self.best else self.step,
            "tokens_per_second": self.seen / self.seconds,
            "trainable_parameters": sum(p.numel() for p in self.lm.parameters() if p.requires_grad),
            "ecg_loss": ecg,
            "ecg_perplexity": ecg and math.exp(min(ecg, 700)),
            "bits_per_second": bits,
            "peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
            "seconds": self.seconds,
        }

    def put_back(self):
        """Put the best weights back, and draw the curves."""
        if self.best and self.best[0] != self.step:
            self.load_weights(self.work.checkpoint("best", self.best[0]))
            self.tell(f"the model kept is that of step {self.best[0]}, the best on validation")
        if self.rank == 0:
            self.draw()

    def draw(self):
        """Write the course of the losses as CSV and as a picture."""
        training_log.write_loss_csv(self.work.loss_csv, self.rows)
        training_log.plot_losses(
            self.work.loss_picture, self.rows, f"{self.settings['base']} ({self.settings['method']})"
        )

    def save(self):
        """Write a checkpoint beside the one before, then remove that: at any moment one is whole."""
        from safetensors.torch import save_file

        tensors, values = checkpoint.flatten_state(self.optimizer.state_dict()["state"])
        state = self.state() | {"optimizer": values}
        with atomic_folder(self.work.checkpoint("step", self.step)) as folder:
            self.save_weights(folder)
            save_file(tensors, folder / "optimizer.safetensors")
            write_json(folder / "state.json", {"settings": self.settings, "result": state})
        self.tidy()

    def state(self):
        """How far the training is, for a checkpoint."""
        return {
            "step": self.step,
            "seen": self.seen,
            "seconds": self.seconds,
            "rows": self.rows,
            "best": self.best,
            "waited": self.waited,
            "pending": self.pending,
        }

    def tidy(self):
        """Remove the checkpoints that are no longer needed."""
        best = self.best and self.work.checkpoint("best", self.best[0])
        old = [path for path in self.work.checkpoints("best") if path != best]
        for path in (*self.work.checkpoints("step")[:-1], *old):
            shutil.rmtree(path)

    def save_weights(self, folder):
        """Write the weights that are trained."""
        from safetensors.torch import save_file

        trained = {name: p.detach().cpu() for name, p in self.lm.named_parameters() if p.requires_grad}
        save_file({name: p.contiguous() for name, p in trained.items()}, folder / "weights.safetensors")

    def load_weights(self, folder):
        """Put the weights of a checkpoint in place."""
        import torch
        from safetensors.torch import load_file

        weights = load_file(folder / "weights.safetensors")
        with torch.no_grad():
            for name, p in self.lm.named_parameters():
                if p.requires_grad:
                    p.copy_(weights[name])

    def restore(self, folder):
        """Go back to a checkpoint."""
        from safetensors.torch import load_file

        self.load_weights(folder)
        state = read_json(folder / "state.json")["result"]
        entries = checkpoint.unflatten_state(load_file(folder / "optimizer.safetensors") | state["optimizer"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
        self.rows, self.best, self.waited = state["rows"], state["best"], state["waited"]
        self.pending = state.get("pending", False)  # older versions validated before they saved
