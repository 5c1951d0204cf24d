"""ecgbyte reinforce: a model that answers, and rewards, to one that answers better."""

import shutil
import time
from pathlib import Path

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import WeightedName, max_new_option
from ecgbyte_cli.cli.output import note, print_result, progress
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.questions import question_file
from ecgbyte_cli.runtime.memory import reporting_out_of_memory
from ecgbyte_cli.storage.files import atomic_folder, read_json
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_cli.training.dataset import read_samples
from ecgbyte_cli.training.distributed import process_group, process_rank
from ecgbyte_cli.training.rewards import REWARDS
from ecgbyte_cli.training.trainer import unfinished_checkpoint

LEARNING_RATE = {"full": 2e-4, "lora": 2e-5, "qlora": 2e-5}
VALIDATED = 256  # questions


@click.command(
    cls=Stage,
    short_help="Train a model on answers of its own, by what they are worth.",
    epilog="Example: ecgbyte reinforce --reward exact --reward f1:0.5 --steps 2",
)
@click.option(
    "--qa",
    type=click.Path(path_type=Path),
    help="Question file, or a folder of them.  [default: the one the model was trained on]",
)
@click.option("--model", type=Model(), help="Model to begin with.  [default: the work folder's]")
@click.option(
    "--reward",
    "rewards",
    type=WeightedName(REWARDS),
    multiple=True,
    default=["exact"],
    show_default=True,
    help="What an answer is worth, with a weight (exact:1): exact, f1 (of the labels), form (reasoning, then answer), "
    "length (short is better). Several are added.",
)
@click.option(
    "--answers",
    type=click.IntRange(2),
    default=8,
    show_default=True,
    help="Answers sampled to each question; each is compared with the mean of them.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Of the sampled answers.",
)
@max_new_option
@click.option(
    "--kl",
    type=click.FloatRange(0),
    default=0.02,
    show_default=True,
    help="Weight of the distance to the model that it began with.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=200, show_default=True, help="Updates of the weights."
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="ECGs of an update, with their questions.",
)
@click.option(
    "--together",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Questions about an ECG in an update, at most.",
)
@click.option("--lr", type=float, help="Highest learning rate.  [default: 2e-4 for full, else 2e-5]")
@click.option(
    "--every",
    type=click.IntRange(1),
    help="Validate and write a checkpoint every so many steps.  [default: a fifth of them]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order, and of what is sampled.")
@click.option("--overwrite", is_flag=True, help="Replace a model made with other settings.")
@click.pass_obj
def command(work, **options):
    """Train a model further on answers that it samples itself: those that are worth more become likelier.

    Begins with the work folder's model and leaves that as it is: the new one is in reinforced/, the course of reward,
    length and distance to the beginning in reinforcing/ (CSV, PNG, TensorBoard). What is trained is what `ecgbyte
    finetune` trained, an adapter or all. Run again after a stop, it goes on from the last checkpoint.
    """
    result = reinforce(work, **options)
    if result:
        val = "" if result["val_reward"] is None else f", {result['val_reward']:.3f} in validation"
        print_result(
            f"{result['model']}: {result['steps']} steps, reward {result['reward']:.3f}{val}, "
            f"{result['exact']:.1f} % of the sampled answers right, {result['answer_tokens']:.1f} tokens each, "
            f"KL {result['kl']:.3f}"
        )
    return result


