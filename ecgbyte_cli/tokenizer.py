"""The tokenizer: signal in mV <-> letters <-> token ids."""

import hashlib
import json

import numpy as np

from ecgbyte_cli import preprocess
from ecgbyte_cli.console import Failure
from ecgbyte_cli.workdir import read_json
from ecgbyte_kernels import segment as kernels

FORMAT, FORMAT_VERSION = "ecgbyte-tokenizer", 1
SEGMENTERS = {
    "longest": (kernels.longest, kernels.longest_tables),
    "bpe": (kernels.bpe, kernels.bpe_tables),
    "fewest": (kernels.fewest, kernels.fewest_tables),
}


class ECGTokenizer:
    """Letters and merges that were learned, and all that is needed to go from mV to ids and back.

    Parameters
    ----------
    about : dict
        What an ecg_tokenizer.json holds: at least `signal`, `boundary` and `merges`.
    name : str
        Where it comes from, for messages.

    Attributes
    ----------
    signal : dict
        Sampling rate, leads, segment length, profile and quantizer (see `preprocess.segments`).
    boundary : {"lead", "segment", "none"}
        What no token crosses.
    levels : int
        Number of letters; ids 0 to levels - 1 are the letters.
    merges : numpy.ndarray
        int32, (m, 2): left and right id; merge k makes id levels + k.
    vocab_size : int
    lengths : numpy.ndarray
        int32, (vocab_size,): letters per token.
    sha256 : str
        Hex digest of all that decides which ids a recording gets.

    Raises
    ------
    Failure
        If the file is no tokenizer, or its merges cannot be.
    """

    def __init__(self, about, name="the tokenizer"):
        if about.get("format") != FORMAT or about.get("format_version") != FORMAT_VERSION:
            raise Failure(f"{name} is no {FORMAT} of version {FORMAT_VERSION}: make one with `ecgbyte learn`")
        try:
            self.signal, self.boundary = about["signal"], about["boundary"]
            self.levels = int(self.signal["quantizer"]["levels"])
            self.merges = np.array(about["merges"], np.int32).reshape(-1, 2)
            self._text, self._starts = kernels.spell(self.merges, self.levels)
        except (KeyError, TypeError, ValueError) as error:
            raise Failure(
                f"{name} is damaged: {' '.join(str(error).split())} ({type(error).__name__})"
            ) from error
        self.vocab_size = self.levels + len(self.merges)
        self.lengths = np.diff(self._starts).astype(np.int32)
        what = {"signal": self.signal, "boundary": self.boundary, "merges": self.merges.tolist()}
        self.sha256 = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
        self._tables = {}

    @classmethod
    def from_file(cls, path):
        """Read an ecg_tokenizer.json."""
        return cls(read_json(path), str(path))

    @classmethod
    def from_dict(cls, about):
        """Take what an ecg_tokenizer.json holds."""
        return cls(about)

    def letters(self, signal):
        """Letters of a preprocessed segment.

        Parameters
        ----------
        signal : numpy.ndarray
            float, (leads, samples), mV, at the tokenizer's rate and in its order of leads.

        Returns
        -------
        numpy.ndarray
            uint8, (leads, samples).
        """
        return preprocess.quantize(np.asarray(signal, np.float32), self.signal["quantizer"])[0]

    def to_mv(self, letters, lo=None, hi=None):
        """Signal in mV, float32 (leads, samples), of letters; `lo` and `hi` for the quantizer `minmax`."""
        return preprocess.dequantize(letters, self.signal["quantizer"], lo, hi)

    def encode(self, signal_or_letters, segmenter="longest"):
        """Token ids of one segment.

        Parameters
        ----------
        signal_or_letters : numpy.ndarray
            (leads, samples): float is a preprocessed signal in mV, uint8 is letters.
        segmenter : {"longest", "bpe", "fewest"}

        Returns
        -------
        numpy.ndarray
            int32, (tokens,): lead by lead.
        """
        letters = np.asarray(signal_or_letters)
        if letters.dtype != np.uint8:
            letters = self.letters(letters)
        ids, _ = self.encode_segments(letters.ravel(), 1, *letters.shape, segmenter)
        return ids.astype(np.int32)

    def encode_segments(self, letters, segments, leads, samples, segmenter="longest"):
        """Token ids of several segments of one shape.

        Parameters
        ----------
        letters : numpy.ndarray
            uint8, (segments * leads * samples,), segment by segment and lead by lead.
        segments, leads, samples : int
        segmenter : {"longest", "bpe", "fewest"}

        Returns
        -------
        ids : numpy.ndarray
            uint16 or uint32, the ids of all segments end to end.
        counts : numpy.ndarray
            int64, (segments,): how many ids each segment has.
        """
        cut, tables = SEGMENTERS[segmenter]
        if segmenter not in self._tables:
            self._tables[segmenter] = tables(self.merges, self.levels)
        # one segment is one piece under `segment`, and under `none` too: no token joins two recordings
        pieces = leads if self.boundary == "lead" else 1
        bounds = np.arange(segments * pieces + 1, dtype=np.int64) * (leads * samples // pieces)
        ids, counts = cut(letters, bounds, self._tables[segmenter])
        return ids, counts.reshape(segments, pieces).sum(axis=1)

    def decode(self, ids):
        """Letters, uint8 (leads, samples), of the ids of one segment.

        Raises
        ------
        ValueError
            If an id is not in the vocabulary, or the ids do not make a segment of the tokenizer's length.
        """
        letters = kernels.expand(np.asarray(ids), self._text, self._starts)
        return letters.reshape(len(self.signal["leads"]), self.signal["samples"])

    def spans(self, ids):
        """Where each token of a segment lies.

        Parameters
        ----------
        ids : array_like
            Token ids of one segment, or of its beginning.

        Returns
        -------
        numpy.ndarray
            int64, (rows, 4): token's place in `ids`, lead, first sample, sample after the last. A row per
            token; a token that crosses leads (boundary `segment` or `none`) has one for each.
        """
        stops = np.cumsum(self.lengths[np.asarray(ids, np.int64)], dtype=np.int64)
        starts, samples = stops - np.diff(stops, prepend=0), self.signal["samples"]
        first, last = starts // samples, (stops - 1) // samples
        token = np.repeat(np.arange(len(stops)), last - first + 1)
        # 0, 1, … within each token's rows
        lead = (
            first[token]
            + np.arange(len(token))
            - np.repeat(np.cumsum(last - first + 1) - (last - first + 1), last - first + 1)
        )
        begin = np.maximum(starts[token], lead * samples) - lead * samples
        end = np.minimum(stops[token], (lead + 1) * samples) - lead * samples
        return np.stack([token, lead, begin, end], axis=1)
