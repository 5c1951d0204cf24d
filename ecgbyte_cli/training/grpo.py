"""Training on answers that the model samples itself, by what they are worth: GRPO.

Group relative policy optimization (Shao et al. 2024, DeepSeekMath, arXiv 2402.03300, 4.1): several answers to each
question are sampled, and each is made likelier or less likely by how much its reward differs from the mean of its
group, in standard deviations. One update is made of what was sampled, so the ratio of old and new probabilities is 1
and nothing is clipped; the loss is the mean over all tokens (Yu et al. 2025, DAPO, arXiv 2503.14476, 3.3), and a
penalty keeps the model near the one that it began with (the estimator k3 of the paper, equation 4).

All answers to all questions about one ECG are sampled behind one reading of it, and learned from behind one reading.
"""

import contextlib
import csv
from typing import NamedTuple

import numpy as np
import torch

from ecgbyte_cli.evaluation.metrics import exact_match, unsplittable_labels
from ecgbyte_cli.inference.batch_answering import Sampler, answer_budget
from ecgbyte_cli.model.prompt import IGNORED
from ecgbyte_cli.questions.reasoning import ReasonedAnswer, split_reasoning
from ecgbyte_cli.storage.files import atomic_write
from ecgbyte_cli.training.dataset import Reading
from ecgbyte_cli.training.rewards import total_reward
from ecgbyte_cli.training.trainer import Trainer
from ecgbyte_cli.training.validation import autocast

COLUMNS = ("step", "learning_rate", "reward", "exact", "answer_tokens", "kl", "val_reward")


class SampledAnswer(NamedTuple):
    """An answer that the model wrote, as it counts in an update."""

    prompt: np.ndarray
    ids: tuple[int, ...]  # what ended it included, if something did
    advantage: float  # the sum over its equals
    times: int  # how often it was sampled


class RecordedSampler:
    """Draws ids as `Sampler` does, and keeps them, with those that end answers."""

    def __init__(self, randoms, temperature, end_ids):
        self.sampler, self.end_ids = Sampler(temperature, 0), end_ids
        self.sampler.random, self.ids = randoms, [[] for _ in randoms]

    def __call__(self, logits, rows):
        made = self.sampler(logits, rows)
        for row, i in zip(rows, made.tolist(), strict=True):
            if not (self.ids[row] and self.ids[row][-1] in self.end_ids):
                self.ids[row].append(i)
        return made


