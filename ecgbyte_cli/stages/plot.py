"""ecgbyte plot: plot an ECG, its tokens, and the attribution of an answer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import loading_options, recording_options
from ecgbyte_cli.cli.output import print_result
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.session import Session, reading_options
from ecgbyte_cli.model.model_names import resolve_model_folder
from ecgbyte_cli.render import svg_sheet
from ecgbyte_cli.render.measured_facts import sheet_line
from ecgbyte_cli.runtime.memory import reporting_out_of_memory
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import atomic_write, read_array, read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PlotOptions:
    """Options of `ecgbyte plot`.

    Attributes
    ----------
    lead : str or None
        Lead for `tokens`; None means II, or the tokenizer's first lead.
    start : float
        Start, in s.
    model : Path or None
        Model folder (for `tokens`, its tokenizer and segmenter are used); None means the work folder's.
    base : Path or None
        Where the model's base model is now, if it has moved.
    device : str or None
        See `devices.choose_device`.
    input_fs, lead_names, units
        Sampling rate in Hz, lead names separated by commas, and unit for files that do not state them; None uses
        the settings of `symbolize`.
    question, method : str
        For `attention`: the question, and one of `attribution.METHODS`.
    out : Path or None
        None means pictures/RECORD-KIND.png in the work folder.
    """

    lead: str | None = None
    start: float = 0.0
    model: Path | str | None = None
    base: Path | None = None
    device: str | None = None
    input_fs: float | None = None
    lead_names: str | None = None
    units: str | None = None
    question: str = "What is the rhythm?"
    method: str = "integrated"
    out: Path | None = None


@click.command(
    cls=Stage,
    short_help="Plot an ECG, its tokens, or the evidence for an answer.",
    epilog="Example: ecgbyte plot tokens data/synth00001 --lead II --out tokens.png",
)
@click.argument("kind", type=click.Choice(["ecg", "beat", "tokens", "distribution", "attention"]))
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--lead", help="Lead for the plot of tokens.  [default: II if the tokenizer has it]")
@click.option(
    "--start", type=float, default=PlotOptions.start, show_default=True, help="Start of the plot, in s."
)
@click.option(
    "--model",
    type=Model(),
    help="Model folder, or OWNER/NAME of the Hugging Face Hub. For tokens, its tokenizer.  "
    "[default: the work folder's]",
)
@loading_options
@recording_options
@click.option(
    "--question",
    "-q",
    default=PlotOptions.question,
    show_default=True,
    help="Question, for attention.",
)
@click.option(
    "--method",
    type=click.Choice(["attention", "rollout", "gradient", "integrated", "occlusion"]),
    default=PlotOptions.method,
    show_default=True,
    help="Attribution method, for attention (see `ecgbyte explain`).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Picture file (.png, .svg, .pdf).  [default: in the work folder]",
)
@click.pass_obj
def command(work: WorkDir, kind: str, record: Path, **options: Any) -> dict:
    """Plot a RECORD as one of five KINDs, on ECG paper (25 mm/s, 10 mm/mV).

    ecg: a sheet of 3 x 4 leads with a rhythm strip; other leads one below another. beat: the median beat of each lead
    over ten seconds, with the measured boundaries of P, QRS and T. tokens: one lead, with each token as a coloured
    section with its id. distribution: the frequency, length and number of the tokens of an encoded record (its name,
    or `all`). attention: the answer to a question, as in `ecgbyte chat`, with its attribution shaded on each lead and
    a bar for each word of the question. How far to trust it: `ecgbyte explain`.
    """
    result = plot(work, kind, record, PlotOptions(**options))
    print_result(result["picture"])
    return result


def plot(work: WorkDir, kind: str, record: Path, options: PlotOptions) -> dict:
    """Draw a plot and write it.

    Parameters
    ----------
    work : WorkDir
    kind : {"ecg", "beat", "tokens", "distribution", "attention"}
    record : Path
        A recording, with or without its extension; for `distribution` the name of a recording, or `all`.
    options : PlotOptions

    Returns
    -------
    dict
        picture (path), record, kind; for `beat` also beats (count); for `tokens` also lead, tokens (count)
        and segmenter; for `distribution` tokens, segments and different (distinct tokens); for `attention` also
        question, answer, method, on_text (percent of the attribution on the question; None for `occlusion`) and
        completeness_gap (percent; see `attribution.Case`; None for methods other than `integrated`).

    Raises
    ------
    Failure
        If the recording, the tokenizer or the model cannot be read or has no such lead or time, or the model gives
        no answer.
    """
    from ecgbyte_cli.render import figures

    if kind == "distribution":
        out = options.out or work.pictures / f"{Path(record).name}-{kind}.png"
        with work.checked("tokens"):
            figure, more = distribution_picture(work, Path(record).name)
        figures.save_figure(figure, out)
        return {"kind": kind, "record": Path(record).name, "picture": str(out), **more}
    reading = reading_options(work, options.input_fs, options.lead_names, options.units)
    recording, start = read(record, reading), options.start
    out = options.out or work.pictures / f"{recording.name}-{kind}.png"
    result = {"kind": kind, "record": recording.name, "picture": str(out)}
    seconds = recording.seconds
    if not 0 <= start < seconds:
        raise Failure(f"{record} is {seconds:g} s long: --start {start:g} is outside it")
    if kind == "ecg" and Path(out).suffix.lower() == ".svg":  # the same sheet as on the page
        with atomic_write(out) as beside:
            beside.write_text(svg_sheet.svg_sheet(recording, start), encoding="utf-8")
        return result
    if kind == "ecg":
        names = [readers.lead_name(name) or name for name in recording.leads]
        title = "   ".join(filter(None, (recording.name, sheet_line(recording, start))))
        figure, more = figures.plot_sheet(recording.signal, recording.fs, names, title, start), {}
    elif kind == "beat":
        figure, more = beat_picture(recording, start)
    elif kind == "tokens":
        figure, more = token_picture(work, recording, options.lead, start, options.model)
    else:
        figure, more = attention_picture(work, recording, options)
    figures.save_figure(figure, out)
    return result | more


def read(record: Path, reading: dict[str, Any]) -> readers.Recording:
    """Read a recording; `reading` holds the other arguments of `readers.read_recording`."""
    try:
        return readers.read_recording(record, **reading)
    except readers.Unusable as error:
        raise Failure(f"{record}: {error.message}") from error


def beat_picture(recording: readers.Recording, start: float) -> tuple["Figure", dict]:
    """Draw the median beats of the ten seconds after `start`."""
    from ecgbyte_cli.render.beat_figure import plot_beat
    from ecgbyte_cli.signal.measure import measure_stretch

    measurement = measure_stretch(recording, start, start + 10)
    return plot_beat(measurement, recording.name), {"beats": measurement.beats}


def token_picture(
    work: WorkDir, recording: readers.Recording, lead: str | None, start: float, model: Path | str | None
) -> tuple["Figure", dict]:
    """Draw the tokens of a lead in the segment at `start`."""
    from ecgbyte_cli.render import figures

    folder = resolve_model_folder(model) if model else None
    path = folder / "ecg_tokenizer.json" if folder else work.need(work.ecg_tokenizer, "learn")
    tokenizer = ECGTokenizer.from_file(path)
    segmenter = segmenter_of(work, tokenizer, folder)
    leads, fs = tokenizer.signal["leads"], tokenizer.signal["fs"]
    lead = lead or ("II" if "II" in leads else leads[0])
    if lead not in leads:
        raise Failure(f"{path} has no lead {lead}, only {', '.join(leads)}")
    segments, number = segments_at(recording, tokenizer, start)
    begin, signal = segments[number]
    letters, lo, hi = tokenizer.quantize(signal)
    ids = tokenizer.encode(letters, segmenter)
    row = leads.index(lead)
    token, _, starts, stops = (column for column in tokenizer.spans(ids)[tokenizer.spans(ids)[:, 1] == row].T)
    decoded = tokenizer.to_mv(letters, lo, hi)
    title = f"{recording.name}, {begin:g} to {begin + tokenizer.signal['segment_seconds']:g} s"
    figure = figures.plot_tokens(
        signal[row], decoded[row], fs, lead, np.asarray(ids)[token], starts, stops, title
    )
    return figure, {"lead": lead, "tokens": len(token), "segmenter": segmenter}


def segmenter_of(work: WorkDir, tokenizer: ECGTokenizer, model: Path | None) -> str:
    """Return the segmenter that a model was trained with, else that of the work folder's tokens."""
    if model:
        path = model / "ecgbyte.json"
        about = read_json(path)
        # models older than this entry have only one segmenter
        segmenter = about.get("segmenter", "longest" if about.get("format") == "ecgbyte-model" else None)
    elif not work.token_settings.exists():
        return "longest"  # the default of `ecgbyte encode`
    else:
        path = work.token_settings
        about = read_json(path)
        segmenter = about.get("segmenter")
        if about.get("tokenizer_sha256") != tokenizer.sha256:
            raise Failure(
                f"{work.tokens} was not encoded with {work.ecg_tokenizer}: run `ecgbyte encode` again"
            )
    if segmenter is None:
        raise Failure(f"{path} does not state the segmenter for the tokens")
    return segmenter


