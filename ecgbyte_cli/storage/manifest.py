"""Record the files and settings of a finished stage, and check them later."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import read_json, sha256_of


def tokenizer_sha256(about: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hex, of everything in an ecg_tokenizer.json that determines the ids of a recording."""
    return _digest({key: about.get(key) for key in ("signal", "boundary", "merges")})


def describe_files(*paths: Path) -> dict[str, dict[str, Any]]:
    """Return file name to `sha256`, `size` and `mtime_ns`."""
    return {
        path.name: {
            "sha256": sha256_of(path),
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
        }
        for path in paths
    }


def matches_description(path: Path, description: Mapping[str, Any] | None, always: bool = False) -> bool:
    """Return whether a file is unchanged since `describe_files`.

    Equal size and time suffice unless `always`; otherwise the file is hashed.
    """
    if description is None or path.stat().st_size != description["size"]:
        return False
    same_time = path.stat().st_mtime_ns == description["mtime_ns"]
    return (not always and same_time) or sha256_of(path) == description["sha256"]


def add_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON object with its own checksum, for `has_valid_checksum`."""
    return value | {"sha256": _digest(value)}


def has_valid_checksum(value: Mapping[str, Any]) -> bool:
    """Return whether an object is unchanged since `add_checksum`."""
    return value.get("sha256") == _digest({key: v for key, v in value.items() if key != "sha256"})


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def completed_result(
    path: Path,
    settings: Mapping[str, Any],
    overwrite: bool,
    holds: str,
    elsewhere: str = "use another --work folder",
    check: AbstractContextManager | None = None,
) -> dict[str, Any] | None:
    """Return the result of a finished run with the same settings, and note that there is nothing to do.

    A stage writes its settings file last, with the keys `settings` (its options and the fingerprint of its input)
    and `result` (what `--json` prints).

    Parameters
    ----------
    path : Path
        The settings file of the stage.
    settings : dict
    overwrite : bool
        Whether to ignore earlier runs.
    holds : str
        The stage's output, such as "token ids".
    elsewhere : str
        Advice on how to keep results with other settings.
    check : context manager, optional
        Checks the files of the finished run, before the message.

    Returns
    -------
    dict or None
        None if there is work to do.

    Raises
    ------
    Failure
        If an earlier run had other settings, and `overwrite` is false.
    """
    if overwrite or not path.exists():
        return None
    earlier = read_json(path)
    wanted, used = used_settings(settings), used_settings(earlier.get("settings", {}))
    if wanted == used:
        if result := earlier.get("result"):
            with check or nullcontext():
                note(f"{path.parent} already holds {holds} made with these settings: nothing to do")
        return result
    changed = sorted(key for key in wanted | used if wanted.get(key) != used.get(key))
    raise Failure(
        f"{path.parent} holds {holds} made with other settings ({', '.join(changed)}): "
        f"add --overwrite, or {elsewhere}"
    )


def used_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON stores them, without unused options, which older versions may lack."""
    return {key: value for key, value in json.loads(json.dumps(settings)).items() if value is not None}


def refuse_foreign_folder(folder: Path, path: Path, content: str) -> None:
    """Reject an output folder that holds files but not the settings file of the stage.

    Parameters
    ----------
    folder : Path
    path : Path
        The settings file that the stage writes there.
    content : str
        The stage's output.

    Raises
    ------
    Failure
    """
    if folder.exists() and not path.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Failure(f"{folder} contains files other than {content}: name another folder")
