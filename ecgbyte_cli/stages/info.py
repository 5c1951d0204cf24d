"""ecgbyte info: what the work folder holds, and what to run next."""

import click

from ecgbyte_cli.console import Stage, say, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.workdir import read_json


@click.command(
    cls=Stage,
    short_help="Tell what the work folder holds, and what to run next.",
    epilog="Example: ecgbyte info",
)
@click.pass_obj
def command(work):
    """Tell what the work folder holds, stage by stage, and which command comes next."""
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
        say(f"{work.root}: nothing yet")
    say(f"next: {result['next']}")
    return result


def _short(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:40]


def info(work):
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
        ("generate", work.metrics, "ecgbyte generate"),
    ]
    stages, following = {}, None
    for name, path, line in steps:
        if path.exists():
            result = read_json(path).get("result", {})
            if not isinstance(result, dict):
                raise Failure(f"{path} is damaged: its result is no JSON object")
            stages[name] = result
        else:
            following = following or line
    return {"work": str(work.root), "stages": stages, "next": following or "ecgbyte chat RECORD.hea"}
