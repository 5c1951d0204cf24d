"""The origin of a work folder's merges: its own letters, a model, or an imported file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_cli.storage.files import read_json, read_table, sha256_of
from ecgbyte_cli.storage.workdir import WorkDir


def fingerprint(work: WorkDir) -> str:
    """Return a hash of the settings, table and number of the letters, which changes when they do."""
    settings = read_json(work.symbol_settings)
    asked = json.dumps([settings.get("settings"), settings["signal"]], sort_keys=True)
    return hashlib.sha256(
        f"{asked} {sha256_of(work.need(work.symbol_segments, 'symbolize'))} "
        f"{Path(work.symbols).stat().st_size}".encode()
    ).hexdigest()


def rows_learned_from(
    segments: Mapping[str, Any], split: str, sample: int | float | None, seed: int
) -> np.ndarray:
    """Return the rows of the table of segments that `learn` reads, int64, in the table's order.

    Parameters
    ----------
    segments : mapping
        The columns of symbols/segments.parquet.
    split : {"train", "all"}
    sample : int, float or None
        Number or fraction of the rows, drawn at random; None means all.
    seed : int
    """
    rows = np.arange(len(segments["segment"]))
    if split == "train":
        rows = np.flatnonzero(np.array(segments["split"], dtype=object) == "train")
    if sample is None or not len(rows):
        return rows
    wanted = sample if isinstance(sample, int) else max(1, round(sample * len(rows)))
    # take the start of one shuffled order, so that a larger sample includes a smaller one
    return rows[np.sort(np.random.default_rng(seed).permutation(len(rows))[:wanted])]


def learned_here(work: WorkDir) -> dict | None:
    """Return the settings of `learn` if it learned the merges from the letters in the work folder.

    None if the merges came with a model (`symbolize --like`), were imported, or the letters have changed since.
    """
    files = (work.ecg_tokenizer, work.symbol_settings, work.symbol_segments, work.symbols)
    if not all(path.exists() for path in files):
        return None
    settings = read_json(work.ecg_tokenizer).get("settings") or {}
    return settings if settings.get("symbols") == fingerprint(work) else None


def patients_learned_from(work: WorkDir) -> set[str]:
    """Return the patients in the work folder from whose recordings the merges were learned."""
    settings = learned_here(work)
    if settings is None:
        return set()
    segments = read_table(work.symbol_segments)
    rows = rows_learned_from(segments, settings["split"], settings["sample"], settings["seed"])
    return {segments["patient"][row] for row in rows}


def described(work: WorkDir, result: dict) -> dict:
    """Return the result of a tokenizer; for merges from elsewhere only their number and origin.

    Parameters
    ----------
    work : WorkDir
    result : dict
        Result in the work folder's ecg_tokenizer.json.
    """
    if not work.symbol_settings.exists() or learned_here(work) is not None:
        return result
    imported = "imported" in (read_json(work.ecg_tokenizer).get("settings") or {})
    numbers = {key: result[key] for key in ("vocab", "merges", "longest", "sha256") if key in result}
    return numbers | {"learned_from": "an imported tokenizer" if imported else "other recordings"}
