"""Options and parameter types that several commands share."""

import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.runtime import devices
from ecgbyte_cli.storage.row_table import FORMATS

F = TypeVar("F", bound=Callable[..., Any])


class Recordings(click.ParamType):
    """The type of an argument that names recordings: str. The shell completes files, and the next command."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        commands: list[CompletionItem] = []
        if incomplete and ctx.params.get(param.name or ""):  # after the first word, a command may follow
            names = ctx.find_root().command.names  # type: ignore[attr-defined]
            commands = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return commands or [CompletionItem(incomplete, type="file")]


class CommaList(click.ParamType):
    """The type of an option that takes comma-separated words: tuple of str."""

    name = "a,b,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if not isinstance(value, str):
            return value
        return tuple(word.strip() for word in value.split(",") if word.strip())


class WeightedName(click.ParamType):
    """The type of an option that takes a name and an optional weight, 1 by default: (str, float)."""

    name = "name[:weight]"

    def __init__(self, names: Collection[str] | None = None):
        self.names = names

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        if self.names is None:  # a file
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(name) for name in self.names if name.startswith(incomplete)]

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        if not isinstance(value, str):
            return value
        name, _, weight = value.rpartition(":")
        if not name or not re.fullmatch(r"\d*\.?\d+", weight):
            name, weight = value, "1"
        if self.names and name not in self.names:
            self.fail(f"{name!r} is none of {', '.join(self.names)}", param, ctx)
        if float(weight) == 0:
            self.fail(f"{value!r} takes no weight: remove it", param, ctx)
        return name, float(weight)


class TableFile(click.Path):
    """The type of an option that names a table to write: Path, with the ending of a known format."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if os.path.splitext(value)[1].lower() not in FORMATS:
            self.fail(f"{value}: the name must end in {', '.join(FORMATS)}", param, ctx)
        return super().convert(value, param, ctx)


class Device(click.ParamType):
    """The type of an option that names a device: str. Its existence is checked when a model is loaded."""

    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not devices.NAMES.fullmatch(value):
            self.fail(f"{value!r} must be {devices.EXPECTED}", param, ctx)
        return value


MOST_SHOWN = 20  # most recordings in a table on the terminal

table_option = click.option(
    "--out",
    type=TableFile(),
    show_default=f"a table on the terminal, of up to {MOST_SHOWN} recordings",
    help="File to write: .csv, .parquet or .jsonl.",
)

jobs_option = click.option(
    "--jobs", type=click.IntRange(1), default=None, show_default="all processors", help="Number of processes."
)

replace_option = click.option(
    "--overwrite", is_flag=True, show_default=True, help="Replace an existing file."
)


def check_few(found: Sequence[str]) -> None:
    """Reject more recordings than a table on the terminal shows."""
    if len(found) > MOST_SHOWN:
        raise click.UsageError(f"{len(found)} recordings are too many for the terminal: use --out FILE")


model_option = click.option(
    "--model",
    type=Model(),
    default=None,
    show_default="the work folder's model, or else the included one",
    help="Model folder, or OWNER/NAME of the Hugging Face Hub.",
)

work_model_option = click.option(
    "--model",
    type=Model(),
    help="Model folder, or OWNER/NAME of the Hugging Face Hub.  [default: the work folder's]",
)

base_option = click.option(
    "--base", type=click.Path(path_type=Path), help="Path of the base model, if it has moved."
)

device_option = click.option(
    "--device",
    type=Device(),
    help="Where to compute: cpu, cuda, cuda:N (GPU number N), mps (Apple) or auto.  [default: auto, a GPU if "
    "available]",
)


def loading_options(command: F) -> F:
    """Add the options of a command that loads a model: --base and --device."""
    return base_option(device_option(command))


site_option = click.option(
    "--site",
    type=click.Path(path_type=Path),
    metavar="SITE.json",
    help="Use the probabilities and thresholds of your own site, from `ecgbyte findings --calibrate`.",
)


def recording_options(command: Callable) -> Callable:
    """Add the options of a command that reads recordings like `symbolize`."""
    fs = click.option(
        "--input-fs",
        type=click.FloatRange(0, min_open=True),
        default=None,
        show_default="as in `symbolize`",
        help="Sampling rate of a file that does not state it (CSV, TSV, NumPy), in Hz.",
    )
    lead_names = click.option(
        "--lead-names",
        default=None,
        show_default="as in `symbolize`, or the 12 standard leads",
        help="Lead names of a file that does not state them (NumPy, HDF5), separated by commas.",
    )
    units = click.option(
        "--units",
        type=click.Choice(["uV", "mV", "V"]),
        default=None,
        show_default="as in `symbolize`, or mV",
        help="Unit of a file that does not state it (CSV, NumPy, HDF5).",
    )
    return fs(lead_names(units(command)))


def bare_file_options(command: F) -> F:
    """Add the options for files that do not state sampling rate, lead names or units."""
    fs = click.option(
        "--input-fs",
        type=click.FloatRange(0, min_open=True),
        default=None,
        show_default="from the files",
        help="Sampling rate of files that do not state it (CSV, TSV, NumPy), in Hz.",
    )
    lead_names = click.option(
        "--lead-names",
        default=None,
        show_default="the 12 standard leads in their usual order",
        help="Lead names of files that do not state them (NumPy, HDF5), separated by commas.",
    )
    units = click.option(
        "--units",
        type=click.Choice(["uV", "mV", "V"]),
        default=None,
        show_default="mV",
        help="Unit of files that do not state it (CSV, TSV, NumPy, HDF5).",
    )
    return fs(lead_names(units(command)))


def bare_file_settings(input_fs: float | None, lead_names: str | None, units: str | None) -> dict[str, Any]:
    """Return the values of `bare_file_options` as arguments of `readers.read_recording`."""
    names = [name.strip() for name in lead_names.split(",")] if lead_names else None
    return {"fs": input_fs, "lead_names": names, "units": units}


max_new_option = click.option(
    "--max-new",
    type=click.IntRange(1),
    default=None,
    show_default="64; 512 for a model that reasons first",
    help="Longest answer, in tokens.",
)

types_option = click.option(
    "--types",
    type=CommaList(),
    default="",
    help="Use only questions of these types, separated by commas.  [default: all]",
)

seeds_option = click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="Number of training runs, each with its own seed. The first is in model/, the others are in seeds/.",
)


accumulate_option = click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of batches per update, on each process.",
)

checkpointing_option = click.option(
    "--checkpointing",
    type=click.Choice(["auto", "on", "off"]),
    default="auto",
    show_default=True,
    help="Recompute each layer in the backward pass: less memory, a third more time. auto: only if a batch of the "
    "longest samples may take more than half of the free memory.",
)

dask_option = click.option(
    "--dask",
    metavar="ADDRESS",
    help="Use a Dask cluster: its scheduler's address (tcp://…) or file, or local:N for N processes here.",
)


def sampling_options(command: F) -> F:
    """Add the options that control how a command samples ECG tokens."""
    top_p = click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        show_default=True,
        help="Sample from the most probable tokens whose probabilities together reach this value.",
    )
    temperature = click.option(
        "--temperature",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        show_default=True,
        help="Sampling temperature: below 1, probable tokens become more probable.",
    )
    return temperature(top_p(command))