class GRPOTrainer(Trainer):
    """The loop of `Trainer`, with updates from sampled answers.

    What is sampled at a step follows from the seed and the step, so that a training that goes on after a stop gets
    the same rewards. The weights that it began with, which it is kept near, are those that `lm` has when this is made.

    Parameters
    ----------
    work, lm, samples, settings, steps, every, training, validation, tell
        As for `Trainer`; settings have `rewards` (name to weight), `answers` (how many to a question), `temperature`,
        `max_new` and `kl` too.
    tags : list of str or None
        Around the reasoning, of a model that reasons.
    """

    what = "reinforce"

    def __init__(self, work, lm, samples, settings, steps, every, training, validation, tell, tags):
        super().__init__(work, lm, samples, settings, steps, every, training, validation, tell)
        self.tags, self.told = tags, {}
        self.whole = unsplittable_labels([q.truth for plan in training for q in plan.questions])
        self.began = {name: p.detach().clone() for name, p in lm.named_parameters() if p.requires_grad}

    def update(self, groups):
        """One update from answers to the questions of the plans in `groups`; as `Trainer.update`."""
        settings, lm = self.settings, self.lm
        lm.eval()  # what is learned from is what was sampled: nothing is left out
        rate = self.set_rate()
        questions = [q for group in groups for _, i in group for q in self.training[i].questions]
        sampled = self.sample(questions)
        readings = self.readings(sampled)
        total = sum(one.times * len(one.ids) for one in sampled)
        loss, kl = 0.0, 0.0
        for start in range(0, len(readings), settings["batch"]):
            some = readings[start : start + settings["batch"]]
            batch = self.samples.batch([reading for reading, _, _ in some]).to(lm.device)
            advantage, times = (_padded([part[k] for part in some], batch.ids) for k in (1, 2))
            with torch.no_grad(), self.as_it_began():
                before = self.logs(batch)
            now = self.logs(batch)
            wanted = batch.labels[:, 1:] != IGNORED
            apart = before - now
            far = (apart.exp() - apart - 1) * times[:, 1:][wanted]
            part = (settings["kl"] * far - advantage[:, 1:][wanted] * now).sum() / total
            part.backward()
            loss, kl = loss + part.item(), kl + far.sum().item() / total
        self.move()
        self.told["kl"] = kl
        return (loss, None), rate

    def sample(self, questions):
        """Answers to questions, equal ones together, with their advantages."""
        copies, end_ids = self.settings["answers"], self.samples.prompt.end_ids
        asked = [self.samples(question, asked=True)[0] for question in questions]
        prompts = [ids for ids in asked for _ in range(copies)]
        key = [self.settings["seed"], self.step]
        drawn = RecordedSampler(
            [np.random.default_rng([*key, i]) for i in range(len(prompts))],
            self.settings["temperature"],
            end_ids,
        )
        with autocast(self.lm):
            self.lm.answer(prompts, end_ids, answer_budget(self.lm, asked, self.settings["max_new"]), drawn)
        rewards, right = np.empty((2, len(questions), copies))
        for i, ids in enumerate(drawn.ids):
            at = divmod(i, copies)
            rewards[at], right[at] = self.rated(questions[at[0]], ids)
        apart = rewards - rewards.mean(1, keepdims=True)
        advantage = apart / (rewards.std(1, keepdims=True) + 1e-4)
        self.told |= {
            "reward": float(rewards.mean()),
            "exact": float(100 * right.mean()),
            "answer_tokens": float(np.mean([len(ids) for ids in drawn.ids])),
        }
        made = []
        for number, prompt in enumerate(asked):
            equal = {}
            for k in range(copies):
                equal.setdefault(tuple(drawn.ids[number * copies + k]), []).append(advantage[number, k])
            made += [
                SampledAnswer(prompt, ids, float(np.sum(some)), len(some)) for ids, some in equal.items()
            ]
        return made

    def rated(self, question, ids):
        """What an answer is worth, and whether it is right."""
        end_ids = self.samples.prompt.end_ids
        text = self.samples.prompt.text([i for i in ids if i not in end_ids])
        thought = split_reasoning(text, self.tags) if self.tags else ReasonedAnswer("", text, True)
        share = min(1.0, len(ids) / self.settings["max_new"])
        reward = total_reward(self.settings["rewards"], thought, question, self.whole, share)
        return reward, exact_match(thought.answer, question.truth, self.whole)

    def readings(self, sampled):
        """Answers behind one reading of the ECG that their prompts begin with; one each where that cannot be.

        Returns
        -------
        list of (Reading, float array, float array)
            With the advantage and the times of each id.
        """
        layout, groups = self.samples.prompt.layout, {}
        for number, one in enumerate(sampled):
            begin = one.prompt[: layout.prefix(one.prompt)]
            key = number if self.samples.together == 1 else begin.tobytes()
            groups.setdefault(key, (begin, []))[1].append(one)
        return [self.reading(begin, some) for begin, some in groups.values()]

    def reading(self, begin, sampled):
        """A beginning and the answers behind it, side by side."""
        layout = self.samples.prompt.layout
        parts = [(begin, np.full(len(begin), IGNORED), layout.positions(begin), 0.0, 0.0)]
        for one in sampled:
            rest, answer = one.prompt[len(begin) :], np.array(one.ids, np.int64)
            ids = np.concatenate([rest, answer])
            labels = np.concatenate([np.full(len(rest), IGNORED), answer])
            places = parts[0][2][-1] + 1 + np.arange(len(ids))
            parts.append((ids, labels, places, one.advantage, float(one.times)))
        lengths = [len(part[0]) for part in parts]
        ids, labels, places = (np.concatenate([part[k] for part in parts]) for k in range(3))
        owner, advantage, times = (
            np.repeat(values, lengths)
            for values in (np.arange(len(parts)), [p[3] for p in parts], [p[4] for p in parts])
        )
        return Reading(ids, labels, places, owner), advantage, times

    def logs(self, batch):
        """The logarithm of the probability, at the temperature, of each labelled id of a batch."""
        wanted = batch.labels[:, 1:]
        at = wanted != IGNORED
        with autocast(self.lm):
            logits, _ = self.lm.outputs(
                lambda states: states[:, :-1][at], **self.lm.inputs(batch.ids, batch.positions, batch.owner)
            )
        logs = (logits.float() / self.settings["temperature"]).log_softmax(-1)
        return logs.gather(-1, wanted[at][:, None])[:, 0]

    @contextlib.contextmanager
    def as_it_began(self):
        """Have the weights of the beginning in place."""
        weights = {name: p.data for name, p in self.lm.named_parameters() if name in self.began}
        for name, p in self.lm.named_parameters():
            if name in self.began:
                p.data = self.began[name]
        try:
            yield
        finally:
            for name, p in self.lm.named_parameters():
                if name in self.began:
                    p.data = weights[name]

    def row(self, rate, losses):
        return {"step": self.step, "learning_rate": rate, **self.told}

    def of_validation(self, val):
        return {"val_reward": val}

    def how(self):
        return f"reward {np.mean([row['reward'] for row in self.rows[-20:]]):.3f}"

    def validate(self):
        """The mean reward of likeliest answers to some validation questions; the best weights are kept."""
        val = self.validated(self.validation)
        trained = self.rows and np.mean([row["reward"] for row in self.rows[-self.every :]])
        said = f"reward {trained:.3f} of sampled answers, " if self.rows else ""
        self.tell(f"step {self.step}: {said}{val:.3f} of the likeliest ones in validation")
        self.weigh(-val)
        return val

    def validated(self, questions, bar=None):
        """Return the mean reward of the likeliest answers to questions."""
        rewards, size = [], 4 * self.settings["batch"]
        self.lm.eval()
        with self.stop.at_once():
            for start in range(0, len(questions), size):
                self.stop.check()
                some = questions[start : start + size]
                rewards += self.rewards(some)
                if bar:
                    bar.advance(len(some))
        return float(np.mean(rewards))

    def rewards(self, questions):
        """Return the reward of the likeliest answer to each of some questions."""
        asked = [self.samples(question, asked=True)[0] for question in questions]
        most = answer_budget(self.lm, asked, self.settings["max_new"])
        with autocast(self.lm):
            answers = self.lm.answer(asked, self.samples.prompt.end_ids, most)
        return [self.rated(q, ids)[0] for q, ids in zip(questions, answers, strict=True)]

    def result(self):
        """Put the best weights back, and return what came out."""
        self.put_back()
        last = self.rows[-max(1, self.step // 10) :]
        mean = {name: float(np.mean([row[name] for row in last])) for name in COLUMNS[2:6]}
        return {
            "steps": self.step,
            **mean,
            "val_reward": -self.best[1] if self.best else None,
            "best_step": self.best[0] if self.best else self.step,
            "trainable_parameters": sum(p.numel() for p in self.began.values()),
        }

    def draw(self):
        """Write the course of reward, length and distance as CSV and as a picture."""
        from matplotlib.figure import Figure

        with (
            atomic_write(self.work.reward_csv) as beside,
            open(beside, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        figure = Figure(figsize=(7, 6), layout="constrained")
        steps = [row["step"] for row in self.rows]
        width = max(1, len(steps) // 20)
        for axes, name, what in zip(
            figure.subplots(3, 1, sharex=True),
            ("reward", "answer_tokens", "kl"),
            ("reward", "tokens an answer", "KL to the beginning"),
            strict=True,
        ):
            values = [row[name] for row in self.rows]
            smooth = [float(np.mean(values[i : i + width])) for i in range(0, len(values), width)]
            middle = [float(np.mean(steps[i : i + width])) for i in range(0, len(steps), width)]
            axes.plot(steps, values, color="0.8", linewidth=0.8, label="each step")
            axes.plot(middle, smooth, color="tab:blue", label=f"mean of {width}")
            points = [(row["step"], row["val_reward"]) for row in self.rows if "val_reward" in row]
            if name == "reward" and points:
                axes.plot(*zip(*points, strict=True), "o-", color="tab:orange", label="validation, likeliest")
            axes.set_ylabel(what)
            axes.grid(alpha=0.3)
        figure.axes[0].legend(loc="lower right", ncols=3, fontsize=8)
        figure.axes[-1].set_xlabel("step")
        with atomic_write(self.work.reward_picture) as beside:
            figure.savefig(beside, format="png", dpi=120)


def _padded(rows, ids):
    """Numbers of each id of a batch, padded with 0 on the right."""
    made = torch.zeros(ids.shape, dtype=torch.float32)
    for row, values in zip(made, rows, strict=True):
        row[: len(values)] = torch.from_numpy(np.asarray(values, np.float32))
    return made.to(ids.device)
