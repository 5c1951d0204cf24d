"""Answer prompts in batches, on this machine or a cluster, and keep the answers as they come."""

import contextlib
import functools
import itertools
import math
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ecgbyte_cli.evaluation.controls import CONTROLS
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.certainty import Certainty, ChosenAnswer
from ecgbyte_cli.inference.conversation import fit_prompt
from ecgbyte_cli.inference.session import LoadedModel, Session
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.runtime.memory import out_of_memory
from ecgbyte_cli.signal.measured_lines import joined_lines

if TYPE_CHECKING:
    import torch

    from ecgbyte_cli.model.ecg_lm import ECGLM
    from ecgbyte_cli.model.prompt import Prompt
    from ecgbyte_cli.questions.question_file import Question
    from ecgbyte_cli.signal.tokenizer import ECGTokenizer

# model folder, base model folder or None, SHA-256 of ecgbyte.json
ModelKey = tuple[Path, str | None, str | None, str]


class Answer(NamedTuple):
    """An answer to a question about one segment."""

    answer: str
    probability: float  # probability of the whole answer; calibrated if it was chosen from a list
    seconds: float
    other: str | None = None  # the second most probable answer, if it was chosen from a list
    other_probability: float | None = None
    sure: bool | None = None
    yes: float | None = None  # probability of yes, for yes/no questions
    weights: list[float] | None = None  # probability of each possible answer, if it was chosen from a list
    place: int | None = None  # index of the answer in that list


Closed = tuple[str, list[str]]  # a question as worded in its prompt, and its possible answers
Keep = Callable[[Any, Answer], None]
Choose = Callable[[Sequence[str], np.ndarray], ChosenAnswer]  # takes possible answers and their probabilities


def longest_prompt(lm: "ECGLM", prompt: "Prompt", about: dict, truths: Sequence[str], max_new: int) -> int:
    """Return how many ids a prompt may have: as many as in training."""
    if about.get("prompt_tokens"):
        return about["prompt_tokens"]
    # older models limited prompt and answer together
    room = max(len(prompt.text_tokenizer.encode(t, add_special_tokens=False)) for t in set(truths)) + 1
    longest = (about["settings"].get("max_length") or 2**31) - room
    return min(longest, max_positions(lm) - max_new)


def max_positions(lm: "ECGLM") -> int:
    """Return how many ids a model can read and write together."""
    return getattr(lm.base.config, "max_position_embeddings", None) or 2**31


def answer_budget(lm: "ECGLM", prompts: Sequence[np.ndarray], max_new: int) -> int:
    """Return how many ids the answers to prompts may have: `max_new`, or the positions that the model has left."""
    return max(1, min(max_new, max_positions(lm) - max(map(len, prompts))))


class PromptSet:
    """Prompts as ids. The shared start of prompts, up to the last ECG, is stored once.

    Parameters
    ----------
    prompt : Prompt
    tokenizer : ECGTokenizer
    longest : int
        Longest prompt in ids; longer ones are trimmed, as in training.

    Attributes
    ----------
    beginnings : list of int arrays
    asked : dict
        Keyed by the caller's key: the index of the prompt's start in `beginnings`, and the ids after it.
    trimmed : int
    """

    def __init__(self, prompt: "Prompt", tokenizer: "ECGTokenizer | None" = None, longest: int | None = None):
        self.prompt, self.tokenizer, self.longest = prompt, tokenizer, longest
        self.beginnings: list[np.ndarray] = []
        self.asked: dict[Any, tuple[int, np.ndarray]] = {}
        self.trimmed = 0
        self._numbers: dict[bytes, int] = {}

    def ask(self, key: Any, question: "Question", ecgs: list[np.ndarray], lines: Sequence[str] = ()) -> None:
        """Add a question about the tokens of ECGs; `lines` are their measured values, if the model reads them."""
        assert self.tokenizer
        turns, before = [*question.earlier, (question.question, None)], joined_lines(lines)
        try:
            ids, _, lost = fit_prompt(self.prompt, self.tokenizer, ecgs, turns, self.longest, before)
        except Failure as error:
            raise Failure(
                f"a question about record {question.record}: {error.message}: remove it from the question file"
            ) from error
        self.add(key, ids)
        self.trimmed += lost > 0

    def add(self, key: Any, ids: np.ndarray) -> None:
        """Add a prompt."""
        ids = np.asarray(ids, np.int32)
        first = self.prompt.layout.prefix(ids)
        number = self._numbers.setdefault(ids[:first].tobytes(), len(self.beginnings))
        if number == len(self.beginnings):
            self.beginnings.append(ids[:first].copy())
        self.asked[key] = number, ids[first:].copy()

    def batches(self, keys: Iterable[Any], batch: int, alike: bool) -> Iterator[list[list[Any]]]:
        """Yield batches of keys whose prompts share a start: lists of lists of keys with identical prompts.

        Parameters
        ----------
        keys : iterable
        batch : int
            Largest number of prompts in a batch.
        alike : bool
            Whether to answer identical prompts once.
        """
        same: dict = {}
        for key in keys:
            number, rest = self.asked[key]
            same.setdefault((number, rest.tobytes() if alike else key), []).append(key)
        groups = sorted(same.values(), key=lambda group: self.asked[group[0]][0])
        readings = [list(of) for _, of in itertools.groupby(groups, lambda group: self.asked[group[0]][0])]
        readings.sort(key=lambda of: len(self.beginnings[self.asked[of[0][0]][0]]))
        together: list[list[Any]] = []
        for of in readings:
            for start in range(0, len(of), batch):
                some = of[start : start + batch]
                if together and len(together) + len(some) > batch:
                    yield together
                    together = []
                together = together + some
        if together:
            yield together

    def ids(self, key: Any) -> np.ndarray:
        """Return the ids of a prompt."""
        number, rest = self.asked[key]
        return np.concatenate([self.beginnings[number], rest])


