"""The paths of a work folder, and the checks on its files. Only this module knows the file names."""

import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import atomic_write, read_array, read_json, read_table
from ecgbyte_cli.storage.locks import clear_leftovers, lock
from ecgbyte_cli.storage.manifest import (
    completed_result,
    has_valid_checksum,
    matches_description,
    tokenizer_sha256,
)


class WorkDir:
    """The paths of a work folder, and the checks that stages make on it.

    Parameters
    ----------
    root : str or Path
    verify : {"changed", "all", "none"}
        Files of earlier stages to check by hash before use: files whose size or time has changed, all, or none.
    """

    def __init__(self, root: str | os.PathLike, verify: str = "changed"):
        self.root, self.verify = Path(root), verify
        self.patient_salt = self.root / "patient_salt"
        self.symbols = self.root / "symbols" / "symbols.npy"
        self.signals = self.root / "symbols" / "signals.npy"  # in mV, if kept
        self.symbol_segments = self.root / "symbols" / "segments.parquet"
        self.symbol_settings = self.root / "symbols" / "settings.json"
        self.skipped = self.root / "symbols" / "skipped.parquet"
        self.symbol_parts = self.root / "symbols" / "parts"  # finished parts of an interrupted run
        self.ecg_tokenizer = self.root / "tokenizer" / "ecg_tokenizer.json"
        self.hf_tokenizer = self.root / "tokenizer" / "tokenizer.json"
        self.merges = self.root / "tokenizer" / "merges.parquet"
        self.half_learned = self.root / "tokenizer" / "half_learned.json"
        self.tokens = self.root / "tokens" / "tokens.npy"
        self.token_segments = self.root / "tokens" / "segments.parquet"
        self.token_settings = self.root / "tokens" / "settings.json"
        self.token_parts = self.root / "tokens" / "parts"
        self.decoded = self.root / "decoded"
        self.decode_settings = self.decoded / "decode.json"
        self.measured_lines = self.root / "measured" / "lines.parquet"
        self.measured_settings = self.root / "measured" / "settings.json"
        self.measured_parts = self.root / "measured" / "parts"
        self._train_in("training", "model", "answers")
        self.explained = self.root / "explained" / "explain.json"
        self.explained_table = self.root / "explained" / "explain.md"
        self.pictures = self.root / "pictures"
        self.continued = self.root / "continued"
        self.chat_history = self.root / "chat_history"  # lines typed in earlier chats

    def _train_in(self, training: str, model: str, answers: str) -> None:
        self.training, self.model, answered = self.root / training, self.root / model, self.root / answers
        self._folders = {"training": self.training, "model": self.model}
        self.loss_csv = self.training / "loss.csv"
        self.loss_picture = self.training / "loss.png"
        self.reward_csv = self.training / "reward.csv"
        self.reward_picture = self.training / "reward.png"
        self.model_settings = self.model / "ecgbyte.json"
        self._answer_in(answered)

    def _answer_in(self, answered: Path) -> None:
        self._folders["answers"] = answered
        self.answers = answered / "answers.jsonl"
        self.metrics = answered / "metrics.json"
        self.metrics_table = answered / "metrics.md"
        self.partial_answers = answered / "partial.jsonl"  # answers from an interrupted run

    def reinforcing(self) -> "WorkDir":
        """Return the work folder with the training and model folders of `reinforce`."""
        work = copy.copy(self)
        work._train_in("reinforcing", "reinforced", "answers")
        return work

    def of_seed(self, number: int) -> "WorkDir":
        """Return the work folder with the training, model and answer folders of another seed."""
        work = copy.copy(self)
        work._train_in(*(f"seeds/{number}/{name}" for name in ("training", "model", "answers")))
        return work

    def answering_in(self, folder: Path) -> "WorkDir":
        """Return the work folder with another answers folder."""
        work = copy.copy(self)
        work._folders = dict(self._folders)
        work._answer_in(folder)
        return work

    def _folder(self, name: str) -> Path:
        return self._folders.get(name, self.root / name)

    def checkpoint(self, kind: str, step: int) -> Path:
        """Return the folder of a checkpoint: `step` (to resume from) or `best` (the best weights so far)."""
        return self.training / f"{kind}-{step:07d}"

    def checkpoints(self, kind: str) -> list[Path]:
        """Return the existing checkpoints of a kind, the newest last."""
        return sorted(p for p in self.training.glob(f"{kind}-*") if p.name[len(kind) + 1 :].isdigit())

    def need(self, path: Path, command: str) -> Path:
        """Return `path` if it exists; else raise a Failure that names the command to run."""
        if not path.exists():
            raise Failure(f"{path} is missing: run `ecgbyte {command}` first")
        return path

    def reading(self) -> dict[str, Any]:
        """Return the options used to read the recordings: `fs`, `lead_names`, `units`, …."""
        if not self.symbol_settings.exists():
            return {}
        settings = read_json(self.symbol_settings).get("settings", {})
        return {
            "fs": settings.get("input_fs"),
            "lead_names": settings.get("lead_names"),
            "units": settings.get("units"),
            "keep_identity": bool(settings.get("keep_identity")),
        }

    def salt(self) -> str:
        """Return the key that hashes patients' numbers in this work folder. The first call creates it."""
        if not self.patient_salt.exists():
            with atomic_write(self.patient_salt) as beside:
                beside.write_text(os.urandom(16).hex(), encoding="utf-8")
                beside.chmod(0o600)
        return self.patient_salt.read_text(encoding="utf-8")

    @contextmanager
    def making(self, *names: str) -> Iterator[None]:
        """Lock folders of the work folder exclusively, and remove leftovers of killed runs.

        Parameters
        ----------
        *names : str
            Names of folders, such as `symbols` or `model`.

        Raises
        ------
        Failure
            If another run is using one of them.
        """
        if os.environ.get("RANK", "0") != "0":  # the first process of a training run holds the lock for all
            yield
            return
        with ExitStack() as stack:
            folders = [self._folder(name) for name in names]
            for folder in folders:
                stack.enter_context(lock(folder))
            # again at the end, for files of workers that were stopped
            for folder in folders:
                stack.callback(clear_leftovers, folder)
                clear_leftovers(folder)
            yield

    def run_once(
        self,
        folder: str,
        path: Path,
        settings: Mapping[str, Any],
        overwrite: bool,
        holds: str,
        run: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """Return the result of a finished run with these settings, or lock the folder and run.

        Parameters
        ----------
        folder : str
            The folder that the stage writes.
        path, settings, overwrite, holds
            See `manifest.completed_result`.
        run : callable
            Does the work and returns its result.

        Raises
        ------
        Failure
            If an earlier run had other settings, or another run is using the folder.
        """
        result = completed_result(path, settings, overwrite, holds, check=self.checked(folder))
        if result is None:
            with self.making(folder):
                # another run may have finished meanwhile
                result = completed_result(path, settings, overwrite, holds) or run()
        return result

    @contextmanager
    def checked(self, *names: str) -> Iterator[None]:
        """Lock the output of earlier stages against replacement, and check it.

        Parameters
        ----------
        *names : str
            Names of folders. `symbols` and `tokens` (with their symbols) are checked against their settings; others,
            such as `model`, are only locked.

        Raises
        ------
        Failure
            If a file is missing, damaged or from another run, or is being replaced by a run.
        """
        names = ("symbols", *names) if "tokens" in names and "symbols" not in names else names
        with ExitStack() as stack:
            for name in names:
                if self._folder(name).is_dir():
                    stack.enter_context(lock(self._folder(name), shared=True))
            compared = [self._compare(name) for name in names if name in ("symbols", "tokens")]
            if not all(compared) and self.verify != "none":
                note(f"{self.root}: written by an older version without checksums")
                self._check_agreement()
            if "tokens" in names:
                letters, ids = read_json(self.symbol_settings), read_json(self.token_settings)
                if letters.get("settings") != ids.get("settings", {}).get("symbols"):
                    raise Failure(
                        f"{self.tokens} was not made from the letters in {self.symbols}: "
                        "run `ecgbyte encode --overwrite`"
                    )
            yield

    def _compare(self, name: str) -> bool:
        """Check the files of `symbols` or `tokens` against their settings. Return False if there are no checksums."""
        command, settings, array, table = {
            "symbols": ("symbolize", self.symbol_settings, self.symbols, self.symbol_segments),
            "tokens": ("encode", self.token_settings, self.tokens, self.token_segments),
        }[name]
        self.need(settings, command)
        for path in (array, table):
            self.need(path, f"{command} --overwrite")
        about = read_json(settings)
        if self.verify == "none" or "files" not in about:
            return "files" in about
        for path, is_valid in (
            (settings, has_valid_checksum(about)),
            *(
                (path, matches_description(path, about["files"].get(path.name), self.verify == "all"))
                for path in (array, table)
            ),
        ):
            if not is_valid:
                raise Failure(f"{path} is damaged or from another run: run `ecgbyte {command} --overwrite`")
        return True

    def _check_agreement(self) -> None:
        """Check that the ids decode to the letters, if the settings have no checksums."""
        needed = (self.ecg_tokenizer, self.symbols, self.symbol_segments, self.tokens, self.token_segments)
        if not all(path.exists() for path in (*needed, self.token_settings)):
            return
        about, encoded = read_json(self.ecg_tokenizer), read_json(self.token_settings)
        if encoded.get("tokenizer_sha256") != tokenizer_sha256(about) or encoded.get("settings", {}).get(
            "symbols"
        ) != read_json(self.symbol_settings).get("settings"):
            return  # the ids belong to other letters or merges, which the stages report
        letters, segments = read_array(self.symbols), read_table(self.symbol_segments)
        ids, places = read_array(self.tokens), read_table(self.token_segments)
        if not _decodes(about, ids, places, letters, segments):
            raise Failure(
                f"{self.symbols} and {self.tokens} do not agree, so one of them is damaged: run `ecgbyte "
                "symbolize --overwrite` on the recordings, then learn and encode"
            )


def _decodes(
    about: Mapping[str, Any],
    ids: np.ndarray,
    places: Mapping[str, np.ndarray],
    letters: np.ndarray,
    segments: Mapping[str, np.ndarray],
) -> bool:
    """Return whether the ids of each segment decode to its letters."""
    from ecgbyte_kernels import tokens as kernels

    try:
        text, starts = kernels.spell(about["merges"], about["signal"]["quantizer"]["levels"])
        each = segments["leads"] * segments["samples"]
        stops, ends = np.cumsum(places["length"]), np.cumsum(each)
        if not (
            np.array_equal(places["offset"], stops - places["length"])
            and np.array_equal(segments["offset"], ends - each)
            and (ids.size, letters.size) == (stops[-1], ends[-1])
        ):
            return False
        for first in range(0, len(stops), 512):
            last = min(first + 512, len(stops)) - 1
            here = np.asarray(ids[places["offset"][first] : stops[last]])
            spelled = np.cumsum(np.diff(starts)[here])[stops[first : last + 1] - places["offset"][first] - 1]
            if not np.array_equal(spelled, ends[first : last + 1] - segments["offset"][first]):
                return False
            beside = letters[segments["offset"][first] : ends[last]]
            if not np.array_equal(kernels.expand(here, text, starts), beside):
                return False
    except (KeyError, IndexError, TypeError, ValueError):  # impossible columns, ids or merges
        return False
    return True
