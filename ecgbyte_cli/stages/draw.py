"""ecgbyte draw: generate ECGs from words."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import loading_options, sampling_options
from ecgbyte_cli.cli.output import counted, note, print_result, progress
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model.folder_checks import BUILT
from ecgbyte_cli.model.model_names import model_identity
from ecgbyte_cli.readers.wfdb_write import write_record
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.storage.files import write_json
from ecgbyte_cli.storage.locks import lock
from ecgbyte_cli.storage.manifest import completed_result, refuse_foreign_folder
from ecgbyte_cli.storage.workdir import WorkDir

RESULT, PICTURE = "draw.json", "drawn.png"  # in the output folder
SHOWN = 8  # ECGs in the picture


@dataclass(frozen=True)
class DrawOptions:
    """Options of `ecgbyte draw`.

    Attributes
    ----------
    out : Path or None
        Output folder; required by the command.
    records : int
        Number of ECGs.
    model, base : Path or None
        Model folder (None: the work folder's), and where its base model is now, if it has moved.
    device : str or None
        See `devices.choose_device`.
    temperature, top_p, guidance : float
    seed : int
        An ECG depends on the seed and its own number only, not on the number of ECGs.
    overwrite : bool
    """

    out: Path | None = None
    records: int = 8
    model: Path | str | None = None
    base: Path | None = None
    device: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0
    overwrite: bool = False


@click.command(
    cls=Stage,
    short_help="Generate ECGs from words.",
    epilog='Example: ecgbyte draw "atrial fibrillation" --records 2 --out drawn/',
)
@click.argument("words")
@click.option(
    "--records",
    type=click.IntRange(1),
    default=DrawOptions.records,
    show_default=True,
    help="Number of ECGs.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Output folder; created if it does not exist.",
)
@click.option(
    "--model",
    type=Model(),
    default=None,
    show_default="the work folder's",
    help="Model folder, or OWNER/NAME of the Hugging Face Hub.",
)
@loading_options
@sampling_options
@click.option(
    "--guidance",
    type=click.FloatRange(1),
    default=DrawOptions.guidance,
    show_default=True,
    help="Guidance scale: values above 1 make the ECGs fit the words better, and take twice as long.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=DrawOptions.seed,
    show_default=True,
    help="Random seed.",
)
@click.option("--overwrite", is_flag=True, help="Replace ECGs drawn with other settings.")
@click.pass_obj
def command(work: WorkDir, words: str, **options: Any) -> dict:
    """Generate ECGs that show WORDS, such as a rhythm. The model must be trained for it (`ecgbyte finetune --draw`).

    Writes WFDB records and a picture of the first ones. The record headers say that the ECGs are generated: they belong
    to no patient, and are not evidence about any.
    """
    result = draw(work, words, DrawOptions(**options))
    print_result(
        f"{counted(result['records'], 'generated ECG')} of {words} in {result['files']}, {result['seconds']:.1f} s"
    )
    return result


def draw(work: WorkDir, words: str, options: DrawOptions) -> dict:
    """Generate ECGs from words and write them as WFDB records.

    Parameters
    ----------
    work : WorkDir
    words : str
        The finding or rhythm that the ECGs show.
    options : DrawOptions

    Returns
    -------
    dict
        records (count), files (the folder), picture (path), seconds.

    Raises
    ------
    Failure
        If there is no model, it was not trained to draw these words, or the folder contains other files.
    """
    start = time.perf_counter()
    if options.out is None:
        raise Failure("name the output folder: --out FOLDER")
    session, out = (
        Session.open(options.model or work.model, None, options.base, options.device),
        Path(options.out).resolve(),
    )
    check(words, session)
    if not all(map(math.isfinite, (options.temperature, options.top_p, options.guidance))):
        raise Failure("--temperature, --top-p and --guidance must be numbers")
    settings = {
        "words": words,
        **model_identity(session.folder),
        "records": options.records,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "guidance": options.guidance,
        "seed": options.seed,
    }
    with lock(out):
        done = completed_result(out / RESULT, settings, options.overwrite, "ECGs", "name another folder")
        if done:
            return done
        refuse_foreign_folder(out, out / RESULT, "drawn ECGs")
        session.load()  # before anything is removed
        if options.overwrite:
            for path in [*out.glob("drawn*.hea"), *out.glob("drawn*.dat")]:
                path.unlink()
        # settings are written first, so that an interrupted run can resume
        write_json(out / RESULT, {"settings": settings, "result": None}, indent=1)
        paths = write_records(session, out, settings)
        picture(out / PICTURE, paths[:SHOWN], words)
        result = {"records": options.records, "files": str(out), "picture": str(out / PICTURE)}
        result["seconds"] = round(time.perf_counter() - start, 3)
        write_json(out / RESULT, {"settings": settings, "result": result}, indent=1)
        return result


def write_records(session: Session, out: Path, settings: dict) -> list[Path]:
    """Generate and write the ECGs that are missing; return all paths, without extension."""
    from ecgbyte_cli.inference import ecg_generation
    from ecgbyte_cli.model.model_folder import NOTICE
    from ecgbyte_cli.training.dataset import NOTHING_ASKED

    lm, prompt, tokenizer = session.lm, session.prompt, session.tokenizer
    words, records, seed = settings["words"], settings["records"], settings["seed"]
    temperature, top_p, guidance = settings["temperature"], settings["top_p"], settings["guidance"]
    comments = [
        f"Generated by ecgbyte: not a recording of a patient. {NOTICE}",
        f"Drawn from the words: {words}",
        f"Model: {session.folder.resolve().name} {settings['model'][:16]}",
        f"Temperature: {temperature:g}, top-p {top_p:g}, guidance {guidance:g}",
    ]
    paths = [out / f"drawn{number:05d}" for number in range(1, records + 1)]
    todo = [number for number, path in enumerate(paths) if not path.with_suffix(".hea").exists()]
    if len(todo) < records:
        note(f"{out}: resuming, {records - len(todo)} of {counted(records, 'ECG')} done before")
    head, plain = prompt.drawing(words), prompt.parts(NOTHING_ASKED)[0]
    sampling = ecg_generation.Sampling(temperature, top_p, seed, guidance)
    with progress("draw", len(todo), "ECGs") as bar:
        drawn = ecg_generation.generate_ecgs(lm, tokenizer, head, todo, sampling, bar=bar, plain=plain)
        for number, ids in zip(todo, drawn, strict=True):
            mv = consistent(tokenizer.to_mv(tokenizer.decode(ids)), tokenizer.signal["leads"])
            own = f"Seed: {seed}, number {number + 1}"
            write_record(out, paths[number].name, mv, tokenizer.signal, [*comments, own])
    return paths


def check(words: str, session: Session) -> None:
    """Reject words that a model was not trained to draw."""
    known, folder, tokenizer = session.about.get("draws"), session.folder, session.tokenizer
    if not known:
        raise Failure(
            f"{session.about['folder']} was not trained to generate ECGs: train a model with "
            "`ecgbyte finetune --draw TYPE`"
        )
    if not tokenizer.has_size:
        name = tokenizer.signal["quantizer"]["name"]
        raise Failure(
            f"{folder} uses the quantizer {name}, whose letters have no fixed size in mV: it cannot generate ECGs"
        )
    if not words.strip() or any("\ud800" <= letter <= "\udfff" for letter in words):
        raise Failure("the words are empty: name a finding or rhythm")
    if words not in known:
        first = "; ".join(known[:12]) + (f"; and {len(known) - 12} more" if len(known) > 12 else "")
        if session.about["base"] in BUILT:  # a model from scratch knows no other words
            raise Failure(f'{folder} was not trained to draw "{words}"; it can draw: {first}')
        note(
            f'the model was not trained to draw "{words}", so the ECG may show anything; it was trained on: {first}'
        )


def consistent(signal: np.ndarray, leads: list[str]) -> np.ndarray:
    """Derive III, aVR, aVL and aVF from I and II, in a signal (leads, samples), so that the leads are consistent."""
    if not {"I", "II"} <= {*leads}:
        return signal
    own = [i for i, lead in enumerate(leads) if lead not in preprocess.DERIVED]
    return preprocess.pick(readers.Recording(signal[own], 0, [leads[i] for i in own], "", ""), leads)


def picture(path: Path, paths: list[Path], words: str) -> None:
    """Plot lead II (or the first lead) of several ECGs, one below another."""
    from ecgbyte_cli.render import figures

    drawn = [readers.read_recording(f"{path}.hea") for path in paths]
    leads, fs = drawn[0].leads, drawn[0].fs
    at = leads.index("II") if "II" in leads else 0
    rows = np.stack([recording.signal[at] for recording in drawn])
    names = [f"{number}: lead {leads[at]}" for number in range(1, len(drawn) + 1)]
    title = f"{words}: generated by ecgbyte, not a recording of a patient"
    figures.save_figure(figures.plot_sheet(rows, fs, names, title, 0.0, rows.shape[1] / fs), path)