def distribution_picture(work: WorkDir, name: str) -> tuple["Figure", dict]:
    """Draw the frequency, length and number of the tokens of a record, or of `all`."""
    from ecgbyte_cli.render import figures

    tokens, about = read_array(work.need(work.tokens, "encode")), read_json(work.token_settings)
    places, segments = read_table(work.token_segments), read_table(work.symbol_segments)
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    if tokenizer.sha256 != about["tokenizer_sha256"]:
        raise Failure(f"{work.tokens} was not encoded with {work.ecg_tokenizer}: run `ecgbyte encode` again")
    chosen = [i for i, record in enumerate(segments["record"]) if name in ("all", record)]
    if not chosen:
        raise Failure(f"{work.symbol_segments} has no record {name}: name a record in it, or `all`")
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    for i in chosen:
        part = tokens[places["offset"][i] :][: places["length"][i]]
        counts += np.bincount(part, minlength=len(counts))
    title = f"{len(chosen)} segments of {work.root}" if name == "all" else name
    figure = figures.plot_token_distribution(
        counts, 1000 / tokenizer.signal["fs"] * tokenizer.lengths, places["length"][chosen], title
    )
    more = {"tokens": int(counts.sum()), "segments": len(chosen), "different": int((counts > 0).sum())}
    return figure, more


