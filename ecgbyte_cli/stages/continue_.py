"""ecgbyte continue: continue a recording beyond a cut."""

import math
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np

from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import loading_options, model_option, sampling_options
from ecgbyte_cli.cli.output import print_result, progress, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.conversation import ECG
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model.model_names import model_identity
from ecgbyte_cli.readers.wfdb_write import file_name, write_record
from ecgbyte_cli.signal import fidelity
from ecgbyte_cli.storage.files import atomic_folder, write_json
from ecgbyte_cli.storage.manifest import completed_result, refuse_foreign_folder
from ecgbyte_cli.storage.workdir import WorkDir

RESULT, PICTURE = "continue.json", "continued.png"  # in the output folder


@dataclass(frozen=True)
class ContinueOptions:
    """Options of `ecgbyte continue`.

    Attributes
    ----------
    since : float
        Time of the cut, in s.
    samples : int
        Number of continuations.
    out : Path or None
        Output folder; None means continued/ in the work folder.
    model, base : Path or None
        Model folder, and where its base model is now, if it has moved.
    device : str or None
        See `devices.choose_device`.
    temperature, top_p : float
    seed : int
    overwrite : bool
    """

    since: float = 5.0
    samples: int = 4
    out: Path | None = None
    model: Path | str | None = None
    base: Path | None = None
    device: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    overwrite: bool = False


@click.command(
    cls=Stage,
    short_help="Continue a recording beyond a cut.",
    epilog="Example: ecgbyte continue data/synth00001 --from 5 --samples 2 --model ptbxl",
)
@click.argument("record", type=click.Path(path_type=Path))
@click.option(
    "--from",
    "since",
    type=click.FloatRange(0, min_open=True),
    default=ContinueOptions.since,
    show_default=True,
    help="Time of the cut, in s. The model continues to the end of that segment.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=ContinueOptions.samples,
    show_default=True,
    help="Number of continuations.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Output folder.  [default: continued/ in the work folder]",
)
@model_option
@loading_options
@sampling_options
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=ContinueOptions.seed,
    show_default=True,
    help="Random seed.",
)
@click.option("--overwrite", is_flag=True, help="Replace continuations made with other settings.")
@click.pass_obj
def command(work: WorkDir, record: Path, **options: Any) -> dict:
    """Cut a RECORD and let the model continue it. The model must be trained on ECGs (`finetune --ecg-loss`).

    Writes each continuation as a WFDB record, a plot of all over the recording, and their error.
    Two simple predictions are scored too: the last beat repeated, and a flat line.
    """
    result = go_on(work, record, ContinueOptions(**options))
    rows = [(name, f"{value:.0f}") for name, value in result["rmse_uv"].items() if value is not None]
    table(rows, ("compared with the recording", "RMSE, µV"))
    print_result(
        f"{result['records']} generated continuations in {result['files']}, {result['seconds']:.1f} s"
    )
    return result


def go_on(work: WorkDir, record: Path, options: ContinueOptions) -> dict:
    """Continue a recording beyond a cut.

    Parameters
    ----------
    work : WorkDir
    record : Path
        A recording, with or without its extension.
    options : ContinueOptions

    Returns
    -------
    dict
        records (count), files (the folder), picture (path), rmse_uv and seconds. rmse_uv is the root mean square
        difference from the recording after the cut, over all leads, in µV: of the continuations (averaged), of their
        mean, of the repeated beat (None if fewer than two beats are found) and of a flat line.

    Raises
    ------
    Failure
        If there is no model, it was not trained to predict ECGs, or the recording cannot be read or is too short.
    """
    start = time.perf_counter()
    session = Session.open(options.model, work, options.base, options.device, trainable=True)
    check(session)
    ecg = session.read(record)
    began, truth = segment_at(ecg, options.since)
    cut = round((options.since - began) * session.tokenizer.signal["fs"])
    if not (math.isfinite(options.temperature) and math.isfinite(options.top_p)):
        raise Failure("--temperature and --top-p must be numbers")
    out = (Path(options.out) if options.out else work.continued).resolve()
    settings = {
        "record": sha256(truth.tobytes()).hexdigest(),
        "name": ecg.recording.name,
        "from": options.since,
        "samples": options.samples,
        **model_identity(session.folder),
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
    }
    done = completed_result(
        out / RESULT, settings, options.overwrite, "continuations", "name another folder with --out"
    )
    if done:
        return done
    refuse_foreign_folder(out, out / RESULT, "continuations")
    continued = continuations(session, truth[:, :cut], options)
    with atomic_folder(out) as beside:
        write_records(beside, session, ecg, began, continued, settings)
        draw_picture(beside / PICTURE, session, ecg, began, truth, continued, options.since)
        result = {"records": options.samples, "files": str(out), "picture": str(out / PICTURE)}
        result["rmse_uv"] = errors(truth, continued, cut, session.tokenizer.signal["fs"])
        result["seconds"] = round(time.perf_counter() - start, 3)
        write_json(beside / RESULT, {"settings": settings, "result": result}, indent=1)
    return result


