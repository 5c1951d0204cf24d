"""ecgbyte reinforce: train a model with rewards on its own sampled answers."""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import (
    WeightedName,
    accumulate_option,
    checkpointing_option,
    device_option,
    max_new_option,
)
from ecgbyte_cli.cli.output import note, print_result
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.hub import name_in_cache
from ecgbyte_cli.model.model_names import resolve_model_folder
from ecgbyte_cli.questions import question_file
from ecgbyte_cli.runtime.memory import reporting_out_of_memory
from ecgbyte_cli.runtime.ranks import process_rank
from ecgbyte_cli.storage.files import read_json
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import checkpoint
from ecgbyte_cli.training.checkpoint import unfinished_checkpoint
from ecgbyte_cli.training.distributed import process_group
from ecgbyte_cli.training.plans import QuestionFiles, TrainingPlans, can_share_reading, read_samples
from ecgbyte_cli.training.rewards import REWARDS

if TYPE_CHECKING:
    from ecgbyte_cli.model.ecg_lm import ECGLM
    from ecgbyte_cli.training.dataset import SampleBuilder
    from ecgbyte_cli.training.grpo import GRPOTrainer

LEARNING_RATE = {"full": 2e-4, "lora": 2e-5, "qlora": 2e-5}
VALIDATED = 256  # number of validation questions
KEPT = (
    "segmenter",
    "date",
    "system",
    "measured",
    "conversations",
    "most_ecgs",
    "think",
    "draws",
    "writes",
)  # entries of ecgbyte.json


@dataclass(frozen=True)
class ReinforceOptions:
    """Options of `ecgbyte reinforce`."""

    qa: str | Path | None = None  # question file or folder; None: the one of the model's training run
    model: str | Path | None = None  # model to start from; None: the work folder's
    device: str | None = None  # see `devices.choose_device`
    rewards: Sequence[tuple[str, float]] = (("exact", 1.0),)  # name in `REWARDS`, and weight
    answers: int = 8  # number of sampled answers per question
    temperature: float = 1.0  # sampling temperature
    max_new: int | None = None  # longest answer in tokens; None: 64, or 512 for a model that reasons
    kl: float = 0.02  # weight of the KL divergence from the initial model
    steps: int = 200  # number of updates
    batch: int = 8  # ECGs per batch, each with its questions
    accumulate: int = 1  # batches per update, on each process
    together: int = 4  # most questions about one ECG in a batch
    lr: float | None = None  # peak learning rate; None: `LEARNING_RATE`
    checkpointing: str = "auto"  # gradient checkpointing: on, off or auto
    every: int | None = None  # steps between validations; None: a fifth of all
    seed: int = 0
    overwrite: bool = False  # replace a model trained with other settings


@click.command(
    cls=Stage,
    short_help="Train a model with rewards on its own sampled answers.",
    epilog="Example: ecgbyte reinforce --reward exact --reward f1:0.5 --steps 2",
)
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    help="Question file, or a folder of them.  [default: the one that the model was trained on]",
)
@click.option(
    "--model",
    type=Model(),
    help="Model folder to start from, or OWNER/NAME of the Hugging Face Hub.  [default: the work folder's]",
)
@device_option
@click.option(
    "--reward",
    "rewards",
    type=WeightedName(REWARDS),
    multiple=True,
    default=["exact"],
    show_default=True,
    help="Reward, with a weight (exact:1): exact, f1 (of the labels), form (reasoning, then answer), "
    "length (short is better). Repeat the option to add rewards.",
)
@click.option(
    "--answers",
    type=click.IntRange(2),
    default=ReinforceOptions.answers,
    show_default=True,
    help="Number of answers sampled for each question. Each is compared with their mean reward.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=ReinforceOptions.temperature,
    show_default=True,
    help="Sampling temperature.",
)
@max_new_option
@click.option(
    "--kl",
    type=click.FloatRange(0),
    default=ReinforceOptions.kl,
    show_default=True,
    help="Weight of the KL divergence from the initial model.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=ReinforceOptions.steps,
    show_default=True,
    help="Number of updates.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=ReinforceOptions.batch,
    show_default=True,
    help="Number of ECGs per batch, each with its questions.",
)
@accumulate_option
@click.option(
    "--together",
    type=click.IntRange(1),
    default=ReinforceOptions.together,
    show_default=True,
    help="Most questions about one ECG in a batch.",
)
@click.option("--lr", type=float, help="Peak learning rate.  [default: 2e-4 for full, else 2e-5]")
@checkpointing_option
@click.option(
    "--every",
    type=click.IntRange(1),
    help="Steps between validations, each with a checkpoint.  [default: a fifth of all steps]",
)
@click.option("--seed", type=int, default=ReinforceOptions.seed, show_default=True, help="Random seed.")
@click.option("--overwrite", is_flag=True, help="Replace a model trained with other settings.")
@click.pass_obj
def command(work: WorkDir, **options: Any) -> dict | None:
    """Train a model further on its own sampled answers: answers with higher rewards become more probable.

    Starts from the work folder's model and leaves it unchanged. Writes the new model to reinforced/, and reward,
    length and KL divergence by step to reinforcing/ (CSV, PNG, TensorBoard). Trains the same weights as `ecgbyte
    finetune` did: an adapter, or all. Rerun an interrupted run and it resumes. On several GPUs, run the same command
    under torchrun or srun.
    """
    result = reinforce(work, ReinforceOptions(**options))
    if result is None:
        return None
    val = "" if result["val_reward"] is None else f", {result['val_reward']:.3f} on the validation set"
    print_result(
        f"{result['model']}: {result['steps']} steps, reward {result['reward']:.3f}{val}, "
        f"{result['exact']:.1f} % of the sampled answers right, {result['answer_tokens']:.1f} tokens each, "
        f"KL {result['kl']:.3f}"
    )
    return result


