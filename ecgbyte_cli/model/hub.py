"""Download model folders from the Hugging Face Hub, into the cache of the Hub's library.

A repository may come from anywhere. Only the files that its ecgbyte.json names are downloaded: safetensors and JSON,
and the card. Sizes are checked before, checksums afterwards. Nothing of it runs.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ecgbyte_cli import __version__
from ecgbyte_cli.cli.output import note
from ecgbyte_cli.cli.spelling import HUB_MODEL
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.storage.files import FULL, MOST_JSON, sha256_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ABOUT, CARD = "ecgbyte.json", "README.md"
ALLOWED = re.compile(r"(base/)?\w[\w.-]*\.(json|safetensors)", re.ASCII)  # names of the files of a model
COMMIT = re.compile("[0-9a-f]{40}")
MOST_CARD = 2**20  # bytes
SECONDS = 10  # timeout of requests to the Hub


class HubName(NamedTuple):
    """A model of the Hub."""

    repository: str  # OWNER/NAME
    revision: str | None  # branch, tag or commit; None: the newest


class NotReachedError(Failure):
    """The Hub did not answer, and no earlier download can be used."""


def parse_hub_name(model: str | os.PathLike) -> HubName | None:
    """Return the parts of OWNER/NAME or OWNER/NAME@REVISION.

    None for a Path, which always means a folder, for a text that is no such name, and where a file has this name.
    """
    if not isinstance(model, str) or os.path.exists(model):
        return None
    found = HUB_MODEL.fullmatch(model)
    return HubName(*found.groups()) if found else None


def name_in_cache(folder: Path) -> str | None:
    """Return OWNER/NAME@COMMIT for a folder in the cache of the Hub's library, None for any other folder."""
    *_, repository, snapshots, commit = "", "", *folder.parts[-3:]
    if snapshots != "snapshots" or not COMMIT.fullmatch(commit) or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/", 1) + f"@{commit}"


def download_model(name: HubName) -> Path:
    """Return the folder of a model of the Hub, downloaded if it is not in the cache yet.

    Raises
    ------
    Failure
        If the Hub has no such model, it is no whole ecgbyte model, or neither the Hub nor a copy can be reached.
    """
    folder = find_model(name)
    if folder is None:
        raise Failure(
            f"{name.repository} on the Hugging Face Hub is no ecgbyte model: it has no {ABOUT} (a base model is for "
            "`ecgbyte finetune --model`)"
        )
    return folder


def find_model(name: HubName) -> Path | None:
    """Return the folder of a model as `download_model`, or None if the repository has no ecgbyte.json."""
    cached = _cached(name) if name.revision and COMMIT.fullmatch(name.revision) else None
    if cached is not None:  # a commit never changes
        return _verified(name, cached)
    with quiet_library():
        api = hub_api()
        try:
            with one_line(name, "search"):
                info = api.model_info(
                    name.repository, revision=name.revision, files_metadata=True, timeout=SECONDS
                )
        except NotReachedError:
            cached = _cached(name)
            if cached is None:
                raise
            note(
                f"the Hugging Face Hub cannot be reached: using {name.repository} at revision {cached.name}, which was "
                "downloaded before"
            )
            return _verified(name, cached)
        files = {file.rfilename: file for file in info.siblings or []}
        if ABOUT not in files:
            return None
        cached = _cached(name)
        if cached is None or cached.name != info.sha:
            cached = _download(api, name, info.sha, files)
    return _verified(name, cached)


def model_files(name: str, about: dict[str, Any]) -> list[str]:
    """List the files that a model is made of, without ecgbyte.json and the card.

    Parameters
    ----------
    name : str
        The model, for messages.
    about : dict
        From `folder_checks.read_about`.

    Raises
    ------
    Failure
        If ecgbyte.json has no checksums, lacks a file that every model has, or names one that is neither safetensors
        nor JSON.
    """
    if about.get("files") is None:
        raise Failure(f"{name} has no checksums in {ABOUT}, as older versions wrote it: train it again")
    wrong = [file for file in about["files"] if not ALLOWED.fullmatch(file)]
    if wrong:
        raise Failure(f"{name} names {wrong[0]}: only safetensors and JSON files are shared")
    adapted = ("adapter_config.json", "adapter_model.safetensors")
    own = ("base/config.json",) if about["method"] == "full" else adapted
    missing = {"ecg_tokenizer.json", "ecg_rows.safetensors", *own} - about["files"].keys()
    if missing:
        raise Failure(f"{name} is not whole: its {ABOUT} lacks {', '.join(sorted(missing))}")
    return sorted(about["files"])


