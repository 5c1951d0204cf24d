"""Prompts trimmed as in training, and their answers, in batches, kept as they come."""

import contextlib
import functools
import itertools
import json
import math
import time
from typing import NamedTuple

import numpy as np

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.evaluation.controls import CONTROLS
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.certainty import read_certainty
from ecgbyte_cli.inference.conversation import fit_prompt
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.runtime.memory import out_of_memory
from ecgbyte_cli.storage.files import atomic_write


class Answer(NamedTuple):
    """An answer to a question about one segment."""

    answer: str
    probability: float  # of the whole answer; calibrated where it was chosen from several
    seconds: float
    other: str | None = None  # the second likeliest, where it was chosen
    other_probability: float | None = None
    sure: bool | None = None
    yes: float | None = None  # the probability of yes, where yes and no are the answers
    weights: list[float] | None = None  # the probability of each answer that it was chosen from


def longest_prompt(lm, prompt, about, truths, max_new):
    """Ids that a prompt may have: as many as in training."""
    if about.get("prompt_tokens"):
        return about["prompt_tokens"]
    # older models: a prompt and its answer had a longest length together
    room = max(len(prompt.text_tokenizer.encode(t, add_special_tokens=False)) for t in set(truths)) + 1
    longest = (about["settings"].get("max_length") or 2**31) - room
    return min(longest, max_positions(lm) - max_new)


def max_positions(lm):
    """Ids that a model can read and write together."""
    return getattr(lm.base.config, "max_position_embeddings", None) or 2**31


def answer_budget(lm, prompts, max_new):
    """How many ids the answers to prompts may have: `max_new`, or what the model has positions for."""
    return max(1, min(max_new, max_positions(lm) - max(map(len, prompts))))


class PromptSet:
    """The ids of prompts, each as its beginning up to the last ECG, held once for all that share it, and the rest.

    Parameters
    ----------
    prompt : Prompt
    tokenizer : ECGTokenizer
    longest : int
        Ids that a prompt may have: those that are longer are trimmed, as in training.

    Attributes
    ----------
    beginnings : list of int arrays
    asked : dict
        By any key: the number of the beginning, and the ids behind it.
    trimmed : int
    """

    def __init__(self, prompt, tokenizer=None, longest=None):
        self.prompt, self.tokenizer, self.longest = prompt, tokenizer, longest
        self.beginnings, self.asked, self.trimmed = [], {}, 0
        self._numbers = {}

    def ask(self, key, question, ecgs):
        """Add a question about the tokens of ECGs."""
        turns = [*question.earlier, (question.question, None)]
        try:
            ids, _, lost = fit_prompt(self.prompt, self.tokenizer, ecgs, turns, self.longest)
        except Failure as error:
            raise Failure(
                f"a question about record {question.record}: {error.message}: leave it out of the question file"
            ) from error
        self.add(key, ids)
        self.trimmed += lost > 0

    def add(self, key, ids):
        """Add a prompt."""
        ids = np.asarray(ids, np.int32)
        first = self.prompt.layout.prefix(ids)
        number = self._numbers.setdefault(ids[:first].tobytes(), len(self.beginnings))
        if number == len(self.beginnings):
            self.beginnings.append(ids[:first].copy())
        self.asked[key] = number, ids[first:].copy()

    def batches(self, keys, batch, alike):
        """Keys in batches, those that begin alike together: lists of lists of keys whose prompts are the same.

        Parameters
        ----------
        keys : iterable
        batch : int
            Prompts in a batch, at most.
        alike : bool
            Whether prompts that are the same are answered once.
        """
        same: dict = {}
        for key in keys:
            number, rest = self.asked[key]
            same.setdefault((number, rest.tobytes() if alike else key), []).append(key)
        groups = sorted(same.values(), key=lambda group: self.asked[group[0]][0])
        readings = [list(of) for _, of in itertools.groupby(groups, lambda group: self.asked[group[0]][0])]
        readings.sort(key=lambda of: len(self.beginnings[self.asked[of[0][0]][0]]))
        made: list = []
        for of in readings:
            for start in range(0, len(of), batch):
                some = of[start : start + batch]
                if made and len(made) + len(some) > batch:
                    yield made
                    made = []
                made = made + some
        if made:
            yield made

    def ids(self, key):
        """The ids of a prompt."""
        number, rest = self.asked[key]
        return np.concatenate([self.beginnings[number], rest])


