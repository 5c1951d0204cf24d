"""Compare ECG tokens in a language model with an ECG encoder in front of one, on real recordings, at equal time.

    OMP_NUM_THREADS=1 python examples/experiments/two_stage.py ptb-xl/ --out evidence/ --seconds 100,200,400

A small version of the ECG-Byte paper's comparison. The inputs of the same decoder (`--model tiny`):

- tokens: letters and merges, trained end to end (ECG-Byte, arXiv 2412.14373)
- masked, contrastive: a 1D ResNet pretrained without labels, by filling in masked parts or by telling two variations
  of an ECG from all others (SimCLR, Chen et al., ICML 2020), then frozen, with a small projection
- patches: one linear projection of raw samples, without an encoder (ELF, arXiv 2601.18798)

and, without a language model, the same ResNet trained as a classifier: with the same leads (classifier), and with all
eight recorded ones (classifier, 8 leads). All get the decoded letters with the same augmentation, and the same loop
asks the eighteen findings of findings.csv, one letter each.

Time is CPU time of one thread, stage 1 included, converted to steps by the time of a step. That is measured at the
first run, when nothing else should run (OUT/speed.json). The learning rate is constant and falls in the last fifth, so
that trainings of several lengths share their common part (Haegele et al. 2024, arXiv 2405.18392). The score is the
mean AUROC of P(yes) over findings with five or more recordings in a fold: on fold 9 (val) and on fold 10 (test).
Controls: the same questions with no signal, another patient's, a flat line, noise of the same spectrum. On the few
recordings of other hospitals (--elsewhere) all findings are pooled. Finished rows in OUT/two_stage.jsonl are not
repeated.
"""

import argparse
import copy
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from ablation_ptbxl import EIGHT, LETTERS, MODEL, TOKENS, ask, ask_about, tokens
from torch import nn
from torch.nn import functional

from ecgbyte_cli import read, segments
from ecgbyte_cli.cli.output import note
from ecgbyte_cli.evaluation import controls
from ecgbyte_cli.evaluation.metrics import bootstrap_counts, confidence_interval
from ecgbyte_cli.evaluation.reliability import auroc
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.model import ecg_lm
from ecgbyte_cli.model.layout import Layout
from ecgbyte_cli.model.prompt import IGNORED, Prompt
from ecgbyte_cli.questions import question_file, question_segments
from ecgbyte_cli.questions.sources import wfdb_headers
from ecgbyte_cli.storage.files import read_json, read_table, write_json
from ecgbyte_cli.training.dataset import SampleBuilder
from ecgbyte_cli.training.sampling import length_batches
from ecgbyte_cli.training.setup import load_for_training
from ecgbyte_cli.training.trainer import Trainer
from ecgbyte_kernels.augment import varied

FRAME = 32  # samples that a frame of the ResNet stands for
PATCH = 20  # samples of a patch: 0.2 s
MASKED = 0.4  # share of the stretches that are hidden, in each lead by itself
TEMPERATURE = 0.1  # of the contrastive loss
COOLED = 0.2  # share of a training in which the learning rate falls
LEAST = 5  # recordings with a finding that a fold needs
ARMS = ("tokens", "masked", "contrastive", "patches", "classifier", "classifier, 8 leads")
SETTINGS = {
    **{"base": "tiny", "method": "full", "positions": None, "ecg_init": "signal", "lr": 2e-3, "qa": True},
    **{"max_length": 4096, "long": "trim", "together": None, "draw": None, "accumulate": 1, "patience": None},
    **{"without_ecg": 0.1, "augment": MODEL["augment"], "batch": MODEL["batch"]},
}


class Seen(SampleBuilder):
    """Samples that can stand for noise too, or for recordings that were not symbolized (`others`: their letters)."""

    others = None

    def letters_of(self, segment):
        return super().letters_of(segment) if self.others is None else self.others[segment]

    def own(self, segment):
        return self.tokenizer.encode(self.letters_of(segment), self.segmenter)

    def in_place(self, segment, instead, random):
        """The letters of a segment, as training varies them, or of a flat line or noise in its place."""
        if instead == "flat line":
            return self.tokenizer.letters(np.zeros(self.shape, np.float32))
        if instead == "noise":
            signal = self.tokenizer.to_mv(self.letters_of(segment))
            return self.tokenizer.letters(
                controls.spectrum_noise(signal, np.random.default_rng([0, int(segment)]))
            )
        if random is not None:
            return varied(self._window(segment, 1, random)[0], self.tokenizer.levels, random, self.augment)
        return self.letters_of(segment)

    def _ecg(self, segment, instead=None, random=None):
        if instead == "noise":
            return self.tokenizer.encode(self.in_place(segment, instead, random), self.segmenter), segment
        return super()._ecg(segment, instead, random)


