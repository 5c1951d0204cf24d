"""Check `ecgbyte controls` and `ecgbyte score` on models whose gains are known in advance.

    OMP_NUM_THREADS=1 python examples/experiments/controls_ptbxl.py ptb-xl/ --out controls/

Three models answer yes/no questions about the eighteen findings of findings.csv on recordings of fold 10:

- cnn: a small 1D ResNet, trained on a few hundred recordings of folds 1 to 8
- shuffled: the same network, trained with each recording's labels given to another recording
- majority: the most frequent answer of training to each question

Each writes an answer file: record, question, answer, p_yes, about the recordings and about every twin. Each is scored
by the command line alone. The gain of `cnn` over the best control must lie above 0; the intervals of the other two must
hold 0. The scores go to OUT/controls.json, and a table to standard output. All takes a minute of one quiet core.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from two_stage import ResNet

from ecgbyte_cli import read
from ecgbyte_cli.questions.findings import FINDINGS
from ecgbyte_cli.signal.preprocess import LEADS, pick

EPOCHS, BATCH, SEED = 30, 32, 0


def ecgbyte(*words):
    """Run a command line, and return its result."""
    command = [sys.executable, "-m", "ecgbyte_cli", *map(str, words), "--json"]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def lines_of(path):
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def choose(questions, train, test):
    """The questions about the eighteen findings: those about some recordings to train, and some of fold 10."""
    asked = [q for q in questions if q.get("finding") in FINDINGS and q["type"] == "finding-verify"]
    random = np.random.default_rng(SEED)
    kept = []
    for split, count in (("train", train), ("test", test)):
        records = sorted({q["record"] for q in asked if q["split"] == split})
        some = {records[i] for i in random.permutation(len(records))[:count]}
        kept += [q for q in asked if q["split"] == split and q["record"] in some]
    return kept


def signal_of(path):
    """The twelve leads of a recording in mV, each without its median: float32 (12, samples)."""
    signal = pick(read(path), LEADS)
    return signal - np.median(signal, axis=1, keepdims=True)


def labels_of(questions, records, names):
    """1 for yes, 0 for no and NaN where nothing is asked: (records, findings)."""
    labels = np.full((len(records), len(names)), np.nan, np.float32)
    rows, columns = ({name: i for i, name in enumerate(of)} for of in (records, names))
    for q in questions:
        labels[rows[q["record"]], columns[q["finding"]]] = q["answer"] == "yes"
    return labels


class Network(nn.Module):
    """A ResNet, the mean over time, and a chance for each finding."""

    def __init__(self, findings):
        super().__init__()
        self.body, self.head = ResNet(len(LEADS)), nn.Linear(128, findings)

    def forward(self, x):
        return self.head(functional.dropout(self.body(x).mean(1), 0.3, self.training))


def trained(signals, labels):
    """A network trained on signals (records, 12, samples) and labels (records, findings)."""
    torch.manual_seed(SEED)
    random, network = np.random.default_rng(SEED), Network(labels.shape[1])
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = EPOCHS * (len(signals) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    known = ~np.isnan(labels)
    for _ in range(EPOCHS):
        order = random.permutation(len(signals))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            some = order[start : start + BATCH]
            # another beginning and another size: neither changes a finding much
            x = torch.roll(torch.from_numpy(signals[some]), int(random.integers(signals.shape[2])), 2)
            x = x * torch.from_numpy(random.uniform(0.7, 1.3, (len(some), 1, 1)).astype(np.float32))
            mask = torch.from_numpy(known[some])
            loss = functional.binary_cross_entropy_with_logits(
                network(x)[mask], torch.from_numpy(labels[some])[mask]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def chances(network, signals):
    """P(yes) of each finding: (records, findings)."""
    return np.concatenate(
        [network(torch.from_numpy(signals[i : i + 64])).sigmoid().numpy() for i in range(0, len(signals), 64)]
    )


def write_answers(path, asked, answer):
    """Write an answer file; `answer` takes a question, and returns yes or no and P(yes)."""
    with open(path, "w", encoding="utf-8") as file:
        for q in asked:
            said, yes = answer(q)
            line = {
                "record": q["record"],
                "question": q["question"],
                "answer": said,
                "p_yes": round(float(yes), 6),
            }
            file.write(json.dumps(line) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", type=int, default=500, help="recordings to train on")
    parser.add_argument("--test", type=int, default=600, help="recordings of fold 10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    ecgbyte("questions", options.data, "--out", out / "all.jsonl")
    questions = choose(lines_of(out / "all.jsonl"), options.train, options.test)
    tested = "".join(json.dumps(q) + "\n" for q in questions if q["split"] == "test")
    (out / "qa.jsonl").write_text(tested, encoding="utf-8")
    made = ecgbyte(
        "controls", options.data, "--qa", out / "qa.jsonl", "--out", out / "twins", "--forms", "wfdb"
    )
    print(f"{made['records']} recordings, {made['questions']} questions", file=sys.stderr)

    training = [q for q in questions if q["split"] == "train"]
    names, records = list(FINDINGS), sorted({q["record"] for q in training})
    paths = {path.stem[:5]: path for path in options.data.rglob("*.hea")}  # 00001_hr or 00001_lr
    signals, labels = (
        np.stack([signal_of(paths[name[:5]]) for name in records]),
        labels_of(training, records, names),
    )
    prevalence = np.nanmean(labels, axis=0)  # a finding is answered with yes above it
    often = {name: Counter(q["answer"] for q in training if q["finding"] == name) for name in names}

    asked = lines_of(out / "twins" / "questions-wfdb.jsonl")
    finding = {q["question"]: q["finding"] for q in questions}
    twins = sorted({q["record"] for q in asked})
    row = {name: i for i, name in enumerate(twins)}
    seen = np.stack([signal_of(out / "twins" / "wfdb" / f"{name}.hea") for name in twins])

    def by_network(labels_given):
        given = chances(trained(signals, labels_given), seen)

        def answer(q):
            column = names.index(finding[q["question"]])
            yes = given[row[q["record"]], column]
            return ("yes" if yes > prevalence[column] else "no"), yes

        return answer

    def majority(q):
        counts = often[finding[q["question"]]]
        return counts.most_common(1)[0][0], counts["yes"] / counts.total()

    shuffled = labels[np.random.default_rng(SEED).permutation(len(labels))]
    results = {}
    for name, answer in (
        ("cnn", by_network(labels)),
        ("shuffled", by_network(shuffled)),
        ("majority", majority),
    ):
        write_answers(out / f"{name}.jsonl", asked, answer)
        results[name] = ecgbyte(
            "score", out / f"{name}.jsonl", "--qa", out / "twins" / "questions-wfdb.jsonl"
        )
        keys = (
            "questions",
            "patients",
            "exact_match",
            "interval",
            "difference",
            "difference_interval",
            "gain",
        )
        results[name] = {
            key: results[name][key] for key in (*keys, "mean_auroc", "mean_auroc_interval", "best_control")
        }
    (out / "controls.json").write_text(json.dumps(results, indent=1) + "\n")
    report(results)


def report(results):
    """Print the scores and gains as a table, with intervals that hold 95 % of a bootstrap over patients."""

    def text(value, interval):
        return f"{value:+.1f} ({interval[0]:+.1f} to {interval[1]:+.1f})"

    controls = list(results["cnn"]["gain"])
    print(f"| model | exact match, % | AUROC | best control | {' | '.join(controls)} |")
    print("| --- | ---: | ---: | ---: |" + " ---: |" * len(controls))
    for name, of in results.items():
        gains = [text(of["difference"], of["difference_interval"])]
        gains += [text(of["gain"][c]["difference"], of["gain"][c]["interval"]) for c in controls]
        print(f"| {name} | {of['exact_match']:.1f} | {of['mean_auroc']:.3f} | {' | '.join(gains)} |")


if __name__ == "__main__":
    main()