def answer_all(
    lm: "ECGLM",
    prompts: PromptSet,
    batch: int,
    max_new: int,
    known: Container[Any],
    keep: Keep,
    pick: "Sampler | None" = None,
    name: Callable[[Any], str] = str,
) -> None:
    """Answer prompts in batches of similar length; an ECG shared by several prompts is read once.

    Parameters
    ----------
    lm : ECGLM
    prompts : PromptSet
    batch, max_new : int
    known : set
        Keys of the prompts that already have answers.
    keep : callable
        Called with key and Answer, after each batch.
    pick : Sampler or None
        None decodes greedily, and answers identical prompts once.
    name : callable
        Returns the name of a key's question, for error messages.
    """
    for together in prompts.batches([key for key in prompts.asked if key not in known], batch, pick is None):
        ask, keys = [prompts.ids(group[0]) for group in together], [group[0] for group in together]
        with _failure_line(ask, name(keys[0])):
            _store_answer(keep, together, _answer_batch(lm, prompts.prompt, ask, keys, max_new, pick))


def _answer_batch(
    lm: "ECGLM",
    prompt: "Prompt",
    ask: list[np.ndarray],
    keys: list[Any],
    max_new: int,
    pick: "Sampler | None",
) -> list[Answer]:
    """Answer a batch of prompts by decoding."""
    from ecgbyte_cli.model.decoding import RecordedPicks

    began, counted = time.perf_counter(), RecordedPicks(pick, prompt.end_ids, len(ask))
    if pick:
        pick.begin(keys)
    answers = lm.answer(ask, prompt.end_ids, answer_budget(lm, ask, max_new), counted)
    took = (time.perf_counter() - began) / len(ask)
    return [
        Answer(prompt.text(ids), math.exp(sum(logs)), took)
        for ids, (_, logs) in zip(answers, counted.answers(), strict=True)
    ]


def _store_answer(keep: Keep, together: list[list[Any]], given: Iterable[Answer]) -> None:
    """Keep the answer to a prompt for each of its keys."""
    shared = len(together) / sum(map(len, together))
    for group, one in zip(together, given, strict=True):
        for key in group:
            keep(key, one._replace(seconds=one.seconds * shared))


def choose_all(
    lm: "ECGLM",
    prompts: PromptSet,
    batch: int,
    known: Container[Any],
    keep: Keep,
    closed: Callable[[Any], Closed],
    certainty: Certainty | None,
    name: Callable[[Any], str] = str,
) -> None:
    """Answer prompts by choosing the most probable of the possible answers.

    Parameters
    ----------
    lm, prompts, batch, known, keep, name
        See `answer_all`.
    closed : callable
        Returns the question of a key's prompt and its possible answers.
    certainty : Certainty or None
        None is allowed only without prompts.
    """
    for together in prompts.batches([key for key in prompts.asked if key not in known], batch, True):
        ask, some = [prompts.ids(group[0]) for group in together], [closed(group[0]) for group in together]
        with _failure_line(ask, name(together[0][0])):
            _store_answer(keep, together, _choose_batch(lm, prompts.prompt, ask, some, certainty))


def _choose_batch(
    lm: "ECGLM",
    prompt: "Prompt",
    ask: list[np.ndarray],
    some: list[Closed],
    certainty: Certainty | None,
) -> list[Answer]:
    """Choose the most probable of the possible answers to each prompt."""
    assert certainty
    began = time.perf_counter()
    weighed = lm.weigh(ask, [[prompt.written(answer) for answer in of] for _, of in some])
    took = (time.perf_counter() - began) / len(ask)
    return [
        most_probable(
            functools.partial(certainty.choose, text=text), of, certainty.weights(of, logs, text), took
        )
        for (text, of), logs in zip(some, weighed, strict=True)
    ]


