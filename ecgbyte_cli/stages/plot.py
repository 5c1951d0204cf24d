"""ecgbyte plot: pictures of an ECG, of its tokens, and of what an answer drew on."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import base_option
from ecgbyte_cli.cli.output import print_result
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.render import svg_sheet
from ecgbyte_cli.render.measured_facts import sheet_line
from ecgbyte_cli.runtime.memory import reporting_out_of_memory
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.storage.files import atomic_write, read_array, read_json, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@click.command(
    cls=Stage,
    short_help="Draw an ECG, its tokens, or what a model looked at.",
    epilog="Example: ecgbyte plot tokens data/synth00001 --lead II --out tokens.png",
)
@click.argument("kind", type=click.Choice(["ecg", "beat", "tokens", "distribution", "attention"]))
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--lead", help="Lead to draw the tokens of.  [default: II if the tokenizer has it]")
@click.option("--start", type=float, default=0.0, show_default=True, help="First second to draw.")
@click.option(
    "--model",
    type=Model(),
    help="Model folder; for tokens, its tokenizer.  [default: the work folder's]",
)
@base_option
@click.option(
    "--input-fs",
    type=click.FloatRange(0, min_open=True),
    default=None,
    show_default="as symbolize was told",
    help="Sampling rate of a file that does not say it (CSV, TSV, NumPy), in Hz.",
)
@click.option(
    "--lead-names",
    default=None,
    show_default="as symbolize was told, or the 12 in their usual order",
    help="Names of the leads in a file that does not say them (NumPy, HDF5), commas between.",
)
@click.option(
    "--units",
    type=click.Choice(["uV", "mV", "V"]),
    default=None,
    show_default="as symbolize was told, or mV",
    help="Unit of a file that does not say it (CSV, NumPy, HDF5).",
)
@click.option(
    "--question",
    "-q",
    default="What is the rhythm?",
    show_default=True,
    help="For attention: what the model is asked.",
)
@click.option(
    "--method",
    type=click.Choice(["attention", "rollout", "gradient", "integrated", "occlusion"]),
    default="integrated",
    show_default=True,
    help="For attention: how the answer is attributed (see `ecgbyte explain`).",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Picture file (.png, .svg, .pdf).  [default: in the work folder]",
)
@click.pass_obj
def command(work, **options):
    """Draw a picture of KIND of a RECORD, on ECG paper (25 mm/s, 10 mm/mV).

    ecg: the sheet of 3 x 4 leads with a rhythm strip (other leads one under another). beat: the median beat
    of each lead over ten seconds, with the boundaries of P, QRS and T where they were measured. tokens: one
    lead, each token a coloured stretch with its id. distribution: how often, how long and how many the tokens
    that `ecgbyte encode` made are, of one record by its name or of `all`. attention: the model is asked a
    question, and what its answer drew on is shaded on each lead, with a bar per word of the question. How far
    to believe that: `ecgbyte explain`.
    """
    result = plot(work, **options)
    print_result(result["picture"])
    return result


def plot(
    work,
    kind,
    record,
    *,
    lead=None,
    start=0.0,
    model=None,
    base=None,
    input_fs=None,
    lead_names=None,
    units=None,
    question="What is the rhythm?",
    method="integrated",
    out=None,
):
    """Draw a picture and write it.

    Parameters
    ----------
    work : WorkDir
    kind : {"ecg", "beat", "tokens", "distribution", "attention"}
    record : Path
        A recording, with or without its extension; for `distribution` the name of one, or `all`.
    lead : str or None
        For `tokens`; None is II, or the tokenizer's first lead.
    start : float
        First second to draw.
    model : Path or None
        Model folder (for `tokens`, its tokenizer and segmenter are taken); None is the work folder's.
    base : Path or None
        Where the model's base model is, if that has moved.
    input_fs, lead_names, units
        Sampling rate in Hz, names of the leads with commas between, and unit of a recording that does not say
        them; None is what `symbolize` was told.
    question, method : str
        For `attention`: what is asked, and one of `attribution.METHODS`.
    out : Path or None
        None is pictures/RECORD-KIND.png in the work folder.

    Returns
    -------
    dict
        picture (path), record, kind; for `beat` also beats (how many); for `tokens` also lead, tokens (how many)
        and segmenter, for `distribution` tokens, segments and different (tokens); for `attention` also question,
        answer, method, on_text (percent of the attribution that is on the question, not on the ECG; None where the
        method does not ask for it) and completeness_gap (percent by which integrated gradients do not sum to the
        difference that the ECG makes; None for other methods).

    Raises
    ------
    Failure
        If the recording, the tokenizer or the model cannot be read, or has no such lead or stretch.
    """
    from ecgbyte_cli.render import figures

    if kind == "distribution":
        out = out or work.pictures / f"{Path(record).name}-{kind}.png"
        with work.checked("tokens"):
            figure, more = distribution_picture(work, Path(record).name)
        figures.save_figure(figure, out)
        return {"kind": kind, "record": Path(record).name, "picture": str(out), **more}
    told = {"fs": input_fs, "lead_names": lead_names and [name.strip() for name in lead_names.split(",")]}
    told = {key: value for key, value in (told | {"units": units}).items() if value is not None}
    recording = read(record, {**work.reading(), **told})
    out = out or work.pictures / f"{recording.name}-{kind}.png"
    result = {"kind": kind, "record": recording.name, "picture": str(out)}
    if not 0 <= start < recording.signal.shape[1] / recording.fs:
        raise Failure(
            f"{record} is {recording.signal.shape[1] / recording.fs:g} s long: --start {start:g} is outside"
        )
    if kind == "ecg" and Path(out).suffix.lower() == ".svg":  # the sheet that the page shows too
        with atomic_write(out) as beside:
            beside.write_text(svg_sheet.svg_sheet(recording, start), encoding="utf-8")
        return result
    if kind == "ecg":
        names = [readers.lead_name(name) or name for name in recording.leads]
        title = "   ".join(filter(None, (recording.name, sheet_line(recording, start))))
        figure = figures.plot_sheet(recording.signal, recording.fs, names, title, start)
    elif kind == "beat":
        figure, more = beat_picture(recording, start)
        result.update(more)
    elif kind == "tokens":
        figure, more = token_picture(work, recording, lead, start, model)
        result.update(more)
    else:
        figure, more = attention_picture(work, recording, start, model, base, question, method)
        result.update(more)
    figures.save_figure(figure, out)
    return result


def read(record, told):
    """Read a recording, with what is told about it; what is wrong with it is said with its name."""
    try:
        return readers.read(record, **told)
    except readers.Unusable as error:
        raise Failure(f"{record}: {error.message}") from error


def beat_picture(recording: readers.Recording, start: float) -> "tuple[Figure, dict[str, int]]":
    """Draw the median beats of the ten seconds from `start` on."""
    from ecgbyte_cli.render.beat_figure import plot_beat
    from ecgbyte_cli.signal.measure import measure_stretch

    measurement = measure_stretch(recording, start, start + 10)
    return plot_beat(measurement, recording.name), {"beats": measurement.beats}


def token_picture(work, recording, lead, start, model):
    """The picture of a lead's tokens in the segment that `start` lies in."""
    from ecgbyte_cli.render import figures
    from ecgbyte_cli.signal.tokenizer import ECGTokenizer

    model = model and folder_checks.resolve_model_folder(model)
    path = model / "ecg_tokenizer.json" if model else work.need(work.ecg_tokenizer, "learn")
    tokenizer = ECGTokenizer.from_file(path)
    segmenter = segmenter_of(work, tokenizer, model)
    leads, fs = tokenizer.signal["leads"], tokenizer.signal["fs"]
    lead = lead or ("II" if "II" in leads else leads[0])
    if lead not in leads:
        raise Failure(f"{path} knows no lead {lead}: it has {', '.join(leads)}")
    begin, signal = segment_at(recording, tokenizer, start)
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


