"""Set up and start a training run: the model, its samples, and the weights to train."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.certainty import Certainty, read_certainty
from ecgbyte_cli.model import base_model, ecg_lm, folder_checks, model_folder
from ecgbyte_cli.model.ecg_lm import ECGLM
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.model_names import split_revision
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.questions import question_file
from ecgbyte_cli.questions.reasoning import TAGS
from ecgbyte_cli.runtime.memory import exceeds_memory, reporting_out_of_memory
from ecgbyte_cli.runtime.ranks import process_rank
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_json
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import sharding
from ecgbyte_cli.training.calibration import tokens_read
from ecgbyte_cli.training.dataset import ReadingPlan, SampleBuilder
from ecgbyte_cli.training.plans import QuestionFiles, TrainingPlans, plan_training
from ecgbyte_cli.training.rehearsal import earlier_questions, with_rehearsal
from ecgbyte_cli.training.trainer import Trainer
from ecgbyte_cli.training.validation import format_ecg_loss, format_loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Prepared(NamedTuple):
    """A training run that is ready to start."""

    trainer: Trainer
    plans: TrainingPlans  # before rehearsal is added
    known: Certainty | None  # certainty of the model that is trained further
    text_tokenizer: "PreTrainedTokenizerBase"
    name: str  # name of the base model, for ecgbyte.json
    recompute: bool  # whether the backward pass recomputes the layers

    def reporting_out_of_memory(self) -> AbstractContextManager[None]:
        """Return a context that reports running out of memory in a step, and says what to change."""
        settings, longest = self.trainer.settings, max(plan.length for plan in self.trainer.training)
        return reporting_out_of_memory(
            f"at --batch {settings['batch']} with samples of up to {longest} tokens",
            memory_advice(settings, self.recompute),
        )


def prepare(
    work: WorkDir,
    qa: QuestionFiles | None,
    settings: dict[str, Any],
    checkpointing: str,
    device: str,
    tell: Callable[[str], object],
    shard: bool = False,
) -> Prepared:
    """Load the model, plan the run and construct its trainer.

    With `shard`, the model is divided among the processes before anything is computed: see `sharding`.

    Raises
    ------
    Failure
        See `load_for_training` and `plan_training`; or if memory runs out.
    """
    smaller = "use a smaller one" + (", or --method qlora" if settings["method"] != "qlora" else "")
    with reporting_out_of_memory(f"for the base model {settings['base']}", smaller):
        # a model that does not fit on the device is loaded into main memory first
        place = "cpu" if shard else None
        lm, text_tokenizer, samples, name = load_for_training(work, settings, device, place)
        if shard:
            recompute = recomputes_layers(lm, settings, None, checkpointing, tell)
            choose_trained_weights(lm, settings, recompute)
            sharding.shard(lm, device)
    with reporting_out_of_memory(
        f"with samples of up to {samples.max_length} tokens", "lower --max-length or --together"
    ):
        known = earlier_certainty(settings, samples.tokenizer)
        plans = plan_training(work, qa, lm, samples, settings, tell, known)
        rehearsed = add_rehearsal(lm, samples, plans, known, settings, tell)
    longest = max(plan.length for plan in rehearsed.training)
    if not shard:
        recompute = recomputes_layers(lm, settings, longest, checkpointing, tell)
        choose_trained_weights(lm, settings, recompute)
    with reporting_out_of_memory(
        f"at --batch {settings['batch']} with samples of up to {longest} tokens",
        memory_advice(settings, recompute),
    ):
        trainer = make_trainer(work, lm, samples, settings, rehearsed, tell)
    return Prepared(trainer, plans, known, text_tokenizer, name, recompute)


def load_for_training(
    work: WorkDir, settings: dict[str, Any], device: str, place: str | None = None
) -> "tuple[ECGLM, PreTrainedTokenizerBase, SampleBuilder, str]":
    """Load a base model with new ECG rows, or a trained model, and the samples for it.

    See `base_model.load_base` for `device` and `place`.

    Returns
    -------
    (ECGLM, text tokenizer, SampleBuilder, str)
        The str is the name of the base model for ecgbyte.json.

    Raises
    ------
    Failure
        If the model cannot be loaded, or was trained with another tokenizer.
    """
    model, method = settings["base"], settings["method"]
    if method == "full" and (settings.get("rank") or settings.get("alpha")):
        raise Failure("--rank and --alpha apply to adapters, but --method full has none: remove them")
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    if settings.get("vary_leads") and not tokenizer.signal.get("any_leads"):
        raise Failure("--vary-leads needs letters of any leads: run `ecgbyte symbolize --any-leads` first")
    encoded = read_json(work.token_settings)
    if tokenizer.sha256 != encoded["tokenizer_sha256"]:
        raise Failure(
            f"{work.tokens} was not encoded with {work.ecg_tokenizer}: run `ecgbyte encode --overwrite`"
        )
    date, system, measured = None, settings.get("system"), bool(settings.get("measured"))
    if folder_checks.is_ecgbyte_model(model):
        about = folder_checks.read_about(model)
        _check_trained_model(model, about, tokenizer, encoded, settings)
        lm, text_tokenizer, _, _ = model_folder.load_model(
            model, device, method=method, trainable=True, place=place
        )
        date, system = about.get("date"), about.get("system")
        measured = measured or bool(about.get("measured"))
        name = about["base"] if about["method"] == method else str(Path(model) / "base")
    else:
        lm, text_tokenizer, name = _new_model(settings, device, tokenizer, place)
    positions = getattr(lm.base.config, "max_position_embeddings", None) or settings["max_length"]
    if lm.layout.unit and tokenizer.signal["samples"] // lm.layout.unit >= positions:
        raise Failure(
            f"{name} has only {positions} positions, too few for --positions time with segments of this length"
        )
    samples = SampleBuilder(
        work,
        Prompt(text_tokenizer, lm.layout, date, system),
        tokenizer,
        min(settings["max_length"], positions),
        settings["long"],
        settings["augment"],
        settings["together"],
        settings["draw"],
        settings.get("vary_leads") or 0.0,
        settings.get("ask"),
        measured,
    )
    return lm, text_tokenizer, samples, name


def _new_model(
    settings: dict[str, Any], device: str, tokenizer: ECGTokenizer, place: str | None
) -> "tuple[ECGLM, PreTrainedTokenizerBase, str]":
    """Load a base model and add new ECG rows; return the model, its text tokenizer, and the base model's name."""
    seed, (name, revision) = settings["seed"], split_revision(settings["base"])
    base, text_tokenizer = base_model.load_base(name, settings["method"], device, revision, seed, place)
    offset = base.get_input_embeddings().num_embeddings
    layout = Layout.of(offset, tokenizer, settings["positions"] or "token")
    lm = ECGLM(base, tokenizer.vocab_size, seed, layout)
    lm.init_rows(settings["ecg_init"], tokenizer, seed)
    return lm, text_tokenizer, name