def _download(api: "HfApi", name: HubName, commit: str, files: dict[str, Any]) -> Path:
    """Download a model at a commit, and remember the commit of the revision for when the Hub cannot be reached."""

    def fetch(file: str, revision: str | None = commit) -> Path:
        with one_line(name, "download"):
            return Path(api.hf_hub_download(name.repository, file, revision=revision))

    _check_sizes(name, [ABOUT], files)
    folder = fetch(ABOUT).parent
    wanted = model_files(name.repository, folder_checks.read_about(folder))
    wanted += [CARD] if CARD in files else []
    size = _check_sizes(name, wanted, files)
    _check_space(name, folder, size)
    note(
        f"downloading {name.repository} at revision {commit} from the Hugging Face Hub ({size / 1e6:.1f} MB)"
    )
    for file in wanted:
        fetch(file)
    if name.revision != commit:
        fetch(ABOUT, name.revision)
    return folder


def _check_sizes(name: HubName, wanted: list[str], files: dict[str, Any]) -> int:
    """Return the size of files in bytes, from the Hub's list; reject one that is missing or too large."""
    total = 0
    for file in wanted:
        size = files[file].size if file in files else None
        if size is None:
            raise Failure(
                f"{name.repository} is incomplete: it has no {file}; ask its owner to upload it again"
            )
        most = MOST_CARD if file == CARD else MOST_JSON
        if size > most and not file.endswith(".safetensors"):
            raise Failure(f"{name.repository}: {file} is too large: more than {most} bytes")
        total += size
    return total


def _check_space(name: HubName, folder: Path, size: int) -> None:
    """Reject a model that is larger than the free space of the cache."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise Failure(
            f"{name.repository} needs {size / 1e6:.0f} MB, but {folder} has {free / 1e6:.0f} MB left: free some space, "
            "or set HF_HOME to another folder"
        )


def _cached(name: HubName) -> Path | None:
    """Return the folder of an earlier whole download, None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    about = try_to_load_from_cache(name.repository, ABOUT, revision=name.revision)
    if not isinstance(about, str):
        return None
    folder = Path(about).parent
    wanted = model_files(name.repository, folder_checks.read_about(folder))
    return folder if all((folder / file).is_file() for file in wanted) else None


def _verified(name: HubName, folder: Path) -> Path:
    """Compare the files of a downloaded model with their checksums, and return the folder."""
    about = folder_checks.read_about(folder)
    for file, sha256 in about["files"].items():
        if sha256_of(folder / file) != sha256:
            raise Failure(
                f"{name.repository}: {file} differs from its checksum in {ABOUT}: delete {folder} to download it "
                "again, or ask its owner to upload it again"
            )
    folder_checks.check_files(folder, about)
    return folder


def hub_api() -> "HfApi":
    """Return the client of the Hub, with the login of its own library."""
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise Failure("the Hugging Face Hub needs more packages: pip install ecgbyte[llm]") from error
    return HfApi(library_name="ecgbyte", library_version=__version__)


@contextlib.contextmanager
def quiet_library() -> Iterator[None]:
    """Keep the advice of the Hub's library off standard error, and its progress bars unless that is a terminal."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
        logging,
    )

    level, bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if bars and not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            enable_progress_bars()


@contextlib.contextmanager
def one_line(name: HubName, action: str) -> Iterator[None]:
    """Raise the errors of the Hub's library again as a Failure of one line; `action` is search, download or upload."""
    from huggingface_hub import errors

    repository = name.repository
    model = f"{repository}: no folder has this name, and" if action == "search" else f"{repository}:"
    try:
        yield
    except Failure:
        raise
    except errors.GatedRepoError as error:
        raise Failure(
            f"{repository} is a gated repository: request access on its Hub page, and log in "
            "with `hf auth login`"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise Failure(f"{repository} has no revision {name.revision} on the Hugging Face Hub") from error
    except errors.RepositoryNotFoundError as error:
        raise Failure(
            f"{model} the Hugging Face Hub has no such model, or it is private: log in with `hf auth login`"
        ) from error
    except errors.HFValidationError as error:
        raise Failure(f"{model} no model of the Hugging Face Hub can have this name") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise Failure(
                f"{repository}: the Hugging Face Hub refuses the {action}: log in with `hf auth login` to an account "
                "that may do it"
            ) from error
        kind = NotReachedError if status in (408, 429) or status >= 500 else Failure
        raise kind(f"{repository}: the {action} failed at the Hugging Face Hub: {_reason(error)}") from error
    # the last three: an answer of another kind, such as a proxy's page
    except (errors.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise Failure(
                f"{repository} cannot be stored: {error.strerror}; free some space, and try again"
            ) from error
        raise NotReachedError(f"{model} the Hugging Face Hub cannot be reached: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
