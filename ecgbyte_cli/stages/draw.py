"""ecgbyte draw: recordings from words."""

import math
import time
from pathlib import Path

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import base_option, sampling_options
from ecgbyte_cli.cli.output import note, print_result, progress
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.readers.wfdb_write import write_record
from ecgbyte_cli.signal import preprocess
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.storage.files import write_json
from ecgbyte_cli.storage.locks import lock
from ecgbyte_cli.storage.manifest import completed_result, refuse_foreign_folder

SAID, PICTURE = "draw.json", "drawn.png"  # in the folder that is written
SHOWN = 8  # in the picture


@click.command(
    cls=Stage,
    short_help="Draw ECGs from words.",
    epilog='Example: ecgbyte draw "atrial fibrillation" --records 2 --out drawn/',
)
@click.argument("words")
@click.option("--records", type=click.IntRange(1), default=8, show_default=True, help="How many.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The folder to write to; made if it does not exist.",
)
@click.option(
    "--model",
    type=Model(),
    default=None,
    show_default="the work folder's",
    help="Model folder.",
)
@base_option
@sampling_options
@click.option(
    "--guidance",
    type=click.FloatRange(1),
    default=1.0,
    show_default=True,
    help="Above 1, what is likelier behind the words than without them becomes likelier still; takes twice as long.",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Another seed, other ECGs."
)
@click.option("--overwrite", is_flag=True, help="Replace ECGs drawn with other settings.")
@click.pass_obj
def command(work, words, **options):
    """Draw ECGs that show WORDS, such as a rhythm, with a model that was trained to (`ecgbyte finetune --draw`).

    Writes WFDB records and a picture of the first of them. They are generated, as their headers say: of no patient,
    and no evidence of anything about one.
    """
    result = draw(work, words, **options)
    print_result(
        f"{result['records']} generated ECGs of {words} in {result['files']}, {result['seconds']:.1f} s"
    )
    return result


def draw(
    work,
    words,
    *,
    records=8,
    out,
    model=None,
    base=None,
    temperature=1.0,
    top_p=1.0,
    guidance=1.0,
    seed=0,
    overwrite=False,
):
    """Draw ECGs from words and write them as WFDB records.

    Parameters
    ----------
    work : WorkDir
    words : str
        What they shall show.
    records : int
    out : Path
        The folder to write to.
    model, base : Path or None
        Model folder (None: the work folder's), and where its base model is, if that has moved.
    temperature, top_p, guidance : float
    seed : int
        An ECG depends on seed and its own number alone, not on how many there are.
    overwrite : bool

    Returns
    -------
    dict
        records (how many), files (the folder), picture (path), seconds.

    Raises
    ------
    Failure
        If there is no model, it was not trained to draw these words, or the folder holds other things.
    """
    start = time.perf_counter()
    folder, out = folder_checks.resolve_model_folder(model or work.model), Path(out).resolve()
    about = folder_checks.read_about(folder)
    check(words, about, folder)
    if not all(map(math.isfinite, (temperature, top_p, guidance))):
        raise Failure("--temperature, --top-p and --guidance are numbers")
    settings = {"words": words, "model": folder_checks.model_sha256(folder), "records": records}
    settings |= {"temperature": temperature, "top_p": top_p, "guidance": guidance, "seed": seed}
    with lock(out):
        done = completed_result(out / SAID, settings, overwrite, "ECGs", "name another folder")
        if done:
            return done
        refuse_foreign_folder(out, out / SAID, "drawn ECGs")
        return _draw(folder, about, base, out, settings, overwrite, start)