def on_cluster(
    dask: str,
    root: Path,
    loaded: ModelKey,
    closed: PromptSet,
    free: PromptSet,
    batch: int,
    max_new: int,
    known: Container[Any],
    keep: Keep,
    answers: Callable[[Any], Closed],
    sampled: tuple[float, int] | None,
) -> None:
    """Run `choose_all` and `answer_all` on a Dask cluster; each worker loads the model once.

    Parameters
    ----------
    dask : str
        Address of the cluster.
    root : Path
        The work folder.
    loaded : tuple
        Model folder, folder of the base model or None, device or None, and SHA-256 of ecgbyte.json.
    closed, free : PromptSet
        Prompts whose answers are chosen from a list, and prompts whose answers are decoded.
    batch, max_new, known, keep, answers
        See `choose_all` and `answer_all`.
    sampled : (float, int) or None
        Temperature and seed; None decodes greedily.
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
    files = folder_checks.files_needed(*loaded[:2])
    results: Any = cluster.map_tasks(dask, root, answer_on_worker, tasks, files)
    with contextlib.closing(results):
        for number, given in results:
            _store_answer(keep, units[number][1], given)


def answer_on_worker(
    number: int,
    loaded: ModelKey,
    ask: list[np.ndarray],
    keys: list[Any],
    some: list[Closed] | None,
    max_new: int,
    sampled: tuple[float, int] | None,
) -> tuple[int, list[Answer]]:
    """Answer a task's prompts on a worker; return the task's number and the answers."""
    lm, _, prompt, known = _worker_model(*loaded)
    with _failure_line(ask, f"question {keys[0][1]}"):
        if some:
            return number, _choose_batch(lm, prompt, ask, some, known)
        return number, _answer_batch(lm, prompt, ask, keys, max_new, Sampler(*sampled) if sampled else None)


@functools.lru_cache(1)
def _worker_model(model: Path, base: str | None, device: str | None, sha256: str) -> LoadedModel:
    """Load a model, once per process."""
    if folder_checks.model_sha256(model) != sha256:
        raise Failure(f"{model} was replaced during the run: run `ecgbyte generate` again")
    return Session.open(model, None, base, cluster.device_here(device)).load()


def most_probable(choose: Choose, answers: Sequence[str], weights: np.ndarray, seconds: float) -> Answer:
    """Return the most probable of the possible answers."""
    best = choose(answers, weights)
    return Answer(
        *(best.answer, best.probability, seconds, best.other, best.other_probability, best.sure, best.yes),
        weights=weights.tolist(),
        place=list(answers).index(best.answer),
    )


def most_probable_over_segments(choose: Choose, answers: Sequence[str], given: Sequence[Answer]) -> Answer:
    """Return the answer with the highest mean probability over segments."""
    weights = np.mean([one.weights or [] for one in given], axis=0)
    return most_probable(choose, answers, weights, sum(one.seconds for one in given))


@contextlib.contextmanager
def _failure_line(ask: list[np.ndarray], first: str) -> Iterator[None]:
    """Convert an error of the model into one line that names the questions."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            less = "--batch or --max-new" if len(ask) > 1 else "--max-new"
            raise Failure(
                f"out of memory at {len(ask)} questions of up to {max(map(len, ask))} tokens ({first}, …): lower "
                f"{less}; finished answers are kept"
            ) from error
        raise Failure(
            f"the model failed on {len(ask)} questions of up to {max(map(len, ask))} tokens "
            f"({first}, …): {type(error).__name__}: {' '.join(str(error).split())}; finished answers are kept"
        ) from error


class Sampler:
    """Sample ids by probability, with a random stream per answer, so that answers do not depend on the batch.

    Parameters
    ----------
    temperature : float
        Greater than 0.
    seed : int
    """

    def __init__(self, temperature: float, seed: int):
        self.temperature, self.seed = temperature, seed

    def begin(self, keys: Iterable[Any]) -> None:
        """Start on new questions, each with a key of `signal` or its control, question number and segment number."""
        names = ("signal", *CONTROLS)
        self.random = [np.random.default_rng([self.seed, names.index(name), i, k]) for name, i, k in keys]

    def __call__(self, logits: "torch.Tensor", rows: list[int]) -> "torch.Tensor":
        """Return the next ids, (n,), from logits (n, vocabulary) of the questions with the indices `rows`."""
        import torch

        cumulative = (logits.float() / self.temperature).softmax(-1).cumsum(-1)
        drawn = torch.tensor([self.random[row].random() for row in rows], dtype=torch.float32)
        place = torch.searchsorted(cumulative, drawn.to(logits.device)[:, None] * cumulative[:, -1:])
        return place[:, 0].clamp(max=logits.shape[-1] - 1)


def best_over_segments(given: Sequence[Answer]) -> Answer:
    """Return the answer with the largest sum of probabilities over the segments of a recording.

    The other values are the mean probability over all segments and the total seconds.
    """
    sums: dict[str, float] = {}
    for one in given:
        sums[one.answer] = sums.get(one.answer, 0.0) + one.probability
    best = max(sums, key=sums.__getitem__)
    return Answer(best, sums[best] / len(given), sum(one.seconds for one in given))
