"""Run the experiments of docs/evidence.md, and write its tables, verdicts and charts.

    make evidence                                         # what is missing: see evidence_rows.py for the hours
    make evidence EVIDENCE="--rows 1"                     # the next training alone
    python examples/experiments/evidence.py --tables examples/experiments/results/    # only tables and charts

Runs evidence_rows.py on all of PTB-XL, LUDB and recordings of the PhysioNet Challenge 2021, and tradeoff_ptbxl.py and
places_ptbxl.py on PTB-XL at 500 Hz (or a part of it in the same layout). Each finished row is in RESULTS, and is not
repeated. Then it writes each table between its two marks in docs/evidence.md or EVIDENCE.md, and the charts
into docs/images/.

Until all rows with all recordings are there, the tables about them are those of two_stage.jsonl: an eighth of PTB-XL,
80 to 320 s. The same holds for the rows with a share of the recordings.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from evidence_rows import NAME, SECONDS, add_options, finished, wanted

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parent
NAMES = {
    "tokens": "ECG tokens, end to end (ECG-Byte)",
    "masked": "ResNet, masked pretraining, frozen + projection",
    "contrastive": "ResNet, contrastive pretraining, frozen + projection",
    "patches": "linear patches, no encoder (ELF)",
    "classifier": "ResNet classifier, no language model",
    "classifier, 8 leads": "the same with 8 leads",
}
COLOURS = dict(zip(NAMES, ("#0072b2", "#d55e00", "#e69f00", "#009e73", "#555555", "#aaaaaa"), strict=True))
MARGIN = 0.02  # of AUROC
RULE = (
    "A claim is shown if its whole 95 % interval is above the bound, refuted if all of it is below, and open "
    "otherwise. The bound is 0 for the gain over the best control. For a difference between two trainings it is "
    f"-{MARGIN}: a smaller loss counts as none. Intervals come from a bootstrap over patients, with the same draws for "
    "both trainings. Over two seeds they reach from the lowest to the highest end."
)
SHORT, LONG = min(SECONDS), max(SECONDS)
# claim, (arm, share, seconds), and what it is compared with: such a row, or the controls of one side
CLAIMS = (
    ("the answers come from the ECG (paper)", ("tokens", 1.0, LONG), "test"),
    ("a trained model works at other hospitals (ours)", ("tokens", 1.0, LONG), "elsewhere"),
    ("as good as a pretrained encoder (paper)", ("tokens", 1.0, LONG), ("contrastive", 1.0, LONG)),
    (
        "as good after a quarter of the time (paper: a third)",
        ("tokens", 1.0, SHORT),
        ("contrastive", 1.0, LONG),
    ),
    ("48 % of the data suffice (paper)", ("tokens", 0.48, LONG), ("tokens", 1.0, LONG)),
    ("12 % of the data suffice (ours)", ("tokens", 0.12, LONG), ("tokens", 1.0, LONG)),
    ("no encoder is needed (ELF)", ("patches", 1.0, LONG), ("contrastive", 1.0, LONG)),
    ("as good as a plain CNN (ours)", ("tokens", 1.0, LONG), ("classifier", 1.0, LONG)),
)
METHODS = ("integrated", "occlusion", "gradient", "attention", "rollout", "random")


def rows(folder, name):
    """The rows that a script left."""
    path = folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []


def grid(head, lines):
    """A Markdown table; the first column is text."""
    bars = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, bars, *lines])


def by_seed(values):
    """The mean over seeds, and each."""
    return f"{np.mean(values):.3f} ({', '.join(f'{value:.3f}' for value in values)})"


def span(found, key="interval"):
    """The 95 % interval by patient, mean over seeds."""
    low, high = np.mean([part[key] for part in found], axis=0)
    return f"{low:.3f} to {high:.3f}"


def grouped(made, *keys):
    """Rows by some of their keys, each a list over seeds."""
    groups = defaultdict(list)
    for row in sorted(made, key=lambda row: row["seed"]):
        groups[tuple(tuple(row[k]) if isinstance(row[k], list) else row[k] for k in keys)].append(row)
    return groups


def scores(found):
    """Cells: AUROC by seed, its interval, the best control, the gain and its interval."""
    best = [max(part["control"], key=part["control"].get) for part in found]
    control = np.mean([part["control"][name] for part, name in zip(found, best, strict=True)])
    return [
        by_seed([part["auroc"] for part in found]),
        span(found),
        f"{control:.3f} ({', '.join(dict.fromkeys(best))})",
        f"{np.mean([part['gain'] for part in found]):+.3f} ({span(found, 'gain_interval')})",
    ]


def brief(made):
    """A cell: AUROC by seed, or with its interval where there is one, and the gain over the best control."""
    found = [row["test"] for row in made]
    if len(found) > 1:
        area = by_seed([part["auroc"] for part in found])
    else:
        area = f"{found[0]['auroc']:.3f} ({span(found)})" if found else ""
    return f"{area}<br>gain {np.mean([part['gain'] for part in found]):+.3f}" if found else ""


def compared(folder):
    """The rows of the comparison: (with all recordings, with all or a share of them for the same time).

    The new rows if all that are planned are there, or if there are no earlier ones.
    """
    new, old = rows(folder, NAME), rows(folder, "two_stage")
    missing = set(wanted()) - set(finished(folder / f"{NAME}.jsonl"))
    whole = old if old and any(key.share == 1 for key in missing) else new
    part = old if old and missing else new
    seconds = {row["seconds"] for row in part if row["share"] < 1}
    return [row for row in whole if row["share"] == 1], [row for row in part if row["seconds"] in seconds]


def interval(first, other):
    """The interval of a difference between trainings, or of a gain; over seeds from the lowest to the highest end.

    `first` and `other` hold a row for each seed; `other` may name a side of `first` instead.
    """
    if isinstance(other, str):
        ends = [row[other]["gain_interval"] for row in first.values()]
        middle = np.mean([row[other]["gain"] for row in first.values()])
    else:
        both = sorted(first.keys() & other.keys())
        draws = [[of[seed]["test"]["draws"] for seed in both] for of in (first, other)]
        ends = np.percentile(np.subtract(*map(np.array, draws)), [2.5, 97.5], axis=1).T
        middle = np.mean([first[seed]["test"]["auroc"] - other[seed]["test"]["auroc"] for seed in both])
    return middle, min(low for low, _ in ends), max(high for _, high in ends)


def verdict(low, high, bound):
    """What an interval says of a claim: see RULE."""
    return "shown" if low > bound else "refuted" if high < bound else "open"


def verdicts(folder):
    """The table of the claims that the new rows decide, with the rule."""
    by_key = defaultdict(dict)
    for row in rows(folder, NAME):
        by_key[row["arm"], row["share"], row["seconds"]][row["seed"]] = row
    lines = []
    for claim, key, other in CLAIMS:
        first, second = by_key.get(key), other if isinstance(other, str) else by_key.get(other)
        if not first or not second:
            lines.append([claim, "not yet run", ""])
            continue
        middle, low, high = interval(first, second)
        bound = 0.0 if isinstance(other, str) else -MARGIN
        lines.append([claim, f"{middle:+.3f} ({low:+.3f} to {high:+.3f})", verdict(low, high, bound)])
    if not by_key:
        return {}
    return {"verdicts": grid(["claim", "difference of AUROC (95 %)", "verdict"], lines) + f"\n\n{RULE}"}


def comparison(folder):
    """Tables of the comparison: by time, at the longest time with controls, by share of the recordings, elsewhere."""
    made, part = compared(folder)
    if not made:
        return {}
    whole = grouped(made, "arm", "seconds")
    budgets = sorted({seconds for _, seconds in whole})
    time = [
        [NAMES[arm], *(brief(whole.get((arm, s), [])) for s in budgets)]
        for arm in NAMES
        if any((arm, s) in whole for s in budgets)
    ]
    last = [(arm, whole[arm, budgets[-1]]) for arm in NAMES if (arm, budgets[-1]) in whole]
    controls = [
        [NAMES[arm], f"{of[0].get('first_steps', '')}", of[0]["steps"], *scores([row["test"] for row in of])]
        for arm, of in last
    ]
    elsewhere = [
        [NAMES[arm], *scores([row["elsewhere"] for row in of])] for arm, of in last if "elsewhere" in of[0]
    ]
    head = ["AUROC", "95 % by patient", "best control", "gain over it"]
    tables = {
        "time": grid(["AUROC, fold 10 (by seed)", *(f"{s:.0f} s" for s in budgets)], time),
        "controls": grid([f"after {budgets[-1]:.0f} s", "steps, stage 1", "stage 2", *head], controls),
        "elsewhere": grid([f"after {budgets[-1]:.0f} s, other hospitals", *head], elsewhere),
        "headline": grid(
            ["model", "AUROC", "95 %", "best control", "gain"],
            [[name, *cells] for name, _, _, *cells in controls],
        ),
    }
    if part:
        groups = grouped(part, "arm", "share")
        shares = sorted({share for _, share in groups})
        data = [
            [NAMES[arm], *(brief(groups.get((arm, s), [])) for s in shares)]
            for arm in NAMES
            if any((arm, s) in groups for s in shares if s < 1)
        ]
        title = f"AUROC, fold 10, after {part[0]['seconds']:.0f} s"
        tables["shares"] = grid([title, *(f"{100 * s:.0f} %" for s in shares)], data)
    return tables


def chart(folder, path, wide):
    """AUROC against seconds, or against the share of the recordings."""
    made, part = compared(folder)
    budgets = sorted({row["seconds"] for row in made})
    if not budgets:
        return
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for axis, key, some in (
        (axes[0], "seconds", made),
        (axes[1], "share", part),
    ):
        for arm in NAMES:
            groups = grouped([row for row in some if row["arm"] == arm], key)
            at = sorted(groups)
            if not at:
                continue
            values = [[row["test"]["auroc"] for row in groups[x]] for x in at]
            x = [100 * value if key == "share" else value for (value,) in at]
            axis.plot(x, [np.mean(v) for v in values], "-o", ms=4, color=COLOURS[arm], label=NAMES[arm])
            for place, of in zip(x, values, strict=True):
                axis.plot([place] * len(of), of, ".", ms=5, color=COLOURS[arm], alpha=0.5)
        axis.set_xscale("log")
        axis.grid(alpha=0.3)
        ticks = budgets if key == "seconds" else sorted({100 * row["share"] for row in some})
        axis.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
        axis.minorticks_off()
    axes[0].set_xlabel("seconds of one thread, pretraining included")
    axes[1].set_xlabel("% of the training recordings" + (f", {part[0]['seconds']:.0f} s" if part else ""))
    axes[0].set_ylabel("mean AUROC over findings, fold 10")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=wide)
    pyplot.close(figure)


def ranks(values):
    """Ranks from 1, the mean of them where values are alike."""
    values = np.asarray(values)
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def tradeoff(folder):
    """The table of tokenizers, and how well each cheap figure predicts AUROC (Spearman's rank correlation)."""
    groups = grouped(rows(folder, "tradeoff"), "key")
    if not groups:
        return {}
    lines, figures = [], []
    for ((quantizer, levels, vocab),), of in groups.items():
        one, bits = of[0], np.mean([row["bits"] for row in of])
        lines.append(
            [
                f"`{quantizer}`, {levels}",
                f"{vocab:,}",
                f"{one['tokens']:.0f}",
                f"{one['prd']:.1f}",
                f"{bits:.1f}",
            ]
            + [one["steps"], *scores([row["test"] for row in of])]
        )
        area = np.mean([row["test"]["auroc"] for row in of])
        figures.append([one["tokens"], one["prd"], bits, vocab, one["steps"], area])
    head = ["quantizer, levels", "vocabulary", "tokens an ECG", "PRD, %", "bits/s and lead", "steps"]
    made = np.array(figures, float)
    drawn = np.random.default_rng(0).integers(0, len(made), (2000, len(made)))
    told = []
    for number, name in enumerate(
        ("tokens an ECG", "PRD", "bits per second and lead", "vocabulary", "steps")
    ):

        def agree(some, number=number):
            with np.errstate(invalid="ignore", divide="ignore"):  # NaN where all are alike
                return np.corrcoef(ranks(some[:, number]), ranks(some[:, -1]))[0, 1]

        found = [value for value in (agree(made[index]) for index in drawn) if np.isfinite(value)]
        if found:
            low, high = np.percentile(found, [2.5, 97.5])
            told.append([name, f"{agree(made):+.2f}", f"{low:+.2f} to {high:+.2f}"])
    return {
        "tokenizers": grid([*head, "AUROC", "95 % by patient", "best control", "gain over it"], lines),
        "predicts": grid(["measure", "rank correlation with AUROC", "95 % over tokenizers"], told),
    }


def mean_span(values):
    """A mean, and its 95 % bootstrap interval over recordings."""
    values = np.asarray(values, float)
    drawn = values[np.random.default_rng(0).integers(0, len(values), (2000, len(values)))].mean(1)
    return f"{values.mean():.1f} ({np.percentile(drawn, 2.5):.1f} to {np.percentile(drawn, 97.5):.1f})"


def hospitals(folder):
    """The table of what the merges of PTB-XL make of recordings from elsewhere."""
    groups = defaultdict(list)
    for row in rows(folder, "hospitals"):
        groups[row["source"], tuple(row["key"])].append(row)
    if not groups:
        return {}
    lines = [
        [source, f"`{quantizer}`, {levels}, {vocab:,}", len(of)]
        + [mean_span([row[key] for row in of]) for key in ("tokens", "noise", "prd")]
        for (source, (quantizer, levels, vocab)), of in sorted(groups.items(), key=lambda item: item[0][1])
    ]
    head = [
        "recordings",
        "quantizer, levels, vocabulary",
        "number",
        "tokens an ECG",
        "of such noise",
        "PRD, %",
    ]
    return {"hospitals": grid(head, lines)}


def times(of, method, draws=2000):
    """Share of the attribution on the place over the share that it covers, with its interval over recordings."""
    share = np.array([row["share"][method] for row in of])
    covered = np.array([row["covered"] for row in of])
    index = np.random.default_rng(0).integers(0, len(of), (draws, len(of)))
    low, high = np.percentile(share[index].sum(1) / covered[index].sum(1), [2.5, 97.5])
    return share.sum() / covered.sum(), low, high


def places(folder):
    """The table of attribution on places."""
    from places_ptbxl import PLACES

    groups = defaultdict(list)
    for row in rows(folder, "places"):
        if "share" in row:
            groups[row["finding"]].append(row)
            groups["all"].append(row)
    if not groups:
        return {}
    lines = []
    for finding in [*PLACES, "all"]:
        of = groups.get(finding)
        if of:
            right = sum(row["answer"] == "yes" for row in of)
            covered = 100 * np.mean([row["covered"] for row in of])
            cells = ["{:.2f} ({:.1f}-{:.1f})".format(*times(of, method)) for method in METHODS]
            what = f"{finding}: {PLACES[finding]}" if finding in PLACES else "all"
            lines.append([what, f"{right} of {len(of)}", f"{covered:.0f}", *cells])
    return {"places": grid(["finding: place", "answered yes", "covers, %", *METHODS], lines)}


def places_chart(folder, path, wide):
    """Times the covered share, by finding and method."""
    from places_ptbxl import PLACES

    made = [row for row in rows(folder, "places") if "share" in row]
    if not made:
        return
    figure, axis = pyplot.subplots(figsize=(10, 3.6), layout="constrained")
    names = [finding for finding in PLACES if any(row["finding"] == finding for row in made)]
    for number, method in enumerate(METHODS):
        found = [times([row for row in made if row["finding"] == name], method) for name in names]
        at = np.arange(len(names)) + (number - 2.5) * 0.13
        middle, low, high = np.array(found).T
        colour = "#999999" if method == "random" else f"C{number}"
        axis.bar(at, middle, 0.12, color=colour, label=method)
        axis.errorbar(at, middle, [middle - low, high - middle], fmt="none", ecolor="black", lw=0.7)
    axis.axhline(1, color="black", lw=0.8)
    axis.set_xticks(np.arange(len(names)), names)
    axis.set_ylabel("attribution on the place /\nshare of the signal")
    axis.legend(ncols=6, fontsize=8, frameon=False)
    figure.savefig(path, dpi=wide)
    pyplot.close(figure)


def write(folder, pages):
    """Put every table that can be made into the pages that have a place for it, and draw the charts by the first."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    for make in (comparison, verdicts, tradeoff, hospitals, places):
        for name, made in make(folder).items():
            begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
            if not any(begin in text for text in texts.values()):
                print(f"{pages[0]} has no place for the table {name} ({begin}):\n\n{made}\n")
            for page, text in texts.items():
                if begin in text:
                    before, rest = text.split(begin, 1)
                    texts[page] = f"{before}{begin}\n\n{made}\n\n{end}{rest.split(end, 1)[1]}"
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")
    images = pages[0].parent / "images"
    images.mkdir(exist_ok=True)
    chart(folder, images / "evidence.png", 110)
    places_chart(folder, images / "evidence-places.png", 110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument(
        "--part", type=Path, help="PTB-XL at 500 Hz, for tokenizers and places  [default: data]"
    )
    parser.add_argument(
        "--page", type=Path, help="where the tables go  [default: docs/evidence.md, and EVIDENCE.md]"
    )
    parser.add_argument("--tokenizers", default="8", help="the first so many of tradeoff_ptbxl.py")
    parser.add_argument(
        "--tokenizer-seconds", default="160", help="time of each training of tradeoff_ptbxl.py"
    )
    parser.add_argument("--records", default="16", help="of each finding, of places_ptbxl.py")
    parser.add_argument("--tables", type=Path, help="make the tables alone, from the rows in this folder")
    options = parser.parse_args()
    root = ROOT.parent.parent
    pages = [options.page] if options.page else [root / "docs" / "evidence.md", ROOT / "EVIDENCE.md"]
    if options.tables:
        write(options.tables, pages)
        return
    if not (options.data and options.ludb and options.challenge):
        parser.error("give PTB-XL's folder, --ludb and --challenge, or --tables")

    def run(script, data, *given):
        command = [sys.executable, ROOT / f"{script}.py", data, "--results", options.results, *given]
        subprocess.run(list(map(str, command)), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    limits = [f"--{name}={getattr(options, name)}" for name in ("seconds", "shares", "seeds", "hours")]
    limits += [] if options.rows is None else [f"--rows={options.rows}"]
    run(
        *("evidence_rows", options.data, "--out", options.out, *limits),
        *("--ludb", options.ludb, "--challenge", options.challenge),
    )
    part = options.part or options.data
    run(
        *("tradeoff_ptbxl", part, "--out", options.out / "tokenizers", "--elsewhere", options.challenge),
        *("--rows", options.tokenizers, "--seconds", options.tokenizer_seconds),
    )
    run("places_ptbxl", part, "--records", options.records)
    write(options.results, pages)


if __name__ == "__main__":
    main()
