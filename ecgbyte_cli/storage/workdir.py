"""Files on disk. This module alone knows the names of the files in a work folder.

Arrays are .npy, tables Parquet, settings JSON; nothing is pickled. A file is written beside its place and
renamed into it, so that a reader sees all of it or none.
"""

import copy
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.storage.files import atomic_write, read_array, read_json, read_table
from ecgbyte_cli.storage.locks import clear_leftovers, lock
from ecgbyte_cli.storage.manifest import has_valid_checksum, matches_description, tokenizer_sha256

VERIFY = ("changed", "all", "none")  # which files are hashed before they are used


class WorkDir:
    """The paths of a work folder, and the checks that stages make on it.

    Parameters
    ----------
    root : str or Path
    verify : {"changed", "all", "none"}
        Which files of earlier stages are hashed before they are used: those whose size or time is not what
        the stage wrote, all, or none.
    """

    def __init__(self, root: str | os.PathLike, verify: str = "changed"):
        self.root, self.verify = Path(root), verify
        self.patient_salt = self.root / "patient_salt"
        self.symbols = self.root / "symbols" / "symbols.npy"
        self.symbol_segments = self.root / "symbols" / "segments.parquet"
        self.symbol_settings = self.root / "symbols" / "settings.json"
        self.skipped = self.root / "symbols" / "skipped.parquet"
        self.symbol_parts = self.root / "symbols" / "parts"  # what an interrupted run has done
        self.ecg_tokenizer = self.root / "tokenizer" / "ecg_tokenizer.json"
        self.hf_tokenizer = self.root / "tokenizer" / "tokenizer.json"
        self.merges = self.root / "tokenizer" / "merges.parquet"
        self.half_learned = self.root / "tokenizer" / "half_learned.json"
        self.tokens = self.root / "tokens" / "tokens.npy"
        self.token_segments = self.root / "tokens" / "segments.parquet"
        self.token_settings = self.root / "tokens" / "settings.json"
        self.token_parts = self.root / "tokens" / "parts"  # what an interrupted run has encoded
        self.decoded = self.root / "decoded"
        self.decode_settings = self.decoded / "decode.json"
        self._train_in("training", "model", "answers")
        self.explained = self.root / "explained" / "explain.json"
        self.explained_table = self.root / "explained" / "explain.md"
        self.pictures = self.root / "pictures"
        self.continued = self.root / "continued"
        self.chat_history = self.root / "chat_history"  # the lines typed in earlier chats

    def _train_in(self, training, model, answers):
        self.training, self.model, answers = self.root / training, self.root / model, self.root / answers
        self._folders = {"training": self.training, "model": self.model, "answers": answers}
        self.loss_csv = self.training / "loss.csv"
        self.loss_picture = self.training / "loss.png"
        self.reward_csv = self.training / "reward.csv"
        self.reward_picture = self.training / "reward.png"
        self.model_settings = self.model / "ecgbyte.json"
        self.answers = answers / "answers.jsonl"
        self.metrics = answers / "metrics.json"
        self.metrics_table = answers / "metrics.md"
        self.partial_answers = answers / "partial.jsonl"  # what an interrupted run has answered

    def reinforcing(self) -> "WorkDir":
        """The same work folder, with the folders of `reinforce` for its training and its model."""
        made = copy.copy(self)
        made._train_in("reinforcing", "reinforced", "answers")
        return made

    def of_seed(self, number: int) -> "WorkDir":
        """The same work folder, with folders of their own for the training, model and answers of a further seed."""
        made = copy.copy(self)
        made._train_in(*(f"seeds/{number}/{name}" for name in ("training", "model", "answers")))
        return made

    def _folder(self, name):
        return self._folders.get(name, self.root / name)

    def checkpoint(self, kind: str, step: int) -> Path:
        """The folder of a training's checkpoint: `step` (to go on from) or `best` (the best weights so far)."""
        return self.training / f"{kind}-{step:07d}"

    def checkpoints(self, kind: str) -> list[Path]:
        """The checkpoints of a kind that are there, the newest last."""
        return sorted(p for p in self.training.glob(f"{kind}-*") if p.name[len(kind) + 1 :].isdigit())

    def need(self, path: Path, command: str) -> Path:
        """Return `path` if it exists; else fail, naming the command that makes it."""
        if not path.exists():
            raise Failure(f"{path} is missing: run `ecgbyte {command}` first")
        return path

    def reading(self) -> dict:
        """Arguments of `readers.read_recording` beside the path: `fs`, `lead_names`, `units`, …."""
        if not self.symbol_settings.exists():
            return {}
        asked = read_json(self.symbol_settings).get("settings", {})
        return {
            "fs": asked.get("input_fs"),
            "lead_names": asked.get("lead_names"),
            "units": asked.get("units"),
            "keep_identity": bool(asked.get("keep_identity")),
        }

    def salt(self) -> str:
        """The key by which patients' numbers are hashed in this work folder; made when it is first needed."""
        if not self.patient_salt.exists():
            with atomic_write(self.patient_salt) as beside:
                beside.write_text(os.urandom(16).hex(), encoding="utf-8")
                beside.chmod(0o600)
        return self.patient_salt.read_text(encoding="utf-8")

    @contextmanager
    def making(self, *names: str) -> Iterator[None]:
        """Hold folders of the work folder for this run alone, free of what killed runs left there.

        Parameters
        ----------
        *names : str
            Such as `symbols` or `model`.

        Raises
        ------
        Failure
            If another run is at work on one of them.
        """
        if os.environ.get("RANK", "0") != "0":  # of several processes of one training, the first holds it
            yield
            return
        with ExitStack() as stack:
            folders = [self._folder(name) for name in names]
            for folder in folders:
                stack.enter_context(lock(folder))
            # whoever holds the lock knows that nobody writes these any more, and what writes then clears
            # its own; at the end, those of workers that were stopped
            for folder in folders:
                stack.callback(clear_leftovers, folder)
                clear_leftovers(folder)
            yield

    @contextmanager
    def checked(self, *names: str) -> Iterator[None]:
        """Keep what earlier stages made from being replaced, and make sure that it is what they wrote.

        Parameters
        ----------
        *names : str
            Of folders: `symbols`, or `tokens` (and the symbols that they are of), are compared with their
            settings; of others, such as `model`, it is only seen to that no run replaces them.

        Raises
        ------
        Failure
            If something is missing, damaged, of another run than the rest, or just being replaced.
        """
        names = ("symbols", *names) if "tokens" in names and "symbols" not in names else names
        with ExitStack() as stack:
            for name in names:
                if self._folder(name).is_dir():
                    stack.enter_context(lock(self._folder(name), shared=True))
            told = [self._compare(name) for name in names if name in ("symbols", "tokens")]
            if not all(told) and self.verify != "none":
                click.echo(printable(f"{self.root}: made by a version that wrote no checksums"), err=True)
                self._agree()
            if "tokens" in names:
                letters, ids = read_json(self.symbol_settings), read_json(self.token_settings)
                if letters.get("settings") != ids.get("settings", {}).get("symbols"):
                    raise Failure(
                        f"{self.tokens} was made of other letters than {self.symbols} holds: "
                        "run `ecgbyte encode --overwrite`"
                    )
            yield

    def _compare(self, name):
        """Compare the files of `symbols` or `tokens` with their settings; False if those have no checksums."""
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
        for path, right in (
            (settings, has_valid_checksum(about)),
            *(
                (path, matches_description(path, about["files"].get(path.name), self.verify == "all"))
                for path in (array, table)
            ),
        ):
            if not right:
                raise Failure(
                    f"{path} is damaged or of another run: `ecgbyte {command} --overwrite` makes it again"
                )
        return True

    def _agree(self):
        """Where settings have no checksums: the ids must decode to the letters that lie beside them."""
        needed = (self.ecg_tokenizer, self.symbols, self.symbol_segments, self.tokens, self.token_segments)
        if not all(path.exists() for path in (*needed, self.token_settings)):
            return
        about, encoded = read_json(self.ecg_tokenizer), read_json(self.token_settings)
        if encoded.get("tokenizer_sha256") != tokenizer_sha256(about) or encoded.get("settings", {}).get(
            "symbols"
        ) != read_json(self.symbol_settings).get("settings"):
            return  # ids of other letters or merges: whoever needs them says so
        letters, segments = read_array(self.symbols), read_table(self.symbol_segments)
        ids, places = read_array(self.tokens), read_table(self.token_segments)
        if not _decodes(about, ids, places, letters, segments):
            raise Failure(
                f"{self.symbols} and {self.tokens} do not agree, so one of them is damaged: run `ecgbyte "
                "symbolize --overwrite` on the recordings, then learn and encode"
            )


def _decodes(about, ids, places, letters, segments):
    """Whether the ids of each segment are its letters."""
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
    except (KeyError, IndexError, TypeError, ValueError):  # columns, ids or merges that cannot be
        return False
    return True
