"""Models that read ECGs in different ways, trained and scored alike: what evidence_rows.py compares.

The inputs of the same decoder (`--model tiny`):

- tokens: letters and merges, trained end to end (ECG-Byte, arXiv 2412.14373)
- contrastive: a 1D ResNet pretrained without labels to tell two variations of an ECG from all others (SimCLR, Chen et
  al., ICML 2020), then frozen, with a small projection
- patches: one linear projection of raw samples, without an encoder (ELF, arXiv 2601.18798)

and, without a language model, the same ResNet trained as a classifier. All get the decoded letters with the same
augmentation, and the same loop asks the eighteen findings of findings.csv, one letter each.

The score is the mean AUROC of P(yes) over findings with five or more recordings in a fold. Controls: the same
questions with no signal, another patient's, a flat line, noise of the same spectrum.
"""

import itertools
import json
import time
from functools import lru_cache

import numpy as np
import ptbxl_elsewhere
import torch
from ablation_ptbxl import LETTERS, MODEL
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
from ecgbyte_cli.questions import findings, question_file, question_segments
from ecgbyte_cli.storage.files import read_table
from ecgbyte_cli.training.dataset import SampleBuilder
from ecgbyte_cli.training.sampling import length_batches
from ecgbyte_cli.training.setup import load_for_training
from ecgbyte_cli.training.trainer import Trainer
from ecgbyte_kernels.augment import varied

FRAME = 32  # samples that a frame of the ResNet stands for
PATCH = 20  # samples of a patch: 0.2 s
HIDDEN = 0.4  # share of the stretches that are hidden in half of the variations, in each lead by itself
TEMPERATURE = 0.1  # of the contrastive loss
COOLED = 0.2  # share of a training in which the learning rate falls
LEAST = 5  # recordings with a finding that a fold needs
PAIRED = 1000  # bootstrap draws that a row keeps, to compare it with other rows draw by draw
ARMS = ("tokens", "contrastive", "patches", "classifier")
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
    chosen = torch.rand(batch, leads, samples // FRAME, generator=random) < HIDDEN
    return chosen.repeat_interleave(FRAME, 2)


class Contrastive:
    """The pretraining of an encoder. The seed and the number of a step determine its ECGs and variations."""

    def __init__(self, encoder, samples, numbers, seed):
        self.samples, self.numbers, self.seed = samples, numbers, seed
        self.net = nn.ModuleList([encoder, nn.Sequential(nn.Linear(128, 128), nn.GELU())])
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=2e-3, weight_decay=0.01)

    def views(self, chosen, random):
        letters = [self.samples.in_place(i, None, random) for i in chosen]
        x = torch.from_numpy(np.stack([self.samples.tokenizer.to_mv(part) for part in letters]))
        return functional.pad(x, (0, -x.shape[-1] % FRAME))

    def update(self, step, share):
        """One update at a share of the learning rate."""
        encoder, head = self.net.requires_grad_(True)
        random, noise = np.random.default_rng([self.seed, 1, step]), torch.Generator()
        noise.manual_seed(int(random.integers(2**31)))
        chosen = random.choice(self.numbers, min(64, len(self.numbers)), replace=False)
        both = torch.cat([self.views(chosen, random), self.views(chosen, random)])
        some = torch.rand(both.shape[:1], generator=noise) < 0.5
        both = both.masked_fill(hidden(both, noise) & some[:, None, None], 0)
        both = both + 0.05 * torch.randn(both.shape, generator=noise)
        z = functional.normalize(head(encoder(both).mean(1)), dim=1)
        like = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
        set_rate(self.optimizer, 2e-3 * share)
        functional.cross_entropy(like, torch.arange(len(z)).roll(len(chosen))).backward()
        self.optimizer.step()
        self.net.requires_grad_(False)


