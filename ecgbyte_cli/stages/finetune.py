"""ecgbyte finetune: questions and ECG tokens to an adapted language model."""

import math
import shutil
import time
from pathlib import Path

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import WeightedName, seeds_option, types_option
from ecgbyte_cli.cli.output import note, print_result, progress, wants_json
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.folder_checks import (
    SHIPPED,
    is_ecgbyte_model,
    method_of,
    model_sha256,
    resolve_model_folder,
)
from ecgbyte_cli.questions import question_file
from ecgbyte_cli.runtime.memory import exceeds_memory, reporting_out_of_memory
from ecgbyte_cli.storage.files import atomic_folder, read_json
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_cli.training.dataset import read_samples
from ecgbyte_cli.training.distributed import process_group, process_rank
from ecgbyte_cli.training.trainer import DEFAULTS, Trainer, unfinished_checkpoint
from ecgbyte_cli.training.validation import format_ecg_loss, format_loss

LEARNING_RATE = {"full": 2e-3, "lora": 2e-4, "qlora": 2e-4}
DROPOUT = {"full": 0.0, "lora": 0.05, "qlora": 0.05}
ECG_LOSS = {"full": 0.3, "lora": 0.0, "qlora": 0.0}  # docs/fine-tuning.md has the trials


@click.command(
    cls=Stage,
    groups={
        "Data": (
            "qa",
            "pretrain",
            "draw",
            "think",
            "types",
            "system",
            "augment",
            "without_ecg",
            "max_length",
            "long",
        ),
        "Model": ("model", "method", "ecg_rows", "ecg_init", "positions", "dropout", "rank", "alpha"),
        "Optimisation": (
            *("steps", "batch", "accumulate", "together", "lr", "rows_lr", "weight_decay", "ecg_loss"),
            *("checkpointing", "seed", "seeds"),
        ),
        "Evaluation": ("every", "patience", "show"),
    },
    short_help="Train a language model on questions and ECG tokens.",
    epilog="Example: ecgbyte finetune --qa data/qa.jsonl --model tiny --draw rhythm --steps 20",
)
@click.option(
    "--qa",
    type=WeightedName(),
    multiple=True,
    help="Question file (JSONL, CSV, or JSON as of ECG-QA, ECG-Chat, PULSE, LLaVA), or a folder of them. Given several "
    "times, all are learned, with a weight behind a colon (a.jsonl:2) that often.",
)
@click.option(
    "--pretrain", is_flag=True, help="Learn to predict the ECG tokens of all recordings, without questions."
)
@click.option(
    "--model",
    type=Model("tiny"),
    default="Qwen/Qwen2.5-0.5B-Instruct",
    show_default=True,
    help="Base model: a hub id, a local folder, or tiny (a small decoder, trained in full, no download); or a model "
    "folder of ecgbyte, which goes on learning, or ptbxl, which comes with it.",
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
@click.option(
    "--positions",
    type=click.Choice(["token", "time"]),
    help="Where ECG tokens stand for the model: one after the other, or where each begins in its lead.  "
    "[default: token]",
)
@click.option(
    "--ecg-loss",
    type=click.FloatRange(0),
    help="Weight of predicting the ECG's own tokens, beside the answers.  [default: 0.3 for full, else 0]",
)
@click.option(
    "--draw", metavar="TYPE", help="Learn to draw ECGs too: from answers to questions of this type."
)
@click.option("--think", is_flag=True, help="Reason before the answer, where the question file does.")
@types_option
@click.option("--system", help="System prompt, of models with a chat template.  [default: what ecgbyte has]")
@click.option(
    "--augment",
    type=click.FloatRange(0, 4),
    default=0.0,
    show_default=True,
    help="How much the letters of a recording are varied each time that it is read in training: shifted in time, "
    "scaled, moved, a lead left out; 1 is moderate.",
)
@click.option(
    "--dropout",
    type=click.FloatRange(0, 0.9),
    help="Share of what each layer adds that is left out at each step.  [default: 0 for full, else LoRA's 0.05]",
)
@click.option("--rank", type=click.IntRange(1, 4096), help="Of LoRA's matrices.  [default: 16]")
@click.option(
    "--alpha", type=click.FloatRange(0, min_open=True), help="LoRA's scale.  [default: twice the rank]"
)
@click.option("--steps", type=click.IntRange(1), help="Updates of the weights.  [default: one epoch]")
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="ECGs read together, with their questions.",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Batches per update, on each process.",
)
@click.option(
    "--together",
    type=click.IntRange(1),
    help="Questions behind one reading of their ECG, at most.  [default: as many as fit into --max-length]",
)
@click.option("--lr", type=float, help="Highest learning rate.  [default: 2e-3 for full, else 2e-4]")
@click.option(
    "--rows-lr",
    type=click.FloatRange(0, min_open=True),
    help="That of the ECG tokens' embeddings.  [default: the same]",
)
@click.option("--weight-decay", type=click.FloatRange(0), help="Of matrices.  [default: 0.05]")
@click.option(
    "--max-length",
    type=click.IntRange(16),
    default=4096,
    show_default=True,
    help="Longest sample in tokens, ECG and questions together.",
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
    help="Share of the ECGs, drawn anew at each step, that are shown with no signal or a flat line: "
    "so `generate` can ask how far the questions alone lead.",
)
@click.option(
    "--checkpointing",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Compute each layer again in the backward pass instead of keeping its states: less memory, a third more time. "
    "auto: if a batch of the longest samples might take more than half of the free memory.",
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
@seeds_option
@click.option("--show", type=click.IntRange(1), help="Print so many training samples, and do not train.")
@click.option("--overwrite", is_flag=True, help="Replace a model made with other settings.")
@click.pass_obj
def command(work, show, **options):
    """Train a language model to answer questions about ECGs (decoder-only, loss on the answer).

    Reads the tokens that `ecgbyte encode` left and the questions; writes the folder model/, and in training/ the
    course of the losses (CSV, PNG, TensorBoard) and checkpoints. The model is that of the best validation. Run
    again after a stop, it goes on from the last checkpoint. On several GPUs: the same command under torchrun or
    accelerate launch. With --show, prints samples instead, the words that the loss counts in green.
    """
    if options["model"] == SHIPPED.name:
        options["model"] = str(resolve_model_folder(options["model"]))
    files, weights = zip(*options.pop("qa"), strict=True) if options["qa"] else ((), ())
    if len(files) == 1 and weights != (1.0,):
        raise click.UsageError("a weight is that of one --qa among several: leave it out")
    options["qa"] = list(files) if len(files) > 1 else files[0] if files else None
    options["weights"] = list(weights) if len(files) > 1 and {*weights} != {1.0} else None
    if show:
        del options["seeds"]
        return show_samples(work, show, **options)
    seeds, made = options.pop("seeds"), []
    for number in range(seeds):
        of = work.of_seed(number) if number else work
        made.append(finetune(of, **options | {"seed": options["seed"] + number}))
    for result in filter(None, made):
        print_result(
            f"{result['model']}: {result['steps']} steps, training loss {format_loss(result['train_loss'])}, "
            f"validation loss {format_loss(result['val_loss'])}, {result['trainable_parameters']:,} parameters "
            f"trained, {result['tokens_per_second']:.0f} tokens/s"
        )
    return made[0] if seeds == 1 or made[0] is None else made[0] | {"models": [one["model"] for one in made]}


def finetune(
    work,
    *,
    qa=None,
    pretrain=False,
    model="Qwen/Qwen2.5-0.5B-Instruct",
    method=None,
    checkpointing="auto",
    overwrite=False,
    **options,
):
    """Train a model on the training split and write it to the work folder.

    The parameters are the options of the command, which says what they do; the others are those of `DEFAULTS`.

    Returns
    -------
    dict or None
        steps, train_loss (mean of the last tenth), val_loss (of the model that is kept; None without validation
        questions), ecg_loss, ecg_perplexity and bits_per_second (of validation; None without --ecg-loss or
        --pretrain), best_step, tokens_per_second, trainable_parameters, trimmed and left_out (samples that were too
        long), peak_gpu_mb (None without a GPU), seconds, model (path). None on all processes but the first.

    Raises
    ------
    Failure
        If tokens or questions are missing or do not fit together, the base model cannot be loaded, or memory is short.
    """
    rank, processes = process_rank()
    method = check(work, qa, pretrain, model, method)
    if options.keys() - DEFAULTS.keys():
        raise TypeError(f"no options of finetune: {', '.join(sorted(options.keys() - DEFAULTS.keys()))}")
    options = DEFAULTS | options
    if options["ecg_loss"] is None:
        options["ecg_loss"] = ECG_LOSS[method]
    if options["draw"] and not (qa and options["ecg_loss"]):
        raise Failure(
            "--draw learns by the ECG's own loss, from the answers of --qa: give --ecg-loss 0.3 too, or more"
        )
    if options["dropout"] is None:
        options["dropout"] = DROPOUT[method]
    settings = options | {
        "qa": None if pretrain else question_file.questions_sha256(qa),
        "tokens": [read_json(work.token_settings)[key] for key in ("tokenizer_sha256", "settings")],
        "base": model,
        "begun_with": model_sha256(Path(model)) if is_ecgbyte_model(model) else None,
        "method": method,
        "processes": processes,
        "lr": options["lr"] or LEARNING_RATE[method],
        "think": options["think"] or None,
        "types": list(options["types"]) or None,
    }
    if pretrain:
        settings |= {"ecg_loss": 1.0, "without_ecg": 0.0}
    with work.checked("tokens"), work.making("training"):
        going_on = unfinished_checkpoint(work, settings, overwrite)
        done = going_on is None and completed_result(work.model_settings, settings, overwrite, "a model")
        if done:
            return done if rank == 0 else None
        return _train(work, qa, settings, checkpointing, going_on)


def _train(work, qa, settings, checkpointing, going_on):
    """Train, from a checkpoint if there is one, and write the model."""
    import torch

    from ecgbyte_cli.training.setup import load_for_training, plan_readings

    rank = process_rank()[0]
    tell = note if rank == 0 else lambda text: None
    with process_group() as device:
        torch.manual_seed(settings["seed"])
        smaller = "take a smaller one" + (", or --method qlora" if settings["method"] != "qlora" else "")
        with reporting_out_of_memory(f"for the base model {settings['base']}", smaller):
            lm, text_tokenizer, samples, name = load_for_training(work, settings, device)
        with reporting_out_of_memory(
            f"with samples of up to {samples.max_length} tokens", "lower --max-length or --together"
        ):
            training, validation, counts = plan_readings(work, qa, lm, samples, settings, tell)
        longest = max(plan.length for plan in training)
        again = checkpoints_layers(lm, settings, longest, checkpointing, tell)
        with reporting_out_of_memory(
            f"at --batch {settings['batch']} with samples of up to {longest} tokens", less(settings, again)
        ):
            trainer = make_trainer(work, lm, samples, settings, training, validation, again, tell)
            with trainer.stop:
                result = learn(trainer, going_on, again, qa)
        if rank != 0:
            return None
        known = None
        if qa is not None:
            from ecgbyte_cli.training import calibration

            some = validation[: calibration.WEIGHED]
            with progress("certainty", len(some), "questions") as bar:
                asked = [question for plan in training for question in plan.questions]
                known = calibration.calibrate_model(lm, samples, asked, some, settings["batch"], bar, tell)
        result |= counts | {"model": str(work.model)}
        write(work, qa, trainer, text_tokenizer, name, known, result)
        return result


def checkpoints_layers(lm, settings, longest, checkpointing, tell):
    """Whether the layers are computed again in the backward pass."""
    able = getattr(lm.base, "supports_gradient_checkpointing", False)
    if checkpointing == "on" and not able:
        raise Failure(f"--checkpointing on: {settings['base']} cannot compute its layers again: leave it out")
    full = settings["method"] == "full"
    if checkpointing == "auto" and able and exceeds_memory(lm, settings["batch"] * longest, full):
        tell("gradient checkpointing: a batch of the longest samples might not fit into memory else")
        return True
    return checkpointing == "on"


def less(settings, again):
    """What to change where memory does not suffice for a batch."""
    lower = [*(["--batch (and raise --accumulate)"] if settings["batch"] > 1 else []), "--max-length"]
    advice = [f"lower {' or '.join(lower)}"]
    if not again:
        advice.append("give --checkpointing on")
    if settings["method"] != "qlora" and settings["base"] != "tiny":
        advice.append("take --method " + ("qlora" if settings["method"] == "lora" else "lora"))
    return ", or ".join(advice)


def make_trainer(work, lm, samples, settings, training, validation, again, tell):
    """Prepare a model to be trained by the method of the settings."""
    from ecgbyte_cli.model import base_model, ecg_lm

    if settings["method"] == "full":
        if again:
            ecg_lm.checkpoint_layers(lm.base)
        if settings["dropout"]:
            lm.drop(settings["dropout"])
    elif hasattr(lm.base, "peft_config"):
        base_model.enable_gradients(lm.base, again)
    else:
        r, dropout = settings["rank"] or 16, settings["dropout"]
        lm.base = base_model.add_adapter(lm.base, r, settings["alpha"] or 2 * r, dropout, again)
    lm.ecg_rows.requires_grad_(settings["ecg_rows"] == "train")
    a_step = settings["batch"] * settings["accumulate"] * process_rank()[1]
    steps = settings["steps"] or math.ceil(len(training) / a_step)
    every = settings["every"] or max(1, steps // 5)
    return Trainer(work, lm, samples, settings, steps, every, training, validation, tell)


def learn(trainer, going_on, again, qa):
    """Validate once, so that a broken evaluation shows now, and train; return what came out."""
    settings, work, tell = trainer.settings, trainer.work, trainer.tell
    training, batch, method = trainer.training, settings["batch"], settings["method"]
    start, some = time.perf_counter(), trainer.held_out(2 * batch)
    text, ecg, bits = trainer.validated(some)
    took = time.perf_counter() - start
    questions = [question for plan in training for question in plan.questions]
    what = f"{len(questions)} training and {len(trainer.validation)} validation questions"
    a_step = batch * settings["accumulate"] * trainer.processes
    tell(
        f"{settings['base']} ({method}) on {trainer.lm.device}: {len(training)} readings, "
        f"{what if qa else 'no questions'}, {trainer.steps} steps of {a_step}; "
        f"validation loss before training {format_loss(ecg if qa is None else text)}{format_ecg_loss(ecg, bits)}"
    )
    if going_on is not None:
        trainer.restore(going_on)
        tell(f"going on after step {trainer.step} of {trainer.steps}, from {going_on}")
    elif trainer.rank == 0:
        shutil.rmtree(work.training, ignore_errors=True)
    if some and method != "full" and trainer.lm.device.type == "cpu":
        from ecgbyte_cli.training import calibration

        after = (
            calibration.tokens_read(trainer.lm, trainer.samples, questions, trainer.validation) if qa else 0
        )
        minutes = trainer.minutes(took / sum(plan.length for plan in some), again, after)
        tell(f"no GPU: this training will take about {minutes:.1f} minutes")
    trainer.run()
    return trainer.result()


def write(work, qa, trainer, text_tokenizer, name, known, result):
    """Write the model folder, and remove the checkpoints."""
    from ecgbyte_cli.model import model_folder
    from ecgbyte_cli.training.setup import model_abilities

    samples, settings, training = trainer.samples, trainer.settings, trainer.training
    about = {
        "base": name,
        "method": settings["method"],
        "qa": qa and question_file.absolute_paths(qa),
        "segmenter": samples.segmenter,
        "prompt_tokens": samples.longest,
        "date": samples.prompt.date,
        "system": samples.prompt.told,
        "conversations": any(question.earlier for plan in training for question in plan.questions),
        "most_ecgs": max(len(plan.segments) for plan in training),
        **model_abilities(settings, training),
        "settings": settings,
        "result": result,
    }
    with work.making("model"), atomic_folder(work.model) as folder:
        if known:
            known.write(folder)
        model_folder.save_model(folder, trainer.lm, text_tokenizer, work.ecg_tokenizer, about)
    for path in (*work.checkpoints("step"), *work.checkpoints("best")):
        shutil.rmtree(path)


def check(work, qa, pretrain, model, method):
    """Check what needs no model, and return the method."""
    work.need(work.token_settings, "encode")
    if bool(qa) == pretrain:
        raise Failure("--qa names the questions to learn; without any, --pretrain learns the ECGs themselves")
    return method_of(model, method)


def show_samples(work, count, *, qa, pretrain, model, method, **options):
    """Print training samples with what the loss counts in green, and return them."""
    from ecgbyte_cli.training.setup import load_for_training

    if pretrain:
        raise Failure("--show prints questions as they are trained, and --pretrain has none: give --qa alone")
    settings = options | {"base": model, "method": check(work, qa, pretrain, model, method)}
    with work.checked("tokens"):
        _, _, samples, _ = load_for_training(work, settings, "cpu")
        think, types, weights = (options[name] for name in ("think", "types", "weights"))
        training, _, _ = read_samples(work, qa, samples, options["seed"], note, think, types, weights)
        shown = []
        for question in [question for plan in training for question in plan.questions][:count]:
            text, about = samples.shown(question)
            if not wants_json():
                click.echo(f"{text}\n")
            shown.append(about)
    return {"samples": shown}