class Frames(Seen):
    """Samples whose ECGs are frames: rows that `Rows` makes for a batch from the signals in it."""

    rows, frames = None, 0

    def _read(self, segments, instead=None, random=None, leads=None):
        ecgs = []
        for segment in segments:
            if instead == "no signal":
                ecgs.append(np.zeros(0, np.int64))
                continue
            ecgs.append(len(self.rows.waiting) * self.frames + np.arange(self.frames))
            self.rows.waiting.append(self.tokenizer.to_mv(self.in_place(segment, instead, random)))
        return ecgs, [np.zeros(len(ecg), np.int64) for ecg in ecgs], ""

    def batch(self, readings):
        self.rows.take()
        return super().batch(readings)


class Rows(nn.Module):
    """Stands in for the table of ECG rows: row 2 + signal * frames + frame is that frame of a batch, projected."""

    def __init__(self, encode, project, width):
        super().__init__()
        self.encode, self.project = encode, project
        self.marks = nn.Embedding(2, width)  # <sig_start>, <sig_end>
        self.waiting, self.signals = [], None

    @property
    def weight(self):
        return self.marks.weight

    def take(self):
        """The signals that were read are those of the next batch."""
        self.signals = torch.from_numpy(np.stack(self.waiting)) if self.waiting else None
        self.waiting = []

    def forward(self, ids):
        marks = self.marks(ids.clamp(max=1))
        if self.signals is None:
            return marks
        frames = self.project(self.encode(self.signals).flatten(0, 1))
        return torch.where((ids < 2)[..., None], marks, frames[(ids - 2).clamp(min=0)])


class Block(nn.Module):
    """Two convolutions beside a shortcut; halves the length."""

    def __init__(self, before, after):
        super().__init__()
        self.first = nn.Conv1d(before, after, 5, stride=2, padding=2)
        self.second = nn.Conv1d(after, after, 5, padding=2)
        self.shortcut = nn.Conv1d(before, after, 1, stride=2)
        self.norms = nn.ModuleList([nn.GroupNorm(8, before), nn.GroupNorm(8, after)])

    def forward(self, x):
        y = self.first(functional.gelu(self.norms[0](x)))
        return self.shortcut(x) + self.second(functional.gelu(self.norms[1](y)))