def reinforce(work: WorkDir, options: ReinforceOptions) -> dict | None:
    """Train a model on sampled answers and write it next to the initial model.

    Returns
    -------
    dict or None
        steps; reward, exact (%), answer_tokens and kl (means over the last tenth, of sampled answers); val_reward (of
        the selected model; None without validation questions), best_step, trainable_parameters, seconds, model
        (path). None on all processes but the first.

    Raises
    ------
    Failure
        If model, tokens or questions are missing or do not fit together, or memory runs out.
    """
    initial = resolve_model_folder(options.model or work.need(work.model, "finetune"))
    work = work.reinforcing()
    about, encoded = folder_checks.read_about(initial), read_json(work.need(work.token_settings, "encode"))
    qa = options.qa or about.get("qa")
    if not qa:
        raise Failure(f"{initial} does not name its training questions: use --qa")
    if not about.get("think") and any(name == "form" for name, _ in options.rewards):
        raise Failure(
            f"--reward form: {initial} does not write its reasoning, so its answers have no form to reward"
        )
    if initial.resolve() == work.model.resolve():
        raise Failure(f"{initial} is the output folder of the new model: move it, and name it with --model")
    settings = training_settings(initial, about, encoded, qa, options)
    with work.checked("tokens"), work.making("training"):
        resume_from = unfinished_checkpoint(work, settings, options.overwrite)
        done = resume_from is None and completed_result(
            work.model_settings, settings, options.overwrite, "a model"
        )
        if done:
            return done if process_rank()[0] == 0 else None
        return _train(work, qa, about, settings, options, resume_from)


