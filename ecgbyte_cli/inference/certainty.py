"""Match questions to training questions, calibrate answers, and compare recordings with the training set.

`training.calibration` computes the results at the end of a training run. The model folder stores them in
certainty.json, and in ecg_pairs.safetensors how often one ECG token follows another.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import layout
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import read_json, write_json

FILE, PAIRS = "certainty.json", "ecg_pairs.safetensors"
MAX_ANSWERS, MAX_CHARACTERS = 40, 2000  # a question with more possible answers is answered in free text
BACK_OFF = 20.0  # back-off weight of the unigram frequency relative to the bigram counts
UNSURE_ODDS = 1.5  # an answer is unsure if its odds are within this factor of those at the threshold for yes
CONTENTS = (
    "groups",
    "temperature",
    "sure",
    "bits",
    "amplitude",
    "points",
    "adjustments",
    "calibrated_on",
)  # entries of certainty.json
FLAT = 0.01  # mV; a lead with a smaller range is flat
# filler words, ignored when questions are compared
EMPTY = frozenset(
    "a an any are be can could do does ecg ekg electrocardiogram find have has in is it me of please recording say "
    "see seen show shown shows tell that the there these this would you".split()
)


def normalize_question(text: str) -> str:
    """Return a question without case and punctuation, but with the symbols that change a number's meaning."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    text = re.sub(r"'s\b", " is", text).replace("'", "")
    return " ".join(re.findall(r"\d+[.,]\d+|[^\W_]+|[<>=\u2264\u2265+\u00b1%]", text))


def question_keywords(text: str) -> tuple[str, ...]:
    """Return the words of a question except `EMPTY`, in alphabetical order."""
    return tuple(sorted({*normalize_question(text).split()} - EMPTY))


class MatchedQuestion(NamedTuple):
    """A training question that matches the user's question."""

    text: str  # wording for the prompt
    answers: list[str] | None  # possible answers; None: free text
    wording: str  # its wording in the training data
    # for a question whose answer is a list: the yes/no questions it is assembled from, each mapped to its finding
    parts: dict[str, str] | None = None
    # for a yes/no question answered through the rhythm question: the rhythms that count as yes
    members: tuple[str, ...] | None = None


class ChosenAnswer(NamedTuple):
    """The chosen answer: the most probable, or the one selected by a threshold or adjustment."""

    answer: str
    probability: float  # calibrated
    other: str  # the most probable of the others
    other_probability: float
    sure: bool | None  # the most probable of the other answers
    yes: float | None  # probability of yes, for yes/no questions
    point: float | None = None  # None if no threshold is known


