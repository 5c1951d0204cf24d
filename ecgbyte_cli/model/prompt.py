"""Ids with a loss mask: the base model's own chat template if it has one, otherwise a plain format.

plain:  [bos] <sig_start> ecg ids <sig_end> question ids | answer ids [eos]

The ids of an ECG are those of `layout`.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.model.chat_template import DATE, ChatTemplate, TemplateError
from ecgbyte_cli.model.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SYSTEM = "You read electrocardiograms. The ECG is given as tokens. Answer the question about it in few words."
DRAW = "Draw an ECG: {}"  # the prompt for an ECG
IGNORED = -100  # the label of a token that the loss does not count
# private-use characters, which no template changes: where the ECGs and the answers go in the rendered text,
# and where a special word of the text tokenizer is cut in two, so that it is text and no token
ECG_MARK, ANSWER_MARK, CUT = "\ue000", "\ue001", "\ue002"


Stretches = list[tuple[np.ndarray, np.ndarray]]  # of text: ids and labels
Parts = tuple[tuple[int, ...], Stretches, Stretches]  # see `Prompt.parts`


class Prompt:
    """Builds ids and labels from ECG tokens and turns of question and answer, for one base model.

    Parameters
    ----------
    text_tokenizer : transformers.PreTrainedTokenizerBase
    layout : Layout
        The `layout` of the model.
    date : str or None
        The date for the chat template, YYYY-MM-DD, the date used in training.
    system : str or None
        The system prompt for the chat template; None is `SYSTEM`.

    Attributes
    ----------
    end_ids : set of int
        An answer ends before any of these.
    date : str or None
        None if the template uses none.
    told : str or None
        The system prompt, if it is not `SYSTEM`.

    Raises
    ------
    Failure
        If the chat template cannot be used, or nothing could end an answer.
    TypeError
        If `layout` is no Layout.
    """

    def __init__(
        self,
        text_tokenizer: "PreTrainedTokenizerBase",
        layout: Layout,
        date: str | None = None,
        system: str | None = None,
    ):
        if not isinstance(
            layout, Layout
        ):  # scripts of version 0.1.0 pass an offset, which knows no marks of leads
            raise TypeError(f"a Prompt takes the layout of a model, such as lm.layout, and not {layout!r}")
        if system is not None and not text_tokenizer.chat_template:
            raise Failure(
                f"{text_tokenizer.name_or_path} has no chat template, and so no system prompt: leave out --system"
            )
        self.told = system
        self.text_tokenizer, self.name = text_tokenizer, text_tokenizer.name_or_path
        self.layout = layout
        self._text_ids = lru_cache(100_000)(self._encoded)
        self.rendered = lru_cache(100_000)(self._templated)
        self.template, self.date = None, None
        if text_tokenizer.chat_template:
            source, date = text_tokenizer.get_chat_template(), date or DATE
            words = {
                name: list(map(str, word)) if isinstance(word, (list, tuple)) else str(word)
                for name, word in text_tokenizer.special_tokens_map.items()
            }
            self.template = ChatTemplate(source, words, date, self.name)
            self.date = date if "strftime_now" in source else None
        added = text_tokenizer.added_tokens_decoder
        self.added = {*added, *text_tokenizer.all_special_ids}
        special = {word.content for word in added.values() if word.special}
        special = {word for word in special | set(text_tokenizer.all_special_tokens) if len(word) > 1}
        longest_first = sorted(map(re.escape, special), key=len, reverse=True)
        self.special = re.compile("|".join(longest_first) or r"(?!)")
        # behind this word a stretch of text is encoded as one in the middle: some tokenizers begin a text with a space
        self.before: tuple[str, list[int]] = next(
            (
                (word.content, [i])
                for i, word in sorted(added.items(), key=lambda item: item[0] != text_tokenizer.eos_token_id)
                if word.special and not (word.lstrip or word.rstrip or word.single_word)
            ),
            ("", []),
        )
        _, *closings = self.rendered(("", "")).split(ANSWER_MARK)
        self.end_ids = {self._closing(text)[0] for text in closings}
        if text_tokenizer.eos_token_id is not None:
            self.end_ids.add(text_tokenizer.eos_token_id)

    @classmethod
    def of(cls, about: dict, text_tokenizer: "PreTrainedTokenizerBase", layout: Layout) -> "Prompt":
        """Return the prompts of a model, as its ecgbyte.json describes them."""
        return cls(text_tokenizer, layout, about.get("date"), about.get("system"))

    def _encoded(self, text: str, first: bool = False) -> tuple[int, ...]:
        """Return the ids of a part of the prompt's text."""
        ids: list[int] = []
        for piece in text.split(CUT):
            word, known = ("", []) if first else self.before
            ids += self.text_tokenizer.encode(
                word + piece, add_special_tokens=False, split_special_tokens=False
            )[len(known) :]
            first = False
        return tuple(ids)

    def _closing(self, text: str) -> tuple[int, ...]:
        """Return the ids of the text after an answer; the first is a token that the model can stop on."""
        ids, eos = self._text_ids(text), self.text_tokenizer.eos_token_id
        if ids and ids[0] in self.added:
            return ids
        if eos is None:
            raise Failure(
                f"nothing ends an answer of {self.name}: its text tokenizer has no end-of-text token, and its "
                "chat template, if any, writes none; use another base model"
            )
        return (eos, *ids)

    def _templated(self, questions: tuple[str, ...]) -> str:
        """Return the conversation as text, with a mark for the ECGs and one for each answer."""
        contents = [(ECG_MARK if i == 0 else "") + question for i, question in enumerate(questions)]
        if self.template is None:
            bos, eos = self.text_tokenizer.bos_token or "", self.text_tokenizer.eos_token or ""
            return bos + "".join(f"{content}\n{ANSWER_MARK}{eos}" for content in contents)
        turns, system = [], self._unmarked(SYSTEM if self.told is None else self.told)
        for content in contents:
            turns += [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWER_MARK}]
        try:
            text = self.template.render([{"role": "system", "content": system}, *turns])
        except TemplateError:  # some templates know no system role
            turns[0]["content"] = f"{system}\n\n{contents[0]}"
            try:
                text = self.template.render(turns)
            except TemplateError as error:
                raise Failure(f"the chat template of {self.name} fails: {error}") from error
        if (text.count(ECG_MARK), text.count(ANSWER_MARK)) != (1, len(questions)):
            raise Failure(f"the chat template of {self.name} does not write every message once")
        return text

    def _unmarked(self, text: str) -> str:
        """Return a question or an answer without marks, its special words cut in two."""
        text = text.translate({ord(mark): None for mark in (ECG_MARK, ANSWER_MARK, CUT)})
        return self.special.sub(lambda match: match[0][0] + CUT + match[0][1:], text)

    def build(
        self,
        ecgs: Sequence[np.ndarray],
        turns: Sequence[tuple[str, str | None]],
        leads: Sequence[np.ndarray] | None = None,
        before: str = "",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and labels of a conversation about one or several ECGs.

        Parameters
        ----------
        ecgs : list of int arrays
            The ECG tokens (0 …) of each ECG, in order; an empty array is an ECG without a signal.
        turns : list of (str, str or None)
            Question and answer; the last answer is None if the model should write it.
        leads : list of int arrays or None
            The lead that each token of each ECG is on, rising; None: the ECGs are whole.
        before : str
            Text before the ECGs.

        Returns
        -------
        (int64 array, int64 array)
            The ids, and the labels: the id in an answer and where it closes, -100 elsewhere.
        """
        return self._joined(self.parts(turns, before), ecgs, leads)

    def _joined(
        self, parts: Parts, ecgs: Sequence[np.ndarray], leads: Sequence[np.ndarray] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and labels of the text in `parts`, with ECGs in it."""
        head, tail, answer = parts
        ids, labels = zip(_unlabelled(self.reading(head, ecgs, leads)), *tail, *answer, strict=True)
        return np.concatenate(ids), np.concatenate(labels)

    def reading(
        self,
        head: Sequence[int],
        ecgs: Sequence[np.ndarray],
        leads: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return the ids that all questions about some ECGs begin with: `head`, from `parts`, and the ECGs."""
        of_each = leads if leads is not None else [None] * len(ecgs)
        blocks = [self.layout.block(ecg, lead_of) for ecg, lead_of in zip(ecgs, of_each, strict=True)]
        return np.concatenate([np.array(head, np.int64), *blocks])

    def drawing(self, words: str) -> tuple[int, ...]:
        """Return the ids before an ECG that is written from words: it takes the place of the answer."""
        before, *_ = self.rendered((self._unmarked(DRAW.format(words)),)).split(ANSWER_MARK)
        return self._text_ids(before.replace(ECG_MARK, ""), True)

    def fitted(
        self,
        ecgs: Sequence[np.ndarray],
        leads: Sequence[np.ndarray],
        turns: Sequence[tuple[str, str | None]],
        longest: int,
        before: str = "",
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """Build a prompt of at most `longest` ids: each lead of each ECG loses as many of its last tokens.

        Only the ids before the last answer count, so that the length of a trimmed prompt does not reveal the answer.

        Parameters
        ----------
        ecgs, turns, before
            See `build`.
        leads : list of int arrays
            The lead that each token of each ECG is on, rising.
        longest : int
            Ids that the prompt may have.

        Returns
        -------
        (int64 array, int64 array, int)
            Ids, labels, and the number of ECG tokens left out.

        Raises
        ------
        Failure
            If the text alone is longer.
        """
        parts = self.parts(turns, before)
        room = self.room(parts, len(ecgs), longest)
        lost = max(0, sum(map(len, ecgs)) - room)
        if lost:
            ecgs, leads = trim_ecgs(ecgs, leads, room)
        return *self._joined(parts, ecgs, leads), lost

    def room(self, parts: Parts, ecgs: int, longest: int) -> int:
        """Return how many tokens of `ecgs` ECGs together a prompt of `longest` ids has room for beside its text.

        Since version 2 the length of the text is rounded up, so that questions of similar length get the same ECG, and
        share one reading of it.

        Raises
        ------
        Failure
            If the text alone is longer.
        """
        head, tail, _ = parts
        text = len(head) + sum(len(ids) for ids, _ in tail) + ecgs * (2 + self.layout.marks)
        if text > longest:
            raise Failure(f"the prompt has {text} tokens of text alone, and may have {longest}")
        step = max(1, longest // 64) if self.layout.version > 1 else 1
        return max(0, longest - -(-text // step) * step)

    def answer_length(self, turns: Sequence[tuple[str, str | None]]) -> int:
        """Return the number of ids in the last answer, including its closing id."""
        return sum(len(ids) for ids, _ in self.parts(turns)[2])

    def parts(self, turns: Sequence[tuple[str, str | None]], before: str = "") -> Parts:
        """Return the text of a conversation as ids; `before` comes before the ECGs.

        Returns
        -------
        (tuple of int, list of (int64 array, int64 array), list of the same)
            The ids before the ECGs; ids and labels from there to the last answer; and those of the last answer.
        """
        # an open conversation is a closed one cut off where its last answer would begin, so that the
        # model is asked with the very ids it was trained with
        begin, *after = self.rendered(tuple(self._unmarked(q) for q, _ in turns)).split(ANSWER_MARK)
        head, text = begin.split(ECG_MARK)
        head += self._unmarked(before)
        tail = [_unlabelled(self._text_ids(text))]
        answer: Stretches = []
        for (_, words), text in zip(turns, after, strict=True):
            tail, answer = tail + answer, []
            if words is None:
                break
            written, closing = self._text_ids(self._unmarked(words)), self._closing(text)
            labels = [*written, closing[0], *[IGNORED] * (len(closing) - 1)]
            answer = [(np.array([*written, *closing], np.int64), np.array(labels, np.int64))]
        return self._text_ids(head, True), tail, answer

    def written(self, answer: str) -> np.ndarray:
        """Return the ids that a model writes for an answer, with the one that ends it."""
        ((ids, labels),) = self.parts([("", answer)])[2]
        return ids[labels != IGNORED]

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of an answer's ids."""
        return self.text_tokenizer.decode(ids, skip_special_tokens=True).strip()

    def words(self, ids: Sequence[int]) -> str:
        """Return the text of ids in the middle of a prompt: some tokenizers drop the first space of a text."""
        word, known = self.before
        return self.text_tokenizer.decode([*known, *ids], clean_up_tokenization_spaces=False)[len(word) :]

    def shown(self, ids: np.ndarray, labels: np.ndarray) -> tuple[str, str]:
        """Return a sample as text, with the parts that the loss counts in green and underlined; and these parts."""
        # an ECG token, a mark around an ECG, text, text that the loss counts
        layout, names = self.layout, {0: "<sig_start>", 1: "<sig_end>"}
        kinds = np.select([ids >= layout.first, ids >= layout.offset, labels == IGNORED], [0, 1, 2], 3)
        line, counted = "", ""
        for run in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(kinds)) + 1):
            kind, here = kinds[run[0]], ids[run].tolist()
            if kind == 0:
                line += f"\x1b[2m[{len(here)} ECG tokens]\x1b[0m"
            elif kind == 1:
                line += "".join(names.get(i - layout.offset, f"<lead_{i - layout.offset - 1}>") for i in here)
            else:
                text = printable(self.words(here), "\n")
                line += f"\x1b[32m\x1b[4m{text}\x1b[0m" if kind == 3 else text
                counted += text if kind == 3 else ""
        return line, counted