def segments_at(
    recording: readers.Recording, tokenizer: ECGTokenizer, start: float
) -> tuple[list[tuple[float, np.ndarray]], int]:
    """Return the segments of a recording (start in s and signal in mV), and the index of the one at `start`."""
    try:
        segments = preprocess.segments(recording, tokenizer.signal)
    except readers.Unusable as error:
        raise Failure(f"{recording.path}: {error.message}") from error
    return segments, sum(begin <= start for begin, _ in segments) - 1


def attention_picture(
    work: WorkDir, recording: readers.Recording, options: PlotOptions
) -> tuple["Figure", dict]:
    """Draw the attribution of a model's answer about the segment at `start`."""
    from ecgbyte_cli.render import figures

    question, method = options.question, options.method
    session = Session.open(options.model, work, options.base, options.device)
    ecg = session.reader.segment(recording, *segments_at(recording, session.tokenizer, options.start))
    advice = "use --method occlusion" if method != "occlusion" else "use a machine with more memory"
    with reporting_out_of_memory(f"with --method {method}", advice):
        turn, _, density, words, values, gap = session.attribute(ecg, question, method)
    title = f"{recording.name}: {question} {turn.answer}   ({method}; research use only)"
    signal, about = ecg.segments[ecg.number][1], ecg.signal
    figure = figures.plot_attribution(
        signal, about["fs"], about["leads"], density, words, values, title, ecg.seconds[0]
    )
    on_text = float(100 * values.sum()) if words else None
    more = {"question": question, "answer": turn.answer, "method": method, "on_text": on_text}
    return figure, more | {"completeness_gap": gap}
