"""Run the chain on the pretended device, alone in a process: python on_device.py WORK DATA FOLDER [MISTAKES].

WORK is a work folder with tokens, DATA holds the recordings and qa.jsonl, FOLDER gets the models. Prints a JSON object:
for each stage what it cost, or the error that ended it; for each planted mistake what it did.
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

import pretended
import torch
import transformers

from ecgbyte_cli.inference import attribution, ecg_generation
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model import decoding, folder_checks, tiny, weighing
from ecgbyte_cli.model.ecg_lm import ECGLM
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.stages import draw, finetune, generate, reinforce
from ecgbyte_cli.storage.files import read_array, read_table
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import calibration, grpo, plans, setup
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
        yield
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
ecg_generation._sample_tokens = costs.measured("drawn token", ecg_generation._sample_tokens)
trials = {}  # whether the model passed each trial of shared readings


def tried(module, name):
    trial = getattr(module, name)

    def trying(*args):
        before = pretended.full_products.copy()
        trials.setdefault(name, []).append(trial(*args))
        pretended.full_products.subtract(pretended.full_products - before)  # they are in float32 on purpose
        return trials[name][-1]

    setattr(module, name, trying)


tried(weighing, "takes_side_by_side")
tried(plans, "can_share_reading")
tried(reinforce, "can_share_reading")
# a small final validation and calibration
trainer_module.AT_THE_END, calibration.WEIGHED, reinforce.VALIDATED, attribution.STEPS = 16, 40, 8, 4


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
        options |= {"model": str(self.folder / "base"), "rows_lr": 1e-3, "vary_leads": 0.5, "measured": False}
        finetune.finetune(self.lora, finetune.FinetuneOptions(self.qa, **options, overwrite=True))

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
            reinforce.ReinforceOptions(steps=2, batch=2, answers=3, every=1, max_new=6, overwrite=True),
        )

    def draw(self):
        words = folder_checks.read_about(self.full.model)["draws"][0]
        options = draw.DrawOptions(self.folder / "drawn", records=2, guidance=2.0, top_p=0.9, overwrite=True)
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


def run(chain, name):
    """Run a stage, and return what it cost, or the error that ended it."""
    pretended.reset()
    costs.reset()
    trials.clear()
    try:
        with pretended.Watch():
            getattr(chain, name)()
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


STAGES = ("finetune", "finetune_lora", "generate", "write", "reinforce", "draw", "chat", "explain")

if __name__ == "__main__":
    chain = Chain(*map(Path, sys.argv[1:4]))
    result = {}
    for name in sys.argv[4:] or STAGES:
        start = time.perf_counter()
        result[name] = run(chain, name) | {"seconds": time.perf_counter() - start}
    print(json.dumps(result))