@dataclass
class Certainty:
    """What a training run leaves for answering: its questions, calibration and recording statistics.

    Attributes
    ----------
    groups : list of dict
        `texts`: questions with the same meaning; `answers`: their possible answers, most frequent first, or None;
        optional `asked`: the wording for the prompt, if it is not one of `texts`; optional `parts`: the yes/no
        questions, as worded in prompts, whose answers form a list, each mapped to its finding.
    temperature, sure : dict of str to float
        Keyed by the number of possible answers (`two` or `more`): the divisor of log-probabilities, and the lowest
        calibrated probability at which an answer is sure.
    bits, amplitude : list of float or None
        On the validation set: median and 99.5th percentile of the bits per ECG token; 0.5th and 99.5th percentile of
        the leads' range in mV.
    points : dict of str to list of float
        Keyed by prompt text (yes/no questions): slope and intercept that calibrate the model's log-odds, and the
        threshold for yes.
    adjustments : dict of str to dict of str to float
        Keyed by prompt text (more than two answers): the term added to each answer's log-probability before the most
        probable is chosen, so that rare answers are found (Menon et al., Long-tail learning via logit adjustment, ICLR
        2021). The reported probabilities are not adjusted.
    calibrated_on : str or None
        A description of the recordings used for calibration.
    keys, counts, single : numpy.ndarray
        Bigram and unigram token counts in the training split. `keys` holds `first * vocabulary + second`; the id
        `vocabulary`, one past the last token, stands for the start of a lead. `counts` holds the count of each key,
        and `single` the count of each token.
    """

    groups: list[dict]
    temperature: dict[str, float]
    sure: dict[str, float]
    bits: list[float] | None
    amplitude: list[float] | None
    keys: np.ndarray
    counts: np.ndarray
    single: np.ndarray
    points: dict[str, list[float]] = field(default_factory=dict)
    adjustments: dict[str, dict[str, float]] = field(default_factory=dict)
    calibrated_on: str | None = None

    def __post_init__(self) -> None:
        self._exact: dict[str, int] = {}
        # keyed by normalized text and by keywords; None if two questions share the key
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
        """Return the training question that differs only in case, punctuation and `EMPTY` words."""
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

    def weights(self, answers: Sequence[str], logs: np.ndarray, text: str = "") -> np.ndarray:
        """Return calibrated probabilities of the answers to a prompt text, from the model's log-probabilities."""
        yes = yes_place(answers)
        if text in self.points and yes is not None:
            slope, intercept, _ = self.points[text]
            chance = 1 / (1 + np.exp(-(slope * (logs[yes] - logs[1 - yes]) + intercept)))
            return np.array([chance, 1 - chance] if yes == 0 else [1 - chance, chance])
        return softmax(logs / self.temperature.get(answer_kind(answers), 1.0))

    def choose(self, answers: Sequence[str], weights: np.ndarray, text: str = "") -> ChosenAnswer:
        """Choose among two or more answers: by threshold or adjustment if there is one, otherwise the likeliest."""
        yes = yes_place(answers)
        point = self.points[text][2] if text in self.points and yes is not None else None
        if point is None:
            added = [self.adjustments.get(text, {}).get(answer, 0.0) for answer in answers]
            best = int(np.argmax(np.log(np.maximum(weights, 1e-300)) + added))
        else:
            assert yes is not None
            best = yes if weights[yes] >= point else 1 - yes
        other = int(np.argmax(np.where(np.arange(len(weights)) == best, -1, weights)))
        chance, least = None if yes is None else float(weights[yes]), self.sure.get(answer_kind(answers))
        if point is not None and chance is not None:
            low, high = unsure_range(point)
            sure: bool | None = not low < chance < high
        else:
            sure = None if least is None else bool(weights[best] >= least)
        return ChosenAnswer(
            answers[best], float(weights[best]), answers[other], float(weights[other]), sure, chance, point
        )

    def bits_of(self, ecg: np.ndarray, lengths: np.ndarray, samples: int) -> float:
        """Return the mean bits per token under the bigram model of the training split."""
        vocabulary = len(self.single)
        before = preceding_tokens(ecg, lengths, samples, vocabulary)
        wanted = before * vocabulary + ecg
        at = np.minimum(np.searchsorted(self.keys, wanted), max(0, len(self.keys) - 1))
        seen = np.where(self.keys[at] == wanted, self.counts[at], 0) if len(self.keys) else np.zeros(len(ecg))
        share = (seen + BACK_OFF * self._share[ecg]) / (self._before[before] + BACK_OFF)
        return float(-np.log2(share).mean())

    def unlike(self, ecg: np.ndarray, signal: np.ndarray, tokenizer: ECGTokenizer) -> list[str]:
        """Return the ways in which an ECG differs from the training recordings; empty if it does not.

        Parameters
        ----------
        ecg : int array
            The ECG's tokens.
        signal : numpy.ndarray
            (leads, samples), mV, before quantization.
        tokenizer : ECGTokenizer
        """
        reasons, any_leads = [], tokenizer.signal.get("any_leads")
        leads = zip(tokenizer.signal["leads"], lead_ranges(signal), strict=True)
        names = [name for name, mv in leads if mv < FLAT]
        if names and not any_leads:
            reasons.append(f"lead{'s' if len(names) > 1 else ''} {', '.join(names)} flat")
        elif self.amplitude:
            low, high = self.amplitude
            ranges = lead_ranges(tokenizer.to_mv(*tokenizer.quantize(signal)))
            usual = float(
                np.median(ranges[ranges >= FLAT] if any_leads and len(names) < len(ranges) else ranges)
            )
            if not low <= usual <= high:
                reasons.append(
                    f"its leads have a range of {usual:.2f} mV (99 % of validation recordings: {low:.2f} to {high:.2f})"
                )
        lead_of = layout.lead_ranges(ecg, tokenizer.lengths, tokenizer.signal["samples"])
        ecg = ecg[layout.Layout.of(0, tokenizer).read_tokens(ecg, lead_of)]
        if self.bits and len(ecg):
            bits = self.bits_of(ecg, tokenizer.lengths, tokenizer.signal["samples"])
            if bits > self.bits[1]:
                reasons.append(
                    f"its waves are unusual ({bits:.1f} bits per token; 99.5 % of validation recordings: at most "
                    f"{self.bits[1]:.1f})"
                )
        return reasons

    def with_earlier(self, earlier: "Certainty") -> "Certainty":
        """Merge with the calibration of the earlier model, for a model that was trained further.

        The recording statistics cover both training sets.
        """
        groups = [group for group in self.groups if earlier.match(group["texts"][0]) is None]
        keys = np.concatenate([self.keys, earlier.keys])
        keys, place = np.unique(keys, return_inverse=True)
        counts = np.bincount(place, np.concatenate([self.counts, earlier.counts])).astype(np.int64)
        both = [pair for pair in (self.bits, earlier.bits) if pair]
        bits = [max(pair[i] for pair in both) for i in (0, 1)] if both else None
        ranges = [pair for pair in (self.amplitude, earlier.amplitude) if pair]
        amplitude = [min(low for low, _ in ranges), max(high for _, high in ranges)] if ranges else None
        return Certainty(
            earlier.groups + groups,
            earlier.temperature | self.temperature,
            earlier.sure | self.sure,
            bits,
            amplitude,
            *(keys, counts, self.single + earlier.single),
            earlier.points | self.points,
            {text: added for text, added in earlier.adjustments.items() if self.match(text) is None}
            | self.adjustments,
            earlier.calibrated_on,
        )

    def write(self, folder: Path) -> None:
        """Write certainty.json and ecg_pairs.safetensors into a model folder."""
        from safetensors.numpy import save_file

        parts = {"keys": self.keys, "counts": self.counts, "single": self.single}
        large = np.uint64 if (len(self.single) + 1) * len(self.single) >= 2**32 else np.uint32
        save_file({name: np.ascontiguousarray(part, large) for name, part in parts.items()}, folder / PAIRS)
        contents = {key: getattr(self, key) for key in CONTENTS}
        write_json(folder / FILE, contents)


