"""Run the chain on the pretended device, in a process of its own: python on_device.py WORK DATA FOLDER [STAGE ...].

WORK is a work folder with tokens, DATA holds the recordings and qa.jsonl, FOLDER gets the models. Prints a line of
JSON for each stage, each probe (a small part of a stage) and each planted mistake: what it cost, or its error.
"""

import contextlib
import itertools
import json
import shutil
import sys
import time
import traceback
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pretended
import torch
import transformers

from ecgbyte_cli.inference import attribution, batch_answering, ecg_generation
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model import attention, decoding, folder_checks, kv_cache, tiny, weighing
from ecgbyte_cli.model.ecg_lm import ECGLM
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.stages import draw, finetune, generate, reinforce
from ecgbyte_cli.storage.files import read_array, read_table
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import batch, calibration, grpo, plans, setup
from ecgbyte_cli.training import trainer as trainer_module

warnings.simplefilter("ignore")
devices.choose_device = lambda *_: pretended.DEVICE
devices.half_type = lambda _: torch.bfloat16
setup.exceeds_memory = lambda *_: False
_from_pretrained = transformers.AutoModelForCausalLM.from_pretrained.__func__


def from_pretrained(cls, *args, device_map=None, **options):
    """Load on the CPU, then copy: accelerate does not know the device."""
    base, report = _from_pretrained(cls, *args, **options)
    return base.to(device_map), report


transformers.AutoModelForCausalLM.from_pretrained = classmethod(from_pretrained)


