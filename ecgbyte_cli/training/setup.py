"""What a training begins with: a base model with new ECG rows, or a model of one's own that goes on learning."""

from pathlib import Path

import numpy as np
import torch

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import base_model, ecg_lm, folder_checks, model_folder
from ecgbyte_cli.model.kv_cache import GrowingState, new_cache
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.questions.reasoning import TAGS
from ecgbyte_cli.runtime.memory import unsupported
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_json, read_table
from ecgbyte_cli.training.dataset import SampleBuilder, read_samples


def load_for_training(work, settings, device):
    """Load what is to be trained, and make what turns questions into ids for it.

    Parameters
    ----------
    work : WorkDir
    settings : dict
        Of the training.
    device : str

    Returns
    -------
    (ECGLM, text tokenizer, Samples, str)
        And the name of the base model, as ecgbyte.json says it.

    Raises
    ------
    Failure
        If the model cannot be loaded, or belongs to another tokenizer.
    """
    model, method, seed = settings["base"], settings["method"], settings["seed"]
    if method == "full" and (settings.get("rank") or settings.get("alpha")):
        raise Failure("--rank and --alpha are of adapters, and --method full has none: leave them out")
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    encoded = read_json(work.token_settings)
    if tokenizer.sha256 != encoded["tokenizer_sha256"]:
        raise Failure(
            f"{work.tokens} was encoded with another tokenizer than {work.ecg_tokenizer}: run "
            "`ecgbyte encode --overwrite`"
        )
    said, system = (
        folder_checks.read_about(model) if folder_checks.is_ecgbyte_model(model) else {},
        settings.get("system"),
    )
    if said:
        _check_tokenizer(model, said, tokenizer, encoded, settings)
        lm, text_tokenizer, _, _ = model_folder.load_model(model, device, method=method, trainable=True)
        name, system = said["base"], said.get("system")
        if said["method"] != method:
            name = str(Path(model) / "base")
    else:
        base, text_tokenizer = base_model.load_base(model, method, device, seed=seed)
        offset = base.get_input_embeddings().num_embeddings
        layout = Layout.of(offset, tokenizer, settings["positions"] or "token")
        lm, name = ecg_lm.ECGLM(base, tokenizer.vocab_size, seed, layout), model
        lm.init_rows(settings["ecg_init"], tokenizer, seed)
    # the longest that the base model has positions for
    most = getattr(lm.base.config, "max_position_embeddings", None) or settings["max_length"]
    if lm.layout.unit and tokenizer.signal["samples"] // lm.layout.unit >= most:
        raise Failure(f"{name} has {most} positions, too few for --positions time on segments of this length")
    prompt = Prompt(text_tokenizer, lm.layout, said.get("date"), system)
    most = min(settings["max_length"], most)
    samples = SampleBuilder(
        work,
        prompt,
        tokenizer,
        most,
        settings["long"],
        settings["augment"],
        settings["together"],
        settings["draw"],
    )
    return lm, text_tokenizer, samples, name


def _check_tokenizer(model, said, tokenizer, encoded, settings):
    """Refuse a model that reads other ids than those encoded."""
    if said["ecg_tokenizer_sha256"] != tokenizer.sha256:
        raise Failure(f"{model} was trained with another tokenizer: encode with its ecg_tokenizer.json")
    segmenter = encoded.get("segmenter", "longest")
    if said["segmenter"] != segmenter:
        raise Failure(
            f"{model} was trained on tokens of the segmenter {said['segmenter']}, these are of {segmenter}: run "
            f"`ecgbyte encode --segmenter {said['segmenter']} --overwrite`"
        )
    if settings.get("system") not in (None, said.get("system")):
        raise Failure(f"{model} goes on with the system prompt that it was trained with: leave out --system")
    if said["method"] != "full" and (settings.get("rank") or settings.get("alpha")):
        raise Failure(f"{model} goes on with the adapter that it has: leave out --rank and --alpha")
    by = "time" if said["position_letters"] else "token"
    if settings["positions"] not in (None, by):
        raise Failure(f"{model} was trained with --positions {by}, and goes on so")