def reinforce(
    work,
    *,
    qa=None,
    model=None,
    rewards=(("exact", 1.0),),
    answers=8,
    temperature=1.0,
    max_new=None,
    kl=0.02,
    steps=200,
    batch=8,
    together=4,
    lr=None,
    every=None,
    seed=0,
    overwrite=False,
):
    """Train a model on sampled answers and write it beside the one that it began with.

    The parameters are the options of the command, which says what they do.

    Returns
    -------
    dict
        steps; reward, exact (%), answer_tokens and kl (means of the last tenth, of sampled answers); val_reward (of
        the model that is kept; None without validation questions), best_step, trainable_parameters, seconds, model
        (path).

    Raises
    ------
    Failure
        If model, tokens or questions are missing or do not fit together, or memory does not suffice.
    """
    if process_rank()[1] > 1:
        raise Failure("reinforce trains on one process: run it without torchrun or accelerate launch")
    begun, work = (
        folder_checks.resolve_model_folder(model or work.need(work.model, "finetune")),
        work.reinforcing(),
    )
    about, encoded = folder_checks.read_about(begun), read_json(work.need(work.token_settings, "encode"))
    given, qa = qa, qa or about.get("qa")
    if not qa:
        raise Failure(f"{begun} does not say which questions it was trained on: give --qa")
    had = about["settings"]  # of its training
    if not about.get("think") and any(name == "form" for name, _ in rewards):
        raise Failure(f"--reward form: {begun} does not reason first, so its answers have no form to keep")
    if begun.resolve() == work.model.resolve():
        raise Failure(f"{begun} is where the new model goes: move it, and name it with --model")
    settings = {
        "qa": question_file.questions_sha256(qa),
        "types": None if given else had.get("types"),
        "weights": None if given else had.get("weights"),
        "ecg_rows": had.get("ecg_rows", "train"),
        "tokens": [encoded[key] for key in ("tokenizer_sha256", "settings")],
        "base": str(begun),
        "begun_with": folder_checks.model_sha256(begun),
        "method": about["method"],
        "rewards": {name: sum(w for other, w in rewards if other == name) for name, _ in rewards},
        "answers": answers,
        "temperature": temperature,
        "max_new": folder_checks.answer_limit(about, max_new),
        "kl": kl,
        "steps": steps,
        "batch": batch,
        "accumulate": 1,
        "together": together,
        "lr": lr or LEARNING_RATE[about["method"]],
        "every": every or max(1, steps // 5),
        "patience": None,
        "seed": seed,
        # as Samples and the model are made
        **{"positions": None, "augment": 0.0, "draw": None, "long": had.get("long") or "trim"},
        "max_length": had.get("max_length") or 4096,
    }
    with work.checked("tokens"), work.making("training"):
        going_on = unfinished_checkpoint(work, settings, overwrite)
        done = going_on is None and completed_result(work.model_settings, settings, overwrite, "a model")
        if done:
            return done
        return _train(work, qa, about, settings, going_on)


def _train(work, qa, about, settings, going_on):
    """Train, from a checkpoint if there is one, and write the model."""
    from ecgbyte_cli.inference import certainty
    from ecgbyte_cli.training import calibration
    from ecgbyte_cli.training.setup import load_for_training

    start = time.perf_counter()
    with process_group() as device:
        with reporting_out_of_memory(f"for {settings['base']}", "use a machine with more memory"):
            lm, text_tokenizer, samples, name = load_for_training(work, settings, device)
        # what is compared is the answer alone, also of a model that reasons first
        types, weights = settings["types"], settings["weights"]
        training, validation, counts = read_samples(
            work, qa, samples, settings["seed"], note, types=types, weights=weights
        )
        lm.ecg_rows.requires_grad_(settings["ecg_rows"] == "train")
        longest = max(plan.length for plan in training)
        with reporting_out_of_memory(
            f"at --batch {settings['batch']} with samples of up to {longest} tokens",
            "lower --batch, --together, --answers or --max-new",
        ):
            trainer = make_trainer(work, lm, samples, settings, training, validation, about.get("think"))
            with trainer.stop:
                result = learn(trainer, going_on)
        if about.get("think"):  # whose answers are not chosen among those known
            known = certainty.read_certainty(Path(settings["base"]), samples.tokenizer.vocab_size)
        else:
            asked = [question for plan in training for question in plan.questions]
            some = validation[: calibration.WEIGHED]
            with progress("certainty", len(some), "questions") as bar:
                known = calibration.calibrate_model(lm, samples, asked, some, settings["batch"], bar, note)
        result |= counts | {"seconds": time.perf_counter() - start, "model": str(work.model)}
        made = {"base": name, "method": settings["method"], "qa": question_file.absolute_paths(qa)}
        write(work, about, trainer, text_tokenizer, made, known, result)
        return result


def make_trainer(work, lm, samples, settings, training, validation, tags):
    """Prepare to train a model on its own answers, behind one reading of an ECG where it can be."""
    from ecgbyte_cli.training.grpo import GRPOTrainer
    from ecgbyte_cli.training.setup import can_share_reading

    # several answers stand behind a reading even where there is one question
    if not can_share_reading(lm, samples, [plan._replace(questions=2 * plan.questions) for plan in training]):
        note("this base model cannot read an ECG for several answers at once: each gets one of its own")
        samples.together = 1
    steps, every = settings["steps"], settings["every"]
    return GRPOTrainer(
        work, lm, samples, settings, steps, every, training, validation[:VALIDATED], note, tags
    )


def learn(trainer, going_on):
    """Train, from a checkpoint if there is one, and return what came out."""
    if going_on is not None:
        trainer.restore(going_on)
        note(f"going on after step {trainer.step} of {trainer.steps}, from {going_on}")
    else:
        shutil.rmtree(trainer.work.training, ignore_errors=True)
        if trainer.validation:
            trainer.validate()
    trainer.run()
    return trainer.result()


def write(work, about, trainer, text_tokenizer, made, known, result):
    """Write the model folder, and remove the checkpoints."""
    from ecgbyte_cli.model import model_folder

    kept = ("segmenter", "date", "system", "conversations", "most_ecgs", "think", "draws", "writes")
    made = {key: about[key] for key in kept if key in about} | made
    made |= {"prompt_tokens": trainer.samples.longest, "settings": trainer.settings, "result": result}
    with work.making("model"), atomic_folder(work.model) as path:
        if known:
            known.write(path)
        model_folder.save_model(path, trainer.lm, text_tokenizer, work.ecg_tokenizer, made)
    for path in (*work.checkpoints("step"), *work.checkpoints("best")):
        shutil.rmtree(path)
