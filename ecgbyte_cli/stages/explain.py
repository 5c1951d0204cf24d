"""ecgbyte explain: how often each attribution method points at the true cause of an answer."""

import time

import click
import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import Stage
from ecgbyte_cli.cli.options import base_option
from ecgbyte_cli.cli.output import note, print_result, progress, table
from ecgbyte_cli.cli.spelling import Model
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.runtime.memory import reporting_out_of_memory
from ecgbyte_cli.storage.files import atomic_write, read_array, read_json, read_table, write_json
from ecgbyte_cli.storage.manifest import completed_result

QUESTION = "What is the rhythm?"
STRETCH = 0.1  # seconds: what a method points at, and what the curves delete and insert
FRACTIONS = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 1)
RANDOM = "random"


def _premature(comments, leads):
    """A premature beat, from the start of its QRS complex to the end of its T wave, in all leads."""
    return [(lead, t - 0.12, t + 0.40) for t in _numbers(comments["Premature beats"]) for lead in leads]


def _raised(comments, leads):
    """The ST segments and T waves, in the leads that are raised."""
    raised = [lead for lead in leads if lead in comments["Raised leads"].split()]
    return [(lead, t + 0.05, t + 0.30) for t in _numbers(comments["R peaks"]) for lead in raised]


def _no_p_wave(comments, leads):
    """The place before each QRS complex where the P wave is missing, in all leads."""
    return [(lead, t - 0.22, t - 0.05) for t in _numbers(comments["R peaks"]) for lead in leads]


def _numbers(text):
    return [] if text == "none" else [float(word) for word in text.split()]


# condition -> what its cause is called, and where it lies: (lead, from s, to s)
CAUSES = {
    "premature ventricular complexes": ("early beat", _premature),
    "anterior ST elevation": ("ST", _raised),
    "atrial fibrillation": ("no P", _no_p_wave),
}


@click.command(
    cls=Stage,
    short_help="Measure which attribution points at the true cause.",
    epilog="Example: ecgbyte explain --records 3",
)
@click.option(
    "--records",
    "count",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="How many, as many of each cause.",
)
@click.option("--model", type=Model(), help="Model folder.  [default: the work folder's]")
@base_option
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    default="test",
    show_default=True,
    help="Which records.",
)
@click.option(
    "--batch", type=click.IntRange(1), default=16, show_default=True, help="Prompts computed together."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the records and of `random`."
)
@click.option("--overwrite", is_flag=True, help="Replace the numbers of an earlier run.")
@click.pass_obj
def command(work, **options):
    """Measure how well pictures of what a model looked at can be believed.

    On synthetic records the cause of the answer is at a known place: a premature beat, raised ST segments in known
    leads, the missing P wave of atrial fibrillation. For each method: the share of its attribution that falls on
    the place, how many times the share of the signal that the place covers; how often the stretch of 0.1 s with
    most attribution lies in it (pointing game); and how likely the answer stays as what matters most is made flat
    first (deletion: lower is better) or comes back first (insertion: higher is better). `random` scores tokens by
    chance.
    """
    result = explain(work, **options)
    table(
        rows(result),
        header(result),
        title=f"{result['records']} synthetic records of split {result['split']}",
    )
    print_result(verdict(result))
    return result


def explain(work, *, count=100, model=None, base=None, split="test", batch=16, seed=0, overwrite=False):
    """Measure each attribution method on synthetic records.

    Parameters
    ----------
    work : WorkDir
    count : int
        Records; of each cause as many.
    model : Path or None
        Model folder; None is the work folder's.
    base : Path or None
        Where its base model is, if that has moved.
    split : str
    batch : int
        Prompts computed together.
    seed : int
    overwrite : bool

    Returns
    -------
    dict
        records, split, answered_right (how many of them the model answers right: the attribution is that of the
        right answer, for all), covered (percent of the signal that the places cover), methods (name to `share`
        in percent, `times` (share over coverage), `interval` of it, `pointing` in percent, `deletion` and
        `insertion` (area under the curve, 0 to 1), `curves`, `seconds` a record, `by_cause`, and for
        `integrated` `gap`: `median` and `largest` completeness gap of a record, in percent), seconds.

    Raises
    ------
    Failure
        If model or tokens are missing or do not fit together, or no record is synthetic.
    """
    start = time.perf_counter()
    from ecgbyte_cli.model import folder_checks

    model = folder_checks.resolve_model_folder(model or work.model)
    about, encoded = folder_checks.read_about(model), read_json(work.need(work.token_settings, "encode"))
    if encoded["tokenizer_sha256"] != about["ecg_tokenizer_sha256"]:
        raise Failure(f"{model} was trained with another tokenizer than {work.tokens} was encoded with")
    settings = {
        "model": folder_checks.model_sha256(model),
        "tokens": encoded["settings"],
        "records": count,
        "split": split,
        "seed": seed,
    }
    done = completed_result(work.explained, settings, overwrite, "measures")
    if done:
        return done

    if about["segmenter"] != encoded["segmenter"]:
        raise Failure(
            f"{model} was trained on tokens of --segmenter {about['segmenter']}, and {work.tokens} has those of "
            f"{encoded['segmenter']}: encode with the model's"
        )
    from ecgbyte_cli.inference import attribution
    from ecgbyte_cli.model import model_folder
    from ecgbyte_cli.model.prompt import Prompt

    lm, text_tokenizer, tokenizer, _ = model_folder.load_model(model, base=base)
    prompt = Prompt.of(about, text_tokenizer, lm.layout)
    explainer = attribution.Explainer(
        lm, prompt, tokenizer, about["segmenter"], batch, about.get("prompt_tokens")
    )
    segments, symbols = read_table(work.symbol_segments), read_array(work.symbols)
    chosen = choose(segments, split, count, tokenizer.signal, seed, work.reading())
    width = max(1, round(STRETCH * tokenizer.signal["fs"]))
    random = np.random.default_rng(seed)

    measured, right = [], 0
    with (
        progress("explain", len(chosen), "records") as bar,
        reporting_out_of_memory(
            "for one prompt", "use a machine with more memory"
        ),  # smaller batches were tried
    ):
        for i, condition, place in chosen:
            begin = segments["offset"][i]
            letters = np.array(symbols[begin : begin + place.size]).reshape(place.shape)
            right += explainer.answer(letters, QUESTION) == condition
            for method in (*attribution.METHODS, RANDOM):
                began = time.perf_counter()
                case = explainer.case(letters, QUESTION, condition)
                if method == RANDOM:
                    density = explainer.spread(case, random.random(case.at[0]))
                else:
                    density = explainer.density_of(case, letters, QUESTION, condition, method)
                took = time.perf_counter() - began
                measured.append(
                    {
                        "method": method,
                        "cause": CAUSES[condition][0],
                        "share": 100 * density[place].sum(),
                        "covered": 100 * place.mean(),
                        "hit": 100.0 * place[attribution.peak_window(density, width)],
                        "curves": attribution.deletion_insertion_curves(
                            explainer, letters, QUESTION, condition, density, width, FRACTIONS
                        ),
                        "gap": case.gap,
                        "seconds": took,
                    }
                )
            bar.advance()
    result = {
        "records": len(chosen),
        "split": split,
        "answered_right": int(right),
        "covered": float(np.mean([m["covered"] for m in measured])),
        "causes": [cause for cause, _ in CAUSES.values() if any(m["cause"] == cause for m in measured)],
        "fractions": list(FRACTIONS),
        "methods": {
            method: summary([m for m in measured if m["method"] == method], seed)
            for method in (*attribution.METHODS, RANDOM)
        },
        "seconds": time.perf_counter() - start,
    }
    with atomic_write(work.explained_table) as beside:
        beside.write_text(markdown(result), encoding="utf-8")
    write_json(work.explained, {"settings": settings, "result": result}, indent=1)
    return result


