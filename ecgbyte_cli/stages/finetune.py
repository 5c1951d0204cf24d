"""ecgbyte finetune: questions and ECG tokens to an adapted language model."""

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import curves
from ecgbyte_cli import questions as question_files
from ecgbyte_cli.console import Failure, Stage, note, progress, say
from ecgbyte_cli.workdir import finished, new_folder, read_array, read_json, read_table, write_json

LEARNING_RATE = {"full": 2e-3, "lora": 2e-4, "qlora": 2e-4}
CHECKPOINT_SECONDS = 600  # a checkpoint at least so often
SHOWN = 3  # answers generated at each validation


@click.command(
    cls=Stage,
    short_help="Train a language model on questions and ECG tokens.",
    epilog="Example: ecgbyte finetune --qa data/qa.jsonl --model tiny --steps 20",
)
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    required=True,
    help="Question file (JSONL, CSV, or JSON as of ECG-QA, ECG-Chat, PULSE, LLaVA), or a folder of them.",
)
@click.option(
    "--model",
    default="Qwen/Qwen2.5-0.5B-Instruct",
    show_default=True,
    help="Base model: a hub id, a local folder, or tiny (a small decoder, trained in full, no download).",
)
@click.option(
    "--method",
    type=click.Choice(["qlora", "lora", "full"]),
    default=None,
    help="4-bit base with LoRA, LoRA, or everything.  [default: qlora; full for tiny]",
)
@click.option(
    "--ecg-rows",
    type=click.Choice(["frozen", "train"]),
    default="train",
    show_default=True,
    help="Whether the ECG tokens' embeddings are trained.",
)
@click.option(
    "--ecg-init",
    type=click.Choice(["signal", "random", "mean"]),
    default="signal",
    show_default=True,
    help="Their first values: from each token's waveform, random, or near the mean of the text embeddings.",
)
@click.option("--steps", type=click.IntRange(1), help="Updates of the weights.  [default: one epoch]")
@click.option(
    "--batch", type=click.IntRange(1), default=4, show_default=True, help="Samples computed together."
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Batches per update, on each process.",
)
@click.option("--lr", type=float, help="Highest learning rate.  [default: 2e-3 for full, else 2e-4]")
@click.option(
    "--max-length",
    type=click.IntRange(16),
    default=4096,
    show_default=True,
    help="Longest sample in tokens, text and ECG together.",
)
@click.option(
    "--long",
    type=click.Choice(["trim", "skip"]),
    default="trim",
    show_default=True,
    help="Longer samples lose ECG tokens, evenly from the end of each lead, or are left out; they are counted.",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    help="Validate and write a checkpoint every so many steps.  [default: a fifth of them]",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    help="Stop when so many validations in a row were no better than the best.  [default: never]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of order and first values.")
@click.option("--show", type=click.IntRange(1), help="Print so many training samples, and do not train.")
@click.option("--overwrite", is_flag=True, help="Replace a model made with other settings.")
@click.pass_obj
def command(work, show, **options):
    """Train a language model to answer questions about ECGs (decoder-only, loss on the answer alone).

    Reads the tokens that `ecgbyte encode` left and the questions; writes the folder model/, and in training/ the
    course of the losses (CSV, PNG, TensorBoard) and checkpoints. The model is that of the best validation. Run
    again after a stop, it goes on from the last checkpoint. On several GPUs: the same command under torchrun or
    accelerate launch. With --show, prints samples instead, the words that the loss counts in green.
    """
    if show:
        return show_samples(work, show, **options)
    result = finetune(work, **options)
    if result:
        say(
            f"{result['model']}: {result['steps']} steps, training loss {result['train_loss']:.4f}, "
            f"validation loss {_loss(result['val_loss'])}, {result['trainable_parameters']:,} parameters trained, "
            f"{result['tokens_per_second']:.0f} tokens/s"
        )
    return result