def training_settings(
    initial: Path,
    about: dict[str, Any],
    encoded: dict[str, Any],
    qa: QuestionFiles,
    options: ReinforceOptions,
) -> dict[str, Any]:
    """Return the settings that are stored in ecgbyte.json and must be the same in a resumed run."""
    before = about["settings"]  # settings of the initial model's training run
    rewards: dict[str, float] = {}
    for name, weight in options.rewards:
        rewards[name] = rewards.get(name, 0) + weight
    return {
        "qa": question_file.questions_sha256(qa),
        "types": None if options.qa else before.get("types"),
        "weights": None if options.qa else before.get("weights"),
        "ecg_rows": before.get("ecg_rows", "train"),
        "tokens": [encoded[key] for key in ("tokenizer_sha256", "settings")],
        "base": str(initial),
        "begun_with": folder_checks.model_sha256(initial),
        "hub": name_in_cache(initial),
        "method": about["method"],
        "rewards": rewards,
        "answers": options.answers,
        "temperature": options.temperature,
        "max_new": folder_checks.answer_limit(about, options.max_new),
        "kl": options.kl,
        "steps": options.steps,
        "batch": options.batch,
        "accumulate": options.accumulate,
        "processes": process_rank()[1] if process_rank()[1] > 1 else None,
        "together": options.together,
        "lr": options.lr or LEARNING_RATE[about["method"]],
        "every": options.every or max(1, options.steps // 5),
        "patience": None,
        "seed": options.seed,
        # settings of the samples and the model
        **{"positions": None, "augment": 0.0, "draw": None, "long": before.get("long") or "trim"},
        "max_length": before.get("max_length") or 4096,
    }


def _train(
    work: WorkDir,
    qa: QuestionFiles,
    about: dict[str, Any],
    settings: dict[str, Any],
    options: ReinforceOptions,
    resume_from: Path | None,
) -> dict | None:
    """Train, from a checkpoint if there is one, and write the model."""
    from ecgbyte_cli.inference import certainty
    from ecgbyte_cli.training import calibration
    from ecgbyte_cli.training.setup import load_for_training

    start, rank = time.perf_counter(), process_rank()[0]
    tell: Callable[[str], object] = note if rank == 0 else lambda text: None
    with process_group(options.device, settings["method"]) as device:
        with reporting_out_of_memory(f"for {settings['base']}", "use a machine with more memory"):
            lm, text_tokenizer, samples, name = load_for_training(work, settings, device)
        # rewards use the answer only, so the reasoning in the question file is not needed
        types, weights = settings["types"] or (), settings["weights"]
        plans = read_samples(work, qa, samples, settings["seed"], tell, types=types, weights=weights)
        lm.ecg_rows.requires_grad_(settings["ecg_rows"] == "train")
        longest = max(plan.length for plan in plans.training)
        recompute = recompute_layers(lm, settings, plans, options.checkpointing, tell)
        with reporting_out_of_memory(
            f"at --batch {settings['batch']} with samples of up to {longest} tokens",
            "lower --batch (and raise --accumulate), --together, --answers or --max-new"
            + ("" if recompute else ", or use --checkpointing on"),
        ):
            trainer = make_trainer(work, lm, samples, settings, plans, about.get("think"), tell)
            with trainer.stop:
                result = _run(trainer, resume_from)
        if about.get("think"):  # its answers are free text, so there are no probabilities to calibrate
            known = certainty.read_certainty(Path(settings["base"]), samples.tokenizer.vocab_size)
        else:
            known = calibration.calibrate_training(lm, samples, plans, settings["batch"], tell)
        if rank != 0:
            return None
        result |= plans.counts | {"seconds": time.perf_counter() - start, "model": str(work.model)}
        new_about = {key: about[key] for key in KEPT if key in about} | {
            "base": name,
            "method": settings["method"],
            "qa": question_file.absolute_paths(qa),
            "prompt_tokens": samples.longest,
            "settings": settings,
            "result": result,
        }
        checkpoint.write_model(work, lm, text_tokenizer, known, new_about)
        return result


def recompute_layers(
    lm: "ECGLM",
    settings: dict[str, Any],
    plans: TrainingPlans,
    checkpointing: str,
    tell: Callable[[str], object],
) -> bool:
    """Let the backward pass recompute the layers if requested or if memory is short; return whether it does."""
    from ecgbyte_cli.model.ecg_lm import checkpoint_layers
    from ecgbyte_cli.training.setup import recomputes_layers

    # each question may have several answers in the same reading
    written = settings["answers"] * settings["max_new"]
    longest = max(plan.length + len(plan.questions) * written for plan in plans.training)
    recompute = recomputes_layers(lm, settings, longest, checkpointing, tell)
    if recompute:
        checkpoint_layers(lm.base)
    return recompute


def make_trainer(
    work: WorkDir,
    lm: "ECGLM",
    samples: "SampleBuilder",
    settings: dict[str, Any],
    plans: TrainingPlans,
    tags: Sequence[str] | None,
    tell: Callable[[str], object],
) -> "GRPOTrainer":
    """Return the trainer. The answers share a reading of the ECG if the base model supports it."""
    from ecgbyte_cli.training.grpo import GRPOTrainer

    # even a single question has several answers after its reading
    doubled = [plan._replace(questions=2 * plan.questions) for plan in plans.training]
    if not can_share_reading(lm, samples, doubled):
        tell("this base model cannot share an ECG among several answers: each answer gets its own copy")
        samples.together = 1
    steps, every = settings["steps"], settings["every"]
    validation = plans.validation[:VALIDATED]
    return GRPOTrainer(work, lm, samples, settings, steps, every, plans.training, validation, tell, tags)


def _run(trainer: "GRPOTrainer", resume_from: Path | None) -> dict:
    """Train and return the results. A new run starts with a validation."""
    if resume_from is not None:
        trainer.restore(resume_from)
        trainer.tell(f"resuming after step {trainer.step} of {trainer.steps}, from {resume_from}")
    else:
        if trainer.rank == 0:
            shutil.rmtree(trainer.work.training, ignore_errors=True)
        if trainer.validation:
            trainer.validate()
    trainer.run()
    return trainer.result()