def _check_trained_model(
    model: str, about: dict[str, Any], tokenizer: ECGTokenizer, encoded: dict, settings: dict[str, Any]
) -> None:
    """Reject a trained model that does not fit the tokens or the settings."""
    if about["ecg_tokenizer_sha256"] != tokenizer.sha256:
        raise Failure(f"{model} was trained with another tokenizer: encode with its ecg_tokenizer.json")
    segmenter = encoded.get("segmenter", "longest")
    if about["segmenter"] != segmenter:
        raise Failure(
            f"{model} was trained with the segmenter {about['segmenter']}, but the tokens are from {segmenter}: run "
            f"`ecgbyte encode --segmenter {about['segmenter']} --overwrite`"
        )
    if settings.get("system") not in (None, about.get("system")):
        raise Failure(f"{model} keeps the system prompt of its first training run: remove --system")
    if about["method"] != "full" and (settings.get("rank") or settings.get("alpha")):
        raise Failure(f"{model} already has an adapter: remove --rank and --alpha")
    positions = "time" if about["position_letters"] else "token"
    if settings["positions"] not in (None, positions):
        raise Failure(f"{model} was trained with --positions {positions} and keeps this setting")


def earlier_certainty(settings: dict[str, Any], tokenizer: ECGTokenizer) -> Certainty | None:
    """Return the questions and calibration of the model to train further; None for a new model."""
    model = settings["base"]
    return read_certainty(model, tokenizer.vocab_size) if folder_checks.is_ecgbyte_model(model) else None