def segmenter_of(work, tokenizer, model):
    """The segmenter that a model was trained with, or that the work folder's tokens were made with."""
    if model:
        path = model / "ecgbyte.json"
        about = read_json(path)
        # models older than this entry know one segmenter alone
        segmenter = about.get("segmenter", "longest" if about.get("format") == "ecgbyte-model" else None)
    elif not work.token_settings.exists():
        return "longest"  # as encode would
    else:
        path = work.token_settings
        about = read_json(path)
        segmenter = about.get("segmenter")
        if about.get("tokenizer_sha256") != tokenizer.sha256:
            raise Failure(
                f"{work.tokens} was encoded with another tokenizer than {work.ecg_tokenizer}: encode again"
            )
    if segmenter is None:
        raise Failure(f"{path} does not say with which segmenter tokens are to be cut")
    return segmenter


def distribution_picture(work, name):
    """The picture of how often, how long and how many the tokens of a record, or of all, are."""
    from ecgbyte_cli.render import figures
    from ecgbyte_cli.signal.tokenizer import ECGTokenizer

    tokens, about = read_array(work.need(work.tokens, "encode")), read_json(work.token_settings)
    places, segments = read_table(work.token_segments), read_table(work.symbol_segments)
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    if tokenizer.sha256 != about["tokenizer_sha256"]:
        raise Failure(
            f"{work.tokens} was encoded with another tokenizer than {work.ecg_tokenizer}: encode again"
        )
    chosen = [i for i, record in enumerate(segments["record"]) if name in ("all", record)]
    if not chosen:
        raise Failure(f"{work.symbol_segments} has no record {name}: give the name of one, or all")
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


