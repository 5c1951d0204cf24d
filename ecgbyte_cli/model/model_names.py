"""Find the folder of a model from the name that a command line or a program gives."""

import os
from pathlib import Path

from ecgbyte_cli.cli.output import note
from ecgbyte_cli.model import hub
from ecgbyte_cli.model.folder_checks import BUILT, SHIPPED, model_sha256
from ecgbyte_cli.storage.workdir import WorkDir


def resolve_model_folder(model: str | os.PathLike) -> Path:
    """Return the folder of a model.

    Parameters
    ----------
    model : str or Path
        A folder; `ptbxl`, the model that comes with the package, if no folder has that name; or, as a str, OWNER/NAME
        or OWNER/NAME@REVISION of the Hugging Face Hub, which is downloaded if no folder has that name.

    Raises
    ------
    Failure
        If a model of the Hub is not there, is no whole ecgbyte model, or cannot be reached.
    """
    if str(model) == SHIPPED.name and not Path(model).exists():
        return SHIPPED
    name = hub.parse_hub_name(model)
    return hub.download_model(name) if name else Path(model)


def resolve_base_model(model: str) -> str:
    """Return the model to train: a folder of ecgbyte, or the name of a base model as it is.

    A name of the Hugging Face Hub is an ecgbyte model, which is downloaded, if its repository has an ecgbyte.json. Any
    other is a base model; so is one that nobody can ask about, because it may be in the cache.
    """
    if model == SHIPPED.name:
        return str(resolve_model_folder(model))
    name = None if model in BUILT else hub.parse_hub_name(model)
    try:
        folder = hub.find_model(name) if name else None
    except hub.NotReachedError:
        return model
    return model if folder is None else str(folder)


def split_revision(model: str) -> tuple[str, str | None]:
    """Return the name of a base model without its @REVISION, and the revision."""
    name = hub.parse_hub_name(model)
    return (name.repository, name.revision) if name else (model, None)


def choose_model_folder(work: WorkDir, model: str | os.PathLike | None) -> Path:
    """Return the model folder to use: `model`, else the work folder's, else the one that comes with the package.

    The last is noted on standard error.
    """
    if model is not None or work.model.exists():
        return resolve_model_folder(model or work.model)
    note(
        f"using the included model {SHIPPED.name}: {work.root} has no model of your own, and --model names none"
    )
    return SHIPPED


def display_name(folder: Path) -> str:
    """Return the name to show for a model folder: OWNER/NAME@COMMIT for one from the Hugging Face Hub."""
    return f"{SHIPPED.name}, which comes with ecgbyte" if folder == SHIPPED else argument_name(folder)


def argument_name(folder: Path) -> str:
    """Return the name by which a command line reaches a model folder."""
    return SHIPPED.name if folder == SHIPPED else hub.name_in_cache(folder) or str(folder)


def model_identity(folder: Path) -> dict[str, str]:
    """Return how results record a model: `model`, the SHA-256 of ecgbyte.json, and `hub`, its OWNER/NAME@COMMIT."""
    name = hub.name_in_cache(folder)
    return {"model": model_sha256(folder)} | ({"hub": name} if name else {})
