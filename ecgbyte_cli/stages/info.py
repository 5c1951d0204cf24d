"""ecgbyte info: show the contents of the work folder, and the next command."""

from pathlib import Path
from typing import Any

import click

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.output import print_result, table
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.signal.origin import described
from ecgbyte_cli.storage.files import read_json, read_text
from ecgbyte_cli.storage.workdir import WorkDir


@click.command(
    cls=Stage,
    short_help="Show the contents of the work folder, and the next command.",
    epilog="Example: ecgbyte info",
)
@click.option(
    "--model",
    type=Model(),
    help="Print the card of a model instead: a folder, OWNER/NAME of the Hugging Face Hub, or `ptbxl`, the "
    "included model.",
)
@click.pass_obj
def command(work: WorkDir, model: Path | str | None) -> dict:
    """Show the result of each finished stage and the next command, or the card of a model."""
    if model:
        about = card(model)
        print_result(about["card"])
        return about
    result = info(work)
    if result["stages"]:
        rows = [
            (
                name,
                ", ".join(
                    f"{key} {_short(value)}" for key, value in numbers.items() if not isinstance(value, dict)
                ),
            )
            for name, numbers in result["stages"].items()
        ]
        table(rows, ("stage", "result"), title=f"{work.root}")
    else:
        print_result(f"{work.root}: empty")
    print_result(f"next: {result['next']}")
    return result


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]


def card(model: Path | str) -> dict[str, str]:
    """Read the card of a model folder.

    Parameters
    ----------
    model : Path or str
        See `resolve_model_folder`.

    Returns
    -------
    dict
        `model` (path, or OWNER/NAME@COMMIT of the Hugging Face Hub), `base` (its base model), `method` and `card`
        (Markdown).

    Raises
    ------
    Failure
        If it is not a model folder, or its card cannot be read.
    """
    from ecgbyte_cli.model import folder_checks
    from ecgbyte_cli.model.model_names import argument_name, resolve_model_folder

    path = resolve_model_folder(model)
    about = folder_checks.read_about(path)
    text = read_text(path / "README.md").rstrip()
    name = str(path) if path == folder_checks.SHIPPED else argument_name(path)
    return {"model": name, "base": about["base"], "method": about["method"], "card": text}


def info(work: WorkDir) -> dict[str, Any]:
    """Read the settings files of a work folder.

    Parameters
    ----------
    work : WorkDir

    Returns
    -------
    dict
        `work` (path), `stages` (name to the result of each finished stage) and `next` (a command line).

    Raises
    ------
    Failure
        If a settings file cannot be read.
    """
    steps = [
        ("symbolize", work.symbol_settings, "ecgbyte symbolize data/"),
        ("learn", work.ecg_tokenizer, "ecgbyte learn --vocab 5000"),
        ("encode", work.token_settings, "ecgbyte encode"),
        ("finetune", work.model_settings, "ecgbyte finetune --qa data/qa.jsonl"),
        ("reinforce", work.reinforcing().model_settings, None),  # optional, so never suggested
        ("generate", work.metrics, "ecgbyte generate"),
    ]
    stages: dict[str, dict[str, Any]] = {}
    following = None
    for name, path, line in steps:
        if path.exists():
            result = read_json(path).get("result", {})
            if not isinstance(result, dict):
                raise Failure(f"{path} is damaged: its result is not a JSON object")
            stages[name] = described(work, result) if name == "learn" else result
        else:
            following = following or line
    return {"work": str(work.root), "stages": stages, "next": following or "ecgbyte chat RECORD.hea"}
