"""ecgbyte reinforce: a model that answers, and rewards, to one that answers better."""

import shutil
import time
from pathlib import Path

import click

from ecgbyte_cli.console import Model, Stage, Weighted, max_new_option, note, progress, say
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder
from ecgbyte_cli.model.memory import enough_memory
from ecgbyte_cli.model.processes import process_group, this_process
from ecgbyte_cli.model.samples import read_samples
from ecgbyte_cli.model.training import unfinished
from ecgbyte_cli.questions import files as question_files
from ecgbyte_cli.questions.rewards import REWARDS
from ecgbyte_cli.workdir import finished, new_folder, read_json

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
    type=Weighted(REWARDS),
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
        say(
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
    if this_process()[1] > 1:
        raise Failure("reinforce trains on one process: run it without torchrun or accelerate launch")
    begun, work = folder.named(model or work.need(work.model, "finetune")), work.reinforcing()
    about, encoded = folder.about(begun), read_json(work.need(work.token_settings, "encode"))
    given, qa = qa, qa or about.get("qa")
    if not qa:
        raise Failure(f"{begun} does not say which questions it was trained on: give --qa")
    had = about["settings"]  # of its training
    if not about.get("think") and any(name == "form" for name, _ in rewards):
        raise Failure(f"--reward form: {begun} does not reason first, so its answers have no form to keep")
    if begun.resolve() == work.model.resolve():
        raise Failure(f"{begun} is where the new model goes: move it, and name it with --model")
    settings = {
        "qa": question_files.sha256(qa),
        "types": None if given else had.get("types"),
        "weights": None if given else had.get("weights"),
        "ecg_rows": had.get("ecg_rows", "train"),
        "tokens": [encoded[key] for key in ("tokenizer_sha256", "settings")],
        "base": str(begun),
        "begun_with": folder.sha256(begun),
        "method": about["method"],
        "rewards": {name: sum(w for other, w in rewards if other == name) for name, _ in rewards},
        "answers": answers,
        "temperature": temperature,
        "max_new": folder.longest_answer(about, max_new),
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
        going_on = unfinished(work, settings, overwrite)
        done = going_on is None and finished(work.model_settings, settings, overwrite, "a model")
        if done:
            note(f"{work.model} is there already, made with these settings: nothing to do")
            return done
        return _train(work, qa, about, settings, going_on)


def _train(work, qa, about, settings, going_on):
    """Train, from a checkpoint if there is one, and write the model."""
    from ecgbyte_cli.model import calibration, certainty
    from ecgbyte_cli.model.beginning import begin

    start = time.perf_counter()
    with process_group() as device:
        with enough_memory(f"for {settings['base']}", "use a machine with more memory"):
            lm, text_tokenizer, samples, name = begin(work, settings, device)
        # what is compared is the answer alone, also of a model that reasons first
        types, weights = settings["types"], settings["weights"]
        training, validation, counts = read_samples(
            work, qa, samples, settings["seed"], note, types=types, weights=weights
        )
        lm.ecg_rows.requires_grad_(settings["ecg_rows"] == "train")
        longest = max(plan.length for plan in training)
        with enough_memory(
            f"at --batch {settings['batch']} with samples of up to {longest} tokens",
            "lower --batch, --together, --answers or --max-new",
        ):
            trainer = make_trainer(work, lm, samples, settings, training, validation, about.get("think"))
            with trainer.stop:
                result = learn(trainer, going_on)
        if about.get("think"):  # whose answers are not chosen among those known
            known = certainty.read(Path(settings["base"]), samples.tokenizer.vocab_size)
        else:
            asked = [question for plan in training for question in plan.questions]
            some = validation[: calibration.WEIGHED]
            with progress("certainty", len(some), "questions") as bar:
                known = calibration.measure(lm, samples, asked, some, settings["batch"], bar, note)
        result |= counts | {"seconds": time.perf_counter() - start, "model": str(work.model)}
        made = {"base": name, "method": settings["method"], "qa": question_files.resolved(qa)}
        write(work, about, trainer, text_tokenizer, made, known, result)
        return result


def make_trainer(work, lm, samples, settings, training, validation, tags):
    """Prepare to train a model on its own answers, behind one reading of an ECG where it can be."""
    from ecgbyte_cli.model.beginning import shares
    from ecgbyte_cli.model.reinforcing import Reinforcer

    # several answers stand behind a reading even where there is one question
    if not shares(lm, samples, [plan._replace(questions=2 * plan.questions) for plan in training]):
        note("this base model cannot read an ECG for several answers at once: each gets one of its own")
        samples.together = 1
    steps, every = settings["steps"], settings["every"]
    return Reinforcer(work, lm, samples, settings, steps, every, training, validation[:VALIDATED], note, tags)


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
    from ecgbyte_cli.model import ecg_lm

    kept = ("segmenter", "date", "system", "conversations", "most_ecgs", "think", "draws", "writes")
    made = {key: about[key] for key in kept if key in about} | made
    made |= {"prompt_tokens": trainer.samples.longest, "settings": trainer.settings, "result": result}
    with work.making("model"), new_folder(work.model) as path:
        if known:
            known.write(path)
        ecg_lm.save(path, trainer.lm, text_tokenizer, work.ecg_tokenizer, made)
    for path in (*work.checkpoints("step"), *work.checkpoints("best")):
        shutil.rmtree(path)
