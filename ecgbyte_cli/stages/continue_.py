"""ecgbyte continue: how a model thinks that a recording goes on."""

import math
import time
from hashlib import sha256
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import base_option, model_option, sampling_options
from ecgbyte_cli.cli.output import print_result, progress, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.conversation import RecordingLoader
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.readers.wfdb_write import file_name, write_record
from ecgbyte_cli.signal import fidelity
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import atomic_folder, write_json
from ecgbyte_cli.storage.manifest import completed_result, refuse_foreign_folder

SAID, PICTURE = "continue.json", "continued.png"  # in the folder that is written


@click.command(
    cls=Stage,
    short_help="Let a model go on where a recording is cut.",
    epilog="Example: ecgbyte continue data/synth00001 --from 5 --samples 2 --model ptbxl",
)
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "since",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    help="Second at which the recording is cut; the model goes on to the end of the segment that this is in.",
)
@click.option(
    "--samples", type=click.IntRange(1), default=4, show_default=True, help="How many continuations."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="The folder to write to.  [default: continued/ in the work folder]",
)
@model_option
@base_option
@sampling_options
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, other continuations."
)
@click.option("--overwrite", is_flag=True, help="Replace continuations made with other settings.")
@click.pass_obj
def command(work, record, **options):
    """Cut a RECORD, and let the model write how it goes on, from what it learned of ECGs (`finetune --ecg-loss`).

    Writes each continuation as a WFDB record, a picture of them over the true one, and how far they are from it,
    beside two plain guesses: that the last beat repeats, and a flat line.
    """
    result = go_on(work, record, **options)
    rows = [(name, f"{value:.0f}") for name, value in result["rmse_uv"].items() if value is not None]
    table(rows, ("from the true recording", "RMSE, µV"))
    print_result(
        f"{result['records']} generated continuations in {result['files']}, {result['seconds']:.1f} s"
    )
    return result


def go_on(
    work,
    record,
    *,
    since=5.0,
    samples=4,
    out=None,
    model=None,
    base=None,
    temperature=1.0,
    top_p=1.0,
    seed=0,
    overwrite=False,
):
    """Cut a recording and let a model go on.

    Parameters
    ----------
    work : WorkDir
    record : Path
        A recording, with or without its extension.
    since : float
        Where it is cut, s.
    samples : int
        How many continuations.
    out : Path or None
        The folder to write to; None is one in the work folder.
    model, base : Path or None
        Model folder, and where its base model is, if that has moved.
    temperature, top_p : float
    seed : int
    overwrite : bool

    Returns
    -------
    dict
        records (how many), files (the folder), picture (path), rmse_uv and seconds. rmse_uv is the root of the mean
        squared difference from the recording over all leads behind the cut, in µV: of the continuations (the mean of
        theirs), of their mean, of the repeated beat (None where fewer than two are found) and of a flat line.

    Raises
    ------
    Failure
        If there is no model, it was not trained to predict ECGs, or the recording cannot be read or is too short.
    """
    start = time.perf_counter()
    folder = folder_checks.choose_model_folder(work, model)
    about = folder_checks.read_about(folder)
    if not about["writes"]:
        raise Failure(
            f"{folder_checks.display_name(folder)} was not trained to predict ECGs: train with "
            "`ecgbyte finetune --ecg-loss 0.3`"
        )
    if not about["lead_marks"]:
        raise Failure(
            f"the leads of {folder} have no marks, so none can be cut at a time: train on tokens of --boundary lead"
        )
    tokenizer = ECGTokenizer.from_file(folder / "ecg_tokenizer.json")
    ecg = RecordingLoader(tokenizer, about["segmenter"], **work.reading()).read(record)
    began, truth = segment_at(ecg, since)
    cut = round((since - began) * tokenizer.signal["fs"])
    if not (math.isfinite(temperature) and math.isfinite(top_p)):
        raise Failure("--temperature and --top-p are numbers")
    out = (Path(out) if out else work.continued).resolve()
    settings = {"record": sha256(truth.tobytes()).hexdigest(), "name": ecg.recording.name, "from": since}
    settings |= {"samples": samples, "model": folder_checks.model_sha256(folder)}
    settings |= {"temperature": temperature, "top_p": top_p, "seed": seed}
    done = completed_result(
        out / SAID, settings, overwrite, "continuations", "name another folder with --out"
    )
    if done:
        return done
    refuse_foreign_folder(out, out / SAID, "continuations")

    from ecgbyte_cli.inference import ecg_generation
    from ecgbyte_cli.model import model_folder
    from ecgbyte_cli.model.prompt import Prompt
    from ecgbyte_cli.render import figures
    from ecgbyte_cli.training.dataset import NOTHING_ASKED

    lm, text_tokenizer, _, _ = model_folder.load_model(folder, base=base, trainable=True)
    head, *_ = Prompt.of(about, text_tokenizer, lm.layout).parts(NOTHING_ASKED)
    # the letters' range is that of what is given, or it would tell of what is not
    letters, lo, hi = tokenizer.quantize(truth[:, :cut])
    how = ecg_generation.Sampling(temperature, top_p, seed)
    with progress("continue", samples, "continuations") as bar:
        written = list(
            ecg_generation.generate_ecgs(
                lm, tokenizer, head, range(samples), how, letters, about["segmenter"], bar
            )
        )
    made = np.stack([tokenizer.to_mv(tokenizer.decode(ids), lo, hi) for ids in written])
    signal, name = tokenizer.signal, file_name(ecg.recording.name)
    said = [f"Generated by ecgbyte from {since:g} s on: no recording of a patient. {model_folder.NOTICE}"]
    said += [
        f"Goes on from: {ecg.recording.name}, {began:g} to {since:g} s",
        f"Model: {folder.resolve().name} {settings['model'][:16]}",
    ]
    with atomic_folder(out) as beside:
        for i, mv in enumerate(made):
            more = [f"Seed: {seed}, number {i + 1}, temperature {temperature:g}, top-p {top_p:g}"]
            write_record(beside, f"{name}_{i + 1:02d}", mv, signal, said + more)
        title = f"{ecg.recording.name}, generated from {since:g} s on"
        figure = figures.plot_continuation(truth, made, cut, signal["fs"], signal["leads"], title, began)
        figures.save_figure(figure, beside / PICTURE)
        result = {"records": samples, "files": str(out), "picture": str(out / PICTURE)}
        result["rmse_uv"] = errors(truth, made, cut, signal["fs"])
        result["seconds"] = round(time.perf_counter() - start, 3)
        write_json(beside / SAID, {"settings": settings, "result": result}, indent=1)
    return result