def answer_all(lm, prompts, batch, max_new, known, keep, pick=None, name=str):
    """Answer prompts in batches of like length; an ECG that several begin with is read once.

    Parameters
    ----------
    lm : ECGLM
    prompts : Prompts
    batch, max_new : int
    known : set
        Keys of the prompts that are answered already.
    keep : callable
        Called with key and Given of each answer, a batch at a time.
    pick : Sampler or None
        None answers greedily; then equal prompts are answered once.
    name : callable
        What to call the question of a key, where the model fails.
    """
    for together in prompts.batches([key for key in prompts.asked if key not in known], batch, pick is None):
        ask, keys = [prompts.ids(group[0]) for group in together], [group[0] for group in together]
        with _failure_line(ask, name(keys[0])):
            _store_answer(keep, together, _answer_batch(lm, prompts.prompt, ask, keys, max_new, pick))


def _answer_batch(lm, prompt, ask, keys, max_new, pick):
    """The answers to prompts, as Given: one forward pass for all of them."""
    from ecgbyte_cli.model.ecg_lm import ScoredPicks

    began, counted = time.perf_counter(), ScoredPicks(pick, prompt.end_ids, len(ask))
    if pick:
        pick.begin(keys)
    answers = lm.answer(ask, prompt.end_ids, answer_budget(lm, ask, max_new), counted)
    took = (time.perf_counter() - began) / len(ask)
    return [
        Answer(prompt.text(ids), math.exp(sum(logs)), took)
        for ids, logs in zip(answers, counted.logs, strict=True)
    ]


def _store_answer(keep, together, given):
    """Keep the answer to a prompt for all keys that it has."""
    shared = len(together) / sum(map(len, together))
    for group, one in zip(together, given, strict=True):
        for key in group:
            keep(key, one._replace(seconds=one.seconds * shared))


def choose_all(lm, prompts, batch, known, keep, answers, certainty, name=str):
    """Answer prompts by the likeliest of the answers that each can have.

    Parameters
    ----------
    lm, prompts, batch, known, keep, name
        As in `answer_all`.
    answers : callable
        The answers, a list of str, that the prompt of a key can have.
    certainty : Certainty
    """
    for together in prompts.batches([key for key in prompts.asked if key not in known], batch, True):
        ask, some = [prompts.ids(group[0]) for group in together], [answers(group[0]) for group in together]
        with _failure_line(ask, name(together[0][0])):
            _store_answer(keep, together, _choose_batch(lm, prompts.prompt, ask, some, certainty))


def _choose_batch(lm, prompt, ask, some, certainty):
    """The likeliest of the answers that each prompt can have, as Given."""
    began = time.perf_counter()
    weighed = lm.weigh(ask, [[prompt.written(answer) for answer in of] for of in some])
    took = (time.perf_counter() - began) / len(ask)
    return [
        most_probable(certainty, of, certainty.weights(of, logs), took)
        for of, logs in zip(some, weighed, strict=True)
    ]


def on_cluster(dask, root, loaded, closed, free, batch, max_new, known, keep, answers, sampled):
    """As `choose_all` and `answer_all`, on a Dask cluster: each worker loads the model once.

    Parameters
    ----------
    dask : str
        Address of the cluster.
    root : Path
        The work folder.
    loaded : tuple
        Model folder, folder of the base model or None, and SHA-256 of ecgbyte.json: which model it is.
    closed, free : Prompts
        Those whose answers are chosen, and the others.
    batch, max_new, known, keep, answers
        As there.
    sampled : (float, int) or None
        Temperature and seed; None answers greedily.
    """
    units = []
    for prompts, choose in ((closed, True), (free, False)):
        todo = [key for key in prompts.asked if key not in known]
        for together in prompts.batches(todo, batch, choose or sampled is None):
            units.append((prompts, together, [answers(group[0]) for group in together] if choose else None))
    tasks = (
        (number, loaded, [prompts.ids(group[0]) for group in together], [group[0] for group in together])
        + (some, max_new, sampled)
        for number, (prompts, together, some) in enumerate(units)
    )
    with contextlib.closing(
        cluster.map_tasks(dask, root, answer_on_worker, tasks, folder_checks.files_needed(*loaded[:2]))
    ) as results:
        for number, given in results:
            _store_answer(keep, units[number][1], given)


def answer_on_worker(number, loaded, ask, keys, some, max_new, sampled):
    """What a worker does of `generate`: the answers to some prompts, as Given, with the number of the task."""
    lm, prompt, known = _worker_model(*loaded)
    with _failure_line(ask, f"question {keys[0][1]}"):
        if some:
            return number, _choose_batch(lm, prompt, ask, some, known)
        return number, _answer_batch(lm, prompt, ask, keys, max_new, Sampler(*sampled) if sampled else None)


