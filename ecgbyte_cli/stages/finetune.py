"""ecgbyte finetune: train a language model on questions and ECG tokens."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import (
    WeightedName,
    accumulate_option,
    checkpointing_option,
    device_option,
    seeds_option,
    types_option,
)
from ecgbyte_cli.cli.output import note, print_result, wants_json
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.folder_checks import BUILT, is_ecgbyte_model, method_of, model_sha256
from ecgbyte_cli.model.hub import name_in_cache
from ecgbyte_cli.model.model_names import resolve_base_model
from ecgbyte_cli.questions import question_file
from ecgbyte_cli.runtime.ranks import process_rank
from ecgbyte_cli.storage.files import read_json
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import checkpoint, sharding
from ecgbyte_cli.training.checkpoint import unfinished_checkpoint
from ecgbyte_cli.training.distributed import process_group
from ecgbyte_cli.training.plans import QuestionFiles, read_samples
from ecgbyte_cli.training.validation import format_loss

LEARNING_RATE, RATE_FROM_SCRATCH = 2e-4, 2e-3
# keyed by method; examples/experiments/LOG.md describes the trials of the ECG loss
DROPOUT = {"full": 0.0, "lora": 0.05, "qlora": 0.05}
ECG_LOSS = {"full": 0.3, "lora": 0.0, "qlora": 0.0}
# options that are not settings, or have other names there
NOT_SETTINGS = ("qa", "pretrain", "model", "method", "device", "checkpointing", "shard", "plan", "overwrite")


@dataclass(frozen=True)
class FinetuneOptions:
    """Options of `ecgbyte finetune`."""

    qa: Sequence[tuple[str | Path, float]] = ()  # question files or folders, each with its weight
    pretrain: bool = False  # learn the ECG tokens of all recordings, without questions
    model: str = "Qwen/Qwen2.5-0.5B-Instruct"  # hub id, local folder, tiny, small, or a trained model folder
    method: str | None = None  # qlora, lora or full; None: qlora, full for tiny and small
    device: str | None = None  # see `devices.choose_device`
    ecg_rows: str = "train"  # train or frozen: the embeddings of the ECG tokens
    ecg_init: str = "signal"  # initial embeddings of ECG tokens: signal, random or mean
    positions: str | None = None  # token (as None) or time: positions of the ECG tokens
    ecg_loss: float | None = None  # weight of the loss for predicting ECG tokens; None: `ECG_LOSS`
    draw: str | None = None  # type of the questions whose answers also serve as prompts to generate ECGs
    think: bool = False  # train on the reasoning before each answer
    types: Sequence[str] = ()  # types of the questions to use; empty: all
    system: str | None = None  # system prompt, for models with a chat template
    measured: bool = False  # put the measured values of an ECG before it, as text
    augment: float = 0.0  # strength of the random variation of ECGs, 0 to 4
    vary_leads: float = 0.0  # share of the batches that leave out some leads
    ask: int | None = None  # mean number of questions answered no that are sampled with each ECG; None: all
    rehearse: int = 8  # earlier questions repeated with each ECG when a model is trained further; 0: none
    dropout: float | None = None  # None: `DROPOUT`
    rank: int | None = None  # rank of LoRA; None: 16
    alpha: float | None = None  # scale of LoRA; None: twice the rank
    steps: int | None = None  # number of updates; None: one epoch
    batch: int = 4  # ECGs per batch, each with its questions
    accumulate: int = 1  # batches per update, on each process
    together: int | None = None  # most questions packed with one ECG; None: as many as fit
    lr: float | None = None  # peak learning rate; None: `LEARNING_RATE`, or `RATE_FROM_SCRATCH`
    rows_lr: float | None = None  # learning rate of the ECG embeddings; None: same as lr
    weight_decay: float | None = None  # weight decay of matrices; None: 0.05
    max_length: int = 4096  # longest sample, in tokens
    long: str = "trim"  # trim or skip longer samples
    without_ecg: float = 0.1  # share of each step's samples whose ECG is removed or replaced with a flat line
    checkpointing: str = "auto"  # gradient checkpointing: on, off or auto
    shard: bool = False  # divide the model among the processes
    every: int | None = None  # steps between validations; None: a fifth of all steps
    patience: int | None = None  # stop after this many validations without improvement; None: never
    seed: int = 0
    plan: bool = False  # measure the memory and time of two steps instead of training
    overwrite: bool = False  # replace a model trained with other settings


@click.command(
    cls=Stage,
    groups={
        "Data": (
            *"qa pretrain draw think types system measured augment vary_leads ask".split(),
            *"rehearse without_ecg max_length long".split(),
        ),
        "Model": "model method device ecg_rows ecg_init positions dropout rank alpha".split(),
        "Optimisation": (
            *"steps batch accumulate together lr rows_lr weight_decay ecg_loss".split(),
            *"checkpointing shard seed seeds".split(),
        ),
        "Evaluation": ("every", "patience", "show", "plan"),
    },
    short_help="Train a language model on questions and ECG tokens.",
    epilog="Example: ecgbyte finetune --qa data/qa.jsonl --model tiny --draw rhythm --steps 20",
)
@click.option(
    "--qa",
    type=WeightedName(),
    multiple=True,
    help="Question file (JSONL, CSV, or JSON of ECG-QA, ECG-Chat, PULSE, LLaVA), or a folder of them. Repeat the "
    "option to mix files; a weight (a.jsonl:2) repeats a file's questions in each epoch.",
)
@click.option(
    "--pretrain", is_flag=True, help="Learn to predict the ECG tokens of all recordings, without questions."
)
@click.option(
    "--model",
    type=Model(*BUILT),
    default=FinetuneOptions.model,
    show_default=True,
    help="Base model: a hub id, a local folder, or tiny or small (decoders of 0.4 and 1.1 million parameters, trained "
    "in full, no download). To train a model further: its folder, its OWNER/NAME on the hub, or ptbxl (included).",
)
@click.option(
    "--method",
    type=click.Choice(["qlora", "lora", "full"]),
    help="qlora: LoRA on a 4-bit base model; lora: LoRA; full: all weights.  [default: qlora; full for tiny and small]",
)
@device_option
@click.option(
    "--ecg-rows",
    type=click.Choice(["frozen", "train"]),
    default=FinetuneOptions.ecg_rows,
    show_default=True,
    help="Train the embeddings of the ECG tokens, or freeze them.",
)
@click.option(
    "--ecg-init",
    type=click.Choice(["signal", "random", "mean"]),
    default=FinetuneOptions.ecg_init,
    show_default=True,
    help="Initial ECG embeddings: from each token's waveform, random, or near the mean of the text embeddings.",
)
@click.option(
    "--positions",
    type=click.Choice(["token", "time"]),
    help="Positions of the ECG tokens: consecutive, or the time at which each starts in its lead.  "
    "[default: token]",
)
@click.option(
    "--ecg-loss",
    type=click.FloatRange(0),
    help="Weight of the loss for predicting ECG tokens.  [default: 0.3 for full, else 0]",
)
@click.option(
    "--draw", metavar="TYPE", help="Also learn to generate ECGs from the answers to questions of this type."
)
@click.option(
    "--think", is_flag=True, help="Train on the reasoning before each answer, if the question file has it."
)
@types_option
@click.option("--system", help="System prompt, for models with a chat template.  [default: built in]")
@click.option(
    "--measured",
    is_flag=True,
    help="Put the values of `ecgbyte measure` (rate, intervals, axis) before each ECG, as text.",
)
@click.option(
    "--augment",
    type=click.FloatRange(0, 4),
    default=FinetuneOptions.augment,
    show_default=True,
    help="Strength of the random variation of each ECG in training: time shift, gain, offset, missing leads; filters, "
    "wander and noise too if `symbolize --keep-signal` kept the signals. 1 is moderate.",
)
@click.option(
    "--vary-leads",
    type=click.FloatRange(0, 1),
    default=FinetuneOptions.vary_leads,
    show_default=True,
    help="Leave out some leads in this share of the batches, so that the model can read recordings with any "
    "leads.",
)
@click.option(
    "--ask",
    type=click.IntRange(1),
    help="Sample about this many of the questions whose answer is no each time an ECG is used, frequent findings "
    "more often. The loss is weighted as if all had been asked.  [default: all]",
)
@click.option(
    "--rehearse",
    type=click.IntRange(0),
    default=FinetuneOptions.rehearse,
    show_default=True,
    help="When training a model further, repeat this many of its earlier questions with each ECG, so that it does not "
    "forget them. 0 turns this off.",
)
@click.option(
    "--dropout",
    type=click.FloatRange(0, 0.9),
    help="Dropout of each layer, or of LoRA.  [default: 0 for full, else 0.05]",
)
@click.option("--rank", type=click.IntRange(1, 4096), help="Rank of LoRA.  [default: 16]")
@click.option(
    "--alpha", type=click.FloatRange(0, min_open=True), help="Scale of LoRA.  [default: twice the rank]"
)
@click.option("--steps", type=click.IntRange(1), help="Number of updates.  [default: one epoch]")
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=FinetuneOptions.batch,
    show_default=True,
    help="Number of ECGs per batch, each with its questions.",
)
@accumulate_option
@click.option(
    "--together",
    type=click.IntRange(1),
    help="Pack at most this many questions with one ECG.  [default: as many as fit into --max-length]",
)
@click.option("--lr", type=float, help="Peak learning rate.  [default: 2e-4; 2e-3 for tiny and small]")
@click.option(
    "--rows-lr",
    type=click.FloatRange(0, min_open=True),
    help="Learning rate of the ECG embeddings.  [default: same as --lr]",
)
@click.option(
    "--weight-decay", type=click.FloatRange(0), help="Weight decay (matrices only).  [default: 0.05]"
)
@click.option(
    "--max-length",
    type=click.IntRange(16),
    default=FinetuneOptions.max_length,
    show_default=True,
    help="Longest sample in tokens, including ECG and questions.",
)
@click.option(
    "--long",
    type=click.Choice(["trim", "skip"]),
    default=FinetuneOptions.long,
    show_default=True,
    help="Trim longer samples, evenly from the end of each lead, or skip them. The results report how many.",
)
@click.option(
    "--without-ecg",
    type=click.FloatRange(0, 0.5),
    default=FinetuneOptions.without_ecg,
    show_default=True,
    help="Remove the ECG, or replace it with a flat line, in this share of each step's samples, so that `generate` "
    "can measure how well the model answers from the questions alone.",
)
@checkpointing_option
@click.option(
    "--shard",
    is_flag=True,
    help="Divide weights, gradients and optimizer state among the processes (FSDP), for models too large for one "
    "GPU. --checkpointing auto then means on.",
)
@click.option(
    "--every",
    type=click.IntRange(1),
    help="Steps between validations, each with a checkpoint.  [default: a fifth of all steps]",
)
@click.option(
    "--patience",
    type=click.IntRange(1),
    help="Stop after this many validations without improvement.  [default: never]",
)
@click.option("--seed", type=int, default=FinetuneOptions.seed, show_default=True, help="Random seed.")
@seeds_option
@click.option("--show", type=click.IntRange(1), help="Print this many training samples instead of training.")
@click.option(
    "--plan",
    is_flag=True,
    help="Run two steps, print the estimated memory and time of the training, and stop.",
)
@click.option("--overwrite", is_flag=True, help="Replace a model trained with other settings.")
@click.pass_obj
def command(work: WorkDir, show: int | None, seeds: int, **options: Any) -> dict | None:
    """Train a language model to answer questions about ECGs (decoder-only models, loss on the answers).

    Reads the questions and the tokens of `ecgbyte encode`. Writes the model with the best validation loss to model/,
    and the losses (CSV, PNG, TensorBoard) and checkpoints to training/. Rerun an interrupted run and it resumes.
    On several GPUs, run the same command under torchrun or accelerate launch. --show prints samples instead of
    training, with the tokens that count towards the loss in green.
    """
    given = FinetuneOptions(**options)
    if len(given.qa) == 1 and given.qa[0][1] != 1:
        raise click.UsageError("a single --qa takes no weight: remove it")
    given = replace(given, model=resolve_base_model(given.model))
    if show:
        return show_samples(work, show, given)
    if given.plan:
        return plan_only(work, given)
    results = [
        finetune(work.of_seed(number) if number else work, replace(given, seed=given.seed + number))
        for number in range(seeds)
    ]
    for result in filter(None, results):
        print_result(
            f"{result['model']}: {result['steps']} steps, training loss {format_loss(result['train_loss'])}, "
            f"validation loss {format_loss(result['val_loss'])}, {result['trainable_parameters']:,} parameters "
            f"trained, {result['tokens_per_second']:.0f} tokens/s"
        )
    first = results[0]
    if seeds == 1 or first is None:
        return first
    return first | {"models": [result["model"] for result in results if result]}


def finetune(work: WorkDir, options: FinetuneOptions) -> dict | None:
    """Train a model on the training split and write the model to the work folder.

    Returns
    -------
    dict or None
        steps, train_loss (mean over the last tenth), val_loss (of the selected model; None without validation
        questions), ecg_loss, ecg_perplexity and bits_per_second (on the validation set; None without an ECG loss),
        best_step, tokens_per_second, trainable_parameters, trimmed and left_out (numbers of too long samples),
        peak_gpu_mb (None without a GPU), seconds, model (path). None on all processes but the first.

    Raises
    ------
    Failure
        If tokens or questions are missing or do not fit together, the base model cannot be loaded, or memory is short.
    """
    rank, processes = process_rank()
    method = check_options(work, options)
    qa, settings = question_file.paths_of(options.qa), training_settings(work, options, method, processes)
    with work.checked("tokens"), work.making("training"):
        resume_from = unfinished_checkpoint(work, settings, options.overwrite)
        done = resume_from is None and completed_result(
            work.model_settings, settings, options.overwrite, "a model"
        )
        if done:
            return done if rank == 0 else None
        return _train(work, qa, settings, options, resume_from)


def check_options(work: WorkDir, options: FinetuneOptions) -> str:
    """Check the options that need no model, and return the training method."""
    work.need(work.token_settings, "encode")
    if bool(options.qa) == options.pretrain:
        raise Failure("use either --qa, to train on questions, or --pretrain, to train without questions")
    method = method_of(options.model, options.method)
    sharding.check_sharding(options.shard, method)
    return method


def training_settings(work: WorkDir, options: FinetuneOptions, method: str, processes: int) -> dict[str, Any]:
    """Return the settings that are stored in ecgbyte.json and must be the same in a resumed run."""
    values = {name: value for name, value in asdict(options).items() if name not in NOT_SETTINGS}
    qa = question_file.paths_of(options.qa)
    settings = values | {
        "weights": question_file.weights_of(options.qa),
        "ecg_loss": ECG_LOSS[method] if options.ecg_loss is None else options.ecg_loss,
        "dropout": DROPOUT[method] if options.dropout is None else options.dropout,
        "qa": question_file.questions_sha256(qa) if qa else None,
        "tokens": [read_json(work.token_settings)[key] for key in ("tokenizer_sha256", "settings")],
        "base": options.model,
        "begun_with": model_sha256(Path(options.model)) if is_ecgbyte_model(options.model) else None,
        "hub": name_in_cache(Path(options.model)),
        "method": method,
        "processes": processes,
        "lr": options.lr or (RATE_FROM_SCRATCH if options.model in BUILT else LEARNING_RATE),
        "think": options.think or None,
        "measured": options.measured or None,
        "types": list(options.types) or None,
    }
    if settings["draw"] and not (qa and settings["ecg_loss"]):
        raise Failure(
            "--draw needs an ECG loss and the answers in --qa: add --ecg-loss 0.3, or a larger weight"
        )
    return settings | ({"ecg_loss": 1.0, "without_ecg": 0.0} if options.pretrain else {})


def _train(
    work: WorkDir,
    qa: QuestionFiles | None,
    settings: dict[str, Any],
    options: FinetuneOptions,
    resume_from: Path | None,
) -> dict | None:
    """Train, from a checkpoint if there is one, and write the model."""
    import torch

    from ecgbyte_cli.training import calibration, setup

    rank = process_rank()[0]
    tell: Callable[[str], object] = note if rank == 0 else lambda text: None
    with process_group(options.device, settings["method"]) as device:
        torch.manual_seed(settings["seed"])
        ready = setup.prepare(work, qa, settings, options.checkpointing, device, tell, options.shard)
        lm, samples, plans, trainer = ready.trainer.lm, ready.trainer.samples, ready.plans, ready.trainer
        with ready.reporting_out_of_memory(), trainer.stop:
            result = setup.run_training(trainer, plans, resume_from, ready.recompute)
        batch = settings["batch"]
        certainty = calibration.calibrate_training(lm, samples, plans, batch, tell) if qa else None
        if options.shard:
            sharding.gather(lm)
        if rank != 0:
            return None
        certainty = certainty.with_earlier(ready.known) if certainty and ready.known else certainty
        result |= plans.counts | {"model": str(work.model)}
        about = setup.about_model(settings, ready.name, samples, qa, plans) | {"result": result}
        checkpoint.write_model(work, lm, ready.text_tokenizer, certainty, about)
        return result


def plan_only(work: WorkDir, options: FinetuneOptions) -> dict | None:
    """Print the estimated memory and time of a run, from two measured steps, and return them. Nothing is written."""
    import torch

    from ecgbyte_cli.training import cost, setup

    rank, processes = process_rank()
    method = check_options(work, options)
    qa, settings = question_file.paths_of(options.qa), training_settings(work, options, method, processes)
    tell: Callable[[str], object] = note if rank == 0 else lambda text: None
    with work.checked("tokens"), process_group(options.device, method) as device:
        torch.manual_seed(settings["seed"])
        ready = setup.prepare(work, qa, settings, options.checkpointing, device, tell, options.shard)
        with ready.reporting_out_of_memory(), ready.trainer.stop:
            result = cost.measure_cost(ready)
    if rank != 0:
        return None
    for line in cost.cost_lines(result):
        print_result(line)
    return result


def show_samples(work: WorkDir, count: int, options: FinetuneOptions) -> dict:
    """Print training samples with the tokens of the loss in green, and return them."""
    from ecgbyte_cli.training.setup import load_for_training

    if options.pretrain:
        raise Failure("--show prints training questions, but --pretrain uses none: use only --qa")
    settings = asdict(options) | {"base": options.model, "method": check_options(work, options)}
    with work.checked("tokens"):
        _, _, samples, _ = load_for_training(work, settings, "cpu")
        qa, weights = question_file.paths_of(options.qa), question_file.weights_of(options.qa)
        assert qa is not None  # `check_options` requires it
        plans = read_samples(work, qa, samples, options.seed, note, options.think, options.types, weights)
        shown = []
        for question in [question for plan in plans.training for question in plan.questions][:count]:
            text, about = samples.shown(question)
            if not wants_json():
                click.echo(f"{text}\n")
            shown.append(about)
    return {"samples": shown}