def choose(segments, split, count, signal, seed, reading):
    """Draw records whose cause is known, as many of each cause, and say where it lies.

    `reading` is what `readers.read_recording` was told about the recordings (see `WorkDir.reading`).

    Returns
    -------
    list of (int, str, numpy.ndarray)
        Segment, condition, and the place: bool (leads, samples).
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
                f"{segments['path'][i]}: {error.message}: explain reads the recordings again, "
                "put them back where `ecgbyte symbolize` found them"
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
            "with a known cause in the leads that the model reads"
            if synthetic
            else "that `ecgbyte synth` made"
        )
        raise Failure(f"no record of split {split} is one {what}: only there is the true place known")
    if any(wanted.values()):
        note(f"only {len(chosen)} of {count} records are there: split {split} has no more")
    return sorted(chosen, key=lambda item: item[0])


def true_place(condition, comments, signal, start):
    """Where the cause of a condition lies: bool (leads, samples) of the segment that begins at `start` (s)."""
    leads, fs = signal["leads"], signal["fs"]
    place = np.zeros((len(leads), signal["samples"]), bool)
    for lead, begin, end in CAUSES[condition][1](comments, leads):
        first, last = (max(0, round((t - start) * fs)) for t in (begin, end))
        place[leads.index(lead), first:last] = True
    return place


def summary(measured, seed):
    """The means of one method over the records."""
    share, covered = (np.array([m[key] for m in measured]) for key in ("share", "covered"))
    drawn = np.random.default_rng(seed).integers(0, len(measured), (2000, len(measured)))
    times = share[drawn].mean(1) / covered[drawn].mean(1)
    deleted, inserted = (np.mean([m["curves"][k] for m in measured], axis=0) for k in (0, 1))
    from ecgbyte_cli.inference.attribution import area_under_curve

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


def header(result):
    """Names of the columns; by cause in the order of `CAUSES`."""
    return ["method", "share %", "times", "95 %", *result["causes"], "hit %", "del.", "ins."]


def rows(result):
    """A row of strings for each method."""
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


def verdict(result):
    """What the table says, in a few lines."""
    methods = result["methods"]
    best = max((m for m in methods if m != RANDOM), key=lambda name: methods[name]["times"])
    return (
        f"The places cover {result['covered']:.1f} % of the signal; {result['answered_right']} of "
        f"{result['records']} records answered right.\n"
        f"Most of it on the true place: {best}, {methods[best]['times']:.2f} times its share of the signal "
        f"({RANDOM}: {methods[RANDOM]['times']:.2f}).\n"
        f"times: share over coverage, of all and by cause ({', '.join(result['causes'])}); hit: pointing game;\n"
        "del., ins.: areas under the deletion (low is good) and insertion (high is good) curves\n"
        "integrated: sums to the difference that the ECG makes but for {median:.2g} % (median; largest "
        "{largest:.2g} %)".format(**methods["integrated"]["gap"])
    )


def markdown(result):
    """The table and what it says, as Markdown."""
    names = header(result)
    grid = [names, ["---", *["---:"] * (len(names) - 1)], *rows(result)]
    lines = ["| " + " | ".join(line) + " |" for line in grid]
    return "\n".join([f"# Attribution on {result['records']} records", "", *lines, "", verdict(result), ""])