def read_certainty(folder: str | Path, vocabulary: int) -> Certainty | None:
    """Read the certainty of a model folder; None in folders of older versions.

    Raises
    ------
    Failure
        If a file is damaged.
    """
    from safetensors.numpy import load_file

    from ecgbyte_cli.model.folder_checks import tensor_shapes

    path, pairs = Path(folder) / FILE, Path(folder) / PAIRS
    if not path.exists():
        return None
    contents = read_json(path)
    problem = _find_problem(contents)
    if problem:
        raise Failure(f"{path} is damaged ({problem}): copy the model folder again")
    shapes = tensor_shapes(pairs)
    if (
        {*shapes} != {"keys", "counts", "single"}
        or shapes["single"] != [vocabulary]
        or shapes["keys"] != shapes["counts"]
        or len(shapes["keys"]) != 1
    ):
        raise Failure(f"{pairs} does not belong to this model: copy the model folder again")
    arrays = load_file(pairs)
    if any(part.dtype not in (np.uint32, np.uint64) or (part >= 2**62).any() for part in arrays.values()):
        raise Failure(f"{pairs} is damaged: copy the model folder again")
    arrays = {name: part.astype(np.int64) for name, part in arrays.items()}
    keys = arrays["keys"]
    if keys.size and (np.any(np.diff(keys) <= 0) or keys[-1] >= (vocabulary + 1) * vocabulary):
        raise Failure(f"{pairs} is damaged: copy the model folder again")
    return Certainty(**{key: contents[key] for key in CONTENTS if key in contents}, **arrays)


def _find_problem(said: dict[str, Any]) -> str | None:
    """Return the damaged entry of certainty.json, or None."""

    def texts(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)

    def numbers(value: Iterable[Any]) -> bool:
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
    points = said.get("points", {})
    if not isinstance(points, dict) or not all(
        isinstance(point, list) and len(point) == 3 and numbers(point) and 0 < point[2] < 1
        for point in points.values()
    ):
        return "points"
    adjustments = said.get("adjustments", {})
    if not isinstance(adjustments, dict) or not all(
        isinstance(added, dict) and numbers(added.values()) for added in adjustments.values()
    ):
        return "adjustments"
    if not isinstance(said.get("calibrated_on"), str | None):
        return "calibrated_on"
    for key in ("bits", "amplitude"):
        value = said.get(key, 0)
        if value is not None and not (isinstance(value, list) and len(value) == 2 and numbers(value)):
            return key
    return None


def can_choose_from(answers: Sequence[str]) -> bool:
    """Return whether answers are few and short enough to be chosen from."""
    known = {*answers}
    return (
        2 <= len(answers) <= MAX_ANSWERS
        and len(known) == len(answers)
        and sum(map(len, answers)) <= MAX_CHARACTERS
        and not any("\ud800" <= letter <= "\udfff" for answer in answers for letter in answer)
    )


def lead_ranges(signal: np.ndarray) -> np.ndarray:
    """Return the range of each lead of (leads, samples): from the 1st to the 99th percentile."""
    low, high = np.percentile(signal, [1, 99], axis=1)
    return high - low


def answer_kind(answers: Sequence[str]) -> str:
    """Return the key of `temperature` and `sure` for a set of answers."""
    return "two" if len(answers) <= 2 else "more"


def yes_place(answers: Sequence[str]) -> int | None:
    """Return the index of yes for yes/no answers, else None."""
    lowered = [answer.casefold() for answer in answers]
    return lowered.index("yes") if len(lowered) == 2 and {*lowered} == {"yes", "no"} else None


def unsure_range(point: float) -> tuple[float, float]:
    """Return the range of probabilities that are unsure: odds within a factor of `UNSURE_ODDS` of the threshold's."""
    odds = point / (1 - point)
    low, high = odds / UNSURE_ODDS, odds * UNSURE_ODDS
    return low / (1 + low), high / (1 + high)


def softmax(logs: np.ndarray) -> np.ndarray:
    """Return probabilities from their logarithms, float64 (n,)."""
    weights = np.exp(logs - logs.max())
    return weights / weights.sum()


def preceding_tokens(ecg: np.ndarray, lengths: np.ndarray, samples: int, vocabulary: int) -> np.ndarray:
    """Return the token before each token of an ECG; `vocabulary` at the start of a lead."""
    ends = np.cumsum(lengths[ecg])
    before = np.concatenate([[vocabulary], ecg[:-1]]).astype(np.int64)
    before[(ends - lengths[ecg]) % samples == 0] = vocabulary
    return before