def _draw(folder, about, base, out, settings, overwrite, start):
    """Draw the ECGs that are missing."""
    from ecgbyte_cli.inference import ecg_generation
    from ecgbyte_cli.model import model_folder
    from ecgbyte_cli.model.prompt import Prompt
    from ecgbyte_cli.training.dataset import NOTHING_ASKED

    lm, text_tokenizer, tokenizer, _ = model_folder.load_model(folder, base=base)
    words, records, seed = settings["words"], settings["records"], settings["seed"]
    temperature, top_p, guidance = settings["temperature"], settings["top_p"], settings["guidance"]
    prompt = Prompt.of(about, text_tokenizer, lm.layout)
    head, plain = prompt.drawing(words), prompt.parts(NOTHING_ASKED)[0]
    how, signal = ecg_generation.Sampling(temperature, top_p, seed, guidance), tokenizer.signal
    said = [
        f"Generated by ecgbyte: no recording of a patient. {model_folder.NOTICE}",
        f"Drawn from the words: {words}",
    ]
    said += [f"Model: {folder.resolve().name} {settings['model'][:16]}"]
    said += [f"Temperature: {temperature:g}, top-p {top_p:g}, guidance {guidance:g}"]
    paths = [out / f"drawn{number:05d}" for number in range(1, records + 1)]
    if overwrite:
        for path in [*out.glob("drawn*.hea"), *out.glob("drawn*.dat")]:
            path.unlink()
    # the settings first: what is drawn before a stop is kept, and is known for what it is
    write_json(out / SAID, {"settings": settings, "result": None}, indent=1)
    todo = [number for number, path in enumerate(paths) if not path.with_suffix(".hea").exists()]
    if len(todo) < records:
        note(f"{out}: going on, {records - len(todo)} of {records} ECGs are there")
    with progress("draw", len(todo), "ECGs") as bar:
        drawn = ecg_generation.generate_ecgs(lm, tokenizer, head, todo, how, bar=bar, plain=plain)
        for number, ids in zip(todo, drawn, strict=True):
            mv = consistent(tokenizer.to_mv(tokenizer.decode(ids)), signal["leads"])
            write_record(out, paths[number].name, mv, signal, [*said, f"Seed: {seed}, number {number + 1}"])
    picture(out / PICTURE, paths[:SHOWN], words)
    result = {"records": records, "files": str(out), "picture": str(out / PICTURE)}
    result["seconds"] = round(time.perf_counter() - start, 3)
    write_json(out / SAID, {"settings": settings, "result": result}, indent=1)
    return result


def check(words, about, folder):
    """Refuse words that a model was not trained to draw."""
    known = about.get("draws")
    if not known:
        raise Failure(
            f"{folder_checks.display_name(folder)} was not trained to draw: train one with "
            "`ecgbyte finetune --draw TYPE`"
        )
    tokenizer = ECGTokenizer.from_file(folder / "ecg_tokenizer.json")
    if not tokenizer.has_size:
        name = tokenizer.signal["quantizer"]["name"]
        raise Failure(
            f"{folder} reads letters of the quantizer {name}, which have no size in mV of their own: none can be drawn"
        )
    if not words.strip() or any("\ud800" <= letter <= "\udfff" for letter in words):
        raise Failure("the words say nothing that can be drawn")
    if words not in known:
        first = "; ".join(known[:12]) + (f"; and {len(known) - 12} more" if len(known) > 12 else "")
        if about["base"] == "tiny":  # it knows no words but those
            raise Failure(f'{folder} was not trained to draw "{words}"; it can draw: {first}')
        note(f'the model was not trained to draw "{words}", and may draw anything; it was on: {first}')


def consistent(signal, leads):
    """A signal whose limb leads agree: III, aVR, aVL and aVF are derived, where I and II are there too."""
    if not {"I", "II"} <= {*leads}:
        return signal
    own = [i for i, lead in enumerate(leads) if lead not in preprocess.DERIVED]
    return preprocess.pick(readers.Recording(signal[own], 0, [leads[i] for i in own], "", ""), leads)


def picture(path, paths, words):
    """Draw lead II, or the first, of some ECGs, one under another."""
    from ecgbyte_cli.render import figures

    drawn = [readers.read_recording(f"{path}.hea") for path in paths]
    leads, fs = drawn[0].leads, drawn[0].fs
    at = leads.index("II") if "II" in leads else 0
    rows = np.stack([recording.signal[at] for recording in drawn])
    names = [f"{number}: lead {leads[at]}" for number in range(1, len(drawn) + 1)]
    title = f"{words}: generated by ecgbyte, no recording of a patient"
    figures.save_figure(figures.plot_sheet(rows, fs, names, title, 0.0, rows.shape[1] / fs), path)