class Costs:
    """What parts of the running stage cost, by name: one count for each time that the part ran."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.waits, self.lines = {}, {}

    @contextlib.contextmanager
    def of(self, name):
        before, lines = pretended.waits.total(), pretended.waits.copy()
        try:
            yield
        finally:
            self.waits.setdefault(name, []).append(pretended.waits.total() - before)
            self.lines[name] = {**self.lines.get(name, {}), **(pretended.waits - lines)}

    def measured(self, name, function):
        def measuring(*args, **options):
            with self.of(name):
                return function(*args, **options)

        return measuring


costs = Costs()
_stream = decoding.stream


def stream(*args, **options):
    """`decoding.stream`, which measures each id but the first, for which the prompts are read."""
    following = _stream(*args, **options)
    for number in itertools.count():
        with costs.of("id" if number else "first id"):
            new = next(following, None)
        if new is None:
            return
        yield new


decoding.stream = stream
trainer_module.Trainer.update = costs.measured("step", trainer_module.Trainer.update)
grpo.GRPOTrainer.update = costs.measured("step with its answers", grpo.GRPOTrainer.update)
grpo.GRPOTrainer.sample = costs.measured("answers", grpo.GRPOTrainer.sample)
ECGLM.weigh = costs.measured("weighing", ECGLM.weigh)
ecg_generation.DecoderState.go_on = costs.measured("ECG token", ecg_generation.DecoderState.go_on)
ecg_generation._generate_batch = costs.measured("drawing", ecg_generation._generate_batch)
_sample_tokens = costs.measured("drawn token", ecg_generation._sample_tokens)


class EnoughError(Exception):
    """Raised when an ECG is long enough: a hardly trained model draws many short tokens."""


def sample_tokens(*args):
    if len(costs.waits.get("drawn token", ())) == 40:
        raise EnoughError
    return _sample_tokens(*args)


ecg_generation._sample_tokens = sample_tokens
trials = {}  # whether the model passed each trial of shared readings


def tried(module, name):
    trial = getattr(module, name)

    def trying(*args):
        counters = pretended.full_products, pretended.waits
        before = [counter.copy() for counter in counters]
        trials.setdefault(name, []).append(trial(*args))
        for counter, earlier in zip(counters, before, strict=True):  # once for a model, in float32 on purpose
            counter.subtract(counter - earlier)
        return trials[name][-1]

    setattr(module, name, trying)


trained = []  # trainers
trainer_module.Trainer.run = lambda self, run=trainer_module.Trainer.run: (trained.append(self), run(self))
tried(attention, "take_last_rows")
tried(weighing, "takes_side_by_side")
tried(plans, "can_share_reading")
tried(reinforce, "can_share_reading")
# little beside what is measured
trainer_module.SHOWN, trainer_module.AT_THE_END, calibration.WEIGHED = 1, 16, 40
reinforce.VALIDATED, attribution.STEPS = 8, 4


class Chain:
    """The stages, each on the models that the stages before it wrote to `folder`."""

    def __init__(self, work, data, folder):
        self.data, self.folder, self.qa = data, folder, [(data / "qa.jsonl", 1.0)]
        for name in ("full", "lora"):
            if not (folder / name).exists():
                shutil.copytree(
                    work, folder / name, ignore=shutil.ignore_patterns("model", "answers", "training")
                )
        if not (folder / "base").exists():
            for part in tiny.build_tiny():
                part.save_pretrained(folder / "base")
        self.full, self.lora = WorkDir(folder / "full"), WorkDir(folder / "lora")

    def finetune(self):
        """All weights, with the ECG loss, drawing and accumulation."""
        options = {"model": "tiny", "steps": 4, "batch": 2, "accumulate": 2, "every": 2, "draw": "rhythm"}
        finetune.finetune(self.full, finetune.FinetuneOptions(self.qa, **options, overwrite=True))

    def finetune_lora(self):
        """LoRA, with checkpointed layers, varied ECGs and ECG rows with a learning rate of their own."""
        options = {
            "method": "lora",
            "steps": 4,
            "batch": 2,
            "every": 2,
            "checkpointing": "on",
            "augment": 1.0,
        }
        options |= {"model": str(self.folder / "base"), "rows_lr": 1e-3}
        finetune.finetune(self.lora, finetune.FinetuneOptions(self.qa, **options, overwrite=True))

    def plan(self):
        options = {"model": "tiny", "steps": 4, "batch": 2, "plan": True}
        with contextlib.redirect_stdout(sys.stderr):
            finetune.plan_only(self.full, finetune.FinetuneOptions(self.qa, **options))

    def generate(self):
        """The answers are chosen among those that a question can have."""
        generate.generate(self.full, generate.GenerateOptions(limit=8, batch=4, overwrite=True))
        generate.generate(self.lora, generate.GenerateOptions(limit=8, batch=4, overwrite=True))

    def write(self):
        """The answers are written: sampled, and greedily behind ECGs of their own and behind a shared one."""
        options = generate.GenerateOptions(limit=8, batch=4, temperature=0.7, max_new=8, overwrite=True)
        generate.generate(self.full, options)
        session = Session.open(self.lora.model)
        lm, _, prompt, _ = session.load()
        ecgs = [session.tokenizer.encode(self.letters(number)) for number in range(2)]
        asked = [("What is the rhythm?", None)], [("How fast does the heart beat?", None)]
        for pairs in itertools.product(ecgs, asked), zip(ecgs, asked, strict=True):
            prompts = [session.prompt_of([ecg], turns, [])[0] for ecg, turns in pairs]
            lm.answer(prompts, set(), 6, decoding.RecordedPicks(None, set(), len(prompts)))

    def letters(self, number):
        """The letters of a segment."""
        segments = read_table(self.full.symbol_segments)
        start, leads, samples = (int(segments[name][number]) for name in ("offset", "leads", "samples"))
        return read_array(self.full.symbols)[start : start + leads * samples].reshape(leads, samples)

    def reinforce(self):
        reinforce.reinforce(
            self.full,
            reinforce.ReinforceOptions(steps=1, batch=2, answers=3, max_new=6, overwrite=True),
        )

    def draw(self):
        words = folder_checks.read_about(self.full.model)["draws"][0]
        options = draw.DrawOptions(self.folder / "drawn", records=2, guidance=2.0, top_p=0.9, overwrite=True)
        with contextlib.suppress(EnoughError):
            draw.draw(self.full, words, options)

    def chat(self):
        """Answers that are chosen and that are written, with the states of the question before."""
        for work in (self.full, self.lora):
            session = Session.open(work.model, max_new=6)
            conversation = session.conversation([session.read(next(self.data.glob("**/*.hea")))])
            for question in ("What is the rhythm?", "Is there atrial fibrillation?"):
                conversation.ask(question)
            ids = session.prompt_ids(conversation.ecgs, [("Tell me more.", None)])[0]
            for number in range(2):
                list(session.lm.stream([ids[: len(ids) - number]], set(), 6, session.cache))

    def explain(self):
        explainer = Session.open(self.full.model).explainer(batch=4)
        for method in attribution.METHODS:
            explainer.density(self.letters(0), "What is the rhythm?", "sinus rhythm", method)


def run(function):
    """Call a function on the device, and return what it cost, or the error that ended it."""
    pretended.reset()
    costs.reset()
    trials.clear()
    try:
        with pretended.Watch():
            function()
    except Exception as error:
        return {
            "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "trace": traceback.format_exc(),
        }
    return {
        "waits": costs.waits,
        "lines": costs.lines,
        "trials": trials.copy(),
        "copies": pretended.copies.copy(),
        "full products": +pretended.full_products,
    }


class Probes:
    """Small parts of the chain, on the model that `Chain.finetune` trained."""

    def __init__(self, chain):
        with pretended.Watch():
            self.load(chain)

    def load(self, chain):
        self.trainer, self.session = trained[0], Session.open(chain.full.model)
        lm, self.letters = self.session.lm, chain.letters(0)
        plans = self.trainer.training
        self.shared = [number for number, plan in enumerate(plans) if len(plan.questions) > 1][:2]
        turns = [("What is the rhythm?", None)], [("How fast does the heart beat?", None)]
        ecgs = [self.session.tokenizer.encode(chain.letters(number)) for number in range(2)]
        self.prompts = [self.session.prompt_of([ecg], asked, [])[0] for ecg in ecgs for asked in turns]
        self.lm, self.random = lm, batch_answering.Sampler(1.0, 0)
        self.random.random = [np.random.default_rng(number) for number in range(len(self.prompts))]

    def step(self):
        self.trainer.update([[(0, number) for number in self.shared]])

    def rows(self):
        self.lm.base.set_attn_implementation("sdpa")
        attention.take_last_rows(self.lm)

    def sharing(self):
        weighing.takes_side_by_side(self.lm)

    def shared_answers(self):
        self.answer(self.prompts, None)

    def own_answers(self):
        self.answer(self.prompts[::3], None)

    def sampled_answers(self):
        self.answer(self.prompts, self.random)

    def answer(self, prompts, pick):
        picks = decoding.RecordedPicks(pick, set(), len(prompts))
        self.lm.answer(prompts, set(), 3, picks)
        picks.answers()

    def weights(self):
        self.session.weigh_prompts(self.prompts, ["yes", "no"], [""] * len(self.prompts))

    def attribution(self):
        self.session.explainer(batch=2).density(
            self.letters, "What is the rhythm?", "sinus rhythm", "rollout"
        )


def altered(change):
    """Return a mistake in the result of a function."""
    return lambda function: lambda *args, **options: change(function(*args, **options))


def in_float64(function):
    """Return a function that gets float64 for float32."""

    def longer(value):
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.double() if floats else value

    return lambda *args: function(*map(longer, args))


def room_on_cpu(_):
    def update(state, keys, values, *_, **__):
        room = torch.empty(keys.shape, dtype=keys.dtype)
        room[:] = keys
        return room, values

    return update


def picked_twice(_):
    def greedy(logits, rows):
        ids = logits.argmax(-1)
        return ids if ids.tolist() else None

    return greedy


def unsupported(_):
    def fail(*_, **__):
        raise ValueError("this shape is not supported")

    return fail


on_cpu = altered(torch.Tensor.cpu)
# Each mistake: the probe that must show it, where it is planted, and what it makes of what stands there.
MISTAKES = {
    "embeddings on the CPU": ("step", ECGLM, "embed", on_cpu),
    "a mask on the CPU": ("step", ECGLM, "mask", on_cpu),
    "a cache on the CPU": ("shared_answers", kv_cache.GrowingState, "update", room_on_cpu),
    "places of written ids on the CPU": ("shared_answers", decoding, "_last_places", on_cpu),
    "attention on the CPU in attribution": (
        *("attribution", attribution.Explainer, "_maps"),
        altered(lambda maps: [*maps[:-1], maps[-1].cpu()]),
    ),
    "float64 in attribution": ("attribution", attribution, "_log_probabilities", in_float64),
    "float64 in sampling": ("sampled_answers", batch_answering.Sampler, "__call__", in_float64),
    "float64 in the trial of sharing": (
        *("sharing", ECGLM, "outputs"),
        altered(lambda parts: tuple(part.double() for part in parts)),
    ),
    "a mask in float64": ("step", ECGLM, "mask", altered(torch.Tensor.double)),
    "an error that brings back a mask for every id": ("rows", attention, "_attend", unsupported),
    "an error that switches sharing off": ("sharing", weighing, "_weigh_pass", unsupported),
    ".item() in the forward pass": (
        *("step", ECGLM, "forward"),
        altered(lambda losses: losses / losses[0].item()),
    ),
    ".item() in the attention of a layer": (
        *("step", attention, "_attend"),
        altered(lambda part: part * part.isfinite().all().item()),
    ),
    ".item() of the gradients' norm": ("step", torch.nn.utils, "clip_grad_norm_", altered(torch.Tensor.item)),
    "places of labels found on the device": (
        *("step", batch.Batch, "to"),
        altered(lambda batch: batch._replace(text=None, ecg=None)),
    ),
    "a second wait for each id": ("shared_answers", decoding, "greedy", picked_twice),
    "a mask that Transformers looks into": (
        *("own_answers", decoding, "can_select_rows"),
        lambda _: lambda _: False,
    ),
    "answers without autocast": (
        *("weights", ECGLM, "autocast"),
        lambda _: lambda _: contextlib.nullcontext(),
    ),
}

STAGES = ("finetune", "finetune_lora", "plan", "generate", "write", "reinforce", "draw", "chat", "explain")


def main(work, data, folder, *names):
    """Run the stages, the probes, and each mistake's probe with the mistake; print a line of JSON for each."""

    def show(kind, name, function):
        start = time.perf_counter()
        cost = run(function) | {"seconds": time.perf_counter() - start}
        print(json.dumps({"kind": kind, "name": name, **cost}), flush=True)

    chain = Chain(Path(work), Path(data), Path(folder))
    for name in names or STAGES:
        show("stage", name, getattr(chain, name))
    probes = Probes(chain)
    for name in dict.fromkeys(probe for probe, *_ in MISTAKES.values()):
        show("probe", name, getattr(probes, name))
    for name, (probe, place, attribute, change) in MISTAKES.items():
        with mock.patch.object(place, attribute, change(getattr(place, attribute))):
            show("mistake", name, getattr(probes, probe))


if __name__ == "__main__":
    main(*sys.argv[1:])