def segment_at(ecg, since):
    """Start in s and signal of the segment that a second is in, if something of it lies before that, and behind.

    Raises
    ------
    Failure
        If there is none.
    """
    seconds = ecg.signal["segment_seconds"]
    number = int(since // seconds) if math.isfinite(since) else len(ecg.segments)
    if number >= len(ecg.segments):
        raise Failure(
            f"{ecg.recording.name} has no whole segment of {seconds:g} s around {since:g} s: choose another --from"
        )
    began, truth = ecg.segments[number]
    if not 0 < round((since - began) * ecg.signal["fs"]) < truth.shape[1]:
        raise Failure(
            f"{since:g} s leaves nothing of the segment from {began:g} to {began + seconds:g} s to begin with, or to "
            "write: choose another --from"
        )
    return began, truth


def errors(truth, made, cut, fs):
    """How far continuations and plain guesses are from a recording behind the cut: RMSE over all leads, µV.

    Parameters
    ----------
    truth : numpy.ndarray
        (leads, samples), mV.
    made : numpy.ndarray
        (continuations, leads, samples), mV.
    cut : int
        In samples.
    fs : float
        Hz.
    """
    behind = truth[:, cut:]

    def rmse(guess):
        return 1000 * float(np.sqrt(np.square(guess - behind).mean()))

    flat = np.median(truth[:, :cut], axis=1, keepdims=True)
    beat = last_beat(truth[:, :cut], fs)
    repeated = (
        None if beat is None else np.tile(beat, -(-behind.shape[1] // beat.shape[1]))[:, : behind.shape[1]]
    )
    return {
        "continuations": float(np.mean([rmse(mv[:, cut:]) for mv in made])),
        "mean of the continuations": rmse(made[..., cut:].mean(0)),
        "last beat repeated": None if repeated is None else rmse(repeated),
        "flat line": rmse(flat),
    }


def last_beat(signal, fs):
    """What would repeat: as much of the end of a signal as lies between its last two R peaks; None without two.

    The peaks are those of the lead that spans most.
    """
    if signal.shape[1] < fs:  # too short to find any
        return None
    peaks = fidelity.beats(signal[np.ptp(signal, axis=1).argmax()], fs)[:, 0]
    return signal[:, -int(peaks[-1] - peaks[-2]) :] if len(peaks) > 1 else None
