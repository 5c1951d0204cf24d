"""ecgbyte explain: measure how often each attribution method finds the true cause of an answer."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import loading_options, work_model_option
from ecgbyte_cli.cli.output import counted, note, print_result, progress, table
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.conversation import ECG
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.model.model_names import model_identity
from ecgbyte_cli.runtime.memory import reporting_out_of_memory
from ecgbyte_cli.signal.segment_lines import segment_lines
from ecgbyte_cli.storage.files import atomic_write, read_array, read_json, read_table, write_json
from ecgbyte_cli.storage.manifest import completed_result
from ecgbyte_cli.storage.workdir import WorkDir

if TYPE_CHECKING:
    from ecgbyte_cli.inference.attribution import Explainer

QUESTION = "What is the rhythm?"
STRETCH = 0.1  # seconds per window, for the pointing game and the deletion and insertion curves
Stretch = tuple[str, float, float]  # lead, start in s, end in s
FRACTIONS = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 1)
RANDOM = "random"


def _premature(comments: dict[str, str], leads: list[str]) -> list[Stretch]:
    """Return a premature beat, from the start of its QRS complex to the end of its T wave, in all leads."""
    return [(lead, t - 0.12, t + 0.40) for t in _numbers(comments["Premature beats"]) for lead in leads]


def _raised(comments: dict[str, str], leads: list[str]) -> list[Stretch]:
    """Return the ST segments and T waves, in the leads that are raised."""
    raised = [lead for lead in leads if lead in comments["Raised leads"].split()]
    return [(lead, t + 0.05, t + 0.30) for t in _numbers(comments["R peaks"]) for lead in raised]


def _no_p_wave(comments: dict[str, str], leads: list[str]) -> list[Stretch]:
    """Return the interval before each QRS complex where the P wave is missing, in all leads."""
    return [(lead, t - 0.22, t - 0.05) for t in _numbers(comments["R peaks"]) for lead in leads]


def _numbers(text: str) -> list[float]:
    return [] if text == "none" else [float(word) for word in text.split()]


# condition -> name of its cause, and the function that locates it: (lead, start in s, end in s)
CAUSES = {
    "premature ventricular complexes": ("early beat", _premature),
    "anterior ST elevation": ("ST", _raised),
    "atrial fibrillation": ("no P", _no_p_wave),
}


@dataclass(frozen=True)
class ExplainOptions:
    """Options of `ecgbyte explain`.

    Attributes
    ----------
    count : int
        Number of records, divided evenly among the causes.
    model, base : Path or None
        Model folder (None: the work folder's), and where its base model is now, if it has moved.
    device : str or None
    split : str
    batch : int
        Number of prompts computed together.
    seed : int
    overwrite : bool
    """

    count: int = 100
    model: Path | str | None = None
    base: Path | None = None
    device: str | None = None
    split: str = "test"
    batch: int = 16
    seed: int = 0
    overwrite: bool = False


@click.command(
    cls=Stage,
    short_help="Measure how well attributions find the cause of an answer.",
    epilog="Example: ecgbyte explain --records 3",
)
@click.option(
    "--records",
    "count",
    type=click.IntRange(1),
    default=ExplainOptions.count,
    show_default=True,
    help="Number of records, the same for each cause.",
)
@work_model_option
@loading_options
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default=ExplainOptions.split,
    show_default=True,
    help="Split of the records.",
)
@click.option(
    "--batch",
    type=click.IntRange(1),
    default=ExplainOptions.batch,
    show_default=True,
    help="Number of prompts computed together.",
)
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=ExplainOptions.seed,
    show_default=True,
    help="Random seed of the choice of records and of `random`.",
)
@click.option("--overwrite", is_flag=True, help="Replace the numbers of an earlier run.")
@click.pass_obj
def command(work: WorkDir, **options: Any) -> dict:
    """Measure how far the attribution of an answer can be trusted.

    On synthetic records the location of the cause is known: a premature beat, raised ST segments in known leads, the
    missing P wave of atrial fibrillation. The results for each method: the share of its attribution at that location,
    also relative to the share of the signal that the location covers; how often the 0.1 s with most attribution is
    inside it (pointing game); and the probability of the answer as the most important parts are flattened first
    (deletion: lower is better) or restored first (insertion: higher is better). `random` gives tokens random scores.
    """
    result = explain(work, ExplainOptions(**options))
    table(
        rows(result),
        header(result),
        title=f"{result['records']} synthetic records of split {result['split']}",
    )
    print_result(verdict(result))
    return result


def explain(work: WorkDir, options: ExplainOptions) -> dict:
    """Measure each attribution method on synthetic records.

    Parameters
    ----------
    work : WorkDir
    options : ExplainOptions

    Returns
    -------
    dict
        records, split, answered_right (number of right answers of the model; the right answer is attributed for all),
        covered (percent of the signal that the locations cover), methods (name mapped to `share` in percent, `times`
        (share over coverage), its `interval`, `pointing` in percent, `deletion` and `insertion` (area under the curve,
        0 to 1), `curves`, `seconds` per record, `by_cause`, and for `integrated` the `gap`: `median` and `largest`
        completeness gap of a record, in percent), seconds.

    Raises
    ------
    Failure
        If model or tokens are missing or do not fit together, or no record is synthetic.
    """
    start = time.perf_counter()
    session = Session.open(options.model or work.model, None, options.base, options.device)
    tokens = check(session, work)
    settings = {
        **model_identity(session.folder),
        "tokens": tokens["settings"],
        "records": options.count,
        "split": options.split,
        "seed": options.seed,
    }
    done = completed_result(work.explained, settings, options.overwrite, "measures")
    if done:
        return done
    session.load()
    segments = read_table(work.symbol_segments)
    signal, seed = session.tokenizer.signal, options.seed
    chosen = choose(segments, options.split, options.count, signal, seed, work.reading())
    measured, right = measure_records(session, work, segments, chosen, options.batch, seed)
    result = {
        "records": len(chosen),
        "split": options.split,
        "answered_right": right,
        "covered": float(np.mean([m["covered"] for m in measured])),
        "causes": [cause for cause, _ in CAUSES.values() if any(m["cause"] == cause for m in measured)],
        "fractions": list(FRACTIONS),
        "methods": {
            method: summary([m for m in measured if m["method"] == method], seed)
            for method in dict.fromkeys(m["method"] for m in measured)
        },
        "seconds": time.perf_counter() - start,
    }
    with atomic_write(work.explained_table) as beside:
        beside.write_text(markdown(result), encoding="utf-8")
    write_json(work.explained, {"settings": settings, "result": result}, indent=1)
    return result


def check(session: Session, work: WorkDir) -> dict:
    """Check that the work folder was encoded with the model's tokenizer; return the token settings."""
    tokens = read_json(work.need(work.token_settings, "encode"))
    if tokens["tokenizer_sha256"] != session.about["ecg_tokenizer_sha256"]:
        raise Failure(f"{session.folder} and {work.tokens} use different tokenizers")
    if session.segmenter != tokens["segmenter"]:
        raise Failure(
            f"{session.folder} was trained with --segmenter {session.segmenter}, but {work.tokens} was encoded "
            f"with {tokens['segmenter']}: run `ecgbyte encode` with the model's segmenter"
        )
    return tokens


def measure_records(
    session: Session,
    work: WorkDir,
    segments: dict,
    chosen: list[tuple[int, str, np.ndarray]],
    batch: int,
    seed: int,
) -> tuple[list[dict], int]:
    """Measure every method on every record; return the measures, and the number of right answers."""
    symbols, random = read_array(work.symbols), np.random.default_rng(seed)
    matched = session.match(QUESTION)
    question = matched.text if matched else QUESTION
    lines = segment_lines(work) if session.about.get("measured") else None
    explainer, measured, right = session.explainer(batch), [], 0
    with (
        progress("explain", len(chosen), "records") as bar,
        # smaller batches have been tried
        reporting_out_of_memory("for one prompt", "use a machine with more memory"),
    ):
        for i, condition, place in chosen:
            begin = segments["offset"][i]
            letters = np.array(symbols[begin : begin + place.size]).reshape(place.shape)
            ecg = ecg_of(session, segments, i, letters)
            if lines:
                ecg.line = lines[i]
            right += session.ask(ecg, QUESTION).answer == condition
            explainer.before = session.text_before([ecg])
            measured += measure_methods(explainer, letters, question, condition, place, random)
            bar.advance()
    return measured, int(right)


def ecg_of(session: Session, segments: dict, i: int, letters: np.ndarray) -> ECG:
    """Return the ECG of a segment of the work folder, from its letters, uint8 (leads, samples)."""
    tokenizer, start = session.tokenizer, float(segments["start"][i])
    signal = tokenizer.to_mv(letters, segments["lo"][i], segments["hi"][i])
    recording = readers.Recording(
        signal, tokenizer.signal["fs"], tokenizer.signal["leads"], segments["record"][i], segments["path"][i]
    )
    tokens = tokenizer.encode(letters, session.segmenter)
    return ECG(recording, [(start, signal)], 0, tokens, tokenizer)


def measure_methods(
    explainer: "Explainer",
    letters: np.ndarray,
    question: str,
    condition: str,
    place: np.ndarray,
    random: np.random.Generator,
) -> list[dict]:
    """Measure every attribution method, and random scores, on one record.

    Parameters
    ----------
    explainer : Explainer
    letters : numpy.ndarray
        uint8, (leads, samples).
    question, condition : str
        The question as worded in training, and the right answer.
    place : numpy.ndarray
        bool, (leads, samples): location of the cause.
    random : numpy.random.Generator
    """
    from ecgbyte_cli.evaluation import attribution_measures
    from ecgbyte_cli.inference import attribution

    width, measured = max(1, round(STRETCH * explainer.tokenizer.signal["fs"])), []
    for method in (*attribution.METHODS, RANDOM):
        began = time.perf_counter()
        case = explainer.case(letters, question, condition)
        if method == RANDOM:
            density = explainer.spread(case, random.random(case.at[0]))
        else:
            density = explainer.density_of(case, letters, question, condition, method)
        took = time.perf_counter() - began
        curves = attribution_measures.deletion_insertion_curves(
            explainer, letters, question, condition, density, width, FRACTIONS
        )
        measured.append(
            {
                "method": method,
                "cause": CAUSES[condition][0],
                "share": 100 * density[place].sum(),
                "covered": 100 * place.mean(),
                "hit": 100.0 * place[attribution_measures.peak_window(density, width)],
                "curves": curves,
                "gap": case.gap,
                "seconds": took,
            }
        )
    return measured


def choose(
    segments: dict, split: str, count: int, signal: dict, seed: int, reading: dict[str, Any]
) -> list[tuple[int, str, np.ndarray]]:
    """Draw records whose cause is known, divided evenly among the causes, with the location of the cause.

    `reading` holds the other arguments of `readers.read_recording` (see `WorkDir.reading`).

    Returns
    -------
    list of (int, str, numpy.ndarray)
        Segment, condition, and location: bool (leads, samples).
    """
    wanted = {condition: count // len(CAUSES) for condition in CAUSES}
    for condition in list(CAUSES)[: count % len(CAUSES)]:
        wanted[condition] += 1
    chosen, synthetic = [], False
    inside = np.flatnonzero(np.array(segments["split"]) == split)
    for i in np.random.default_rng(seed).permutation(inside):
        if not any(wanted.values()):
            break
        try:
            lines = readers.read_recording(segments["path"][i], **reading).comments
        except readers.Unusable as error:
            raise Failure(
                f"{segments['path'][i]}: {error.message}: `explain` reads the recordings again; "
                "put them back at this path"
            ) from error
        comments = dict(line.split(": ", 1) for line in lines if ": " in line)
        if not comments.get("Source", "").startswith("synthetic"):
            continue
        synthetic, condition = True, comments["Condition"]
        if wanted.get(condition):
            place = true_place(condition, comments, signal, float(segments["start"][i]))
            if place.any():
                chosen.append((int(i), condition, place))
                wanted[condition] -= 1
    if not chosen:
        what = (
            "one whose cause is in the leads that the model reads" if synthetic else "made by `ecgbyte synth`"
        )
        raise Failure(f"no record of split {split} is {what}: only such records have a known location")
    if any(wanted.values()):
        note(f"split {split} has only {counted(len(chosen), 'such record')} instead of {count}")
    return sorted(chosen, key=lambda item: item[0])


def true_place(condition: str, comments: dict[str, str], signal: dict, start: float) -> np.ndarray:
    """Return the location of a condition's cause: bool (leads, samples) of the segment that starts at `start` (s)."""
    leads, fs = signal["leads"], signal["fs"]
    place = np.zeros((len(leads), signal["samples"]), bool)
    for lead, begin, end in CAUSES[condition][1](comments, leads):
        first, last = (max(0, round((t - start) * fs)) for t in (begin, end))
        place[leads.index(lead), first:last] = True
    return place


def summary(measured: list[dict], seed: int) -> dict:
    """Return one method's means over the records."""
    share, covered = (np.array([m[key] for m in measured]) for key in ("share", "covered"))
    drawn = np.random.default_rng(seed).integers(0, len(measured), (2000, len(measured)))
    times = share[drawn].mean(1) / covered[drawn].mean(1)
    deleted, inserted = (np.mean([m["curves"][k] for m in measured], axis=0) for k in (0, 1))
    from ecgbyte_cli.evaluation.attribution_measures import area_under_curve

    by_cause = {}
    for cause in dict.fromkeys(m["cause"] for m in measured):
        of = [m for m in measured if m["cause"] == cause]
        mean = {key: float(np.mean([m[key] for m in of])) for key in ("share", "covered", "hit")}
        by_cause[cause] = {
            "records": len(of),
            "share": mean["share"],
            "covered": mean["covered"],
            "times": mean["share"] / mean["covered"],
            "pointing": mean["hit"],
        }
    gaps = [m["gap"] for m in measured if m["gap"] is not None]
    return {
        "share": float(share.mean()),
        "times": float(share.mean() / covered.mean()),
        "interval": [float(v) for v in np.percentile(times, [2.5, 97.5])],
        "pointing": float(np.mean([m["hit"] for m in measured])),
        "deletion": area_under_curve(FRACTIONS, deleted),
        "insertion": area_under_curve(FRACTIONS, inserted),
        "curves": {"deletion": deleted.tolist(), "insertion": inserted.tolist()},
        "seconds": float(np.mean([m["seconds"] for m in measured])),
        "by_cause": by_cause,
        **({"gap": {"median": float(np.median(gaps)), "largest": float(max(gaps))}} if gaps else {}),
    }


def header(result: dict) -> list[str]:
    """Return the names of the columns; by cause in the order of `CAUSES`."""
    return ["method", "share %", "times", "95 %", *result["causes"], "hit %", "del.", "ins."]


def rows(result: dict) -> list[list[str]]:
    """Return a row of strings for each method."""
    return [
        [
            name,
            f"{m['share']:.1f}",
            f"{m['times']:.2f}",
            "{:.1f}-{:.1f}".format(*m["interval"]),
            *(f"{m['by_cause'][c]['times']:.2f}" for c in result["causes"]),
            f"{m['pointing']:.0f}",
            f"{m['deletion']:.2f}",
            f"{m['insertion']:.2f}",
        ]
        for name, m in result["methods"].items()
    ]


def verdict(result: dict) -> str:
    """Summarize the table in a few lines."""
    methods = result["methods"]
    best = max((m for m in methods if m != RANDOM), key=lambda name: methods[name]["times"])
    return (
        f"The locations cover {result['covered']:.1f} % of the signal; {result['answered_right']} of "
        f"{result['records']} records answered right.\n"
        f"Most attribution at the true location: {best}, {methods[best]['times']:.2f} times its share of the signal "
        f"({RANDOM}: {methods[RANDOM]['times']:.2f}).\n"
        f"times: share over coverage, overall and by cause ({', '.join(result['causes'])}); hit: pointing game;\n"
        "del., ins.: areas under the deletion (low is good) and insertion (high is good) curves\n"
        "integrated: the scores miss the difference that the ECG makes by {median:.2g} % (median; largest "
        "{largest:.2g} %)".format(**methods["integrated"]["gap"])
    )


def markdown(result: dict) -> str:
    """Return the table and its summary as Markdown."""
    names = header(result)
    grid = [names, ["---", *["---:"] * (len(names) - 1)], *rows(result)]
    lines = ["| " + " | ".join(line) + " |" for line in grid]
    return "\n".join([f"# Attribution on {result['records']} records", "", *lines, "", verdict(result), ""])
