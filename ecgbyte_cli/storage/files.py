"""Read and write files: arrays as .npy, tables as Parquet, settings as JSON.

Nothing is pickled. A file is written under a temporary name and renamed, so that readers see the whole file or none.
"""

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.locks import hold_folder, restore_replaced

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MOST_JSON = 2**27  # bytes; the largest known text tokenizer has 2^25

PathLike = str | os.PathLike[str]


@contextmanager
def atomic_write(path: PathLike) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` if the block succeeds.

    Raises
    ------
    Failure
        If the path cannot be written, such as on a full disk.
    """
    path = Path(path)
    # a random name: process ids can coincide between machines or containers
    beside = path.with_name(f".{path.name[:50]}.{os.urandom(6).hex()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with open(beside, "rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except Exception as error:
        if (failure := _write_failure(path, beside, error)) is None:
            raise
        raise failure from error
    finally:
        beside.unlink(missing_ok=True)


def _write_failure(path: Path, beside: Path, error: Exception) -> Failure | None:
    """Return the Failure for a path that cannot be written, or None if the error has another cause."""
    if isinstance(error, Failure):
        return None
    if isinstance(error, OSError):
        if error.filename is not None:
            culprit = Path(os.fsdecode(error.filename))
            if culprit not in (path, path.parent, beside) and beside not in culprit.parents:
                return None
        number, reason = error.errno, error.strerror or str(error)
    elif match := re.search(r"\(os error (\d+)\)", str(error)):  # raised by a library written in Rust
        number = int(match[1])
        reason = os.strerror(number)
    else:
        return None
    remedy = "; free some space, and run the same command again" if number in FULL else ""
    return Failure(f"{path} cannot be written: {reason}{remedy}")


def check_regular_file(path: PathLike) -> PathLike:
    """Return the path of a regular file. Reject anything else: opening a FIFO would block."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Failure(f"{path} is not a regular file")
    return path


def read_text(path: PathLike, most: int = MOST_JSON) -> str:
    """Read a UTF-8 text of at most `most` bytes, or raise a Failure."""
    try:
        if os.stat(check_regular_file(path)).st_size > most:
            raise Failure(f"{path} is too large: more than {most} bytes")
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise Failure(f"{path} is not UTF-8 text: {error}") from error


def read_json(path: PathLike, most: int = MOST_JSON) -> dict[str, Any]:
    """Read a JSON object of at most `most` bytes, or raise a Failure."""
    try:
        value = json.loads(read_text(path, most))
    except (ValueError, RecursionError) as error:
        raise Failure(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise Failure(f"{path} does not contain a JSON object")
    return value


def write_json(path: PathLike, value: Mapping[str, Any], **options: Any) -> None:
    """Write a JSON object atomically; `options` go to `json.dumps`."""
    with atomic_write(path) as beside:
        text = json.dumps(value, ensure_ascii=False, **options) + "\n"
        # surrogates, which stand for invalid bytes, become JSON escapes
        beside.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_table(path: PathLike) -> dict[str, Any]:
    """Read a Parquet table: column name to numpy array, or to list of str for a text column."""
    import pyarrow
    import pyarrow.parquet

    try:
        # read without memory-mapping and in one thread: tables are small
        columns = pyarrow.parquet.read_table(check_regular_file(path), use_threads=False)
        return {
            name: column.to_pylist() if pyarrow.types.is_string(column.type) else column.to_numpy()
            for name, column in zip(columns.column_names, columns.columns, strict=True)
        }
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise Failure(f"{path} cannot be read as a Parquet table: {' '.join(str(error).split())}") from error


def write_table(path: PathLike, columns: Mapping[str, Any]) -> None:
    """Write a Parquet table atomically: column name to array, or to list of str."""
    import pyarrow
    import pyarrow.parquet

    # with an explicit type, which an empty column lacks
    arrays = {
        k: pyarrow.array(_table_texts(v), pyarrow.string()) if isinstance(v, list) else pyarrow.array(v)
        for k, v in columns.items()
    }
    with atomic_write(path) as beside:
        pyarrow.parquet.write_table(pyarrow.table(arrays), beside)


@contextmanager
def table_writer(
    path: PathLike, columns: Mapping[str, type]
) -> Iterator[Callable[[Sequence[Sequence[Any]]], None]]:
    """Yield a function that appends rows to a Parquet table, as a list of columns.

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
    with atomic_write(path) as beside, pyarrow.parquet.ParquetWriter(beside, schema) as file:
        yield lambda rows: file.write_table(
            pyarrow.table(
                [
                    _table_texts(row) if kind is str else row
                    for row, kind in zip(rows, columns.values(), strict=True)
                ],
                schema=schema,
            )
        )


def _table_texts(values: Sequence[str]) -> list[str]:
    """Replace surrogates (they stand for invalid bytes), which a table cannot hold."""
    return [v.encode(errors="backslashreplace").decode() if v and not v.isascii() else v for v in values]


def read_array(path: PathLike) -> np.ndarray:
    """Memory-map a .npy file, read-only, or raise a Failure. Reject arrays of objects."""
    try:
        return np.load(check_regular_file(path), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise Failure(f"{path} cannot be read as a .npy array: {' '.join(str(error).split())}") from error


@contextmanager
def array_writer(
    path: PathLike, dtype: DTypeLike, shape: int | tuple[int, ...]
) -> Iterator[Callable[[ArrayLike], int]]:
    """Yield a function that appends values to a .npy array of a shape, row by row.

    The file is not memory-mapped: on a full disk, a signal would then kill the process without a message.

    Raises
    ------
    ValueError
        If more or fewer values than the shape has were written.
    """
    shape = (shape,) if isinstance(shape, int) else shape
    size = math.prod(shape)
    with atomic_write(path) as beside, open(beside, "wb") as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        yield lambda values: file.write(np.ascontiguousarray(values, dtype).reshape(-1).data)
        file.flush()
        if file.tell() - start != size * np.dtype(dtype).itemsize:
            raise ValueError(f"{path}: expected {size} values, wrote a different number")


def sha256_of(path: PathLike) -> str:
    """Return the SHA-256 of a file, in hex."""
    with open(check_regular_file(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_folder(path: PathLike) -> Iterator[Path]:
    """Yield an empty temporary folder to fill, and rename it to `path` if the block succeeds.

    Temporary folders of killed runs, which no process locks any more, are removed.

    Raises
    ------
    Failure
        If the path cannot be written, such as on a full disk.
    """
    path = Path(path)
    name = os.urandom(6).hex()
    beside, before = (path.with_name(f".{path.name}.{name}.{word}") for word in ("part", "old"))
    try:
        beside.mkdir(parents=True)
        with hold_folder(beside):
            restore_replaced(path)
            for other in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
                with hold_folder(other) as alone:
                    if alone:
                        shutil.rmtree(other, ignore_errors=True)
            yield beside
            if path.exists():
                os.replace(path, before)
            os.replace(beside, path)
    except Exception as error:
        if (failure := _write_failure(path, beside, error)) is None:
            raise
        raise failure from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        restore_replaced(path)
        shutil.rmtree(before, ignore_errors=True)
