"""What many recordings have in common: the range of their values, and their letters as texts to learn from."""

import mmap
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal.tokenizer import MOST_BYTES, ECGTokenizer
from ecgbyte_cli.storage.files import atomic_write, read_json, sha256_of
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_kernels import quantize as kernels

FIXED = ("minmax", "mulaw", "trellis")  # quantizers that need not know the corpus
ELM_MARGIN = 1e-6  # mV; ECG-Bench and ELM divide by max - min + 1e-6
LEAST_IN_SHARD = 500_000  # letters: less is not worth another thread


def asked_quantizer(name, levels, bounds=None, mu=20.0, profile="paper"):
    """Describe the quantizer as far as the command line decides it; the corpus decides the rest."""
    lo, hi = bounds or (None, None)
    asked = {"name": name, "levels": levels, "lo": lo, "hi": hi}
    if (
        name == "minmax" and profile == "elm"
    ):  # only there, so that letters of the other profiles stay as they were
        return asked | {"margin": ELM_MARGIN}
    if name == "mulaw":
        return asked | {"mu": mu, "limit": 5.0}
    # what examples/experiments/rate_distortion.py found best
    return asked | {"mu": 2.0, "limit": 16.0, "penalty": 0.25} if name == "trellis" else asked


def as_read_by(model):
    """The ecg_tokenizer.json of a model folder, or such a file itself, and what it says of the signal."""
    path = Path(model) / "ecg_tokenizer.json" if Path(model).is_dir() else Path(model)
    if not path.is_file():
        raise Failure(f"{path} is no tokenizer: --like names a model folder, or an ecg_tokenizer.json")
    signal = ECGTokenizer.from_file(path).signal
    if signal["quantizer"]["name"] == "paper" and signal["quantizer"]["lo"] is None:
        raise Failure(f"{path} does not say what range in mV its letters stand for: no signal can be read so")
    return path, signal


def imported(work: WorkDir) -> Path | None:
    """Find a work folder's tokenizer where it was imported and describes its letters completely; say so.

    Returns
    -------
    Path or None
        What `as_read_by` takes. None where there is no tokenizer, where it was learned from letters, or where it does
        not know its range in mV.
    """
    if not work.ecg_tokenizer.exists():
        return None
    settings = read_json(work.ecg_tokenizer, MOST_BYTES).get("settings")
    if not (isinstance(settings, dict) and "imported" in settings):
        return None
    signal = ECGTokenizer.from_file(work.ecg_tokenizer).signal
    profile, quantizer = signal["profile"], signal["quantizer"]
    if quantizer["name"] == "paper" and quantizer["lo"] is None:
        return None
    note(
        f"letters as the imported tokenizer describes them: profile {profile}, quantizer {quantizer['name']}, leads "
        f"{','.join(signal['leads'])}"
    )
    return work.ecg_tokenizer


def take_merges(work, merges, result):
    """Put an ecg_tokenizer.json, if there is one, into a work folder in the place of its own; return `result`."""
    if merges is not None and not (
        work.ecg_tokenizer.exists() and sha256_of(work.ecg_tokenizer) == sha256_of(merges)
    ):
        for left in work.ecg_tokenizer.parent.glob("[!.]*.*"):
            left.unlink()  # what else was made of the merges that were there
        with atomic_write(work.ecg_tokenizer) as beside:
            shutil.copyfile(merges, beside)
    return result


def fit_quantizer(quantizer, counts, blocks):
    """Complete a quantizer with what the corpus says.

    Parameters
    ----------
    quantizer : dict
        From `asked_quantizer`; one that is complete stays as it is.
    counts : numpy.ndarray
        From `ecgbyte_kernels.quantize.count_upper`, over all signals.
    blocks : callable
        Returns an iterator over all signals, float32 arrays in mV; called where a second reading is needed.
    """
    if quantizer["name"] == "paper" and quantizer["lo"] is None:
        p1, p99 = _percentiles(blocks, counts, (1, 99))
        return quantizer | {"lo": p1 - 0.5, "hi": p99 + 0.5}
    if quantizer["name"] == "lloyd" and "edges" not in quantizer:
        try:
            edges, centroids = kernels.fit_lloyd(counts, quantizer["levels"])
        except ValueError as error:
            raise Failure(f"--quantizer lloyd: {error}; take fewer --levels") from error
        return quantizer | {"edges": edges.tolist(), "centroids": centroids.tolist()}
    return quantizer