def finetune(
    work,
    *,
    qa,
    model="Qwen/Qwen2.5-0.5B-Instruct",
    method=None,
    ecg_rows="train",
    ecg_init="signal",
    steps=None,
    batch=4,
    accumulate=1,
    lr=None,
    max_length=4096,
    long="trim",
    every=None,
    patience=None,
    seed=0,
    overwrite=False,
):
    """Train a model on the training split and write it to the work folder.

    Parameters
    ----------
    work : WorkDir
    qa : Path
        Question file, or a folder of them.
    model : str
        Hub id, folder, or `tiny`.
    method : str or None
        `qlora`, `lora` or `full`; None is `full` for `tiny` and `qlora` otherwise.
    ecg_rows : str
        `train` or `frozen`.
    ecg_init : str
        `signal`, `random` or `mean`.
    steps : int or None
        Updates; None is one epoch.
    batch : int
        Samples computed together.
    accumulate : int
        Batches per update, on each process.
    lr : float or None
        Highest learning rate.
    max_length : int
        In tokens.
    long : str
        `trim` or `skip`.
    every : int or None
        Steps between validations; None is a fifth of the steps.
    patience : int or None
        Validations without a better loss before it stops.
    seed : int
    overwrite : bool

    Returns
    -------
    dict or None
        steps, train_loss (mean of the last tenth), val_loss (of the model that is kept; None without
        validation questions), best_step, tokens_per_second, trainable_parameters, trimmed and left_out (samples
        that were too long), peak_gpu_mb (None without a GPU), seconds, model (path). None on all processes but
        the first.

    Raises
    ------
    Failure
        If tokens or questions are missing or do not fit together, the base model cannot be loaded, or memory
        does not suffice.
    """
    rank, processes = this_process()
    method = check(work, model, method)
    settings = {
        "qa": question_files.sha256(qa),
        "tokens": [read_json(work.token_settings)[key] for key in ("tokenizer_sha256", "settings")],
        "base": model,
        "method": method,
        "ecg_rows": ecg_rows,
        "ecg_init": ecg_init,
        "steps": steps,
        "batch": batch,
        "accumulate": accumulate,
        "processes": processes,
        "lr": lr or LEARNING_RATE[method],
        "max_length": max_length,
        "long": long,
        "every": every,
        "patience": patience,
        "seed": seed,
    }
    going_on = unfinished(work, settings, overwrite)
    done = going_on is None and finished(work.model_settings, settings, overwrite, "a model")
    if done:
        note(f"{work.model} is there already, made with these settings: nothing to do")
        return done if rank == 0 else None

    import torch

    from ecgbyte_cli import ecg_lm

    if method == "qlora" and ecg_lm.best_device() == "cpu":
        note("no GPU: 4-bit training on the CPU takes seconds per step for 0.1 B parameters, minutes for 1 B")
    with process_group() as device:
        torch.manual_seed(seed)
        lm, text_tokenizer, samples = load(work, model, method, device, max_length, long, seed)
        lm.init_rows(ecg_init, samples.tokenizer, seed)
        lm.ecg_rows.requires_grad_(ecg_rows == "train")
        tell = note if rank == 0 else lambda text: None
        training, validation, counts = read_samples(work, qa, samples, tell)
        if patience and not validation:
            raise Failure(
                f"--patience needs validation questions, and {qa} holds none about an encoded record"
            )
        steps = steps or math.ceil(len(training) / (batch * accumulate * processes))
        every = every or max(1, steps // 5)
        # a broken evaluation should show now, and not after the last step
        start = time.perf_counter()
        some = validation[: 2 * batch]
        first = validation_loss(lm, samples, some, batch)
        tell(
            f"{model} ({method}) on {device}: {len(training)} training and {len(validation)} validation "
            f"questions, {steps} steps of {batch * accumulate * processes}; validation loss before training "
            f"{_loss(first)}"
        )
        if some and method != "full" and device == "cpu":
            # forward, once more for the gradient checkpoints, and backward: four times the forward pass
            forward = (time.perf_counter() - start) / sum(length for _, length in some)
            length = sum(length for _, length in training) / len(training)
            minutes = 4 * forward * length * batch * accumulate * steps / 60
            tell(f"no GPU: this training will take about {minutes:.1f} minutes")
        trainer = Trainer(work, lm, samples, settings, steps, every, training, validation, tell)
        try:
            if going_on is not None:
                trainer.restore(going_on)
                for half in work.training.glob(".*.part") if rank == 0 else ():
                    shutil.rmtree(half)
                tell(f"going on after step {trainer.step} of {steps}, from {going_on}")
            elif rank == 0:
                shutil.rmtree(work.training, ignore_errors=True)
            trainer.run()
            result = trainer.result()
        except RuntimeError as error:
            if not re.search("out of memory|not enough memory|can't allocate memory", str(error)):
                raise
            longest = max(length for _, length in training)
            raise Failure(
                f"out of memory at --batch {batch} with samples of up to {longest} tokens: lower --batch "
                "(and raise --accumulate), or lower --max-length"
            ) from error
        if rank != 0:
            return None
        result |= counts | {"model": str(work.model)}
        about = {
            "base": model,
            "method": method,
            "qa": str(Path(qa).resolve()),
            # what a conversation with the model has to know
            "segmenter": read_json(work.token_settings)["segmenter"],
            "conversations": any(question.earlier for question, _ in training),
            "most_ecgs": max(len(question.segments) for question, _ in training),
            "settings": settings,
            "result": result,
        }
        with new_folder(work.model) as folder:
            ecg_lm.save(folder, lm, text_tokenizer, work.ecg_tokenizer, about)
        for path in (*work.checkpoints("step"), *work.checkpoints("best")):
            shutil.rmtree(path)
        return result


def check(work, model, method):
    """Check what needs no model, and return the method."""
    work.need(work.token_settings, "encode")
    method = method or ("full" if model == "tiny" else "qlora")
    if model == "tiny" and method != "full":
        raise Failure("--model tiny is trained in full: leave out --method, or name another base model")
    return method


def unfinished(work, settings, overwrite):
    """The newest checkpoint of a training with these settings that was not finished, or None.

    Raises
    ------
    Failure
        If there is one with other settings and no finished model, and `overwrite` is false.
    """
    checkpoints = work.checkpoints("step")
    if overwrite or not checkpoints:
        return None
    state = checkpoints[-1] / "state.json"
    if read_json(state)["settings"] == json.loads(json.dumps(settings)):
        return checkpoints[-1]
    if not work.model_settings.exists():
        finished(state, settings, overwrite, "an unfinished training")  # says what differs
    return None


def this_process():
    """Number of this process and how many there are, as torchrun and accelerate tell them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def process_group():
    """Join the other processes, if there are any, and yield the device of this one."""
    import torch

    from ecgbyte_cli import ecg_lm

    device = ecg_lm.best_device()
    if this_process()[1] == 1:
        yield device
        return
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device != "cpu" else "gloo")
    try:
        yield device
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def load(work, model, method, device, max_length, long, seed):
    """Load the base model, and make what turns questions into ids for it.

    Returns
    -------
    (ECGLM, text tokenizer, Samples)
    """
    from ecgbyte_cli import ecg_lm
    from ecgbyte_cli.prompt import Prompt
    from ecgbyte_cli.tokenizer import ECGTokenizer

    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    if tokenizer.sha256 != read_json(work.token_settings)["tokenizer_sha256"]:
        raise Failure(
            f"{work.tokens} was encoded with another tokenizer than {work.ecg_tokenizer}: run "
            "`ecgbyte encode --overwrite`"
        )
    with ecg_lm.quiet():
        base, text_tokenizer = ecg_lm.load_base(model, method, device)
        if method != "full":
            base = ecg_lm.add_adapter(base)
    lm = ecg_lm.ECGLM(base, tokenizer.vocab_size, seed)
    # the longest that the base model has positions for
    max_length = min(max_length, getattr(base.config, "max_position_embeddings", None) or max_length)
    return lm, text_tokenizer, Samples(work, Prompt(text_tokenizer, lm.offset), tokenizer, max_length, long)


class Samples:
    """Makes the ids and labels of questions.

    Parameters
    ----------
    work : WorkDir
    prompt : Prompt
    tokenizer : ECGTokenizer
    max_length : int
        In tokens.
    long : str
        `trim` or `skip`: what becomes of longer ones.
    """

    def __init__(self, work, prompt, tokenizer, max_length, long):
        self.prompt, self.tokenizer, self.max_length, self.long = prompt, tokenizer, max_length, long
        self.tokens, self.segments = read_array(work.tokens), read_table(work.token_segments)
        self.samples_per_lead = read_table(work.symbol_segments)["samples"]

    def __call__(self, question):
        """Ids, labels, and how many ECG tokens were left out; ids is None if the sample is too long."""
        from ecgbyte_cli.prompt import leads_of, trim

        ecgs = []
        for segment in question.segments:
            start, length = self.segments["offset"][segment], self.segments["length"][segment]
            ecgs.append(self.tokens[start : start + length])
        ids, labels = self.prompt.build(ecgs, question.turns)
        excess, tokens = len(ids) - self.max_length, sum(map(len, ecgs))
        if excess <= 0:
            return ids, labels, 0
        if self.long == "skip" or excess >= tokens:
            return None, None, excess
        leads = [
            leads_of(ecg, self.tokenizer.lengths, self.samples_per_lead[segment])
            for ecg, segment in zip(ecgs, question.segments, strict=True)
        ]
        return *self.prompt.build(trim(ecgs, leads, tokens - excess), question.turns), excess

    def fitting(self, questions, name, tell):
        """The questions whose samples are short enough, each with its length; and how many were shortened."""
        fit, trimmed = [], 0
        for question in questions:
            ids, _, lost = self(question)
            if ids is not None:
                fit.append((question, len(ids)))
                trimmed += lost > 0
        of = f"of {len(questions)} {name} samples are longer than {self.max_length} tokens"
        if trimmed:
            tell(f"{trimmed} {of}: they lose ECG tokens from the end of each lead")
        if len(fit) < len(questions):
            tell(f"{len(questions) - len(fit)} {of}: left out")
        return fit, trimmed


def read_samples(work, qa, samples, tell):
    """The questions of the training and of the validation split.

    Returns
    -------
    (list of (Question, int), list of (Question, int), dict)
        Each question with its length in tokens; and how many samples were trimmed and left_out.
    """
    read = question_files.read(qa)
    joined, unmatched = question_files.join(read, read_table(work.symbol_segments))
    if unmatched:
        tell(question_files.describe(unmatched, len(read)))
    sides = {name: [q for q, _, _, split in joined if split == name] for name in ("train", "val")}
    patients = [{patient for *_, patient, split in joined if split == name} for name in ("train", "val")]
    if both := patients[0] & patients[1]:
        tell(f"{len(both)} patients are in training and in validation, as {qa} has it: {min(both)}, …")
    if not sides["train"]:
        raise Failure(
            f"{qa} holds no question of the training split about an encoded record: see `ecgbyte info`"
        )
    training, trimmed = samples.fitting(sides["train"], "training", tell)
    validation, also_trimmed = samples.fitting(sides["val"], "validation", tell)
    if not training:
        raise Failure(
            f"no training question of {qa} is at most {samples.max_length} tokens long: raise --max-length"
        )
    left_out = len(sides["train"]) + len(sides["val"]) - len(training) - len(validation)
    return training, validation, {"trimmed": trimmed + also_trimmed, "left_out": left_out}


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
    training, validation : list of (Question, int)
        With lengths in tokens.
    tell : callable
        Prints a remark, on the first process.
    """

    def __init__(self, work, lm, samples, settings, steps, every, training, validation, tell):
        import torch

        self.work, self.lm, self.samples, self.settings, self.tell = work, lm, samples, settings, tell
        self.steps, self.every, self.training, self.validation = steps, every, training, validation
        self.rank, self.processes = this_process()
        self.model = lm
        if self.processes > 1:
            on = [lm.device] if lm.device.type == "cuda" else None
            self.model = torch.nn.parallel.DistributedDataParallel(lm, device_ids=on)
        self.optimizer = make_optimizer(lm, settings)
        self.factor = warmup_cosine(steps)
        self.step, self.seen, self.seconds = 0, 0, 0.0
        self.rows = []  # step, training loss, learning rate, validation loss or None
        self.best, self.waited = None, 0  # (step, loss) of the best validation, and how many came after it

    def run(self):
        """Train from the step reached to the last, or until patience ends."""
        batch, per_step = self.settings["batch"], self.settings["accumulate"] * self.processes
        order = batches([length for _, length in self.training], batch, self.settings["seed"])
        order = itertools.islice(order, self.step * per_step, None)
        first, saved = self.rank == 0, time.monotonic()
        self.lm.train()
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(Stop())
            if first:
                events = stack.enter_context(
                    contextlib.closing(curves.Events(self.work.training, self.step + 1))
                )
                bar = stack.enter_context(progress("finetune", self.steps, "steps"))
            while self.step < self.steps:
                loss, rate = self.update([next(order) for _ in range(per_step)])
                if not math.isfinite(loss):
                    raise Failure(f"the loss is no longer finite at step {self.step}: try a smaller --lr")
                validate = self.step % self.every == 0 or self.step == self.steps
                val_loss = self.validate() if validate and self.validation else None
                self.rows.append((self.step, loss, rate, val_loss))
                if first:
                    values = {"loss/training": loss, "loss/validation": val_loss, "learning rate": rate}
                    events.scalars(self.step, {k: v for k, v in values.items() if v is not None})
                    bar.update(self.step, f"loss {np.mean([row[1] for row in self.rows[-50:]]):.3f}")
                if self.settings["patience"] and self.waited >= self.settings["patience"]:
                    self.tell(f"stopped at step {self.step}: {self.waited} validations were no better")
                    break
                due = validate or stop.asked or time.monotonic() - saved > CHECKPOINT_SECONDS
                if first and due and self.step < self.steps:
                    self.save()
                    saved = time.monotonic()
                if stop.asked:
                    raise KeyboardInterrupt

    def update(self, groups):
        """Make one update of the weights from groups of sample numbers, of which every process takes its share.

        Returns
        -------
        (float, float)
            Loss per labelled token over all groups, and the learning rate.
        """
        import torch

        start, device = time.perf_counter(), self.lm.device
        rate = self.settings["lr"] * self.factor(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seeds = np.random.SeedSequence([self.settings["seed"], self.step, self.rank])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        parts = [
            collate([self.samples(self.training[i][0])[:2] for i in group])
            for group in groups[self.rank :: self.processes]
        ]
        labelled = [int((labels != -100).sum()) for _, labels in parts]
        (total,) = over_processes([sum(labelled)], device)
        loss_sum = 0.0
        for i, (ids, labels) in enumerate(parts):
            alone = i + 1 < len(parts) and self.processes > 1  # gradients are exchanged with the last group
            with self.model.no_sync() if alone else contextlib.nullcontext():
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    loss = self.model(ids.to(device), labels.to(device))
                # the mean over all labelled tokens of the step; processes: their gradients are averaged
                (loss * (labelled[i] / total * self.processes)).backward()
            loss_sum += loss.item() * (labelled[i] / total)
        torch.nn.utils.clip_grad_norm_([p for p in self.lm.parameters() if p.requires_grad], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        loss_sum, seen = over_processes([loss_sum, sum(ids.numel() for ids, _ in parts)], device)
        self.seen += int(seen)
        self.seconds += time.perf_counter() - start
        return loss_sum, rate

    def validate(self):
        """Validate on some questions, say how it went, and keep the weights if they are the best so far."""
        loss = validation_loss(self.lm, self.samples, self.validation[:128], self.settings["batch"])
        recent = [row[1] for row in self.rows[-self.every :]]
        trained = f"training loss {np.mean(recent):.4f}, " if recent else ""
        self.tell(f"step {self.step}: {trained}validation loss {loss:.4f}")
        if self.rank == 0:
            for line in some_answers(self.lm, self.samples, [q for q, _ in self.validation[:SHOWN]]):
                self.tell(line)
        self.waited += 1
        if self.best is None or loss < self.best[1]:
            self.best, self.waited = (self.step, loss), 0
            if self.rank == 0 and self.step < self.steps:
                with new_folder(self.work.checkpoint("best", self.step)) as folder:
                    self.save_weights(folder)
        return loss

    def result(self):
        """Put the best weights back, draw the curves, and return what came out."""
        import torch

        if self.best and self.best[0] != self.step:
            self.load_weights(self.work.checkpoint("best", self.best[0]))
            self.tell(f"the model kept is that of step {self.best[0]}, the best on validation")
        if self.rank == 0:
            self.draw()
        losses = [row[1] for row in self.rows]
        cuda = self.lm.device.type == "cuda"
        return {
            "steps": self.step,
            "train_loss": float(np.mean(losses[-max(1, self.step // 10) :])),
            "val_loss": validation_loss(self.lm, self.samples, self.validation, self.settings["batch"]),
            "best_step": self.best[0] if self.best else self.step,
            "tokens_per_second": self.seen / self.seconds,
            "trainable_parameters": sum(p.numel() for p in self.lm.parameters() if p.requires_grad),
            "peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if cuda else None,
            "seconds": self.seconds,
        }

    def draw(self):
        """Write the course of the losses as CSV and as a picture."""
        curves.write_csv(self.work.loss_csv, self.rows)
        curves.draw(self.work.loss_picture, self.rows, f"{self.settings['base']} ({self.settings['method']})")

    def save(self):
        """Write a checkpoint beside the one before, then remove that: at any moment one is whole."""
        from safetensors.torch import save_file

        tensors, values = {}, {}
        for number, entries in self.optimizer.state_dict()["state"].items():
            for name, value in entries.items():
                key = f"{number}.{name}"
                if hasattr(value, "detach"):
                    tensors[key] = value.detach().cpu().clone()
                else:
                    values[key] = value
        state = {"step": self.step, "seen": self.seen, "seconds": self.seconds, "rows": self.rows}
        state |= {"best": self.best, "waited": self.waited, "optimizer": values}
        with new_folder(self.work.checkpoint("step", self.step)) as folder:
            self.save_weights(folder)
            save_file(tensors, folder / "optimizer.safetensors")
            write_json(folder / "state.json", {"settings": self.settings, "result": state})
        old = self.work.checkpoints("step")[:-1]
        old += [p for p in self.work.checkpoints("best") if p != self.work.checkpoint("best", self.best[0])]
        for path in old:
            shutil.rmtree(path)
        self.draw()

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
        entries = {}
        for key, value in (load_file(folder / "optimizer.safetensors") | state["optimizer"]).items():
            number, name = key.split(".", 1)
            entries.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": entries, "param_groups": groups})
        self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
        self.rows, self.best, self.waited = state["rows"], state["best"], state["waited"]


class Stop:
    """Keeps Ctrl-C and SIGTERM until the step is done; the same signal a second time stops at once."""

    def __enter__(self):
        self.asked, self.before = set(), {}
        if threading.current_thread() is threading.main_thread():
            self.before = {
                number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def ask(self, number, _):
        if number in self.asked:
            raise KeyboardInterrupt
        self.asked.add(number)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def make_optimizer(lm, settings):
    """AdamW, in paged 8-bit form for QLoRA on a GPU; no weight decay on vectors."""
    import torch

    trained = [p for p in lm.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.05},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings["method"] == "qlora" and lm.device.type == "cuda":
        import bitsandbytes

        return bitsandbytes.optim.PagedAdamW8bit(groups, lr=settings["lr"], betas=(0.9, 0.98))
    return torch.optim.AdamW(groups, lr=settings["lr"], betas=(0.9, 0.98))


def warmup_cosine(steps):
    """The learning rate's factor per step: a linear rise over 4 % of the steps, then half a cosine to zero."""
    rise = max(1, round(0.04 * steps))

    def factor(step):
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor


def batches(lengths, batch, seed):
    """Endless batches of sample numbers, of like length each, in an order that the seed decides.

    Each epoch shuffles the samples, sorts stretches of 50 batches by length, and shuffles the batches.
    """
    lengths, epoch = np.asarray(lengths), 0
    while True:
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(lengths))
        stretches = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
        order = np.concatenate([s[np.argsort(lengths[s], kind="stable")] for s in stretches])
        groups = [order[i : i + batch] for i in range(0, len(order), batch)]
        for i in random.permutation(len(groups)):
            yield groups[i].tolist()
        epoch += 1


def collate(samples):
    """Samples of ids and labels as two int64 tensors (batch, n), padded on the right."""
    import torch

    width = max(len(ids) for ids, _ in samples)
    ids = torch.zeros(len(samples), width, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (i, label) in enumerate(samples):
        ids[row, : len(i)], labels[row, : len(i)] = torch.from_numpy(i), torch.from_numpy(label)
    return ids, labels


def over_processes(values, device):
    """The sums of some numbers over all processes."""
    if this_process()[1] == 1:
        return values
    import torch

    sums = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return sums.tolist()


def validation_loss(lm, samples, questions, batch):
    """Mean loss over questions, per labelled token; None if there are none."""
    import torch

    if not questions:
        return None
    rank, processes = this_process()
    was_training, total, count = lm.training, 0.0, 0
    questions = [question for question, _ in sorted(questions, key=lambda q: q[1])]
    groups = [questions[i : i + batch] for i in range(0, len(questions), batch)]
    lm.eval()
    with torch.no_grad(), torch.autocast(lm.device.type, torch.bfloat16, enabled=lm.device.type == "cuda"):
        for group in groups[rank::processes]:
            ids, labels = collate([samples(question)[:2] for question in group])
            n = int((labels != -100).sum())
            total, count = total + lm(ids.to(lm.device), labels.to(lm.device)).item() * n, count + n
    lm.train(was_training)
    total, count = over_processes([total, count], lm.device)
    return total / count


def some_answers(lm, samples, questions, max_new=32):
    """Lines with what the model answers to some questions, as it is now."""
    prompt, was_training, lines = samples.prompt, lm.training, []
    lm.eval()
    for question in questions:
        ids, labels, _ = samples(question)
        # cut off where the last answer begins: behind the last token without a label that one with a label follows
        begins = np.flatnonzero((labels[1:] != -100) & (labels[:-1] == -100))[-1] + 1
        (answer,) = lm.answer([ids[:begins]], prompt.end_ids, max_new)
        lines.append(f'  {question.question} "{prompt.text(answer)}" (true: "{question.answer}")')
    lm.train(was_training)
    return lines


def show_samples(work, count, *, qa, model, method, max_length, long, seed, **_):
    """Print training samples with what the loss counts in green, and return them."""
    method = check(work, model, method)
    _, text_tokenizer, samples = load(work, model, method, "cpu", max_length, long, seed)
    training, _, _ = read_samples(work, qa, samples, note)
    shown = []
    for question, length in training[:count]:
        ids, labels, lost = samples(question)
        kinds = np.where(ids >= samples.prompt.offset + 2, 0, np.where(labels == -100, 1, 2))
        line, counted = "", ""
        for kind, run in itertools.groupby(range(length), key=lambda i: kinds[i]):
            run = ids[list(run)]
            if kind == 0:
                line += click.style(f"[{len(run)} ECG tokens]", dim=True)
                continue
            words = "".join(
                ("<sig_start>", "<sig_end>")[i - samples.prompt.offset]
                if i >= samples.prompt.offset
                else text_tokenizer.decode([i])
                for i in run.tolist()
            )
            line += click.style(words, fg="green", underline=True) if kind == 2 else words
            counted += words if kind == 2 else ""
        say(f"{', '.join(question.records)} ({length} tokens, {lost} trimmed)\n{line}\nloss on: {counted}\n")
        shown.append({"records": question.records, "tokens": length, "trimmed": lost, "loss_on": counted})
    return {"samples": shown}


def _loss(value):
    return "none" if value is None else f"{value:.4f}"
