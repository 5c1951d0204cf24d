"""The tokenizer: from signals in mV to letters to token ids, and back."""

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from ecgbyte_cli import __version__
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal import preprocess, quantizers
from ecgbyte_cli.signal.quantizers import check_number
from ecgbyte_cli.storage.files import read_json, write_json, write_table
from ecgbyte_cli.storage.manifest import tokenizer_sha256
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_kernels import bpe, fewest, longest, tokens

FORMAT, FORMAT_VERSION = "ecgbyte-tokenizer", 1
MOST_BYTES = 2**26  # of an ecg_tokenizer.json: about 60 a merge, and at most 2^20 merges
SEGMENTERS = {
    "longest": (longest.longest, longest.longest_tables),
    "bpe": (bpe.bpe, bpe.bpe_tables),
    "fewest": (fewest.fewest, fewest.fewest_tables),
}


class ECGTokenizer:
    """Learned merges with the settings of their letters: goes from mV to ids and back.

    Parameters
    ----------
    about : dict
        Content of an ecg_tokenizer.json: at least `signal`, `boundary` and `merges`.
    name : str
        Its source, for messages.

    Attributes
    ----------
    signal : dict
        Sampling rate, leads, segment length, profile and quantizer (see `preprocess.segments`).
    boundary : {"lead", "segment", "none"}
        The boundary that no token crosses.
    levels : int
        Number of letters; ids 0 to levels - 1 are the letters.
    merges : numpy.ndarray
        int32, (m, 2): left and right id; merge k makes id levels + k.
    vocab_size : int
    lengths : numpy.ndarray
        int32, (vocab_size,): letters per token.
    sha256 : str
        Hex digest of everything that determines the ids of a recording.

    Raises
    ------
    Failure
        If the file is no tokenizer, or is damaged.

    Examples
    --------
    >>> from ecgbyte_cli import ECGTokenizer, read, segments
    >>> tokenizer = ECGTokenizer.from_file("ecgbyte-work/tokenizer/ecg_tokenizer.json")
    >>> start, signal = segments(read("data/synth00001"), tokenizer.signal)[0]
    >>> ids = tokenizer.encode(signal)

    `tokenizer.decode(ids)` returns the letters, `tokenizer.to_mv(*tokenizer.quantize(signal))` their signal in mV, and
    `tokenizer.spans(ids)` the lead, first sample and sample after the last of each token.
    """

    def __init__(self, about: dict, name: str = "the tokenizer") -> None:
        if about.get("format") != FORMAT or about.get("format_version") != FORMAT_VERSION:
            raise Failure(
                f"{name} is no {FORMAT} of version {FORMAT_VERSION}: learn one with `ecgbyte learn`"
            )
        try:
            check_signal(about["signal"])
            self.signal, self.boundary = about["signal"], about["boundary"]
            self.levels = self.signal["quantizer"]["levels"]
            if self.boundary not in ("lead", "segment", "none"):
                raise ValueError(f"boundary {self.boundary!r}")
            self.merges = _pairs(about["merges"])
            self._text, self._starts = tokens.spell(self.merges, self.levels)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise Failure(
                f"{name} is damaged: {' '.join(str(error).split())} ({type(error).__name__})"
            ) from error
        self.name, self.vocab_size = name, self.levels + len(self.merges)
        self.lengths = np.diff(self._starts).astype(np.int32)
        self.sha256 = tokenizer_sha256(
            {"signal": self.signal, "boundary": self.boundary, "merges": self.merges.tolist()}
        )
        self._tables: dict[str, tuple] = {}

    @classmethod
    def from_file(cls, path: str | os.PathLike) -> "ECGTokenizer":
        """Read an ecg_tokenizer.json."""
        return cls(read_json(path, MOST_BYTES), str(path))

    @classmethod
    def from_dict(cls, about: dict) -> "ECGTokenizer":
        """Create a tokenizer from the content of an ecg_tokenizer.json."""
        return cls(about)

    def letters(self, signal: np.ndarray) -> np.ndarray:
        """Return the letters of a preprocessed segment.

        Parameters
        ----------
        signal : numpy.ndarray
            float, (leads, samples), mV, at the tokenizer's rate and in its order of leads.

        Returns
        -------
        numpy.ndarray
            uint8, (leads, samples).
        """
        return self.quantize(signal)[0]

    def quantize(self, signal: np.ndarray) -> tuple[np.ndarray, float, float]:
        """Return the letters of a preprocessed segment, and the range in mV that they stand for.

        Parameters
        ----------
        signal : numpy.ndarray
            As in `letters`.

        Returns
        -------
        letters : numpy.ndarray
            uint8, (leads, samples).
        lo, hi : float
            mV.

        Raises
        ------
        Failure
            If the tokenizer was imported without a range.
        """
        return quantizers.quantize(np.asarray(signal, np.float32), self._quantizer())

    def to_mv(self, letters: np.ndarray, lo: float | None = None, hi: float | None = None) -> np.ndarray:
        """Turn letters back into a signal in mV, float32 (leads, samples).

        `lo` and `hi`, from `quantize`, are needed where letters have no size of their own (see `has_size`).
        """
        return quantizers.dequantize(letters, self._quantizer(), lo, hi)

    def _quantizer(self) -> dict[str, Any]:
        quantizer = self.signal["quantizer"]
        if not quantizers.is_complete(quantizer):
            raise Failure(
                "the imported tokenizer does not say what range in mV its letters stand for: "
                "import it again with --range LO HI"
            )
        return quantizer

    @property
    def has_size(self) -> bool:
        """Whether a letter stands for mV by itself, and not relative to its segment."""
        return quantizers.has_size(self.signal["quantizer"])

    def rest_tokens(self) -> np.ndarray:
        """Return which tokens are a line at 0 mV: bool (vocab,)."""
        rest = self.letters(np.zeros((1, 1), np.float32))[0, 0]
        letters, starts = tokens.spell(self.merges, self.levels)
        return np.logical_and.reduceat(letters == rest, starts[:-1])

    def flat_line(self, segmenter: str = "longest") -> np.ndarray:
        """Return the token ids of a flat segment.

        It lies at 0 mV. Where letters have no size of their own, it lies at the letter that takes the fewest tokens: a
        letter that recordings never rest at would take a token for each sample.
        """
        shape = (len(self.signal["leads"]), self.signal["samples"])
        if self.has_size:
            return self.encode(np.zeros(shape, np.float32), segmenter)
        lines = (self.encode(np.full(shape, i, np.uint8), segmenter) for i in range(self.levels))
        return min(lines, key=len)

    def encode(self, signal_or_letters: np.ndarray, segmenter: str = "longest") -> np.ndarray:
        """Return the token ids of one segment.

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
        leads, samples = letters.shape
        ids, _ = self.encode_segments(letters.ravel(), 1, leads, samples, segmenter)
        return ids.astype(np.int32)

    def encode_segments(
        self, letters: np.ndarray, segments: int, leads: int, samples: int, segmenter: str = "longest"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the token ids of several segments of one shape.

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
            int64, (segments,): number of ids of each segment.

        Raises
        ------
        Failure
            If there is no such segmenter, or its tables for these merges would fill the memory.
        """
        if segmenter not in SEGMENTERS:
            raise Failure(f"no segmenter is called {segmenter!r}: there are {', '.join(SEGMENTERS)}")
        cut, tables = SEGMENTERS[segmenter]
        if segmenter not in self._tables:
            try:
                self._tables[segmenter] = tables(self.merges, self.levels)
            except ValueError as error:
                raise Failure(f"{self.name} cannot be used with --segmenter {segmenter}: {error}") from error
        # one segment is one piece under `segment`, and under `none` too: no token joins two recordings
        pieces = leads if self.boundary == "lead" else 1
        bounds = np.arange(segments * pieces + 1, dtype=np.int64) * (leads * samples // pieces)
        ids, counts = cut(letters, bounds, self._tables[segmenter])
        return ids, counts.reshape(segments, pieces).sum(axis=1)

    def decode(self, ids: npt.ArrayLike) -> np.ndarray:
        """Return the letters, uint8 (leads, samples), of the ids of one segment.

        Raises
        ------
        ValueError
            If an id is not in the vocabulary, or the ids do not make a segment of the tokenizer's length.
        """
        letters = tokens.expand(np.asarray(ids), self._text, self._starts)
        return letters.reshape(len(self.signal["leads"]), self.signal["samples"])

    def letters_of(self, token: int) -> np.ndarray:
        """Return the letters of a token, uint8 (letters,)."""
        return np.asarray(self._text[self._starts[token] : self._starts[token + 1]], np.uint8)

    def spans(self, ids: npt.ArrayLike) -> np.ndarray:
        """Return the place of each token of a segment.

        Parameters
        ----------
        ids : array_like
            Token ids of one segment, or its first ones.

        Returns
        -------
        numpy.ndarray
            int64, (rows, 4): index in `ids`, lead, first sample, sample after the last. A row per token; a token
            that crosses leads (boundary `segment` or `none`) has a row for each.
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


def check_signal(signal: dict) -> None:
    """Check the part `signal` of an ecg_tokenizer.json, as no other code checks its numbers.

    Raises
    ------
    KeyError, TypeError or ValueError
        If something is missing, of another type or out of range.
    """
    fs, seconds = check_number(signal["fs"], 1, 100_000), check_number(signal["segment_seconds"], 0, 1e6)
    samples = check_number(signal["samples"], 1, preprocess.MOST_SAMPLES, int)
    if abs(fs * seconds - samples) > 1:
        raise ValueError(f"{samples} samples are no segment of {seconds} s at {fs} Hz")
    leads, profile, fill = signal["leads"], signal["profile"], signal["fill_nan"]
    if not (isinstance(leads, list) and 0 < len(leads) <= 12 and all(isinstance(x, str) for x in leads)):
        raise TypeError(f"leads {str(leads)[:80]}")
    if len(set(leads) & set(preprocess.LEADS)) < len(leads):
        raise ValueError(f"leads {', '.join(leads)[:80]}: each once, of {', '.join(preprocess.LEADS)}")
    if signal.get("any_leads") not in (None, True):
        raise TypeError(f"any_leads {str(signal['any_leads'])[:80]}")
    if profile not in list(preprocess.PROFILES) or fill not in (None, "linear"):
        raise ValueError(f"profile {str(profile)[:80]}, fill_nan {str(fill)[:80]}")
    quantizers.check(signal["quantizer"])


def _pairs(merges: object) -> np.ndarray:
    """Return the merges of an ecg_tokenizer.json as int32 (m, 2)."""
    merges = merges.tolist() if isinstance(merges, np.ndarray) else merges
    if not isinstance(merges, list) or len(merges) > tokens.MOST_TOKENS:
        raise ValueError(f"merges are a list of at most {tokens.MOST_TOKENS:,} pairs")
    # by type: numpy would accept True, "1" and 1.5 as whole numbers
    if not all(
        type(pair) is list and len(pair) == 2 and type(pair[0]) is type(pair[1]) is int for pair in merges
    ):
        raise TypeError("merges are pairs of whole numbers")
    return np.array(merges, np.int32).reshape(-1, 2)


def write_tokenizer(work: WorkDir, about: dict[str, Any]) -> None:
    """Write a tokenizer's files into a work folder: the table of merges, tokenizer.json, ecg_tokenizer.json last.

    Parameters
    ----------
    work : WorkDir
    about : dict
        Content of ecg_tokenizer.json beside its format: `settings`, `result`, `signal`, `boundary`,
        `max_token_length`, `merges` and, if known, `counts`.
    """
    levels, merges = about["signal"]["quantizer"]["levels"], about["merges"]
    names = [character(i) for i in range(levels)]
    for left, right in merges:
        names.append(names[left] + names[right])
    pairs = np.array(merges, np.int64).reshape(-1, 2)
    columns = {
        "rank": np.arange(len(merges)),
        "id": np.arange(levels, levels + len(merges)),
        "left": pairs[:, 0],
        "right": pairs[:, 1],
        "count": np.array(about.get("counts", []), np.int64),
        "length": np.array([len(name) for name in names[levels:]], np.int64),
        "letters": names[levels:],
    }
    if "counts" not in about:
        del columns["count"]
    write_table(work.merges, columns)
    write_json(
        work.hf_tokenizer,
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {"type": "Fuse"},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": {name: i for i, name in enumerate(names)},
                "merges": [[names[left], names[right]] for left, right in merges],
            },
        },
    )
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "ecgbyte": __version__}
    write_json(work.ecg_tokenizer, header | about)


def character(letter: int) -> str:
    """Return the character of a letter in tokenizer.json: a to z, A to Z, 0 to 9, then U+0100 + letter."""
    first = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    return first[letter] if letter < len(first) else chr(0x100 + letter)