def add_rehearsal(
    lm: ECGLM,
    samples: SampleBuilder,
    plans: TrainingPlans,
    known: Certainty | None,
    settings: dict[str, Any],
    tell: Callable[[str], object],
) -> TrainingPlans:
    """Add earlier questions to the plans of a model that has answered questions before.

    Plans beyond the last step are dropped, so that a short run starts soon. Without rehearsal, a message says which
    answers the model may lose.
    """
    earlier = earlier_questions(known, plans.training) if known else {}
    if not earlier or not settings["qa"]:
        return plans
    if not settings["rehearse"]:
        tell(
            f"--rehearse 0: the model may lose its answers to {len(earlier)} earlier questions, such as "
            f"{', '.join(sorted(earlier)[:3])}"
        )
        return plans
    count, seed, batch = settings["rehearse"], settings["seed"], settings["batch"]
    training, read = plans.training, (settings["steps"] or sys.maxsize) * readings_per_step(settings)
    if read < len(training):
        chosen = np.random.default_rng([seed, 4]).choice(len(training), read, replace=False)
        training = [training[number] for number in sorted(chosen)]
    training = with_rehearsal(lm, samples, earlier, training, count, seed, batch, tell)
    return plans._replace(training=training)


def readings_per_step(settings: dict[str, Any]) -> int:
    """Return the number of readings in a step, over all processes."""
    count: int = settings["batch"] * settings["accumulate"] * process_rank()[1]
    return count


def recomputes_layers(
    lm: ECGLM,
    settings: dict[str, Any],
    longest: int | None,
    checkpointing: str,
    tell: Callable[[str], object],
) -> bool:
    """Return whether the backward pass recomputes the layers (gradient checkpointing).

    Parameters
    ----------
    lm : ECGLM
    settings : dict
    longest : int or None
        Length of the longest reading in ids; None for a model that does not fit on one device.
    checkpointing : {"on", "off", "auto"}
    tell : callable
        Prints a message.

    Raises
    ------
    Failure
        If it is required but the model does not support it.
    """
    supported = getattr(lm.base, "supports_gradient_checkpointing", False)
    if checkpointing == "on" and not supported:
        raise Failure(f"--checkpointing on: {settings['base']} does not support it: remove the option")
    full = settings["method"] == "full"
    if longest is None:
        return checkpointing != "off" and supported
    if checkpointing == "auto" and supported and exceeds_memory(lm, settings["batch"] * longest, full):
        tell(
            "gradient checkpointing is on: a batch of the longest samples might not fit into memory without it"
        )
        return True
    return checkpointing == "on"


def memory_advice(settings: dict[str, Any], recompute: bool) -> str:
    """Return the options to change if a batch does not fit into memory."""
    lower = [*(["--batch (and raise --accumulate)"] if settings["batch"] > 1 else []), "--max-length"]
    advice = [f"lower {' or '.join(lower)}"]
    if not recompute:
        advice.append("use --checkpointing on")
    if settings["method"] != "qlora" and settings["base"] not in folder_checks.BUILT:
        advice.append("use --method " + ("qlora" if settings["method"] == "lora" else "lora"))
    return ", or ".join(advice)


def choose_trained_weights(lm: ECGLM, settings: dict[str, Any], recompute: bool) -> None:
    """Choose the weights to train, and whether the backward pass recomputes the layers."""
    if settings["method"] == "full":
        if recompute:
            ecg_lm.checkpoint_layers(lm.base)
        if settings["dropout"]:
            lm.drop(settings["dropout"])
    elif hasattr(lm.base, "peft_config"):
        base_model.enable_gradients(lm.base, recompute)
    else:
        rank, dropout = settings["rank"] or 16, settings["dropout"]
        lm.base = base_model.add_adapter(lm.base, rank, settings["alpha"] or 2 * rank, dropout, recompute)
    lm.ecg_rows.requires_grad_(settings["ecg_rows"] == "train")