def trim_ecgs(
    ecgs: Sequence[np.ndarray], leads: Sequence[np.ndarray], budget: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Shorten ECGs to a total number of tokens: each lead of each loses as many of its last tokens.

    Parameters
    ----------
    ecgs : list of int arrays
        The tokens of each ECG, lead by lead.
    leads : list of int arrays
        The lead that each token is on, rising.
    budget : int
        Tokens to keep.

    Returns
    -------
    (list of int arrays, list of int arrays)
        Tokens and leads. A lead loses one token more than another at most, unless it has no more to lose.
    """
    counts = [np.bincount(lead) for lead in leads]
    all_counts = np.concatenate(counts)
    lost = 0
    while (kept := np.maximum(all_counts - lost, 0)).sum() > budget:
        lost += 1
    # the last round may have taken too many: the first leads that lost one in it get it back
    kept[np.flatnonzero(all_counts >= lost)[: budget - kept.sum()]] += lost > 0
    trimmed: tuple[list[np.ndarray], list[np.ndarray]] = [], []
    for ecg, lead, count in zip(ecgs, leads, counts, strict=True):
        keep, kept = kept[: len(count)], kept[len(count) :]
        rank = np.arange(len(ecg)) - (count.cumsum() - count)[lead]
        for kind, of_tokens in zip(trimmed, (ecg, lead), strict=True):
            kind.append(np.asarray(of_tokens)[rank < keep[lead]])
    return trimmed


def _unlabelled(ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return ids that the loss does not count, and their labels."""
    return np.array(ids, np.int64), np.full(len(ids), IGNORED, np.int64)
