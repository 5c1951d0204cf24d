"""Files on disk. This module alone knows the names of the files in a work folder.

Arrays are .npy, tables Parquet, settings JSON; nothing is pickled. A file is written beside its place and
renamed into it, so that a reader sees all of it or none.
"""

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ecgbyte_cli.failure import Failure


class WorkDir:
    """The paths of a work folder, and the checks that stages make on it."""

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)
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
        self.training = self.root / "training"
        self.loss_csv = self.training / "loss.csv"
        self.loss_picture = self.training / "loss.png"
        self.model = self.root / "model"
        self.model_settings = self.model / "ecgbyte.json"
        self.answers = self.root / "answers" / "answers.jsonl"
        self.metrics = self.root / "answers" / "metrics.json"
        self.metrics_table = self.root / "answers" / "metrics.md"
        self.partial_answers = self.root / "answers" / "partial.jsonl"  # what an interrupted run has answered
        self.explained = self.root / "explained" / "explain.json"
        self.explained_table = self.root / "explained" / "explain.md"
        self.pictures = self.root / "pictures"
        self.chat_history = self.root / "chat_history"  # the lines typed in earlier chats

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


def finished(path, settings, overwrite, what, elsewhere="use another --work folder"):
    """Tell whether a stage has been run already, with these settings.

    A stage writes its settings file last, under the keys `settings` (what it was asked for, its input's
    fingerprint included) and `result` (what `--json` prints).

    Returns
    -------
    dict or None
        The result of the finished run, or None if there is work to do.

    Raises
    ------
    Failure
        If it was run with other settings, and `overwrite` is false.
    """
    if overwrite or not path.exists():
        return None
    before = read_json(path)
    if before.get("settings") == json.loads(json.dumps(settings)):
        return before["result"]
    changed = sorted(
        k for k in settings if before.get("settings", {}).get(k) != json.loads(json.dumps(settings[k]))
    )
    raise Failure(
        f"{path.parent} holds {what} made with other settings ({', '.join(changed)}): "
        f"add --overwrite, or {elsewhere}"
    )


@contextmanager
def whole(path):
    """Yield a path beside `path` to write to; it takes the place of `path` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def read_json(path):
    """Read a JSON object; a file that is none fails in one line."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Failure(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise Failure(f"{path} holds no JSON object")
    return value


def write_json(path, value, **options):
    """Write a JSON object, whole or not at all."""
    with whole(path) as beside:
        beside.write_text(json.dumps(value, ensure_ascii=False, **options) + "\n", encoding="utf-8")


def read_table(path):
    """Read a Parquet table as a dict of column name to numpy array (text columns as lists of str)."""
    import pyarrow
    import pyarrow.parquet

    try:
        # not memory-mapped, and in one thread: a table is small
        columns = pyarrow.parquet.read_table(path, use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise Failure(f"{path} cannot be read as a Parquet table: {' '.join(str(error).split())}") from error
    return {
        name: column.to_pylist() if pyarrow.types.is_string(column.type) else column.to_numpy()
        for name, column in zip(columns.column_names, columns.columns, strict=True)
    }


def write_table(path, columns):
    """Write a dict of column name to values as a Parquet table, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    # an empty column of names would otherwise be written without a type
    arrays = {
        k: pyarrow.array(v, pyarrow.string()) if isinstance(v, list) else pyarrow.array(v)
        for k, v in columns.items()
    }
    with whole(path) as beside:
        pyarrow.parquet.write_table(pyarrow.table(arrays), beside)


@contextmanager
def new_table(path, columns):
    """Yield a function that writes rows, a list of columns at a time; the table takes its place at the end.

    Parameters
    ----------
    path : Path
    columns : dict
        Name to `str`, `int` or `float`.
    """
    import pyarrow
    import pyarrow.parquet

    kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    with whole(path) as beside, pyarrow.parquet.ParquetWriter(beside, schema) as file:
        yield lambda rows: file.write_table(pyarrow.table(rows, schema=schema))


def read_array(path):
    """Memory-map a .npy file, read-only; a file that is none, or holds objects, fails in one line."""
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Failure(f"{path} cannot be read as a .npy array: {' '.join(str(error).split())}") from error


@contextmanager
def new_array(path, dtype, shape):
    """Yield a memory-mapped .npy array to fill; it takes its place when the block ends well."""
    shape = (shape,) if np.ndim(shape) == 0 else shape
    with whole(path) as beside:
        if 0 in shape:  # an empty file cannot be memory-mapped
            with open(beside, "wb") as file:
                np.save(file, np.empty(shape, dtype), allow_pickle=False)
            yield np.empty(shape, dtype)
            return
        array = np.lib.format.open_memmap(beside, "w+", dtype=dtype, shape=shape)
        yield array
        array.flush()


def sha256_of(path):
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(path):
    """Yield an empty folder to fill; it takes the place of `path` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside, before = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("part", "old"))
    beside.mkdir()
    try:
        yield beside
        if path.exists():
            os.replace(path, before)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if path.exists():
            shutil.rmtree(before, ignore_errors=True)
