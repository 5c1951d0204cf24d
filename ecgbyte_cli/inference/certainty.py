"""What a model was trained to answer, how sure it is of an answer, and how unlike those trained on a recording is.

calibration.py finds it out at the end of a training, and it is kept in the model folder: certainty.json, and
ecg_pairs.safetensors with how often one ECG token follows another.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import read_json, write_json

FILE, PAIRS = "certainty.json", "ecg_pairs.safetensors"
MOST_ANSWERS, MOST_LETTERS = 40, 2000  # from which one is chosen; a question with more is answered freely
BACK_OFF = 20.0  # how many times a token counts as seen behind any other, by its own frequency
FLAT = 0.01  # mV; a lead that moves less is flat
# words that say nothing of what is asked
EMPTY = frozenset(
    "a an any are be can could do does ecg ekg electrocardiogram find have has in is it me of please recording say "
    "see seen show shown shows tell that the there these this would you".split()
)


def normalize_question(text: str) -> str:
    """A question without case and punctuation; signs that change what a number says stay."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    text = re.sub(r"'s\b", " is", text).replace("'", "")
    return " ".join(re.findall(r"\d+[.,]\d+|[^\W_]+|[<>=\u2264\u2265+\u00b1%]", text))


def question_keywords(text: str) -> tuple[str, ...]:
    """The words of a question that say what is asked, in alphabetical order."""
    return tuple(sorted({*normalize_question(text).split()} - EMPTY))


class MatchedQuestion(NamedTuple):
    """What a question was found to be: as the model is asked, the answers that it can have, and its known words."""

    text: str
    answers: list[str] | None  # None: it is answered freely
    said: str
    # of a list of findings: the questions with yes and no that it is put together from, and what each one finds
    parts: dict[str, str] | None = None


class ChosenAnswer(NamedTuple):
    """An answer that was chosen from those that a question can have."""

    answer: str
    probability: float  # calibrated
    other: str  # the second likeliest
    other_probability: float
    sure: bool | None  # None where nothing says from which probability on it is
    yes: float | None  # the probability of yes, where yes and no are the answers