@functools.lru_cache(1)
def _worker_model(model, base, sha256):
    """A model, what makes its prompts, and its certainty: loaded once in a process."""
    from ecgbyte_cli.model import model_folder

    if folder_checks.model_sha256(model) != sha256:
        raise Failure(f"{model} was replaced while it was asked: run `ecgbyte generate` again")
    lm, text_tokenizer, tokenizer, about = model_folder.load_model(model, base=base)
    known = read_certainty(model, tokenizer.vocab_size)
    return lm, Prompt.of(about, text_tokenizer, lm.layout), known


def most_probable(certainty, answers, weights, seconds):
    """The likeliest of some answers, as a Given."""
    best = certainty.choose(answers, weights)
    return Answer(best.answer, best.probability, seconds, *best[2:], weights.tolist())


def most_probable_over_segments(certainty, answers, given):
    """The answer to a question that was asked about several segments: by the mean of its probabilities in each."""
    weights = np.mean([one.weights for one in given], axis=0)
    return most_probable(certainty, answers, weights, sum(one.seconds for one in given))


@contextlib.contextmanager
def _failure_line(ask, first):
    """Say in one line on which questions the model failed."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            less = "--batch or --max-new" if len(ask) > 1 else "--max-new"
            raise Failure(
                f"out of memory at {len(ask)} questions of up to {max(map(len, ask))} tokens ({first}, …): lower "
                f"{less}; the answers before it are kept"
            ) from error
        raise Failure(
            f"the model failed on {len(ask)} questions of up to {max(map(len, ask))} tokens "
            f"({first}, …): {type(error).__name__}: {' '.join(str(error).split())}; the answers before it are kept"
        ) from error


class Sampler:
    """Draws ids by their probability, each answer from a stream of its own: they do not depend on the batch.

    Parameters
    ----------
    temperature : float
        Above 0.
    seed : int
    """

    def __init__(self, temperature, seed):
        self.temperature, self.seed = temperature, seed

    def begin(self, keys):
        """Start on questions: of each `signal` or its control, its number, and that of the segment."""
        names = ("signal", *CONTROLS)
        self.random = [np.random.default_rng([self.seed, names.index(name), i, k]) for name, i, k in keys]

    def __call__(self, logits, rows):
        """The next ids, (n,), from logits (n, vocabulary) of the questions with the numbers `rows`."""
        import torch

        cumulative = (logits.double() / self.temperature).softmax(-1).cumsum(-1)
        drawn = torch.tensor([self.random[row].random() for row in rows], dtype=torch.float64)
        place = torch.searchsorted(cumulative, drawn.to(logits.device)[:, None] * cumulative[:, -1:])
        return place[:, 0].clamp(max=logits.shape[-1] - 1)


def best_over_segments(given):
    """The answer that the segments of a recording make likeliest together.

    Parameters
    ----------
    given : list of Given
        Of each segment.

    Returns
    -------
    Given
        The answer with the largest sum of probabilities (of several, the one that came first), its mean probability
        over all segments, and the seconds together.
    """
    sums: dict[str, float] = {}
    for one in given:
        sums[one.answer] = sums.get(one.answer, 0.0) + one.probability
    best = max(sums, key=sums.__getitem__)
    return Answer(best, sums[best] / len(given), sum(one.seconds for one in given))


class PartialAnswers:
    """The answers so far, in a file beside the answers, so that an interrupted run goes on.

    The first line says the settings; then a line for each answer. Of a line that was cut off, nothing is taken.

    Parameters
    ----------
    path : Path
    settings : dict

    Attributes
    ----------
    answers : dict
        (name, number, segment) to Given.
    """

    def __init__(self, path, settings):
        self.path, self.answers = path, {}
        first = json.dumps({"settings": settings}, sort_keys=True)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        if lines and lines[0] == first:
            for line in lines[1:-1]:
                item = json.loads(line)
                key = item["name"], item["i"], item["segment"]
                self.answers[key] = Answer(*map(item.get, Answer._fields))
            note(f"going on: {len(self.answers)} answers are there")
            whole_lines = "\n".join(lines[:-1]) + "\n"
        else:
            whole_lines = first + "\n"
        with atomic_write(path) as beside:
            beside.write_text(whole_lines, encoding="utf-8")

    def __enter__(self):
        self.file = open(self.path, "a", encoding="utf-8")
        return self

    def __exit__(self, *_):
        self.file.close()

    def add(self, key, given):
        """Keep an answer."""
        self.answers[key] = given
        line = dict(zip(("name", "i", "segment"), key, strict=True)) | given._asdict()
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.file.flush()