class ResNet(nn.Module):
    """A 1D ResNet: (batch, leads, samples) in mV to (batch, frames, width)."""

    def __init__(self, leads, width=128):
        super().__init__()
        self.stem = nn.Conv1d(leads, 32, 8, stride=4, padding=2)
        self.blocks = nn.Sequential(Block(32, 64), Block(64, 96), Block(96, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        x = functional.pad(x, (0, -x.shape[-1] % FRAME))
        return self.norm(self.blocks(self.stem(x)).transpose(1, 2))


def patches(x):
    """(batch, leads, samples) to (batch, patches, leads * samples of a patch)."""
    x = functional.pad(x, (0, -x.shape[-1] % PATCH))
    return x.unflatten(2, (-1, PATCH)).transpose(1, 2).flatten(2)


def hidden(x, random):
    """Which samples of a batch are hidden: stretches of a frame, each lead by itself."""
    batch, leads, samples = x.shape
    chosen = torch.rand(batch, leads, samples // FRAME, generator=random) < MASKED
    return chosen.repeat_interleave(FRAME, 2)


def pretraining(kind, encoder, samples, numbers, seed):
    """A function that makes one step of stage 1 at some share of the learning rate."""
    leads = samples.shape[0]
    head = (
        nn.Linear(128, leads * FRAME) if kind == "masked" else nn.Sequential(nn.Linear(128, 128), nn.GELU())
    )
    weights = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.01)
    random, noise = np.random.default_rng([seed, 1]), torch.Generator().manual_seed(seed)

    def views(chosen):
        letters = [samples.in_place(i, None, random) for i in chosen]
        x = torch.from_numpy(np.stack([samples.tokenizer.to_mv(part) for part in letters]))
        return functional.pad(x, (0, -x.shape[-1] % FRAME))

    def masked(chosen):
        x = views(chosen)
        gone = hidden(x, noise)
        made = head(encoder(x.masked_fill(gone, 0)))
        made = made.unflatten(2, (leads, FRAME)).transpose(1, 2).reshape(x.shape)
        return ((made - x)[gone] ** 2).mean()

    def contrastive(chosen):
        both = torch.cat([views(chosen), views(chosen)])
        both = both.masked_fill(
            hidden(both, noise) & (torch.rand(both.shape[:1], generator=noise) < 0.5)[:, None, None], 0
        )
        both = both + 0.05 * torch.randn(both.shape, generator=noise)
        z = functional.normalize(head(encoder(both).mean(1)), dim=1)
        like = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        return functional.cross_entropy(like, torch.arange(len(z)).roll(len(chosen)))

    def step(share):
        loss = {"masked": masked, "contrastive": contrastive}[kind](
            random.choice(numbers, min(64, len(numbers)), replace=False)
        )
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * share
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


class Answerer:
    """A language model that answers, whatever reads the ECG for it."""

    def __init__(self, arm, work, training, seed):
        settings = SETTINGS | {"seed": seed, "ecg_loss": MODEL["ecg_loss"] if arm == "tokens" else 0.0}
        torch.manual_seed(seed)
        lm, text, given, _ = load_for_training(work, settings, "cpu")
        prompt, kind, self.first = given.prompt, Seen, None
        if arm != "tokens":
            width, leads, kind = lm.base.config.hidden_size, given.shape[0], Frames
            torch.manual_seed(seed)
            if arm == "patches":
                rows = Rows(patches, nn.Linear(leads * PATCH, width), width)
            else:
                project = nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, width))
                rows = Rows(ResNet(leads), project, width)
            lm = ecg_lm.ECGLM(lm.base, 0, seed, Layout(lm.offset))
            lm.ecg_rows, prompt = rows, Prompt(text, lm.layout)
        self.samples = kind(work, prompt, given.tokenizer, given.max_length, "trim", SETTINGS["augment"])
        self.lm, self.seed = lm, seed
        if arm != "tokens":
            self.samples.rows, self.samples.frames = (
                rows,
                -(-given.shape[1] // (PATCH if arm == "patches" else FRAME)),
            )
            self.samples.segments = {"length": np.full(len(given.recorded["record"]), self.samples.frames)}
        if arm in ("masked", "contrastive"):
            numbers = np.array([question.segments[0] for question in training])
            self.first = pretraining(arm, rows.encode, self.samples, np.unique(numbers), seed)
            rows.encode.requires_grad_(False)
        asked, _, _ = self.samples.plans(training)
        self.trainer = Trainer(work, lm, self.samples, settings, 1, 1, asked, [], note)
        self.words = [text.encode(word, add_special_tokens=False)[0] for word in ("yes", "no")]

    def pretrain(self, steps):
        encoder = self.lm.ecg_rows.encode.requires_grad_(True)
        losses = [self.first(rate(step, steps, (1 - COOLED) * steps)) for step in range(steps)]
        encoder.requires_grad_(False)
        return float(np.mean(losses[-50:]))

    def train(self, steps, factor):
        """Go on to a step, each at its share of the learning rate."""
        trainer = self.trainer
        trainer.schedule = factor
        order = length_batches([plan.length for plan in trainer.training], SETTINGS["batch"], self.seed)
        self.lm.train()
        for group in itertools.islice(order, trainer.step, steps):
            trainer.update([group])

    def snapshot(self):
        trained = {k: p.detach().clone() for k, p in self.lm.named_parameters() if p.requires_grad}
        return self.trainer.step, trained, copy.deepcopy(self.trainer.optimizer.state_dict())

    def restore(self, kept):
        self.trainer.step, trained, optimizer = kept
        with torch.no_grad():
            for name, p in self.lm.named_parameters():
                if name in trained:
                    p.copy_(trained[name])
        self.trainer.optimizer.load_state_dict(copy.deepcopy(optimizer))

    @torch.no_grad()
    def odds(self, plans, instead=None):
        """Log-odds of yes against no for each question of some plans, in order."""
        self.lm.eval()
        made = []
        for at in range(0, len(plans), 30):
            batch = self.samples.batch([self.samples.reading(plan, instead) for plan in plans[at : at + 30]])
            # where an answer begins: a label behind none
            begins = (batch.labels[:, 1:] != IGNORED) & (batch.labels[:, :-1] == IGNORED)
            inputs = self.lm.inputs(batch.ids, batch.positions, batch.owner)
            logits, _ = self.lm.outputs(lambda states, at=begins: states[:, :-1][at], **inputs)
            made.append(logits[:, self.words[0]] - logits[:, self.words[1]])
        return np.round(torch.cat(made).double().numpy(), 4)  # what is alike but for the last digits is a tie


class Classifier:
    """The ResNet with a linear layer behind its mean, trained on the findings themselves."""

    first = None

    def __init__(self, work, training, seed):
        _, _, given, _ = load_for_training(work, SETTINGS | {"seed": seed}, "cpu")
        self.samples = Seen(
            work, given.prompt, given.tokenizer, given.max_length, "trim", SETTINGS["augment"]
        )
        torch.manual_seed(seed)
        self.net = nn.ModuleList([ResNet(given.shape[0]), nn.Linear(128, len(LETTERS))])
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=2e-3, weight_decay=0.05)
        self.plans, _, _ = self.samples.plans(training)
        self.seed, self.step = seed, 0

    def logits(self, plans, instead=None, randoms=None):
        """(plans, findings); without a signal it is told nothing, so a flat line stands there."""
        instead = "flat line" if instead == "no signal" else instead
        signals = [
            self.samples.tokenizer.to_mv(self.samples.in_place(plan.segments[0], instead, random))
            for plan, random in zip(plans, randoms or [None] * len(plans), strict=True)
        ]
        encoder, head = self.net
        return head(encoder(torch.from_numpy(np.stack(signals))).mean(1))

    def train(self, steps, factor):
        order = length_batches([0] * len(self.plans), SETTINGS["batch"], self.seed)
        for group in itertools.islice(order, self.step, steps):
            plans = [self.plans[i] for _, i in group]
            logits = self.logits(plans, None, [np.random.default_rng([self.seed, *key]) for key in group])
            made = torch.cat([logits[k, places(plan)] for k, plan in enumerate(plans)])
            truth = [float(q.answer == "yes") for plan in plans for q in plan.questions]
            for part in self.optimizer.param_groups:
                part["lr"] = 2e-3 * factor(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            functional.binary_cross_entropy_with_logits(made, torch.tensor(truth)).backward()
            self.optimizer.step()
            self.step += 1

    def snapshot(self):
        return copy.deepcopy((self.step, self.net.state_dict(), self.optimizer.state_dict()))

    def restore(self, kept):
        self.step, net, optimizer = copy.deepcopy(kept)
        self.net.load_state_dict(net)
        self.optimizer.load_state_dict(optimizer)

    @torch.no_grad()
    def odds(self, plans, instead=None):
        made = [self.logits(plans[at : at + 100], instead).numpy() for at in range(0, len(plans), 100)]
        rows = np.concatenate(made)
        return np.round(np.concatenate([rows[k, places(plan)] for k, plan in enumerate(plans)]), 4)


def places(plan):
    """Which of the findings the questions of a plan are about."""
    return [LETTERS.index(question.question) for question in plan.questions]


def rate(step, last=None, fall=0.0, rise=20):
    """The learning rate's share at a step: soon up, constant, and where there is a last step down from `fall` to it."""
    return min(1.0, (step + 1) / rise, 1.0 if last is None else (last - step) / max(1.0, last - fall))


# ---- scores


def figures(truth, topic, patient, odds):
    """Mean AUROC over findings for the signal and each control, and the gain over the best control.

    Parameters
    ----------
    truth, topic, patient : arrays (n,)
        Of each question: whether it is so, its finding (0 for all pools them), its patient.
    odds : dict
        `signal` and the controls: float (n,).

    Returns
    -------
    dict
        auroc, interval, findings (how many), and with controls control (of each), gain, gain_interval (95 %, by
        patient).
    """
    names, number = np.unique(patient, return_inverse=True)
    some = [np.flatnonzero(topic == t) for t in np.unique(topic)]
    some = [at for at in some if LEAST <= truth[at].sum() < len(at)]

    def means(weights):
        drawn = {
            name: np.array([auroc(values[at], truth[at], weights[:, number[at]]) for at in some])
            for name, values in odds.items()
        }
        return {name: np.nanmean(areas, axis=0) for name, areas in drawn.items()}

    whole = {name: float(area[0]) for name, area in means(np.ones((1, len(names)))).items()}
    parts = [means(times) for times in bootstrap_counts(len(names), 0, at_a_time=max(map(len, some)))]
    drawn = {name: np.concatenate([part[name] for part in parts]) for name in odds}
    found = {
        "auroc": whole["signal"],
        "interval": confidence_interval(drawn["signal"]),
        "findings": len(some),
    }
    others = {name: area for name, area in whole.items() if name != "signal"}
    if others:
        best = max(others, key=others.get)
        gain = confidence_interval(drawn["signal"] - drawn[best])
        found |= {"control": others, "gain": whole["signal"] - others[best], "gain_interval": gain}
    return found


def scored(model, asked, patients, pooled=False, compare=controls.CONTROLS):
    """`figures` of a model for questions about some recordings, with some controls."""
    plans, _, _ = model.samples.plans(asked)
    order = [question for plan in plans for question in plan.questions]
    patient = np.array([patients[question.segments[0]] for question in order])
    each = [patients[plan.segments[0]] for plan in plans]
    strangers = controls.other_patients(each, [plan.segments for plan in plans], 0)
    odds = {"signal": model.odds(plans)}
    for name in compare:
        if name == "shuffled":
            moved = [plan._replace(segments=other) for plan, other in zip(plans, strangers, strict=True)]
            odds[name] = model.odds(moved)
        else:
            odds[name] = model.odds(plans, name)
    topic = np.array([0 if pooled else LETTERS.index(q.question) for q in order])
    return figures(np.array([q.answer == "yes" for q in order]), topic, patient, odds)


def elsewhere(folder, work, path):
    """Recordings of other hospitals: letters by segment, questions, and patients.

    Those that the Challenge took from PTB-XL are left out.
    """
    tokenizer = load_for_training(work, SETTINGS | {"seed": 0, "ecg_loss": 0.3}, "cpu")[2].tokenizer
    letters, names = [], []
    for header in sorted(Path(folder).glob("*.hea")):
        if header.stem.startswith("HR"):
            continue
        try:
            letters.append(tokenizer.letters(segments(read(header), tokenizer.signal)[0][1]))
            names.append(header.stem)
        except Failure as error:
            note(f"{header}: {error}: left out")
    source = wfdb_headers.read_headers([str(Path(folder) / f"{name}.hea") for name in names], folder)
    ask_about(path, source.facts)
    table = {"record": names, "patient": names, "split": ["test"] * len(names)}
    questions, _ = question_segments.join_segments(question_file.read_questions(path), table)
    return letters, [question for question, *_ in questions], names


# ---- the runs


def sides(work, qa):
    """The questions of each side of the split, and the patient of each segment."""
    table = read_table(work.symbol_segments)
    joined, _ = question_segments.join_segments(question_file.read_questions(qa), table)
    asked = {name: [q for q, *_, split in joined if split == name] for name in ("train", "val", "test")}
    return asked, table["patient"]


def make(arm, works, qa, seed, share):
    """A new model for an arm, with a share of the training recordings, by patient."""
    work = works["8" if arm.endswith("8 leads") else "3"]
    questions, patients = sides(work, qa)
    order = np.random.default_rng([seed, 2]).permutation(
        np.unique([patients[q.segments[0]] for q in questions["train"]])
    )
    kept = set(order[: round(share * len(order))].tolist())
    training = [q for q in questions["train"] if patients[q.segments[0]] in kept]
    model = (
        Classifier(work, training, seed)
        if arm.startswith("classifier")
        else Answerer(arm, work, training, seed)
    )
    return model, questions, patients


def speed(arm, made):
    """Seconds of CPU time that a step of each stage takes."""
    model = made(arm, 0, 1.0)[0]

    def timed(step):
        spent = []
        for _ in range(12):
            start = time.process_time()
            step()
            spent.append(time.process_time() - start)
        return float(np.mean(spent[4:]))

    first = None
    if model.first:
        model.lm.ecg_rows.encode.requires_grad_(True)
        first = timed(lambda: model.first(1.0))
        model.lm.ecg_rows.encode.requires_grad_(False)
    numbers = itertools.count(1)
    return {"first": first, "second": timed(lambda: model.train(next(numbers), lambda step: 1.0))}


def run(arm, seed, share, seconds, first, speeds, made, more):
    """Train to each budget, `first` seconds of it for stage 1 where there is one, and yield a row for each."""
    model, questions, patients = made(arm, seed, share)
    spent, about = 0.0, {}
    if model.first:
        spent = first
        steps = max(1, round(spent / speeds["first"]))
        about = {"first_steps": steps, "first_loss": model.pretrain(steps)}
    for budget in seconds:
        steps = max(1, round((budget - spent) / speeds["second"]))
        fall = round((1 - COOLED) * steps)
        model.train(fall, rate)
        kept = model.snapshot()
        model.train(steps, lambda step, steps=steps, fall=fall: rate(step, steps, fall))
        row = {"arm": arm, "seed": seed, "share": share, "seconds": budget, "steps": steps, **about}
        row["val"] = scored(model, questions["val"], patients, compare=())
        row["test"] = scored(model, questions["test"], patients)
        if more and not arm.endswith("8 leads"):
            letters, asked, names = more
            model.samples.others = letters
            row["elsewhere"] = scored(model, asked, names, pooled=True)
            model.samples.others = None
        yield row
        model.restore(kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="PTB-XL's folder, or a part of it")
    parser.add_argument("--out", type=Path, default=Path("evidence"))
    parser.add_argument("--elsewhere", type=Path, help="recordings of the PhysioNet Challenge 2021")
    parser.add_argument("--seconds", default="100,200,400", help="budgets, each with all recordings")
    parser.add_argument(
        "--shares", default="0.12,0.25,0.48", help="of the recordings, with the middle budget"
    )
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--arms", default=";".join(ARMS), help="separated by ;")
    parser.add_argument("--speed", action="store_true", help="measure the speeds alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = [float(part) for part in options.seconds.split(",")]
    shares = [float(part) for part in options.shares.split(",") if part]
    arms = options.arms.split(";")
    works = {"3": tokens(options.out, options.data, **TOKENS)}
    works["8"] = tokens(options.out, options.data, **TOKENS | {"leads": EIGHT})
    qa = ask(options.out, options.data)
    more = options.elsewhere and elsewhere(options.elsewhere, works["3"], options.out / "elsewhere.jsonl")

    def made(arm, seed, share):
        return make(arm, works, qa, seed, share)

    measured = options.out / "speed.json"
    speeds = read_json(measured) if measured.exists() else {}
    for arm in arms:
        if arm not in speeds:
            speeds[arm] = speed(arm, made)
            write_json(measured, speeds)
    print(json.dumps(speeds), flush=True)
    if options.speed:
        return
    path = options.out / "two_stage.jsonl"
    wanted = [(1.0, seconds)] + [(share, [seconds[len(seconds) // 2]]) for share in shares]
    for share, budgets in wanted:
        for seed, arm in itertools.product(map(int, options.seeds.split(",")), arms):
            if share < 1 and arm.endswith("8 leads"):
                continue
            lines = path.read_text().splitlines() if path.exists() else []
            keys = [[row[k] for k in ("arm", "seed", "share", "seconds")] for row in map(json.loads, lines)]
            left = [budget for budget in budgets if [arm, seed, share, budget] not in keys]
            for row in (
                run(arm, seed, share, budgets, min(seconds) / 2, speeds[arm], made, more) if left else ()
            ):
                if row["seconds"] in left:
                    with open(path, "a") as file:
                        file.write(json.dumps(row) + "\n")
                    shown = {k: row[k] for k in ("arm", "seed", "share", "seconds", "steps")}
                    print(json.dumps(shown | {"val": row["val"]["auroc"]}), flush=True)


if __name__ == "__main__":
    main()
