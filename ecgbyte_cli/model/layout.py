"""The ids and positions of an ECG in a prompt.

After the base model's own ids come <sig_start>, <sig_end>, since prompt version 2 a mark for each lead, and the ECG
tokens. An ECG is <sig_start>, then each lead's mark and tokens, then <sig_end>. A model that reads any leads gets
neither the mark nor the tokens of a flat lead: a missing lead and a lead without a signal are the same to it.
"""

from typing import Any

import numpy as np

from ecgbyte_cli.signal.tokenizer import ECGTokenizer

PROMPT_VERSION = 2  # increases when the same question would have other ids
POSITION_SECONDS = 0.02  # seconds of signal per position, for --positions time


class Layout:
    """The ids of ECGs for one base model.

    Parameters
    ----------
    offset : int
        Rows of the base model's embedding: <sig_start> is this id, <sig_end> the next.
    marks : int
        Leads that have a mark; 0 in prompts of version 1, and where a token may lie on two leads.
    lengths : numpy.ndarray or None
        int32, (vocab,): letters of each ECG token. Needed where leads have marks.
    samples : int
        Letters of a lead; 0 where leads have no marks.
    unit : int
        Letters per position, the same in all leads; 0: positions count ids.
    version : int
        Of the prompt.
    rest : numpy.ndarray or None
        bool, (vocab,): tokens that are a line at 0 mV, of models that read any leads; None for other models.

    Attributes
    ----------
    first : int
        Id of ECG token 0.
    """

    def __init__(
        self,
        offset: int,
        marks: int = 0,
        lengths: np.ndarray | None = None,
        samples: int = 0,
        unit: int = 0,
        version: int = PROMPT_VERSION,
        rest: np.ndarray | None = None,
    ):
        self.rest = rest
        self.offset, self.marks, self.lengths, self.samples = offset, marks, lengths, samples
        self.unit, self.version, self.first = unit, version, offset + 2 + marks

    @classmethod
    def of(
        cls, offset: int, tokenizer: ECGTokenizer, positions: str = "token", version: int = PROMPT_VERSION
    ) -> "Layout":
        """Return the layout of a tokenizer's ECGs, with `positions` by `token` or by `time`."""
        marks = len(tokenizer.signal["leads"]) if version > 1 and tokenizer.boundary == "lead" else 0
        unit = max(1, round(POSITION_SECONDS * tokenizer.signal["fs"])) if positions == "time" else 0
        return cls._for(tokenizer, offset, marks, unit, version)

    @classmethod
    def of_model(cls, about: dict[str, Any], tokenizer: ECGTokenizer) -> "Layout":
        """Return the layout of a trained model, as its ecgbyte.json describes it."""
        marks, unit = about["lead_marks"] or 0, about["position_letters"] or 0
        return cls._for(tokenizer, about["offset"], marks, unit, about["prompt_version"])

    @classmethod
    def _for(cls, tokenizer: ECGTokenizer, offset: int, marks: int, unit: int, version: int) -> "Layout":
        rest = tokenizer.rest_tokens() if tokenizer.signal.get("any_leads") else None
        return cls(offset, marks, tokenizer.lengths, tokenizer.signal["samples"], unit, version, rest)

    def read_tokens(self, ecg: np.ndarray, lead_of: np.ndarray) -> np.ndarray:
        """Return which tokens of an ECG are part of a prompt, bool (tokens,): not those of flat or missing leads."""
        if self.rest is None or not len(ecg):
            return np.ones(len(ecg), bool)
        moving = np.zeros(int(lead_of[-1]) + 1, bool)
        np.logical_or.at(moving, lead_of, ~self.rest[ecg])
        return moving[lead_of]

    def block(self, ecg: np.ndarray, lead_of: np.ndarray | None = None) -> np.ndarray:
        """Return the ids of an ECG, from <sig_start> to <sig_end>.

        Parameters
        ----------
        ecg : int array
            Its tokens (0 …), lead by lead; empty for an ECG without a signal, which has no marks either.
        lead_of : int array or None
            The lead of each token, rising; None: the ECG is whole.
        """
        inside = np.asarray(ecg, np.int64) + self.first
        if self.marks and len(inside):
            assert self.lengths is not None  # needed where leads have marks
            lead_of = lead_ranges(ecg, self.lengths, self.samples) if lead_of is None else lead_of
            kept = self.read_tokens(ecg, lead_of)
            inside, lead_of = inside[kept], lead_of[kept]
            leads = np.arange(self.marks) if self.rest is None else np.unique(lead_of)
            inside = np.insert(inside, np.searchsorted(lead_of, leads), self.offset + 2 + leads)
        return np.concatenate([[self.offset], inside, [self.offset + 1]])

    def prefix(self, ids: np.ndarray) -> int:
        """Return the number of ids up to the end of the last ECG, which all questions about it share."""
        ends = np.flatnonzero(ids == self.offset + 1)
        return int(ends[-1]) + 1 if len(ends) else 0

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Return the position of each id of a prompt, int64.

        Where positions follow time, the position of an ECG token is its start in its lead, in steps of `unit` letters.
        Ids after an ECG continue from the largest position in it.
        """
        ids = np.asarray(ids)
        places = np.arange(len(ids))
        if not self.unit or self.lengths is None:
            return places
        for start in np.flatnonzero(ids == self.offset):
            end = start + 1 + int((ids[start + 1 :] > self.offset + 1).argmin())
            inside = ids[start + 1 : end]
            if not len(inside):
                continue
            is_token = inside >= self.first
            letters = np.where(is_token, self.lengths[np.where(is_token, inside - self.first, 0)], 0)
            begins = np.cumsum(letters) - letters
            begins -= np.maximum.accumulate(np.where(is_token, 0, begins))  # since the lead's mark
            # the marks of all leads are before time 0
            steps = np.where(is_token, 1 + begins // self.unit, 0)
            moved = places[start] + 1 + steps
            places[end:] += moved.max() + 1 - places[end]
            places[start + 1 : end] = moved
        return places


def lead_ranges(ecg: np.ndarray, lengths: np.ndarray, samples: int) -> np.ndarray:
    """Return the lead that each token of an ECG begins on.

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