def set_rate(optimizer, rate):
    """Set the learning rate for the next step, and forget the gradients of the last one."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


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
        if arm == "contrastive":
            numbers = np.array([question.segments[0] for question in training])
            self.first = Contrastive(rows.encode, self.samples, np.unique(numbers), seed)
            rows.encode.requires_grad_(False)
        asked, _, _ = self.samples.plans(training)
        self.net, self.order = lm, None
        self.trainer = Trainer(work, lm, self.samples, settings, 1, 1, asked, [], note)
        self.words = [text.encode(word, add_special_tokens=False)[0] for word in ("yes", "no")]

    @property
    def optimizer(self):
        return self.trainer.optimizer

    def update(self, step, share):
        """One update at a share of the learning rate."""
        if self.order is None:
            lengths = [plan.length for plan in self.trainer.training]
            self.order = itertools.islice(length_batches(lengths, SETTINGS["batch"], self.seed), step, None)
        self.lm.train()
        self.trainer.step, self.trainer.schedule = step, lambda _: share
        self.trainer.update([next(self.order)])

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
        self.seed, self.order = seed, None

    def logits(self, plans, instead=None, randoms=None):
        """(plans, findings); without a signal it is told nothing, so a flat line stands there."""
        instead = "flat line" if instead == "no signal" else instead
        signals = [
            self.samples.tokenizer.to_mv(self.samples.in_place(plan.segments[0], instead, random))
            for plan, random in zip(plans, randoms or [None] * len(plans), strict=True)
        ]
        encoder, head = self.net
        return head(encoder(torch.from_numpy(np.stack(signals))).mean(1))

    def update(self, step, share):
        """One update at a share of the learning rate."""
        if self.order is None:
            batches = length_batches([0] * len(self.plans), SETTINGS["batch"], self.seed)
            self.order = itertools.islice(batches, step, None)
        group = next(self.order)
        plans = [self.plans[i] for _, i in group]
        logits = self.logits(plans, None, [np.random.default_rng([self.seed, *key]) for key in group])
        made = torch.cat([logits[k, places(plan)] for k, plan in enumerate(plans)])
        truth = [float(q.answer == "yes") for plan in plans for q in plan.questions]
        set_rate(self.optimizer, 2e-3 * share)
        functional.binary_cross_entropy_with_logits(made, torch.tensor(truth)).backward()
        self.optimizer.step()

    @torch.no_grad()
    def odds(self, plans, instead=None):
        made = [self.logits(plans[at : at + 100], instead).numpy() for at in range(0, len(plans), 100)]
        rows = np.concatenate(made)
        return np.round(np.concatenate([rows[k, places(plan)] for k, plan in enumerate(plans)]), 4)


def places(plan):
    """Which of the findings the questions of a plan are about."""
    return [LETTERS.index(question.question) for question in plan.questions]


def rate(step, steps):
    """The share of the learning rate at a step: soon up, constant, and down to the last step."""
    return min(1.0, (step + 1) / 20, (steps - step) / max(1.0, COOLED * steps))


def train(stage, steps):
    """Train a stage from its begin to its end."""
    for step in range(steps):
        stage.update(step, rate(step, steps))


# ---- scores


def figures(truth, topic, patient, odds):
    """Mean AUROC over findings for the signal and each control, and the gain over the best control.

    Parameters
    ----------
    truth, topic, patient : arrays (n,)
        Of each question: whether it is so, its finding, its patient.
    odds : dict
        `signal` and the controls: float (n,).

    Returns
    -------
    dict
        auroc, interval, findings (how many), draws (AUROC in the first draws of the bootstrap, which are the same for
        every model), and with controls control (of each), gain, gain_interval (95 %, by patient).
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
        "draws": drawn["signal"][:PAIRED].round(4).tolist(),
    }
    others = {name: area for name, area in whole.items() if name != "signal"}
    if others:
        best = max(others, key=others.get)
        gain = confidence_interval(drawn["signal"] - drawn[best])
        found |= {"control": others, "gain": whole["signal"] - others[best], "gain_interval": gain}
    return found


def scored(model, asked, patients, compare=controls.CONTROLS):
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
    topic = np.array([LETTERS.index(q.question) for q in order])
    return figures(np.array([q.answer == "yes" for q in order]), topic, patient, odds)


def elsewhere(ludb, challenge, work, path):
    """Recordings of other hospitals: letters by segment, questions, and patients.

    Those that the Challenge took from PTB-XL are left out.
    """
    tokenizer = load_for_training(work, SETTINGS | {"seed": 0, "ecg_loss": 0.3}, "cpu")[2].tokenizer
    labels = ptbxl_elsewhere.ludb(ludb) | ptbxl_elsewhere.challenge(challenge)
    headers = {header.stem: header for folder in (ludb, challenge) for header in folder.rglob("*.hea")}
    letters, names, lines = [], [], []
    for name, known in labels.items():
        try:
            letters.append(tokenizer.letters(segments(read(headers[name]), tokenizer.signal)[0][1]))
        except (Failure, IndexError) as error:
            note(f"{headers[name]}: {error}: left out")
            continue
        names.append(name)
        for letter, finding in zip(LETTERS, findings.FINDINGS, strict=True):
            if known.get(finding) is not None:
                answer = "yes" if known[finding] else "no"
                asked = {"record": name, "split": "test", "type": finding, "question": letter}
                lines.append(json.dumps(asked | {"answer": answer}) + "\n")
    path.write_text("".join(lines))
    table = {"record": names, "patient": names, "split": ["test"] * len(names)}
    questions, _ = question_segments.join_segments(question_file.read_questions(path), table)
    return letters, [question for question, *_ in questions], names


# ---- trainings


@lru_cache(maxsize=1)
def sides(work, qa):
    """The questions of each side of the split, and the patient of each segment."""
    table = read_table(work.symbol_segments)
    joined, _ = question_segments.join_segments(question_file.read_questions(qa), table)
    asked = {name: [q for q, *_, split in joined if split == name] for name in ("train", "val", "test")}
    return asked, table["patient"]


def make(arm, work, qa, seed, share):
    """A new model for an arm, with a share of the training recordings, by patient."""
    questions, patients = sides(work, qa)
    order = np.random.default_rng([seed, 2]).permutation(
        np.unique([patients[q.segments[0]] for q in questions["train"]])
    )
    kept = set(order[: round(share * len(order))].tolist())
    training = [q for q in questions["train"] if patients[q.segments[0]] in kept]
    kind = Classifier(work, training, seed) if arm == "classifier" else Answerer(arm, work, training, seed)
    return kind, questions, patients


def speed(model):
    """Seconds of CPU time that a step of each stage takes, the median of 20; None without a first stage."""

    def timed(stage):
        spent = []
        for step in range(24):
            start = time.process_time()
            stage.update(step, 1.0)
            spent.append(time.process_time() - start)
        return float(np.median(spent[4:]))

    return {"first": timed(model.first) if model.first else None, "second": timed(model)}
