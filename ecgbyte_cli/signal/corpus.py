"""The letters of many recordings: as texts for learning merges, and with another tokenizer's settings."""

import mmap
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal import quantizers
from ecgbyte_cli.signal.tokenizer import MOST_BYTES, ECGTokenizer
from ecgbyte_cli.storage.files import atomic_write, read_json, sha256_of
from ecgbyte_cli.storage.workdir import WorkDir

LEAST_IN_SHARD = 500_000  # letters: a smaller shard is not worth another thread


def as_read_by(model: str | os.PathLike) -> tuple[Path, dict[str, Any]]:
    """Read the `signal` settings of a model folder's ecg_tokenizer.json, or of such a file.

    Returns
    -------
    (Path, dict)
        The ecg_tokenizer.json and its `signal`.

    Raises
    ------
    Failure
        If there is none, or it has no range in mV.
    """
    path = Path(model) / "ecg_tokenizer.json" if Path(model).is_dir() else Path(model)
    if not path.is_file():
        raise Failure(f"{path} is not a tokenizer: --like needs a model folder, or an ecg_tokenizer.json")
    signal = ECGTokenizer.from_file(path).signal
    if not quantizers.is_complete(signal["quantizer"]):
        raise Failure(f"{path} does not state the range of its letters in mV, so it cannot read signals")
    return path, signal


def imported(work: WorkDir) -> Path | None:
    """Return a work folder's tokenizer, with a note, if it was imported and describes its letters completely.

    Returns
    -------
    Path or None
        Its ecg_tokenizer.json. None if there is no tokenizer, if it was learned from letters, or if it has no
        range in mV.
    """
    if not work.ecg_tokenizer.exists():
        return None
    settings = read_json(work.ecg_tokenizer, MOST_BYTES).get("settings")
    if not (isinstance(settings, dict) and "imported" in settings):
        return None
    signal = ECGTokenizer.from_file(work.ecg_tokenizer).signal
    if not quantizers.is_complete(signal["quantizer"]):
        return None
    note(
        f"letters of the imported tokenizer: profile {signal['profile']}, "
        f"quantizer {signal['quantizer']['name']}, leads {','.join(signal['leads'])}"
    )
    return work.ecg_tokenizer


def take_merges(work: WorkDir, merges: Path | None, result: dict) -> dict:
    """Copy an ecg_tokenizer.json, if there is one, over the work folder's own; return `result`."""
    if merges is not None and not (
        work.ecg_tokenizer.exists() and sha256_of(work.ecg_tokenizer) == sha256_of(merges)
    ):
        for left in work.ecg_tokenizer.parent.glob("[!.]*.*"):
            left.unlink()  # it belongs to the previous merges
        with atomic_write(work.ecg_tokenizer) as beside:
            shutil.copyfile(merges, beside)
    return result


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
        Arrays of uint8, 1-D. No token crosses the end of an array, such as a lead of a segment.
    levels : int
        Size of the alphabet: the letters are 0 to levels - 1.
    merges : int
        Largest number of merges.
    min_count : int
        Stop when no pair occurs at least this often.
    max_length : int
        Letters in the longest token; 0 for no limit.
    threads : int
        Number of threads. The merges do not depend on it.

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


def read_texts(
    letters: np.ndarray,
    segments: Mapping[str, np.ndarray],
    boundary: str,
    levels: int,
    threads: int,
    path: Path,
) -> list[np.ndarray]:
    """Read the chosen letters as texts for the kernels: one for each thread, containing whole segments.

    Parameters
    ----------
    letters : numpy.memmap of uint8, 1-D
    segments : dict
        `offset`, `leads` and `samples` of the segments to read: int64 arrays.
    boundary : {"lead", "segment", "none"}
    levels, threads : int
    path : Path
        Path of the letters, for error messages.
    """
    from ecgbyte_kernels.merges import cut_pieces, text_type

    offset, leads, samples = segments.values()
    sizes = leads * samples
    if (offset < 0).any() or (offset + sizes > len(letters)).any():
        raise Failure(f"{path} is shorter than in its table: run `ecgbyte symbolize` again")
    if boundary == "lead":
        # a piece per lead
        first = np.repeat(np.cumsum(leads) - leads, leads)
        starts = np.repeat(offset, leads) + (np.arange(leads.sum()) - first) * np.repeat(samples, leads)
        sizes = np.repeat(samples, leads)
    else:
        starts = offset
    symbols = int(sizes.sum())
    # equal numbers of segments for each thread, and at most 2^30 letters
    shards = min(threads, 1 + symbols // LEAST_IN_SHARD) * (1 + (symbols >> 30) // threads)
    shards = 1 if boundary == "none" else shards
    bounds = np.searchsorted(np.cumsum(sizes), np.linspace(0, symbols, shards + 1)[1:-1])
    texts = []
    for piece_starts, lengths in zip(np.split(starts, bounds), np.split(sizes, bounds), strict=True):
        if boundary == "none":
            text = np.empty(int(lengths.sum()) + 2, text_type(levels))
        else:
            text = np.empty(int(lengths.sum()) + len(lengths) + 1, text_type(levels))
        at = 0
        for part in range(0, max(1, len(piece_starts)), 4096):
            here = slice(part, part + 4096)
            at, largest = cut_pieces(letters, piece_starts[here], lengths[here], text, at, boundary != "none")
            if largest >= levels:
                raise Failure(f"{path} contains letter {largest}, but its settings have {levels} levels")
            # pages already read should not count as memory of this process
            if isinstance(letters.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                letters.base.madvise(mmap.MADV_DONTNEED)
        text[-1] = text[0]
        texts.append(text)
    return texts
