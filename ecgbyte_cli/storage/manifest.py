"""Record what a stage wrote and with which settings, and check it later."""

import hashlib
import json

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.storage.files import read_json, sha256_of


def tokenizer_sha256(about):
    """The SHA-256 of all in an ecg_tokenizer.json that decides which ids a recording gets, in hex."""
    return _digest({key: about.get(key) for key in ("signal", "boundary", "merges")})


def describe_files(*paths):
    """What a stage's settings say of its files, by name: `sha256`, `size` and `mtime_ns`."""
    return {
        path.name: {
            "sha256": sha256_of(path),
            "size": path.stat().st_size,
            "mtime_ns": path.stat().st_mtime_ns,
        }
        for path in paths
    }


def matches_description(path, told, always=False):
    """Whether a file is the one that `described` saw: believed if size and time are, unless `always`; else hashed."""
    if told is None or path.stat().st_size != told["size"]:
        return False
    return (not always and path.stat().st_mtime_ns == told["mtime_ns"]) or sha256_of(path) == told["sha256"]


def add_checksum(value):
    """A JSON object with a checksum of itself, which `is_sealed` checks."""
    return value | {"sha256": _digest(value)}


def has_valid_checksum(value):
    """Whether an object is as `sealed` made it."""
    return value.get("sha256") == _digest({key: v for key, v in value.items() if key != "sha256"})


def _digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def completed_result(path, settings, overwrite, what, elsewhere="use another --work folder"):
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
    asked, had = used_settings(settings), used_settings(before.get("settings", {}))
    if asked == had:
        return before.get("result")
    changed = sorted(key for key in asked | had if asked.get(key) != had.get(key))
    raise Failure(
        f"{path.parent} holds {what} made with other settings ({', '.join(changed)}): "
        f"add --overwrite, or {elsewhere}"
    )


def used_settings(settings):
    """Settings as JSON has them. An option that is not used counts as one that there was not yet."""
    return {key: value for key, value in json.loads(json.dumps(settings)).items() if value is not None}


def refuse_foreign_folder(folder, path, what):
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
