"""Files on disk. This module alone knows the names of the files in a work folder.

Arrays are .npy, tables Parquet, settings JSON; nothing is pickled. A file is written beside its place and
renamed into it, so that a reader sees all of it or none.
"""

import copy
import errno
import glob
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli.failure import Failure, printable
from ecgbyte_cli.locks import clear_leftovers, held, lock, put_back

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MOST_JSON = 2**27  # bytes; the largest known file of a text tokenizer has 2^25
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
        """What `readers.read` was told about the recordings beside their path: `fs`, `lead_names`, `units`, …."""
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
            with whole(self.patient_salt) as beside:
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
            (settings, is_sealed(about)),
            *(
                (path, is_written(path, about["files"].get(path.name), self.verify == "all"))
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


def tokenizer_sha256(about):
    """The SHA-256 of all in an ecg_tokenizer.json that decides which ids a recording gets, in hex."""
    return _digest({key: about.get(key) for key in ("signal", "boundary", "merges")})


def described(*paths):
    """What a stage's settings say of its files, by name: `sha256`, `size` and `mtime_ns`."""
    return {
        path.name: {
            "sha256": sha256_of(path),
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
        }
        for path in paths
    }


def is_written(path, told, always=False):
    """Whether a file is the one that `described` saw: believed if size and time are, unless `always`; else hashed."""
    if told is None or path.stat().st_size != told["size"]:
        return False
    return (not always and path.stat().st_mtime_ns == told["mtime_ns"]) or sha256_of(path) == told["sha256"]


def sealed(value):
    """A JSON object with a checksum of itself, which `is_sealed` checks."""
    return value | {"sha256": _digest(value)}


def is_sealed(value):
    """Whether an object is as `sealed` made it."""
    return value.get("sha256") == _digest({key: v for key, v in value.items() if key != "sha256"})


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    asked, had = used(settings), used(before.get("settings", {}))
    if asked == had:
        return before.get("result")
    changed = sorted(key for key in asked | had if asked.get(key) != had.get(key))
    raise Failure(
        f"{path.parent} holds {what} made with other settings ({', '.join(changed)}): "
        f"add --overwrite, or {elsewhere}"
    )


def used(settings):
    """Settings as JSON has them. An option that is not used counts as one that there was not yet."""
    return {key: value for key, value in json.loads(json.dumps(settings)).items() if value is not None}


def refuse_others(folder, path, what):
    """Refuse a folder that somebody named, if it holds anything and not the settings file of a stage.

    Parameters
    ----------
    folder : Path
    path : Path
        The settings file that the stage writes there.
    what : str
        Comes out of the stage.

    Raises
    ------
    Failure
    """
    if folder.exists() and not path.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Failure(f"{folder} holds other things than {what}: name another folder")


@contextmanager
def whole(path):
    """Yield a path beside `path` to write to; it takes the place of `path` when the block ends well.

    Raises
    ------
    Failure
        If it cannot be written, such as on a full disk.
    """
    path = Path(path)
    # a random name: two machines, or two containers, may have the same process ids
    beside = path.with_name(f".{path.name[:50]}.{os.urandom(6).hex()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except Exception as error:
        if (failure := _unwritten(path, beside, error)) is None:
            raise
        raise failure from error
    finally:
        beside.unlink(missing_ok=True)


def _unwritten(path, beside, error):
    """The failure of a path that cannot be written; None of an error that is about something else."""
    if isinstance(error, Failure):
        return None
    if isinstance(error, OSError):
        if error.filename is not None:
            about = Path(os.fsdecode(error.filename))
            if about not in (path, path.parent, beside) and beside not in about.parents:
                return None
        number, reason = error.errno, error.strerror or str(error)
    elif told := re.search(r"\(os error (\d+)\)", str(error)):  # of a library written in Rust
        number = int(told[1])
        reason = os.strerror(number)
    else:
        return None
    more = "; make room, and run the same command again" if number in FULL else ""
    return Failure(f"{path} cannot be written: {reason}{more}")


def regular(path):
    """The path of a file; what is none is refused, as to open a FIFO would wait for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Failure(f"{path} is no regular file")
    return path


def read_text(path, most=MOST_JSON):
    """Read a text of `most` bytes; a file that holds none fails in one line."""
    try:
        if os.stat(regular(path)).st_size > most:
            raise Failure(f"{path} is too large: more than {most} bytes")
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Failure(f"{path} is no text in UTF-8: {error}") from error


def read_json(path, most=MOST_JSON):
    """Read a JSON object of `most` bytes; a file that is none fails in one line."""
    try:
        value = json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        raise Failure(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise Failure(f"{path} holds no JSON object")
    return value


def write_json(path, value, **options):
    """Write a JSON object, whole or not at all."""
    with whole(path) as beside:
        text = json.dumps(value, ensure_ascii=False, **options) + "\n"
        # what stands for bytes that are no text becomes the escape that JSON has for it
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_table(path):
    """Read a Parquet table as a dict of column name to numpy array (text columns as lists of str)."""
    import pyarrow
    import pyarrow.parquet

    try:
        # not memory-mapped, and in one thread: a table is small
        columns = pyarrow.parquet.read_table(regular(path), use_threads=False)
        return {
            name: column.to_pylist() if pyarrow.types.is_string(column.type) else column.to_numpy()
            for name, column in zip(columns.column_names, columns.columns, strict=True)
        }
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise Failure(f"{path} cannot be read as a Parquet table: {' '.join(str(error).split())}") from error


def write_table(path, columns):
    """Write a dict of column name to values as a Parquet table, whole or not at all."""
    import pyarrow
    import pyarrow.parquet

    # an empty column of names would otherwise be written without a type
    arrays = {
        k: pyarrow.array(_texts(v), pyarrow.string()) if isinstance(v, list) else pyarrow.array(v)
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
        yield lambda rows: file.write_table(
            pyarrow.table(
                [
                    _texts(row) if kind is str else row
                    for row, kind in zip(rows, columns.values(), strict=True)
                ],
                schema=schema,
            )
        )


def _texts(values):
    """Texts that a table can hold: what stands for bytes that are no text becomes an escape."""
    return [v.encode(errors="backslashreplace").decode() if v and not v.isascii() else v for v in values]


def read_array(path):
    """Memory-map a .npy file, read-only; a file that is none, or holds objects, fails in one line."""
    try:
        return np.load(regular(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Failure(f"{path} cannot be read as a .npy array: {' '.join(str(error).split())}") from error


@contextmanager
def new_array(path, dtype, size):
    """Yield a function that writes the next values of a 1-D .npy array; it takes its place at the end.

    Not memory-mapped: on a full disk that is a signal which ends the process without a word.

    Raises
    ------
    ValueError
        If more or fewer than `size` values were written.
    """
    with whole(path) as beside, open(beside, "wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": (size,),
        }
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        yield lambda values: file.write(np.ascontiguousarray(values, dtype).reshape(-1).data)
        file.flush()
        if file.tell() - start != size * np.dtype(dtype).itemsize:
            raise ValueError(f"{path}: {size} values were promised, others written")


def sha256_of(path):
    """The SHA-256 of a file's bytes, in hex."""
    with open(regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def new_folder(path):
    """Yield an empty folder to fill; it takes the place of `path` when the block ends well.

    What a killed run left of the same folder is removed: it holds no lock any more.

    Raises
    ------
    Failure
        If it cannot be written, such as on a full disk.
    """
    path = Path(path)
    name = os.urandom(6).hex()
    beside, before = (path.with_name(f".{path.name}.{name}.{word}") for word in ("part", "old"))
    try:
        beside.mkdir(parents=True)
        with held(beside):
            put_back(path)
            for other in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
                with held(other) as alone:
                    if alone:
                        shutil.rmtree(other, ignore_errors=True)
            yield beside
            if path.exists():
                os.replace(path, before)
            os.replace(beside, path)
    except Exception as error:
        if (failure := _unwritten(path, beside, error)) is None:
            raise
        raise failure from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        put_back(path)
        shutil.rmtree(before, ignore_errors=True)