def can_share_reading(lm, samples, plans):
    """Whether a model answers questions behind one reading of an ECG as it answers them alone: tried, not assumed.

    Parameters
    ----------
    lm : ECGLM
    samples : Samples
    plans : list of Plan
        The longest with several questions is tried.
    """
    several = [plan for plan in plans if len(plan.questions) > 1]
    if not several or lm.base.config._attn_implementation not in ("sdpa", "eager"):
        return not several
    plan = max(several, key=lambda plan: plan.length)
    for layer in new_cache(lm.base).layers:
        # a window leaves out what is far off by the count of ids, not by their positions
        if type(layer) is not GrowingState and getattr(layer, "sliding_window", 0) < plan.length:
            return False
    alone = [plan._replace(questions=(question,)) for question in (plan.questions[0], plan.questions[-1])]
    training = lm.training
    lm.eval()
    try:
        with torch.no_grad(), torch.autocast(lm.device.type, enabled=False):
            first = [lm(*samples.batch([samples.reading(p)]).to(lm.device))[0].item() for p in alone]
            made = samples.reading(plan)
            # of all its questions, those two count
            other = ~((made.owner == 1) | (made.owner == made.owner[-1]))
            made.labels[other] = -100
            both = lm(*samples.batch([made]).to(lm.device))[0].item()
    except (RuntimeError, TypeError, ValueError) as error:
        if not unsupported(error):
            raise
        return False
    finally:
        lm.train(training)
    exact = next(p.dtype for p in lm.base.parameters() if p.is_floating_point()) == torch.float32
    return abs(sum(first) - both) <= (1e-3 if exact else 5e-2) * max(1.0, abs(sum(first)))


def model_abilities(settings, training):
    """What ecgbyte.json says that a model can do beside answering; what it could before, it still can."""
    model = settings["base"]
    before = (
        folder_checks.read_about(model)
        if folder_checks.is_ecgbyte_model(model)
        else {"draws": None, "writes": False}
    )
    draws = {plan.words for plan in training} - {None}
    return {
        "think": TAGS if settings["think"] else None,
        "draws": sorted(draws.union(before["draws"] or ())),
        "writes": settings["ecg_loss"] > 0 or before["writes"],
    }


def plan_readings(work, qa, lm, samples, settings, tell):
    """The plans to train on, what to validate on, and how many samples were trimmed and left_out."""
    if qa is None:
        if settings.get("types"):
            raise Failure("--types takes questions, and --pretrain has none: leave one of them out")
        splits = np.asarray(read_table(work.symbol_segments)["split"])
        sides = [samples.alone(np.flatnonzero(splits == split)) for split in ("train", "val")]
        if not sides[0]:
            raise Failure(f"{work.tokens} holds no recording of the training split: see `ecgbyte info`")
        order = np.random.default_rng(settings["seed"]).permutation(len(sides[1]))
        read = sides[0], [sides[1][i] for i in order], {"trimmed": 0, "left_out": 0}
    else:
        think, types, weights = (settings.get(name) for name in ("think", "types", "weights"))
        read = read_samples(work, qa, samples, settings["seed"], tell, think, types, weights)
        if not can_share_reading(lm, samples, read[0]):
            tell("this base model cannot read an ECG for several questions at once: each gets one of its own")
            samples.together = 1
            asked = [question for plan in read[0] for question in plan.questions]
            read = samples.plans(asked)[0], *read[1:]
    kind = settings["draw"]
    if kind and not samples.tokenizer.has_size:
        raise Failure(
            "--draw needs letters that have a size in mV: symbolize with --quantizer paper, mulaw or lloyd"
        )
    if kind and not any(plan.words for plan in read[0]):
        raise Failure(
            f"--draw {kind}: {qa} holds no training question of this type about one recording whose ECG fits into "
            f"--max-length {samples.max_length}"
        )
    if settings["patience"] and not read[1]:
        raise Failure(f"--patience needs validation questions, and {qa} holds none about an encoded record")
    return read
