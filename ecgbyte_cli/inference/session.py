"""Open a model folder once, read recordings with its settings, and ask the model about them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ecgbyte_cli.inference.certainty import (
    Certainty,
    ChosenAnswer,
    MatchedQuestion,
    read_certainty,
    softmax,
)
from ecgbyte_cli.inference.conversation import (
    ECG,
    Conversation,
    fit_prompt,
    remembers_earlier_turns,
)
from ecgbyte_cli.inference.conversation_report import AnswerAttribution, attribute_turn
from ecgbyte_cli.inference.everyday import known_findings
from ecgbyte_cli.inference.operating_points import UNSURE, YES, OperatingPoint
from ecgbyte_cli.inference.recording_loader import RecordingLoader
from ecgbyte_cli.inference.site import read_site
from ecgbyte_cli.inference.trained_questions import names_by_text
from ecgbyte_cli.inference.turn import Turn
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.model.model_names import choose_model_folder, display_name, resolve_model_folder
from ecgbyte_cli.signal.measured_lines import joined_lines
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.workdir import WorkDir

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ecgbyte_cli.inference.attribution import Explainer
    from ecgbyte_cli.model.ecg_lm import ECGLM
    from ecgbyte_cli.model.kv_cache import PromptCache
    from ecgbyte_cli.model.prompt import Prompt

MAX_NEW = 256  # longest answer, in tokens


class LoadedModel(NamedTuple):
    """The parts of a model that take time to load."""

    lm: "ECGLM"
    text_tokenizer: "PreTrainedTokenizerBase"
    prompt: "Prompt"
    certainty: Certainty | None  # None in folders of older versions


@dataclass
class Session:
    """An open model folder, made by `Session.open`.

    Attributes
    ----------
    folder : Path
    about : dict
        The contents of ecgbyte.json, plus `folder`, the name to display.
    reader : RecordingLoader
        Reads recordings with the model's own settings.
    base : path or None
        Where the base model is now, if it has moved.
    device : str or None
        See `devices.choose_device`; None uses a GPU if there is one.
    trainable : bool
        Whether to accept a model that has not learned to answer yet.
    max_new : int
        Longest answer, in tokens.
    loaded : LoadedModel or None
        None until the model is first needed.
    site : dict of str to OperatingPoint
        Findings calibrated for a site, by short name.
    witnesses : dict
        Question and answers mapped to their probabilities without an ECG and with a flat line (see `witness`).
    """

    folder: Path
    about: dict[str, Any]
    reader: RecordingLoader
    base: str | os.PathLike | None = None
    device: str | None = None
    trainable: bool = False
    max_new: int = MAX_NEW
    loaded: LoadedModel | None = None
    site: dict[str, OperatingPoint] = field(default_factory=dict)
    witnesses: dict[tuple[str, tuple[str, ...]], tuple[np.ndarray, np.ndarray]] = field(
        default_factory=dict, init=False, repr=False
    )

    @classmethod
    def open(
        cls,
        path: str | os.PathLike | None = None,
        work: WorkDir | None = None,
        base: str | os.PathLike | None = None,
        device: str | None = None,
        *,
        trainable: bool = False,
        max_new: int = MAX_NEW,
        loader: type[RecordingLoader] = RecordingLoader,
        fs: float | None = None,
        lead_names: str | Sequence[str] | None = None,
        units: str | None = None,
        keep_identity: bool | None = None,
        site: Path | None = None,
    ) -> "Session":
        """Open a model folder: read ecgbyte.json and the tokenizer. The model is loaded when it is first needed.

        Parameters
        ----------
        path : path or None
            Model folder; `ptbxl` for the included model; or, as a str, OWNER/NAME or
            OWNER/NAME@REVISION of the Hugging Face Hub. None means the model of `work`, or `ptbxl` if it has none.
        work : WorkDir or None
            Work folder whose `ecgbyte symbolize` settings say how to read recordings.
        base, device, trainable, max_new
            See the attributes of the class.
        loader : type
            Class of `reader`.
        fs : float or None
            Sampling rate in Hz for files that do not state it.
        lead_names : str, sequence of str or None
            Lead names for files that do not state them; a str separates them by commas.
        units : str or None
            Unit for files that do not state it: uV, mV or V.
        keep_identity : bool or None
            Whether to keep the name, number and birth date in a hospital file.
        site : Path or None
            Site file, from `ecgbyte findings --calibrate`.

        Raises
        ------
        Failure
            If the model folder is missing or damaged, or the site file belongs to another model.
        """
        if path is None and work is not None:
            folder = choose_model_folder(work, None)
        else:
            folder = resolve_model_folder(folder_checks.SHIPPED if path is None else path)
        about = {**folder_checks.read_about(folder), "folder": display_name(folder)}
        tokenizer = ECGTokenizer.from_file(folder / "ecg_tokenizer.json")
        reading = reading_options(work, fs, lead_names, units, keep_identity)
        reader = loader(tokenizer, about["segmenter"], **reading)
        points = {} if site is None else read_site(site, folder_checks.model_sha256(folder))
        return cls(folder, about, reader, base, device, trainable, max_new, site=points)

    @property
    def tokenizer(self) -> ECGTokenizer:
        return self.reader.tokenizer

    @property
    def segmenter(self) -> str:
        return self.reader.segmenter

    @property
    def prompt_tokens(self) -> int | None:
        """The longest prompt in tokens; the ECGs of a longer prompt lose tokens. None means no limit."""
        return self.about.get("prompt_tokens")

    def check_base(self) -> None:
        """Raise a Failure early, before slow work, if the base model's folder is missing."""
        folder_checks.base_model_of(self.folder, self.about, self.base)

    def load(self) -> LoadedModel:
        """Load the model, if it is not loaded yet.

        Raises
        ------
        Failure
            If its parts are damaged or do not belong together, its base model is missing, or memory runs out.
        """
        if self.loaded is None:
            from ecgbyte_cli.model import model_folder
            from ecgbyte_cli.model.prompt import Prompt

            lm, text_tokenizer, tokenizer, about = model_folder.load_model(
                self.folder, self.device, self.base, trainable=self.trainable
            )
            prompt = Prompt.of(about, text_tokenizer, lm.layout)
            certainty = read_certainty(self.folder, tokenizer.vocab_size)
            self.loaded = LoadedModel(lm, text_tokenizer, prompt, certainty)
        return self.loaded

    @property
    def lm(self) -> "ECGLM":
        return self.load().lm

    @property
    def prompt(self) -> "Prompt":
        return self.load().prompt

    @property
    def certainty(self) -> Certainty | None:
        return self.load().certainty

    @cached_property
    def cache(self) -> "PromptCache":
        """The decoder state after the last prompt, reused for the next question about the same ECG."""
        from ecgbyte_cli.model.kv_cache import PromptCache

        return PromptCache()

    def read(self, record: str | os.PathLike) -> ECG:
        """Read, preprocess and encode a recording; return the ECG of its first segment.

        Raises
        ------
        Failure
            If it cannot be read, or lacks leads that the model needs.
        """
        return self.reader.read(record)

    @property
    def remembers_earlier_turns(self) -> bool:
        """Whether earlier questions are part of the prompt."""
        return remembers_earlier_turns(self.about)

    @cached_property
    def known_findings(self) -> dict[str, MatchedQuestion]:
        """The findings that the model can answer with yes or no: short name mapped to its question."""
        return known_findings(self.certainty) if self.certainty else {}

    def match(self, question: str) -> MatchedQuestion | None:
        """Return the training question with the same meaning, or None."""
        return self.certainty.match(question) if self.certainty else None

    def ask(self, ecg: ECG, question: str) -> Turn:
        """Answer one question about one ECG; see `Conversation.ask`."""
        return self.conversation([ecg]).ask(question)

    def weigh(self, ecg: ECG, question: str, answers: Sequence[str]) -> np.ndarray:
        """Return the calibrated probability of each possible answer to a question.

        Returns
        -------
        numpy.ndarray
            float64, (answers,), sum 1.

        Raises
        ------
        Failure
            If the text of the question alone is longer than a prompt can be.
        """
        matched = self.match(question)
        ids, _ = self.prompt_ids([ecg], [(matched.text if matched else question, None)])
        return self.weigh_prompts([ids], answers, [matched.text if matched else question], self.cache)[0]

    def choose(self, text: str, answers: Sequence[str], weights: np.ndarray) -> ChosenAnswer:
        """Choose among the possible answers to a question, by the site's thresholds if it has them.

        Parameters
        ----------
        text : str
            The question as worded in the prompt.
        answers : list of str
        weights : float array (answers,)
            Calibrated probabilities of `answers`.
        """
        assert self.certainty
        plain = self.certainty.choose(answers, weights, text)
        point = self._site_points.get(text)
        if point is None or plain.yes is None:
            return plain
        yes = point.recalibrated(plain.yes)
        sides = [yes if answer.casefold() == YES else 1 - yes for answer in answers]
        chosen = self.certainty.choose(answers, np.array(sides))
        return chosen._replace(sure=point.answer(plain.yes) != UNSURE)

    @cached_property
    def _site_points(self) -> dict[str, OperatingPoint]:
        """The site's operating points, keyed by prompt text."""
        names = names_by_text(self.certainty) if self.site else {}
        return {text: self.site[name] for text, name in names.items() if name in self.site}

    def attribute(self, ecg: ECG, question: str, method: str = "integrated") -> AnswerAttribution:
        """Ask a question, and attribute the answer to the samples of the ECG.

        Parameters
        ----------
        ecg : ECG
        question : str
        method : str
            One of `attribution.METHODS`.

        Raises
        ------
        Failure
            If the model gives no answer, or the method cannot attribute it.
        """
        return attribute_turn(self, self.ask(ecg, question), method)

    def conversation(self, ecgs: list[ECG], max_new: int | None = None) -> Conversation:
        """Start a conversation about ECGs; `max_new` is the longest answer in tokens."""
        return Conversation(self, ecgs, max_new or self.max_new)

    def explainer(self, batch: int = 16, before: str = "") -> "Explainer":
        """Return an `Explainer` of this model's answers, for at most `batch` prompts at a time.

        `before` is the text before the ECGs, from `text_before`.
        """
        from ecgbyte_cli.inference.attribution import Explainer

        longest = self.prompt_tokens
        return Explainer(self.lm, self.prompt, self.tokenizer, self.segmenter, batch, longest, before)

    def prompt_ids(
        self, ecgs: Sequence[ECG], turns: Sequence[tuple[str, str | None]]
    ) -> tuple[np.ndarray, int]:
        """Return the ids of a prompt about ECGs, and the number of ECG tokens left out."""
        return self._prompt([ecg.tokens for ecg in ecgs], turns, self.text_before(ecgs))

    def prompt_of(
        self, tokens: list[np.ndarray], turns: Sequence[tuple[str, str | None]], lines: Sequence[str]
    ) -> tuple[np.ndarray, int]:
        """Return the ids of a prompt about encoded ECGs, and the number of ECG tokens left out.

        `lines` are the measured values of each ECG, for a model trained with measured values.
        """
        return self._prompt(tokens, turns, joined_lines(lines) if self.about.get("measured") else "")

    def _prompt(
        self, tokens: list[np.ndarray], turns: Sequence[tuple[str, str | None]], before: str
    ) -> tuple[np.ndarray, int]:
        ids, _, lost = fit_prompt(self.prompt, self.tokenizer, tokens, turns, self.prompt_tokens, before)
        return ids, lost

    def text_before(self, ecgs: Sequence[ECG]) -> str:
        """Return the text before the ECGs in a prompt: the measured values, if the model was trained with them."""
        return joined_lines(ecg.line for ecg in ecgs) if self.about.get("measured") else ""

    def weigh_prompts(
        self,
        prompts: list[np.ndarray],
        answers: Sequence[str],
        texts: Sequence[str],
        cache: "PromptCache | None" = None,
    ) -> list[np.ndarray]:
        """Return the calibrated probabilities of the possible answers to each prompt, float64 (answers,).

        `texts` are the questions as worded in the prompts.
        """
        ids = [self.prompt.written(answer) for answer in answers]
        logs = self.lm.weigh(prompts, [ids] * len(prompts), cache)
        return [self.weights(answers, one, text) for one, text in zip(logs, texts, strict=True)]

    def weights(self, answers: Sequence[str], logs: np.ndarray, text: str) -> np.ndarray:
        """Return the calibrated probabilities of the answers to a prompt text, from the model's log-probabilities."""
        return self.certainty.weights(answers, logs, text) if self.certainty else softmax(logs)


def reading_options(
    work: WorkDir | None,
    fs: float | None = None,
    lead_names: str | Sequence[str] | None = None,
    units: str | None = None,
    keep_identity: bool | None = None,
) -> dict[str, Any]:
    """Return the arguments for `readers.read_recording`: those not None, else those of `symbolize` in `work`."""
    if isinstance(lead_names, str):
        lead_names = [name.strip() for name in lead_names.split(",")]
    options = {"fs": fs, "lead_names": lead_names, "units": units, "keep_identity": keep_identity}
    stored = work.reading() if work else {}
    return {**stored, **{key: value for key, value in options.items() if value is not None}}