def segment_at(recording, tokenizer, start):
    """Start in s and signal in mV of the segment that `start` lies in, as the tokenizer wants it."""
    try:
        segments = preprocess.segments(recording, tokenizer.signal)
    except readers.Unusable as error:
        raise Failure(f"{recording.path}: {error.message}") from error
    return [s for s in segments if s[0] <= start][-1]


def attention_picture(work, recording, start, model, base, question, method):
    """The picture of what a model's answer to a question drew on, in the segment that `start` lies in."""
    from ecgbyte_cli.inference import attribution, certainty
    from ecgbyte_cli.model import model_folder
    from ecgbyte_cli.model.prompt import Prompt
    from ecgbyte_cli.render import figures

    folder = folder_checks.choose_model_folder(work, model)
    lm, text_tokenizer, tokenizer, about = model_folder.load_model(folder, base=base)
    known = certainty.read_certainty(folder, tokenizer.vocab_size)
    found = known and known.match(question)
    asked, question = question, found.text if found else question  # as the model was trained to be asked
    begin, signal = segment_at(recording, tokenizer, start)
    prompt, letters = Prompt.of(about, text_tokenizer, lm.layout), tokenizer.letters(signal)
    explainer = attribution.Explainer(
        lm, prompt, tokenizer, about["segmenter"], longest=about.get("prompt_tokens")
    )
    other = "take --method occlusion" if method != "occlusion" else "use a machine with more memory"
    with reporting_out_of_memory(f"with --method {method}", other):
        answer = explainer.answer(letters, question)
        case = explainer.case(letters, question, answer)
        if method == "occlusion":  # which asks the signal alone
            density = explainer.density_of(case, letters, question, answer, method)
            words, values = [], np.zeros(0)
        else:
            scores = explainer.scores(case, method)
            density, (words, values) = explainer.spread(case, scores), explainer.on_words(case, scores)
    title = f"{recording.name}: {asked} {answer}   ({method}; research use only)"
    signal_settings = tokenizer.signal
    figure = figures.plot_attribution(
        signal, signal_settings["fs"], signal_settings["leads"], density, words, values, title, begin
    )
    on_text = float(100 * values.sum()) if words else None
    more = {"question": asked, "answer": answer, "method": method, "on_text": on_text}
    more["completeness_gap"] = case.gap
    return figure, more
