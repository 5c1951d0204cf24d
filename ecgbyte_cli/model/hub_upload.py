"""Upload a model folder to the Hugging Face Hub."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from ecgbyte_cli import __version__
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks, hub
from ecgbyte_cli.storage.files import read_json, read_text


class Upload(NamedTuple):
    """A model on the Hub."""

    address: str
    revision: str
    private: bool
    files: int
    size: int  # bytes


def upload_model(folder: Path, name: hub.HubName, public: bool = False, base: str | None = None) -> Upload:
    """Upload a model folder with its card, as one commit.

    The uploaded ecgbyte.json has no paths of this machine: each becomes its last part.

    Parameters
    ----------
    folder : Path
    name : HubName
        The repository, which is created if there is none.
    public : bool
        Whether a new repository is public.
    base : str or None
        The base model on the Hub, if the model was trained on a folder.

    Raises
    ------
    Failure
        If the model folder is incomplete, its base model is a folder, or the Hub refuses.
    """
    about = folder_checks.read_about(folder)
    files = {file: folder / file for file in hub.model_files(str(folder), about)}
    folder_checks.check_files(folder, about)
    contents: dict[str, Path | bytes] = {**files}
    written = read_json(folder / hub.ABOUT)
    shared = shared_about(folder, written, base)
    # unchanged bytes keep the SHA-256, by which the file of a site knows the model
    contents[hub.ABOUT] = (
        folder / hub.ABOUT
        if shared == written
        else (json.dumps(shared, ensure_ascii=False, indent=1) + "\n").encode()
    )
    contents[hub.CARD] = card(read_text(folder / hub.CARD, hub.MOST_CARD), name, shared).encode()
    size = sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in contents.values())
    api = hub.hub_api()
    from huggingface_hub import CommitOperationAdd

    additions = [CommitOperationAdd(file, one) for file, one in contents.items()]
    with hub.quiet_library(), hub.one_line(name, "upload"):
        api.create_repo(name.repository, private=not public, exist_ok=True)
        commit = api.create_commit(
            name.repository, additions, commit_message=f"A model folder of ecgbyte {__version__}"
        )
        private = bool(api.model_info(name.repository, timeout=hub.SECONDS).private)
    return Upload(f"{api.endpoint}/{name.repository}", commit.oid, private, len(contents), size)


def shared_about(folder: Path, about: dict[str, Any], base: str | None) -> dict[str, Any]:
    """Return the contents of ecgbyte.json for others.

    Raises
    ------
    Failure
        If others cannot load the base model.
    """
    if about["method"] == "full":
        if base is not None:
            raise Failure(f"{folder} contains its base model: remove --base")
    else:
        about = {**about, "base": base or about["base"]}
        if folder_checks.is_local_path(about["base"]):
            raise Failure(
                f"{folder} was trained on the base model in {about['base']}, which others do not have: name the same "
                "model on the Hugging Face Hub with --base OWNER/NAME"
            )
    return without_paths(about)


def without_paths(value: Any) -> Any:
    """Return a JSON value with each absolute path reduced to its last part, or its name on the Hub."""
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    if isinstance(value, str) and Path(value).is_absolute():
        return hub.name_in_cache(Path(value)) or Path(value).name
    return value


def card(text: str, name: hub.HubName, about: dict[str, Any]) -> str:
    """Return the card for the Hub: with its metadata, and the repository as the name of the model."""
    text = text.replace("THIS_FOLDER", name.repository)
    if text.startswith("---"):
        return text
    metadata = ["---", "library_name: ecgbyte", "tags:", "- ecg", "- electrocardiogram"]
    if about["method"] != "full":
        metadata.append(f"base_model: {json.dumps(about['base'])}")
    return "\n".join([*metadata, "---", "", text])
