"""Time answering: each prompt read whole, and one reading of each ECG for its questions and controls.

    python examples/benchmarks/bench_generate.py                           # 40 simulated ECGs, 19 questions each
    python examples/benchmarks/bench_generate.py quickstart/ecgbyte-work   # the test split of a trained work folder

Without a work folder: ECGs of 400 to 1,000 tokens, questions of about 16 tokens, answers of 4, a decoder like `--model
tiny` with random weights. Answers are for the signal and the four controls. Loading and scoring are not included. Both
ways must give the same answers.
"""

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch

from ecgbyte_cli.evaluation import controls
from ecgbyte_cli.inference import batch_answering
from ecgbyte_cli.model import decoding, ecg_lm, model_folder, tiny
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.questions import question_file
from ecgbyte_cli.stages import generate
from ecgbyte_cli.storage.files import read_table
from ecgbyte_cli.storage.workdir import WorkDir

ECGS, QUESTIONS, VOCABULARY = 40, 19, 5000


def made_up():
    """A model, and prompts for the signal and its controls, by (name, question, 0)."""
    base, text_tokenizer = tiny.build_tiny()
    lm = ecg_lm.ECGLM(base, VOCABULARY).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(3) if parameter.dim() > 1 else None
    prompt, random = Prompt(text_tokenizer, Layout(lm.offset)), np.random.default_rng(0)
    own, noise = (
        [random.integers(0, VOCABULARY, n) for n in random.integers(400, 1000, ECGS)] for _ in range(2)
    )
    strangers = random.permutation(ECGS)
    asked = {
        "signal": own,
        "no signal": [own[0][:0]] * ECGS,
        "shuffled": [own[i] for i in strangers],
        "flat line": [np.zeros(400, int)] * ECGS,
        "noise": noise,
    }
    prompts = batch_answering.PromptSet(prompt)
    for name, ecgs in asked.items():
        for i in range(ECGS * QUESTIONS):
            question = f"Finding {i % QUESTIONS:02d} there?"
            prompts.add((name, i, 0), prompt.build([ecgs[i // QUESTIONS]], [(question, None)])[0])
    return lm, prompts, 4


def of_a_work_folder(path):
    """The same of the test split, with its own model."""
    work = WorkDir(path)
    lm, text_tokenizer, tokenizer, about = model_folder.load_model(work.model)
    questions, segments = question_file.read_questions(Path(about["qa"])), read_table(work.symbol_segments)
    chosen, _ = generate.choose(questions, segments, "test", None, 0)
    signals = controls.ControlInputs(work, tokenizer, about["segmenter"], chosen, 0)
    prompts = batch_answering.PromptSet(
        Prompt(text_tokenizer, lm.layout, about.get("date")), tokenizer, about["prompt_tokens"]
    )
    for name in ("signal", *controls.CONTROLS):
        for i, ((question, *_), ecgs) in enumerate(zip(chosen, signals.of(name), strict=True)):
            prompts.ask((name, i, 0), question, ecgs)
    return lm, prompts, 64


def timed(lm, prompts, batch, max_new, shared):
    """Seconds, and the answers by key; not shared: as it was before, one name after the other."""
    answers = {}

    def keep(key, given):
        answers[key] = given.answer

    start = time.perf_counter()
    if shared:
        batch_answering.answer_all(lm, prompts, batch, max_new, (), keep)
    else:
        sharing, decoding.can_share = decoding.can_share, lambda *_: False
        for name in ("signal", *controls.CONTROLS):
            others = {key for key in prompts.asked if key[0] != name}
            batch_answering.answer_all(lm, prompts, batch, max_new, others, keep)
        decoding.can_share = sharing
    return time.perf_counter() - start, answers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", nargs="?", help="a work folder with a model and its questions")
    options = parser.parse_args()
    lm, prompts, max_new = of_a_work_folder(options.work) if options.work else made_up()
    first, before = timed(lm, prompts, 32, max_new, False)
    second, after = timed(lm, prompts, 64, max_new, True)
    count = len(prompts.asked)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}")
    print(
        f"{count} answers, {len(prompts.beginnings)} ECGs; equal: {sum(before[k] == after[k] for k in before)}"
    )
    print(f"each prompt read whole      {count / first:8.1f} answers/s")
    print(f"one reading of each ECG     {count / second:8.1f} answers/s, {first / second:.1f} times")


if __name__ == "__main__":
    main()
