"""Options and parameter types that several commands share."""

import re
from collections.abc import Callable
from pathlib import Path

import click

from ecgbyte_cli.cli.spelling import Model


class CommaList(click.ParamType):
    """Words parted by commas, as a tuple."""

    name = "a,b,…"

    def convert(self, value, param, ctx):
        return (
            tuple(word.strip() for word in value.split(",") if word.strip())
            if isinstance(value, str)
            else value
        )


class WeightedName(click.ParamType):
    """A name, or one of some, with a weight behind a colon; 1 where there is none: (str, float)."""

    name = "name[:weight]"

    def __init__(self, names=None):
        self.names = names

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        name, _, weight = value.rpartition(":")
        if not name or not re.fullmatch(r"\d*\.?\d+", weight):
            name, weight = value, 1
        if self.names and name not in self.names:
            self.fail(f"{name!r} is none of {', '.join(self.names)}", param, ctx)
        if float(weight) == 0:
            self.fail(f"{value!r} has no weight: leave it out", param, ctx)
        return name, float(weight)


# options that several commands have alike
model_option = click.option(
    "--model",
    type=Model(),
    default=None,
    show_default="the work folder's, or the one that comes with ecgbyte",
    help="Model folder.",
)

base_option = click.option(
    "--base", type=click.Path(path_type=Path), help="Where the model's base model is, if it has moved."
)


def recording_options(command: Callable) -> Callable:
    """Add the options of a command that reads recordings as `symbolize` did."""
    fs = click.option(
        "--input-fs",
        type=click.FloatRange(0, min_open=True),
        default=None,
        show_default="as symbolize was told",
        help="Sampling rate of a file that does not say it (CSV, TSV, NumPy), in Hz.",
    )
    lead_names = click.option(
        "--lead-names",
        default=None,
        show_default="as symbolize was told, or the 12 in their usual order",
        help="Names of the leads in a file that does not say them (NumPy, HDF5), commas between.",
    )
    units = click.option(
        "--units",
        type=click.Choice(["uV", "mV", "V"]),
        default=None,
        show_default="as symbolize was told, or mV",
        help="Unit of a file that does not say it (CSV, NumPy, HDF5).",
    )
    return fs(lead_names(units(command)))


max_new_option = click.option(
    "--max-new",
    type=click.IntRange(1),
    default=None,
    show_default="64, or 512 of a model that reasons first",
    help="Longest answer in tokens.",
)

types_option = click.option(
    "--types",
    type=CommaList(),
    default="",
    help="Take questions of these types alone, parted by commas.  [default: all]",
)

seeds_option = click.option(
    "--seeds",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="How many trainings, with as many seeds: the first in the usual place, the others in seeds/.",
)


def sampling_options(command):
    """Of commands that write ECGs: how their tokens are drawn."""
    top_p = click.option(
        "--top-p",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        show_default=True,
        help="Draw from the likeliest tokens that have so much of the probability together.",
    )
    temperature = click.option(
        "--temperature",
        type=click.FloatRange(0, min_open=True),
        default=1.0,
        show_default=True,
        help="Below 1 the likelier tokens become likelier still.",
    )
    return temperature(top_p(command))
