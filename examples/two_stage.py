"""Two stages against one: a pretrained ECG encoder in front of a language model, or ECG tokens inside it.

    make quickstart                      # or the stages by hand, up to `ecgbyte generate`
    python examples/two_stage.py quickstart/ecgbyte-work

The comparison that the ECG-Byte paper makes, small: on the same records, questions, split, decoder, number of
updates and controls. Two stages: a 1D ResNet learns to fill in masked stretches of the training records (no
labels), is frozen, and a small network projects its frames into the decoder, which is trained on the questions.
End to end: the work folder's own model, whose numbers are read from there and not made again. The signal that the
encoder sees is what the letters stand for, so that both read the same.

Noise of the same spectrum keeps what leads have in common, by which bundle branch block can be told, and the
fundamental of the heart rate: a model that reads spectra does better there than by chance, and that is taken off.
The data is synthetic. What is better here need not be better on real recordings.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ecgbyte_cli.console import note, progress, table
from ecgbyte_cli.model import answering, controls, ecg_lm
from ecgbyte_cli.model.prompt import Prompt
from ecgbyte_cli.questions import files as question_files
from ecgbyte_cli.questions import metrics
from ecgbyte_cli.signal.tokenizer import ECGTokenizer
from ecgbyte_cli.stages import generate
from ecgbyte_cli.workdir import WorkDir, read_array, read_json, read_table, write_json

FRAME = 32  # samples that a frame of the encoder stands for
MASKED = 0.4  # share of the stretches that are hidden, in each lead by itself


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


class Encoder(nn.Module):
    """A 1D ResNet: (batch, leads, samples) in mV to (batch, frames, width)."""

    def __init__(self, leads, width=128):
        super().__init__()
        self.stem = nn.Conv1d(leads, 32, 8, stride=4, padding=2)
        self.blocks = nn.Sequential(Block(32, 64), Block(64, 96), Block(96, width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, leads * FRAME)  # for the masked objective alone

    def forward(self, x):
        x = functional.pad(x, (0, -x.shape[-1] % FRAME))
        return self.norm(self.blocks(self.stem(x)).transpose(1, 2))


def masked_loss(encoder, x, random):
    """Squared error on the hidden stretches of a batch, which the encoder saw as zeros."""
    x = functional.pad(x, (0, -x.shape[-1] % FRAME))
    batch, leads, samples = x.shape
    hidden = torch.rand(batch, leads, samples // FRAME, generator=random) < MASKED
    stretched = hidden.repeat_interleave(FRAME, 2)
    made = encoder.head(encoder(x.masked_fill(stretched, 0)))
    made = made.view(batch, -1, leads, FRAME).transpose(1, 2).reshape(batch, leads, samples)
    return ((made - x)[stretched] ** 2).mean()


def pretrain(signals, epochs, batch, seed):
    """The first stage: an encoder that has learned to fill in masked stretches of the signals."""
    torch.manual_seed(seed)
    encoder, random = Encoder(signals.shape[1]), torch.Generator().manual_seed(seed)
    steps = epochs * (len(signals) // batch)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    losses = []
    with progress("pretrain", steps, "steps") as bar:
        for step in range(steps):
            if step % (steps // epochs) == 0:
                order = torch.randperm(len(signals), generator=random)
            at = step % (steps // epochs) * batch
            loss = masked_loss(encoder, signals[order[at : at + batch]], random)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            bar.update(step + 1, f"loss {np.mean(losses[-50:]):.4f} mV²")
    variance = signals[:2000].var().item()
    note(
        f"masked stretches: {100 * (1 - np.mean(losses[-100:]) / variance):.0f} % of their variance filled in"
    )
    return encoder.eval()


class Projection(nn.Module):
    """Stands in for the table of ECG rows: row 2 + segment * frames + frame is that frame, projected."""

    def __init__(self, features, width):
        super().__init__()
        self.register_buffer("features", features.flatten(0, 1), persistent=False)
        self.marks = nn.Embedding(2, width)  # <sig_start>, <sig_end>
        hidden = 2 * features.shape[-1]
        self.project = nn.Sequential(
            nn.Linear(features.shape[-1], hidden), nn.GELU(), nn.Linear(hidden, width)
        )

    @property
    def weight(self):
        return self.marks.weight

    def forward(self, ids):
        marks = self.marks(ids.clamp(max=1))
        frames = self.project(self.features[(ids - 2).clamp(min=0)])
        return torch.where((ids < 2)[..., None], marks, frames)


def finetune(lm, prompt, samples, steps, batch, seed):
    """The second stage: projection and decoder learn to answer; the same schedule as `ecgbyte finetune`."""
    random = np.random.default_rng(seed)
    rate, rise = 2e-3, max(1, round(0.04 * steps))
    matrices = [p for p in lm.parameters() if p.dim() > 1]
    vectors = [p for p in lm.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
    )
    losses, order = [], []
    lm.train()
    with progress("finetune", steps, "steps") as bar:
        for step in range(steps):
            if len(order) < batch:
                order = random.permutation(len(samples)).tolist()
            chosen = [samples[order.pop()] for _ in range(batch)]
            ids, labels = (
                nn.utils.rnn.pad_sequence(
                    [torch.from_numpy(c[k]) for c in chosen], batch_first=True, padding_value=v
                )
                for k, v in ((0, 0), (1, -100))
            )
            loss = lm(ids, labels)[0] / (labels != -100).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
            falling = 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))
            for group in optimizer.param_groups:
                group["lr"] = rate * ((step + 1) / rise if step < rise else falling)
            optimizer.step()
            losses.append(loss.item())
            bar.update(step + 1, f"loss {np.mean(losses[-50:]):.3f}")
    return lm.eval()


def two_stage(work, epochs, batch, seed):
    """Run both stages and score the answers; returns a row of the table and the scores."""
    about = read_json(work.need(work.model_settings, "finetune --model tiny"))
    if about["base"] != "tiny":
        raise SystemExit(f"{work.model} is no model of --model tiny: the decoders would not be the same")
    tokenizer = ECGTokenizer.from_file(work.ecg_tokenizer)
    segments = read_table(work.symbol_segments)
    letters = np.asarray(read_array(work.symbols)).reshape(len(segments["record"]), -1)
    shape = len(tokenizer.signal["leads"]), tokenizer.signal["samples"]

    def seen(letters, i):
        return tokenizer.to_mv(letters.reshape(shape), segments["lo"][i], segments["hi"][i])

    signals = torch.from_numpy(np.stack([seen(row, i) for i, row in enumerate(letters)]))
    training = np.flatnonzero(np.array(segments["split"]) == "train")

    began = time.perf_counter()
    encoder = pretrain(signals[training], epochs, batch, seed)
    first = time.perf_counter() - began

    asked = question_files.read(Path(about["qa"]))
    chosen, joined = generate.choose(asked, segments, "test", None, 0)
    # behind the segments: a flat line, and noise for each segment that is asked about
    noisy = sorted({segment for _, segment, *_ in chosen})
    made = [np.zeros(shape, np.float32)]
    for i in noisy:
        noise = controls.same_spectrum(signals[i].numpy(), np.random.default_rng([0, int(i)]))
        made.append(seen(tokenizer.letters(noise), i))
    made[0] = seen(tokenizer.letters(made[0]), 0)
    inputs = torch.cat([signals, torch.from_numpy(np.stack(made))])
    began = time.perf_counter()
    with torch.no_grad():
        features = torch.cat([encoder(part) for part in inputs.split(256)])
    frames = features.shape[1]

    base, text_tokenizer = ecg_lm.tiny(seed, ecg_lm.tiny_texts())
    lm = ecg_lm.ECGLM(base, 0, seed)
    lm.ecg_rows = Projection(features, base.config.hidden_size)
    prompt = Prompt(text_tokenizer, lm.layout)

    def ids(number):
        return np.arange(number * frames, (number + 1) * frames)

    samples = [
        prompt.build([ids(i)], [(question.question, question.answer)])
        for question, i, _, split in joined
        if split == "train"
    ]
    lm = finetune(lm, prompt, samples, about["result"]["steps"], about["settings"]["batch"], seed)
    second = time.perf_counter() - began

    patients = [patient for *_, patient, _ in chosen]
    own = [i for _, i, *_ in chosen]
    place = {i: len(signals) + 1 + k for k, i in enumerate(noisy)}
    strangers = [i for (i,) in controls.others(patients, [(i,) for i in own], 0)]
    asked_with = {
        "signal": [ids(i) for i in own],
        "no signal": [np.zeros(0, np.int64)] * len(own),
        "shuffled": [ids(i) for i in strangers],
        "flat line": [ids(len(signals))] * len(own),
        "noise": [ids(place[i]) for i in own],
    }
    answers = {}
    with progress("answer", len(asked_with) * len(own), "answers") as bar:
        for name, ecgs in asked_with.items():
            prompts = answering.Prompts(prompt)
            for i, (ecg, (q, *_)) in enumerate(zip(ecgs, chosen, strict=True)):
                prompts.add(i, prompt.build([ecg], [(q.question, None)])[0])
            given = {}

            def keep(i, made, given=given):
                given[i] = made.answer
                bar.advance()

            answering.answer_all(lm, prompts, 64, 64, set(), keep)
            answers[name] = [given[i] for i in range(len(chosen))]
    learned = [question for question, *_, split in joined if split == "train"]
    answers["majority"], _ = metrics.guesses(learned, [question for question, *_ in chosen])
    truths, types = [q.truth for q, *_ in chosen], [q.type for q, *_ in chosen]
    scores = metrics.score(answers, truths, types, patients)
    return {
        "name": "two stages",
        "records": f"{len(training):,} (encoder)",
        "questions": len(samples),
        "first": first,
        "second": second,
        "parameters": sum(p.numel() for m in (encoder, lm) for p in m.parameters()),
        "scores": scores,
    }


def end_to_end(work):
    """The row of the work folder's own model, read from there."""
    about, learned = read_json(work.model_settings), read_json(work.ecg_tokenizer)["result"]
    answered = read_json(work.need(work.metrics, "generate"))
    if answered["settings"]["split"] != "test" or answered["settings"]["limit"]:
        raise SystemExit(f"{work.metrics} is not of all test questions: run `ecgbyte generate --overwrite`")
    asked = question_files.read(Path(about["qa"]))
    segments = read_table(work.symbol_segments)
    joined, _ = question_files.join(asked, segments)
    return {
        "name": "ECG tokens",
        "records": f"{segments['split'].count('train'):,} (merges)",
        "questions": sum(split == "train" for *_, split in joined),
        "first": learned["seconds"],
        "second": about["result"]["seconds"],
        "parameters": about["result"]["trainable_parameters"],
        "scores": answered["result"],
    }


