"""Prompts trimmed as in training, and their answers, in batches, kept as they come."""

import json
import time

import numpy as np

from ecgbyte_cli.console import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model.controls import CONTROLS
from ecgbyte_cli.model.prompt import leads_of
from ecgbyte_cli.workdir import whole


def longest_prompt(lm, prompt, about, truths, max_new):
    """Ids that a prompt may have: as many as in training."""
    if about.get("prompt_tokens"):
        return about["prompt_tokens"]
    # older models: a prompt and its answer had a longest length together
    room = max(len(prompt.text_tokenizer.encode(t, add_special_tokens=False)) for t in set(truths)) + 1
    longest = (about["settings"].get("max_length") or 2**31) - room
    return min(longest, positions(lm) - max_new)


def positions(lm):
    """Ids that a model can read and write together."""
    return getattr(lm.base.config, "max_position_embeddings", None) or 2**31


class Prompts:
    """The ids of prompts, trimmed as in training where they are longer than there.

    Parameters
    ----------
    prompt : Prompt
    tokenizer : ECGTokenizer
    questions : list of Question
    ecgs : list of list of int arrays
    longest : int
        Ids that a prompt may have.
    """

    def __init__(self, prompt, tokenizer, questions, ecgs, longest):
        self.trimmed, self.ids = 0, []
        for question, read in zip(questions, ecgs, strict=True):
            leads = [leads_of(ecg, tokenizer.lengths, tokenizer.signal["samples"]) for ecg in read]
            turns = [*question.earlier, (question.question, None)]
            try:
                ids, _, lost = prompt.fitted(read, leads, turns, longest)
            except Failure as error:
                raise Failure(
                    f"a question about record {question.record}: {error.message}: leave it out of the question file"
                ) from error
            self.ids.append(ids.astype(np.int32))
            self.trimmed += lost > 0


def answer_all(lm, prompt, prompts, batch, max_new, known, keep, pick=None, chosen=None):
    """Answer prompts in batches of like length.

    Parameters
    ----------
    lm : ECGLM
    prompt : Prompt
    prompts : list of int arrays
    batch, max_new : int
    known : set of int
        Numbers of the prompts that are answered already.
    keep : callable
        Called with number, text and seconds of each answer, a batch at a time.
    pick : Sampler or None
        None answers greedily; then equal prompts are answered once.
    chosen : list or None
        From `choose`, to name a question that fails.
    """
    same = {}
    for i, ids in enumerate(prompts):
        if i not in known:
            same.setdefault(ids.tobytes() if pick is None else i, []).append(i)
    groups = sorted(same.values(), key=lambda group: len(prompts[group[0]]))
    for start in range(0, len(groups), batch):
        together, began = groups[start : start + batch], time.perf_counter()
        ask = [prompts[group[0]] for group in together]
        try:
            if pick:
                pick.begin([group[0] for group in together])
            room = max(1, min(max_new, positions(lm) - max(map(len, ask))))
            answers = lm.answer(ask, prompt.end_ids, room, pick)
        except Exception as error:
            where = f" (record {chosen[together[0][0]][0].record}, …)" if chosen else ""
            raise Failure(
                f"the model failed on {len(ask)} questions of up to {max(map(len, ask))} tokens{where}: "
                f"{type(error).__name__}: {' '.join(str(error).split())}; the answers before it are kept"
            ) from error
        took = (time.perf_counter() - began) / sum(map(len, together))
        for group, ids in zip(together, answers, strict=True):
            text = prompt.text(ids)
            for i in group:
                keep(i, text, took)


class Sampler:
    """Draws ids by their probability, each answer from a stream of its own: they do not depend on the batch.

    Parameters
    ----------
    temperature : float
        Above 0.
    seed : int
    name : str
        `signal` or the control.
    """

    def __init__(self, temperature, seed, name):
        self.temperature = temperature
        self.seed = [seed, ("signal", *CONTROLS).index(name)]

    def begin(self, numbers):
        """Start on the questions of these numbers."""
        self.random = [np.random.default_rng([*self.seed, i]) for i in numbers]

    def __call__(self, logits):
        """The next id of each answer, from logits (batch, vocabulary)."""
        import torch

        cumulative = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        drawn = torch.tensor([random.random() for random in self.random], dtype=torch.float64)
        place = torch.searchsorted(cumulative, drawn.to(logits.device)[:, None] * cumulative[:, -1:])
        return place[:, 0].clamp(max=logits.shape[-1] - 1)


class Partial:
    """The answers so far, in a file beside the answers, so that an interrupted run goes on.

    The first line says the settings; then a line for each answer. Of a line that was cut off, nothing is taken.

    Parameters
    ----------
    path : Path
    settings : dict

    Attributes
    ----------
    answers : dict
        (name, number) to (text, seconds).
    """

    def __init__(self, path, settings):
        self.path, self.answers = path, {}
        first = json.dumps({"settings": settings}, sort_keys=True)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        if lines and lines[0] == first:
            for line in lines[1:-1]:
                item = json.loads(line)
                self.answers[item["name"], item["i"]] = item["answer"], item["seconds"]
            note(f"going on: {len(self.answers)} answers are there")
            whole_lines = "\n".join(lines[:-1]) + "\n"
        else:
            whole_lines = first + "\n"
        with whole(path) as beside:
            beside.write_text(whole_lines, encoding="utf-8")

    def __enter__(self):
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_):
        self.file.close()

    def of(self, name):
        """The numbers answered under a name."""
        return {i for known, i in self.answers if known == name}

    def add(self, name, i, answer, seconds):
        """Keep an answer."""
        self.answers[name, i] = answer, seconds
        line = {"name": name, "i": i, "answer": answer, "seconds": seconds}
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.file.flush()
