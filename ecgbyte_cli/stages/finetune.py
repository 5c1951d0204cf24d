"""ecgbyte finetune: questions and ECG tokens to an adapted language model."""

import math
import re
import shutil
import time
from pathlib import Path

import click

from ecgbyte_cli.console import Stage, note, say, wants_json
from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.model.samples import Samples, read_samples
from ecgbyte_cli.model.training import (
    Trainer,
    process_group,
    this_process,
    too_large,
    unfinished,
    validation_loss,
)
from ecgbyte_cli.questions import files as question_files
from ecgbyte_cli.workdir import finished, new_folder, read_json

LEARNING_RATE = {"full": 2e-3, "lora": 2e-4, "qlora": 2e-4}


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
    "--without-ecg",
    type=click.FloatRange(0, 0.5),
    default=0.1,
    show_default=True,
    help="Share of the samples, drawn anew at each step, that are shown with no signal or a flat line: "
    "so `generate` can ask how far the questions alone lead.",
)
@click.option(
    "--checkpointing",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="LoRA and QLoRA: compute the layers' states twice and keep them not at all. auto: where a batch of the "
    "longest samples might take more than half of the free memory.",
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
    without_ecg=0.1,
    checkpointing="auto",
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
    without_ecg : float
        Share of the samples that are shown with no signal (half of them) or a flat line.
    checkpointing : str
        `auto`, `on` or `off`; the model does not depend on it.
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
        "without_ecg": without_ecg,
        "every": every,
        "patience": patience,
        "seed": seed,
    }
    with work.checked("tokens"), work.making("training"):
        going_on = unfinished(work, settings, overwrite)
        done = going_on is None and finished(work.model_settings, settings, overwrite, "a model")
        if done:
            note(f"{work.model} is there already, made with these settings: nothing to do")
            return done if rank == 0 else None
        return _train(work, qa, settings, checkpointing, going_on)


def _train(work, qa, settings, checkpointing, going_on):
    """Train, from a checkpoint if there is one, and write the model."""
    import torch

    from ecgbyte_cli.model import ecg_lm

    rank, processes = this_process()
    model, method, seed, batch = (settings[key] for key in ("base", "method", "seed", "batch"))
    together = batch * settings["accumulate"] * processes
    if method == "qlora" and ecg_lm.best_device() == "cpu":
        note("no GPU: 4-bit training on the CPU takes seconds per step for 0.1 B parameters, minutes for 1 B")
    with process_group() as device:
        torch.manual_seed(seed)
        lm, text_tokenizer, samples = load(
            work, model, method, device, settings["max_length"], settings["long"], seed
        )
        tell = note if rank == 0 else lambda text: None
        training, validation, counts = read_samples(work, qa, samples, seed, tell)
        if settings["patience"] and not validation:
            raise Failure(
                f"--patience needs validation questions, and {qa} holds none about an encoded record"
            )
        longest = max(length for _, length in training + validation)
        lm.init_rows(settings["ecg_init"], samples.tokenizer, seed)
        if method != "full":
            again = checkpointing == "on" or (checkpointing == "auto" and too_large(lm, batch * longest))
            if again and checkpointing == "auto":
                tell("gradient checkpointing: a batch of the longest samples might not fit into memory else")
            lm.base = ecg_lm.add_adapter(lm.base, checkpointing=again)
        lm.ecg_rows.requires_grad_(settings["ecg_rows"] == "train")
        steps = settings["steps"] or math.ceil(len(training) / together)
        every = settings["every"] or max(1, steps // 5)
        # a broken evaluation should show now, and not after the last step
        start = time.perf_counter()
        some = validation[: 2 * batch]
        first = validation_loss(lm, samples, some, batch)
        tell(
            f"{model} ({method}) on {device}: {len(training)} training and {len(validation)} validation "
            f"questions, {steps} steps of {together}; validation loss before training {_loss(first)}"
        )
        if some and method != "full" and device == "cpu":
            # forward and backward, and forward once more for the gradient checkpoints
            forward = (time.perf_counter() - start) / sum(length for _, length in some)
            length = sum(length for _, length in training) / len(training)
            minutes = (4 if again else 3) * forward * length * together * steps / processes / 60
            tell(f"no GPU: this training will take about {minutes:.1f} minutes")
        trainer = Trainer(work, lm, samples, settings, steps, every, training, validation, tell)
        try:
            if going_on is not None:
                trainer.restore(going_on)
                tell(f"going on after step {trainer.step} of {steps}, from {going_on}")
            elif rank == 0:
                shutil.rmtree(work.training, ignore_errors=True)
            trainer.run()
            result = trainer.result()
        except RuntimeError as error:
            if not re.search("out of memory|not enough memory|can't allocate memory", str(error)):
                raise
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
            # what whoever asks the model has to know
            "segmenter": samples.segmenter,
            "prompt_tokens": samples.longest,
            "date": samples.prompt.date,
            "conversations": any(question.earlier for question, _ in training),
            "most_ecgs": max(len(question.segments) for question, _ in training),
            "settings": settings,
            "result": result,
        }
        with work.making("model"), new_folder(work.model) as folder:
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


def load(work, model, method, device, max_length, long, seed):
    """Load the base model, and make what turns questions into ids for it.

    Returns
    -------
    (ECGLM, text tokenizer, Samples)
    """
    from ecgbyte_cli.model import ecg_lm
    from ecgbyte_cli.model.prompt import Prompt
    from ecgbyte_cli.signal.tokenizer import ECGTokenizer

    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    if tokenizer.sha256 != read_json(work.token_settings)["tokenizer_sha256"]:
        raise Failure(
            f"{work.tokens} was encoded with another tokenizer than {work.ecg_tokenizer}: run "
            "`ecgbyte encode --overwrite`"
        )
    base, text_tokenizer = ecg_lm.load_base(model, method, device)
    lm = ecg_lm.ECGLM(base, tokenizer.vocab_size, seed)
    # the longest that the base model has positions for
    max_length = min(max_length, getattr(base.config, "max_position_embeddings", None) or max_length)
    return lm, text_tokenizer, Samples(work, Prompt(text_tokenizer, lm.offset), tokenizer, max_length, long)


def show_samples(work, count, *, qa, model, method, max_length, long, seed, **_):
    """Print training samples with what the loss counts in green, and return them."""
    method = check(work, model, method)
    with work.checked("tokens"):
        _, _, samples = load(work, model, method, "cpu", max_length, long, seed)
        training, _, _ = read_samples(work, qa, samples, seed, note)
        shown = []
        for question, length in training[:count]:
            ids, labels, lost = samples(question)
            line, counted = samples.prompt.shown(ids, labels)
            if not wants_json():
                records = printable(", ".join(question.records))
                click.echo(f"{records} ({length} tokens, {lost} trimmed)\n{line}\nloss on: {counted}\n")
            shown.append({"records": question.records, "tokens": length, "trimmed": lost, "loss_on": counted})
    return {"samples": shown}


def _loss(value):
    return "none" if value is None else f"{value:.4f}"
