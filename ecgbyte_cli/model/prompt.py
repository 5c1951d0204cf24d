"""Ids with a loss mask: the base model's own chat template where it has one, the plain form where it has none.

plain:  [bos] <sig_start> ecg ids <sig_end> question ids | answer ids [eos]
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_VERSION = 1  # goes up when the same question would give other ids
SYSTEM = "You read electrocardiograms. The ECG is given as tokens. Answer the question about it in few words."
IGNORED = -100  # the label of a token that the loss does not count
# private-use characters, which no template changes: where the ECGs and the answers go in the rendered text
ECG_MARK, ANSWER_MARK = "\ue000", "\ue001"


class Prompt:
    """Turns ECG ids and turns of question and answer into ids and labels for one base model.

    Parameters
    ----------
    text_tokenizer : transformers.PreTrainedTokenizerBase
    offset : int
        Rows of the base model's embedding: <sig_start> is this id, <sig_end> the next, then the ECG tokens.
    """

    def __init__(self, text_tokenizer: "PreTrainedTokenizerBase", offset: int):
        self.text_tokenizer, self.offset = text_tokenizer, offset
        self._text_ids = lru_cache(100_000)(self._encoded)
        self._rendered = lru_cache(100_000)(self._templated)
        eos = text_tokenizer.eos_token_id
        # what closes an answer: the first token behind it
        closing = self._text_ids(self._rendered(("",)).split(ANSWER_MARK)[1])[:1]
        self.end_ids = {*closing, *([] if eos is None else [eos])}

    def _encoded(self, text):
        return tuple(self.text_tokenizer.encode(text, add_special_tokens=False))

    def _templated(self, questions):
        """The conversation as text, with a mark for the ECGs and one for each answer."""
        contents = [(ECG_MARK if i == 0 else "") + question for i, question in enumerate(questions)]
        if not self.text_tokenizer.chat_template:
            bos, eos = self.text_tokenizer.bos_token or "", self.text_tokenizer.eos_token or ""
            return bos + "".join(f"{content}\n{ANSWER_MARK}{eos}" for content in contents)
        turns = []
        for content in contents:
            turns += [{"role": "user", "content": content}, {"role": "assistant", "content": ANSWER_MARK}]
        from jinja2 import TemplateError

        apply = self.text_tokenizer.apply_chat_template
        try:
            return apply([{"role": "system", "content": SYSTEM}, *turns], tokenize=False)
        except TemplateError:  # some templates know no system role
            turns[0]["content"] = f"{SYSTEM}\n\n{contents[0]}"
            return apply(turns, tokenize=False)

    def build(
        self, ecgs: Sequence[np.ndarray], turns: Sequence[tuple[str, str | None]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and labels of a conversation about one or several ECGs.

        Parameters
        ----------
        ecgs : list of int arrays
            The ECG tokens (0 …) of each ECG, in order; an empty array is an ECG without a signal.
        turns : list of (str, str or None)
            Question and answer; the last answer is None where the model is to write it.

        Returns
        -------
        (int64 array, int64 array)
            The ids, and the labels: an id where the model wrote (answer and what closes it), -100 elsewhere.
        """
        # an open conversation is a closed one cut off where its last answer would begin, so that the
        # model is asked with the very ids it was trained with
        questions = tuple(_unmarked(question) for question, _ in turns)
        before, *after = self._rendered(questions).split(ANSWER_MARK)
        head, tail = before.split(ECG_MARK)
        ids = [np.array(self._text_ids(head), np.int64)]
        for ecg in ecgs:
            ecg = np.asarray(ecg, np.int64) + self.offset + 2
            ids += [np.array([self.offset]), ecg, np.array([self.offset + 1])]
        ids.append(np.array(self._text_ids(tail), np.int64))
        labels = [np.full(sum(map(len, ids)), IGNORED, np.int64)]
        for (_, answer), text in zip(turns, after, strict=True):
            if answer is None:
                break
            written = np.array(self._text_ids(_unmarked(answer)), np.int64)
            closing = np.array(self._text_ids(text), np.int64)
            ids += [written, closing]
            labels += [written, closing[:1], np.full(max(len(closing) - 1, 0), IGNORED, np.int64)]
        return np.concatenate(ids), np.concatenate(labels)

    def text(self, ids: Sequence[int]) -> str:
        """The text of an answer's ids."""
        return self.text_tokenizer.decode(ids, skip_special_tokens=True).strip()


def trim(ecgs, leads, budget):
    """Shorten ECGs to a number of tokens in all: each lead of each loses as many of its last tokens.

    Parameters
    ----------
    ecgs : list of int arrays
        The tokens of each ECG, lead by lead.
    leads : list of int arrays
        The lead that each token is on, rising.
    budget : int
        How many tokens may stay.

    Returns
    -------
    list of int arrays
        A lead loses one token more than another at most, unless it has no more to lose.
    """
    counts = [np.bincount(lead) for lead in leads]
    all_counts = np.concatenate(counts)
    lost = 0
    while (kept := np.maximum(all_counts - lost, 0)).sum() > budget:
        lost += 1
    # the last round may have taken too many: the first leads that lost one in it get it back
    kept[np.flatnonzero(all_counts >= lost)[: budget - kept.sum()]] += lost > 0
    trimmed = []
    for ecg, lead, count in zip(ecgs, leads, counts, strict=True):
        keep, kept = kept[: len(count)], kept[len(count) :]
        rank = np.arange(len(ecg)) - (count.cumsum() - count)[lead]
        trimmed.append(np.asarray(ecg)[rank < keep[lead]])
    return trimmed


def leads_of(ecg, lengths, samples):
    """The lead that each token of an ECG begins on.

    Parameters
    ----------
    ecg : int array
        The tokens of one segment.
    lengths : int array
        Letters of each token of the vocabulary.
    samples : int
        Letters per lead.
    """
    ends = np.cumsum(lengths[ecg])
    return (ends - lengths[ecg]) // samples


def _unmarked(text):
    return text.replace(ECG_MARK, "").replace(ANSWER_MARK, "")
