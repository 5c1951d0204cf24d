"""ecgbyte plot: pictures of an ECG and of its tokens."""

from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import preprocess, records
from ecgbyte_cli.console import Failure, Stage, say


@click.command(
    cls=Stage,
    short_help="Draw an ECG, its tokens, or what a model looked at.",
    epilog="Example: ecgbyte plot tokens data/synth00001 --lead II --out tokens.png",
)
@click.argument("kind", type=click.Choice(["ecg", "tokens"]))
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--lead", help="Lead to draw the tokens of.  [default: II if the tokenizer has it]")
@click.option("--start", type=float, default=0.0, show_default=True, help="First second to draw.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Take this model folder's tokenizer, not the work folder's.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Picture file (.png, .svg, .pdf).  [default: in the work folder]",
)
@click.pass_obj
def command(work, **options):
    """Draw a picture of KIND of a RECORD, on ECG paper (25 mm/s, 10 mm/mV).

    ecg: the sheet of 3 x 4 leads with a rhythm strip (other leads one under another). tokens: one lead, each
    token a coloured stretch with its id.
    """
    result = plot(work, **options)
    say(result["picture"])
    return result


def plot(work, kind, record, *, lead=None, start=0.0, model=None, out=None):
    """Draw a picture and write it.

    Parameters
    ----------
    work : WorkDir
    kind : {"ecg", "tokens"}
    record : Path
        A recording, with or without its extension.
    lead : str or None
        For `tokens`; None is II, or the tokenizer's first lead.
    start : float
        First second to draw.
    model : Path or None
        Model folder whose tokenizer is taken; None is the work folder's tokenizer.
    out : Path or None
        None is pictures/RECORD-KIND.png in the work folder.

    Returns
    -------
    dict
        picture (path), record, kind; for `tokens` also lead and tokens (how many).

    Raises
    ------
    Failure
        If the recording or the tokenizer cannot be read, or has no such lead or stretch.
    """
    from ecgbyte_cli import pictures

    recording = read(record)
    out = out or work.pictures / f"{recording.name}-{kind}.png"
    result = {"kind": kind, "record": recording.name, "picture": str(out)}
    if not 0 <= start < recording.signal.shape[1] / recording.fs:
        raise Failure(
            f"{record} is {recording.signal.shape[1] / recording.fs:g} s long: --start {start:g} is outside"
        )
    if kind == "ecg":
        names = [records.lead_name(name) or name for name in recording.leads]
        figure = pictures.sheet(recording.signal, recording.fs, names, recording.name, start)
    else:
        figure, more = token_picture(work, recording, lead, start, model)
        result.update(more)
    pictures.save(figure, out)
    return result


def read(record):
    """Read a recording; what is wrong with it is said with its name."""
    try:
        return records.read(record)
    except records.Unusable as error:
        raise Failure(f"{record}: {error.message}") from error


def token_picture(work, recording, lead, start, model):
    """The picture of a lead's tokens in the segment that `start` lies in."""
    from ecgbyte_cli import pictures
    from ecgbyte_cli.tokenizer import ECGTokenizer

    path = Path(model) / "ecg_tokenizer.json" if model else work.ecg_tokenizer
    tokenizer = ECGTokenizer.from_file(path if model else work.need(path, "learn"))
    leads, fs = tokenizer.signal["leads"], tokenizer.signal["fs"]
    lead = lead or ("II" if "II" in leads else leads[0])
    if lead not in leads:
        raise Failure(f"{path} knows no lead {lead}: it has {', '.join(leads)}")
    try:
        segments = preprocess.segments(recording, tokenizer.signal)
    except records.Unusable as error:
        raise Failure(f"{recording.path}: {error.message}") from error
    begin, signal = [s for s in segments if s[0] <= start][-1]
    letters = tokenizer.letters(signal)
    ids = tokenizer.encode(letters)
    row = leads.index(lead)
    token, _, starts, stops = (column for column in tokenizer.spans(ids)[tokenizer.spans(ids)[:, 1] == row].T)
    decoded = tokenizer.to_mv(letters, float(signal.min()), float(signal.max()))
    title = f"{recording.name}, {begin:g} to {begin + tokenizer.signal['segment_seconds']:g} s"
    figure = pictures.tokens(
        signal[row], decoded[row], fs, lead, np.asarray(ids)[token], starts, stops, title
    )
    return figure, {"lead": lead, "tokens": len(token)}