def _percentiles(blocks, counts, percents):
    """Exact percentiles of all signals, as numpy.percentile gives them, in one more reading."""
    total, below = int(counts.sum()), np.cumsum(counts) - counts
    ranks = [kernels.ranks_of(percent, total) for percent in percents]
    uppers = {r: int(np.searchsorted(below, r, "right") - 1) for a, b, _ in ranks for r in (a, b)}
    lowers = {upper: np.zeros(2**16, np.int64) for upper in uppers.values()}
    for block in blocks():
        for upper, lower in lowers.items():
            kernels.count_lower(block, upper, lower)

    def value(rank):
        upper = uppers[rank]
        within = np.searchsorted(np.cumsum(lowers[upper]), rank - below[upper], "right")
        return float(kernels.value_of(upper, within))

    return [value(a) + (value(b) - value(a)) * part for a, b, part in ranks]


def learn_merges(
    pieces: Sequence[np.ndarray],
    levels: int,
    merges: int,
    *,
    min_count: int = 2,
    max_length: int = 256,
    threads: int = 1,
) -> np.ndarray:
    """Learn byte pair encoding merges from letters in memory.

    Parameters
    ----------
    pieces : list of numpy.ndarray
        uint8, 1-D each: what no token crosses, such as a lead of a segment.
    levels : int
        Number of letters: each is below it.
    merges : int
        How many to learn at most.
    min_count : int
        Stop when no pair is found this often.
    max_length : int
        Letters of the longest token; 0 for no limit.
    threads : int
        The merges do not depend on it.

    Returns
    -------
    numpy.ndarray
        int64, (m, 3): left id, right id, and count when it was merged; merge k makes id levels + k.

    Raises
    ------
    ValueError
        If a letter is not below `levels`.
    """
    from ecgbyte_kernels import merges as kernels

    sizes = np.array([len(piece) for piece in pieces], np.int64)
    letters = np.concatenate([np.asarray(piece, np.uint8) for piece in pieces] or [np.zeros(0, np.uint8)])
    text = np.empty(letters.size + len(pieces) + 1, kernels.text_type(levels))
    _, largest = kernels.cut_pieces(letters, np.cumsum(sizes) - sizes, sizes, text, 0)
    if largest >= levels:
        raise ValueError(f"letter {largest} is not one of {levels}")
    text[-1] = text[0]
    steps = kernels.learn_merges([text], levels, merges, min_count, max_length, threads)
    return np.concatenate([np.zeros((0, 3), np.int64), *(fresh for fresh, _ in steps)])


def read_texts(letters, segments, boundary, levels, threads, path):
    """Read the chosen letters as texts for the kernels: one for each thread, of whole segments.

    Parameters
    ----------
    letters : numpy.memmap of uint8, 1-D
    segments : dict
        `offset`, `leads` and `samples` of the segments to read: int64 arrays.
    boundary : {"lead", "segment", "none"}
    levels : int
    threads : int
    path : Path
        Where the letters are from, for errors.

    Returns
    -------
    list of numpy.ndarray
    """
    from ecgbyte_kernels.merges import cut_pieces, text_type

    offset, leads, samples = segments.values()
    sizes = leads * samples
    if (offset < 0).any() or (offset + sizes > len(letters)).any():
        raise Failure(f"{path} is shorter than its table says: run `ecgbyte symbolize` again")
    if boundary == "lead":
        # a piece per lead
        first = np.repeat(np.cumsum(leads) - leads, leads)
        starts = np.repeat(offset, leads) + (np.arange(leads.sum()) - first) * np.repeat(samples, leads)
        sizes = np.repeat(samples, leads)
    else:
        starts = offset
    symbols = int(sizes.sum())
    # as many for each thread, and none with more letters than 2^30
    shards = min(threads, 1 + symbols // LEAST_IN_SHARD) * (1 + (symbols >> 30) // threads)
    shards = 1 if boundary == "none" else shards
    bounds = np.searchsorted(np.cumsum(sizes), np.linspace(0, symbols, shards + 1)[1:-1])
    texts = []
    for mine, lengths in zip(np.split(starts, bounds), np.split(sizes, bounds), strict=True):
        if boundary == "none":
            text = np.empty(int(lengths.sum()) + 2, text_type(levels))
        else:
            text = np.empty(int(lengths.sum()) + len(lengths) + 1, text_type(levels))
        at = 0
        for part in range(0, max(1, len(mine)), 4096):
            here = slice(part, part + 4096)
            at, largest = cut_pieces(letters, mine[here], lengths[here], text, at, boundary != "none")
            if largest >= levels:
                raise Failure(f"{path} holds letter {largest}, but its settings say {levels} levels")
            # what has been read of the file is no longer to count as this process's memory
            if isinstance(letters.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                letters.base.madvise(mmap.MADV_DONTNEED)
        text[-1] = text[0]
        texts.append(text)
    return texts