def make_trainer(
    work: WorkDir,
    lm: ECGLM,
    samples: SampleBuilder,
    settings: dict[str, Any],
    plans: TrainingPlans,
    tell: Callable[[str], object],
) -> Trainer:
    """Return the trainer of a model, after `choose_trained_weights`."""
    steps = settings["steps"] or math.ceil(len(plans.training) / readings_per_step(settings))
    every = settings["every"] or max(1, steps // 5)
    return Trainer(work, lm, samples, settings, steps, every, plans.training, plans.validation, tell)


def run_training(
    trainer: Trainer, plans: TrainingPlans, resume_from: Path | None, recompute: bool
) -> dict[str, Any]:
    """Validate once, so that a broken validation shows before training starts, then train and return the results."""
    settings, tell = trainer.settings, trainer.tell
    start, trial = time.perf_counter(), trainer.held_out(2 * settings["batch"])
    text, ecg, bits = trainer.validation_loss(trial)
    seconds = time.perf_counter() - start
    questions = [question for plan in plans.training for question in plan.questions]
    counts = f"{len(questions)} training and {len(plans.validation)} validation questions"
    per_step = settings["batch"] * settings["accumulate"] * trainer.processes
    tell(
        f"{settings['base']} ({settings['method']}) on {trainer.lm.device}: {len(plans.training)} readings, "
        f"{counts if settings['qa'] else 'no questions'}, {trainer.steps} steps of {per_step}; validation loss before "
        f"training {format_loss(text if settings['qa'] else ecg)}{format_ecg_loss(ecg, bits)}"
    )
    if resume_from is not None:
        trainer.restore(resume_from)
        tell(f"resuming after step {trainer.step} of {trainer.steps}, from {resume_from}")
    elif trainer.rank == 0:
        shutil.rmtree(trainer.work.training, ignore_errors=True)
    if trial and settings["method"] != "full" and trainer.lm.device.type == "cpu":
        calibrated = 0
        if settings["qa"]:
            calibrated = tokens_read(trainer.lm, trainer.samples, questions, plans.validation)
        forward = seconds * trainer.processes / sum(plan.length for plan in trial)
        # without recomputation the backward pass takes twice as long as the forward pass
        minutes = trainer.minutes(forward, forward * (4 if recompute else 3), calibrated)
        tell(f"no GPU: training will take about {sum(minutes.values()):.1f} minutes")
    trainer.run()
    return trainer.result()


def about_model(
    settings: dict[str, Any],
    name: str,
    samples: SampleBuilder,
    qa: QuestionFiles | None,
    plans: TrainingPlans,
) -> dict[str, Any]:
    """Return the contents of ecgbyte.json, without the result of the run."""
    return {
        "base": name,
        "method": settings["method"],
        "qa": qa and question_file.absolute_paths(qa),
        "segmenter": samples.segmenter,
        "prompt_tokens": samples.longest,
        "date": samples.prompt.date,
        "system": samples.prompt.told,
        "measured": samples.lines is not None,
        "conversations": any(q.earlier for plan in plans.training for q in plan.questions),
        "most_ecgs": max(len(plan.segments) for plan in plans.training),
        **model_abilities(settings, plans.training),
        "settings": settings,
    }


def model_abilities(settings: dict[str, Any], training: list[ReadingPlan]) -> dict[str, Any]:
    """Return the abilities of a model besides answering, for ecgbyte.json. Further training keeps earlier abilities."""
    earlier: dict[str, Any] = {"draws": None, "writes": False}
    if folder_checks.is_ecgbyte_model(settings["base"]):
        earlier = folder_checks.read_about(settings["base"])
    draws = {plan.words for plan in training if plan.words is not None}
    return {
        "think": TAGS if settings["think"] else None,
        "draws": sorted(draws.union(earlier["draws"] or ())),
        "writes": settings["ecg_loss"] > 0 or earlier["writes"],
    }
