"""ecgbyte push: upload a model folder to the Hugging Face Hub."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import print_result
from ecgbyte_cli.cli.spelling import HUB_MODEL
from ecgbyte_cli.model.hub import HubName
from ecgbyte_cli.model.hub_upload import upload_model


class Repository(click.ParamType):
    """The type of an argument that names a Hugging Face Hub repository: HubName, without a revision."""

    name = "owner/name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> HubName:
        found = HUB_MODEL.fullmatch(value)
        if not found or found[2]:
            self.fail(f"{value!r} is not OWNER/NAME", param, ctx)
        return HubName(found[1], None)


@dataclass(frozen=True)
class PushOptions:
    """Options of `ecgbyte push`."""

    public: bool = False  # whether a new repository is public
    base: str | None = None  # the base model on the Hub, if the model was trained on a folder


@click.command(
    cls=Stage,
    short_help="Upload a model folder to the Hugging Face Hub.",
    epilog="Example: ecgbyte push ecgbyte-work/model OWNER/NAME",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("repository", metavar="OWNER/NAME", type=Repository())
@click.option("--public", is_flag=True, help="Make a new repository public.  [default: private]")
@click.option(
    "--base", metavar="OWNER/NAME", help="Base model on the Hub, if the model was trained on a folder."
)
def command(model: Path, repository: HubName, **options: Any) -> dict:
    """Upload a model folder and its card to the repository OWNER/NAME of the Hugging Face Hub.

    Log in with `hf auth login` first. A new repository is private unless --public is used; an existing one keeps its
    visibility and gets a new commit. Paths of this machine are left out of ecgbyte.json. Others use the model with
    --model OWNER/NAME, where a command takes --model.
    """
    result = push(model, repository, PushOptions(**options))
    print_result(
        f"{result['address']}: {'private' if result['private'] else 'public'}, {result['files']} files, "
        f"{result['megabytes']:.1f} MB, revision {result['revision']}"
    )
    return result


def push(model: Path, repository: HubName, options: PushOptions) -> dict[str, Any]:
    """Upload a model folder.

    Returns
    -------
    dict
        address, revision (the commit), private, files (count), megabytes, seconds.

    Raises
    ------
    Failure
        If the model folder is incomplete, its base model is a folder, or the Hub refuses.
    """
    start = time.perf_counter()
    done = upload_model(model, repository, options.public, options.base)
    return {
        "address": done.address,
        "revision": done.revision,
        "private": done.private,
        "files": done.files,
        "megabytes": done.size / 1e6,
        "seconds": time.perf_counter() - start,
    }