def main():
    """Read the command line, run, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("work", type=Path, help="work folder with a model of --model tiny and its answers")
    parser.add_argument("--epochs", type=int, default=5, help="of the first stage")
    parser.add_argument("--batch", type=int, default=48, help="of the first stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers there too (JSON)")
    options = parser.parse_args()
    began, work = time.perf_counter(), WorkDir(options.work)
    rows = [end_to_end(work), two_stage(work, options.epochs, options.batch, options.seed)]
    scores = [row["scores"] for row in rows]
    lines = [
        ["stage 1: records", *(row["records"] for row in rows)],
        ["parameters", *(f"{row['parameters']:,}" for row in rows)],
        ["stage 1: s", *(f"{row['first']:.0f}" for row in rows)],
        ["stage 2: questions", *(f"{row['questions']:,}" for row in rows)],
        ["stage 2: s", *(f"{row['second']:.0f}" for row in rows)],
        ["exact match, %", *(f"{s['exact_match']:.1f}" for s in scores)],
        *([f"  {kind}", *(f"{s['by_type'][kind]:.1f}" for s in scores)] for kind in scores[0]["by_type"]),
        *(
            [f"{name}, %", *(f"{s['control'][name]['exact_match']:.1f}" for s in scores)]
            for name in scores[0]["control"]
        ),
        ["gain over the best control", *(f"{s['difference']:.1f}" for s in scores)],
        ["  95 % interval", *("{:.1f} to {:.1f}".format(*s["difference_interval"]) for s in scores)],
    ]
    table(lines, ["synthetic data", *(row["name"] for row in rows)])
    note("the model of the end-to-end column was read from the work folder, with its own training time")
    note(f"{time.perf_counter() - began:.0f} s, {torch.get_num_threads()} threads")
    if options.out:
        write_json(options.out, {"rows": rows}, indent=1)


if __name__ == "__main__":
    main()