@dataclass
class Certainty:
    """How far a model's answers can be believed.

    Attributes
    ----------
    groups : list of dict
        `texts`: questions that ask the same; `answers`: those that they can have, the most frequent first, or None;
        `asked`, if it is there: how the model was trained to be asked, where that is in none of these words.
        `parts`, if it is there: the questions with yes and no, as the model is asked, whose answers make a list, and
        what each finds, in words.
    temperature, sure : dict of str to float
        By `two` and `more` answers to choose from: what the logarithms of probabilities are divided by, and the
        calibrated probability from which on an answer is sure.
    bits, amplitude : list of float or None
        Of validation: bits per ECG token, its median and the 99.5th percentile; and the 0.5th and 99.5th percentile
        of how many mV the leads move.
    keys, counts, single : numpy.ndarray
        How often pairs of tokens (the first times the vocabulary plus the second; the first may be the beginning of
        a lead, which is one behind the last token) and tokens are in the training split.
    """

    groups: list[dict]
    temperature: dict[str, float]
    sure: dict[str, float]
    bits: list[float] | None
    amplitude: list[float] | None
    keys: np.ndarray
    counts: np.ndarray
    single: np.ndarray

    def __post_init__(self):
        self._exact: dict[str, int] = {}
        # plain texts and gists; those that fit two questions fit none
        self._alike: dict[str | tuple[str, ...], tuple[int, str] | None] = {}
        for number, group in enumerate(self.groups):
            for text in group["texts"]:
                self._exact.setdefault(text, number)
                for key in (normalize_question(text), question_keywords(text)):
                    found = self._alike.setdefault(key, (number, text))
                    if not key or (found and found[0] != number):
                        self._alike[key] = None
        vocabulary = len(self.single)
        self._before = np.zeros(vocabulary + 1)
        np.add.at(self._before, self.keys // max(1, vocabulary), self.counts)
        self._share = (self.single + 0.5) / (self.single.sum() + 0.5 * vocabulary)

    def match(self, question: str) -> MatchedQuestion | None:
        """The question of the training that asks the same, up to case, punctuation and words that say nothing."""
        if question in self._exact:
            number, text = self._exact[question], question
        elif found := self._alike.get(normalize_question(question)) or self._alike.get(
            question_keywords(question)
        ):
            number, text = found
        else:
            return None
        group = self.groups[number]
        return MatchedQuestion(group.get("asked", text), group["answers"], text, group.get("parts"))

    def like(self, question: str, count: int = 3) -> list[str]:
        """Questions of the training that have most words in common with another, each asking something else."""
        words, scored = {*normalize_question(question).split()}, []
        for number, group in enumerate(self.groups):
            texts = [
                (len(words & (of := {*normalize_question(t).split()})) / len(words | of), t)
                for t in group["texts"]
            ]
            share, text = max(texts, key=lambda item: item[0])
            scored.append((-share, number, text))
        return [text for *_, text in sorted(scored)[:count]]

    def weights(self, answers: Sequence[str], logs: np.ndarray) -> np.ndarray:
        """The calibrated probabilities of some answers, by the logarithms of those that the model gives them."""
        return softmax(logs / self.temperature.get(answer_kind(answers), 1.0))

    def choose(self, answers: Sequence[str], weights: np.ndarray) -> ChosenAnswer:
        """The likeliest of two answers or more."""
        best, other = np.argsort(-weights, kind="stable")[:2]
        lowered = [answer.casefold() for answer in answers]
        least = self.sure.get(answer_kind(answers))
        return ChosenAnswer(
            answers[best],
            float(weights[best]),
            answers[other],
            float(weights[other]),
            None if least is None else bool(weights[best] >= least),
            float(weights[lowered.index("yes")]) if {*lowered} == {"yes", "no"} else None,
        )

    def bits_of(self, ecg: np.ndarray, lengths: np.ndarray, samples: int) -> float:
        """Mean bits that an ECG's tokens take, each behind the one before it, by the pairs of the training split."""
        vocabulary = len(self.single)
        before = preceding_tokens(ecg, lengths, samples, vocabulary)
        wanted = before * vocabulary + ecg
        at = np.minimum(np.searchsorted(self.keys, wanted), max(0, len(self.keys) - 1))
        seen = np.where(self.keys[at] == wanted, self.counts[at], 0) if len(self.keys) else np.zeros(len(ecg))
        share = (seen + BACK_OFF * self._share[ecg]) / (self._before[before] + BACK_OFF)
        return float(-np.log2(share).mean())

    def unlike(self, ecg: np.ndarray, signal: np.ndarray, tokenizer) -> list[str]:
        """In what an ECG is unlike those trained on; nothing where it is like them.

        Parameters
        ----------
        ecg : int array
            Its tokens.
        signal : numpy.ndarray
            (leads, samples), mV, as it was made into letters.
        tokenizer : ECGTokenizer
        """
        said, leads = [], zip(tokenizer.signal["leads"], lead_ranges(signal), strict=True)
        names = [name for name, mv in leads if mv < FLAT]
        if names:
            said.append(f"lead{'s' if len(names) > 1 else ''} {', '.join(names)} flat")
        elif self.amplitude:
            low, high = self.amplitude
            usual = float(np.median(lead_ranges(tokenizer.to_mv(*tokenizer.quantize(signal)))))
            if not low <= usual <= high:
                said.append(f"its leads move {usual:.2f} mV, and 99 in 100 of those {low:.2f} to {high:.2f}")
        if self.bits and len(ecg):
            bits = self.bits_of(ecg, tokenizer.lengths, tokenizer.signal["samples"])
            if bits > self.bits[1]:
                said.append(
                    f"its waves are put together otherwise ({bits:.1f} bits a token, and 995 in 1,000 of those up to "
                    f"{self.bits[1]:.1f})"
                )
        return said

    def write(self, folder: Path) -> None:
        """Write it into a model folder."""
        from safetensors.numpy import save_file

        parts = {"keys": self.keys, "counts": self.counts, "single": self.single}
        large = np.uint64 if (len(self.single) + 1) * len(self.single) >= 2**32 else np.uint32
        save_file({name: np.ascontiguousarray(part, large) for name, part in parts.items()}, folder / PAIRS)
        said = {key: getattr(self, key) for key in ("groups", "temperature", "sure", "bits", "amplitude")}
        write_json(folder / FILE, said)


def read_certainty(folder: str | Path, vocabulary: int) -> Certainty | None:
    """What a model folder says of its model's certainty; None in the folders of older versions.

    Raises
    ------
    Failure
        If it is damaged.
    """
    from safetensors.numpy import load_file

    from ecgbyte_cli.model.folder_checks import tensor_shapes

    path, pairs = Path(folder) / FILE, Path(folder) / PAIRS
    if not path.exists():
        return None
    said = read_json(path)
    problem = _find_problem(said)
    if problem:
        raise Failure(f"{path} is damaged ({problem}): copy the model folder anew")
    found = tensor_shapes(pairs)
    if (
        {*found} != {"keys", "counts", "single"}
        or found["single"] != [vocabulary]
        or found["keys"] != found["counts"]
        or len(found["keys"]) != 1
    ):
        raise Failure(f"{pairs} is not of this model: copy the model folder anew")
    held = load_file(pairs)
    if any(part.dtype not in (np.uint32, np.uint64) or (part >= 2**62).any() for part in held.values()):
        raise Failure(f"{pairs} is damaged: copy the model folder anew")
    held = {name: part.astype(np.int64) for name, part in held.items()}
    keys = held["keys"]
    if keys.size and (np.any(np.diff(keys) <= 0) or keys[-1] >= (vocabulary + 1) * vocabulary):
        raise Failure(f"{pairs} is damaged: copy the model folder anew")
    return Certainty(
        **{key: said[key] for key in ("groups", "temperature", "sure", "bits", "amplitude")}, **held
    )


def _find_problem(said):
    """What is wrong with the contents of certainty.json, or None."""

    def texts(value):
        return isinstance(value, list) and value and all(isinstance(text, str) for text in value)

    def numbers(value):
        return all(type(x) in (int, float) and -1e6 < x < 1e6 for x in value)

    groups = said.get("groups")
    if not isinstance(groups, list) or not all(
        isinstance(group, dict)
        and texts(group.get("texts"))
        and isinstance(group.get("asked", ""), str)
        and (
            group.get("parts") is None
            or (isinstance(group["parts"], dict) and texts([*group["parts"].values()]))
        )
        and (group.get("answers") is None or (texts(group["answers"]) and can_choose_from(group["answers"])))
        for group in groups
    ):
        return "groups"
    for key in ("temperature", "sure"):
        value = said.get(key)
        if not isinstance(value, dict) or not numbers(value.values()):
            return key
    if any(not 0.01 <= value <= 100 for value in said["temperature"].values()):
        return "temperature"
    for key in ("bits", "amplitude"):
        value = said.get(key, 0)
        if value is not None and not (isinstance(value, list) and len(value) == 2 and numbers(value)):
            return key
    return None


def can_choose_from(answers: Sequence[str]) -> bool:
    """Whether answers are few and short enough that one can be chosen from them."""
    known = {*answers}
    return (
        2 <= len(answers) <= MOST_ANSWERS
        and len(known) == len(answers)
        and sum(map(len, answers)) <= MOST_LETTERS
        and not any("\ud800" <= letter <= "\udfff" for answer in answers for letter in answer)
    )


def lead_ranges(signal: np.ndarray) -> np.ndarray:
    """How many mV each lead of (leads, samples) moves, without the outermost hundredth at either end."""
    low, high = np.percentile(signal, [1, 99], axis=1)
    return high - low


def answer_kind(answers):
    return "two" if len(answers) <= 2 else "more"


def softmax(logs):
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def preceding_tokens(ecg, lengths, samples, vocabulary):
    """The token in front of each token of an ECG; where a lead begins, one behind the last of the vocabulary."""
    ends = np.cumsum(lengths[ecg])
    before = np.concatenate([[vocabulary], ecg[:-1]]).astype(np.int64)
    before[(ends - lengths[ecg]) % samples == 0] = vocabulary
    return before