def check(session: Session) -> None:
    """Check that a model can continue ECGs."""
    if not session.about["writes"]:
        raise Failure(
            f"{session.about['folder']} was not trained to predict ECGs: train with "
            "`ecgbyte finetune --ecg-loss 0.3`"
        )
    if not session.about["lead_marks"]:
        raise Failure(
            f"the leads of {session.folder} have no marks, so a lead cannot be cut: train on tokens encoded with "
            "--boundary lead"
        )


def continuations(session: Session, start: np.ndarray, options: ContinueOptions) -> np.ndarray:
    """Write continuations from the start of a segment, (leads, n): (continuations, leads, samples), mV."""
    from ecgbyte_cli.inference import ecg_generation
    from ecgbyte_cli.training.dataset import NOTHING_ASKED

    tokenizer = session.tokenizer
    head, *_ = session.prompt.parts(NOTHING_ASKED)
    # the quantizer's range comes from the start alone, so that the future does not leak
    letters, lo, hi = tokenizer.quantize(start)
    sampling = ecg_generation.Sampling(options.temperature, options.top_p, options.seed)
    numbers = range(options.samples)
    with progress("continue", options.samples, "continuations") as bar:
        written = list(
            ecg_generation.generate_ecgs(
                session.lm, tokenizer, head, numbers, sampling, letters, session.segmenter, bar
            )
        )
    return np.stack([tokenizer.to_mv(tokenizer.decode(ids), lo, hi) for ids in written])


def write_records(
    folder: Path, session: Session, ecg: ECG, began: float, continued: np.ndarray, settings: dict
) -> None:
    """Write each continuation as a WFDB record."""
    from ecgbyte_cli.model.model_folder import NOTICE

    since, name = settings["from"], file_name(ecg.recording.name)
    comments = [
        f"Generated by ecgbyte after {since:g} s: not a recording of a patient. {NOTICE}",
        f"Continues: {ecg.recording.name}, {began:g} to {since:g} s",
        f"Model: {session.folder.resolve().name} {settings['model'][:16]}",
    ]
    sampling = f"temperature {settings['temperature']:g}, top-p {settings['top_p']:g}"
    for number, signal in enumerate(continued, 1):
        own = f"Seed: {settings['seed']}, number {number}, {sampling}"
        write_record(folder, f"{name}_{number:02d}", signal, session.tokenizer.signal, [*comments, own])


def draw_picture(
    path: Path,
    session: Session,
    ecg: ECG,
    began: float,
    truth: np.ndarray,
    continued: np.ndarray,
    since: float,
) -> None:
    """Plot the continuations over the recording."""
    from ecgbyte_cli.render import figures

    signal, title = session.tokenizer.signal, f"{ecg.recording.name}, generated after {since:g} s"
    cut = round((since - began) * signal["fs"])
    figure = figures.plot_continuation(truth, continued, cut, signal["fs"], signal["leads"], title, began)
    figures.save_figure(figure, path)


def segment_at(ecg: ECG, since: float) -> tuple[float, np.ndarray]:
    """Return the start (in s) and the signal of the segment that contains a time.

    Raises
    ------
    Failure
        If no segment has samples both before and after this time.
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
            f"{since:g} s is too close to the start or the end of the segment from {began:g} to {began + seconds:g} s: "
            "choose another --from"
        )
    return began, truth


def errors(truth: np.ndarray, continued: np.ndarray, cut: int, fs: float) -> dict[str, float | None]:
    """Return the RMSE of continuations and simple predictions after the cut, over all leads, in µV.

    Parameters
    ----------
    truth : numpy.ndarray
        (leads, samples), mV.
    continued : numpy.ndarray
        (continuations, leads, samples), mV.
    cut : int
        Index of the first sample after the cut.
    fs : float
        Hz.
    """
    behind = truth[:, cut:]

    def rmse(guess: np.ndarray) -> float:
        return 1000 * float(np.sqrt(np.square(guess - behind).mean()))

    flat = np.median(truth[:, :cut], axis=1, keepdims=True)
    beat = last_beat(truth[:, :cut], fs)
    repeated = (
        None if beat is None else np.tile(beat, -(-behind.shape[1] // beat.shape[1]))[:, : behind.shape[1]]
    )
    return {
        "continuations": float(np.mean([rmse(mv[:, cut:]) for mv in continued])),
        "mean of the continuations": rmse(continued[..., cut:].mean(0)),
        "last beat repeated": None if repeated is None else rmse(repeated),
        "flat line": rmse(flat),
    }


def last_beat(signal: np.ndarray, fs: float) -> np.ndarray | None:
    """Return the last beat of a signal, as long as the last R-R interval; None if there are fewer than two R peaks.

    The peaks are found in the lead with the largest range.
    """
    if signal.shape[1] < fs:  # too short to contain one
        return None
    peaks = fidelity.beats(signal[np.ptp(signal, axis=1).argmax()], fs)[:, 0]
    return signal[:, -int(peaks[-1] - peaks[-2]) :] if len(peaks) > 1 else None
