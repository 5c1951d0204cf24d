"""Train a model on sampled answers with rewards: GRPO.

Group relative policy optimization (Shao et al. 2024, DeepSeekMath, arXiv 2402.03300, 4.1) samples several answers to
each question. An answer's advantage is its reward minus the mean of its group, in standard deviations. Each sample is
used for one update, so the ratio of old and new probabilities is 1 and nothing is clipped. The loss is the mean over
all tokens (Yu et al. 2025, DAPO, arXiv 2503.14476, 3.3). A penalty keeps the model near its initial weights (the
estimator k3, equation 4 of the first paper).

All answers to all questions about one ECG share one reading of the ECG, in sampling and in the update.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from ecgbyte_cli.evaluation.metrics import exact_match, unsplittable_labels
from ecgbyte_cli.inference.batch_answering import Sampler, answer_budget
from ecgbyte_cli.model.decoding import RecordedPicks
from ecgbyte_cli.model.ecg_lm import recomputing_layers
from ecgbyte_cli.model.prompt import IGNORED
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.questions.reasoning import ReasonedAnswer, split_reasoning
from ecgbyte_cli.storage.workdir import WorkDir
from ecgbyte_cli.training import training_log
from ecgbyte_cli.training.batch import Batch, Reading
from ecgbyte_cli.training.dataset import ReadingPlan, SampleBuilder
from ecgbyte_cli.training.distributed import sum_gradients, sum_over_processes
from ecgbyte_cli.training.rewards import total_reward
from ecgbyte_cli.training.sampling import EpochItem
from ecgbyte_cli.training.trainer import Losses, Trainer

if TYPE_CHECKING:
    from ecgbyte_cli.model.ecg_lm import ECGLM

COLUMNS = ("step", "learning_rate", "reward", "exact", "answer_tokens", "kl", "val_reward")


class SampledAnswer(NamedTuple):
    """A sampled answer, with equal answers to the same question counted together."""

    prompt: np.ndarray
    ids: tuple[int, ...]  # with the id that ended it, if any
    advantage: float  # summed over equal answers
    times: int  # number of equal answers


WeightedReading = tuple[Reading, np.ndarray, np.ndarray]  # with the advantage and the count of each id


class GRPOTrainer(Trainer):
    """The training loop with updates from sampled answers.

    The seed and the step determine the samples, so that a resumed run gets the same rewards. The penalty refers
    to the weights of `lm` when the trainer is constructed.

    Parameters
    ----------
    work, lm, samples, settings, steps, every, training, validation, tell
        See `Trainer`. The settings also contain `rewards` (name to weight), `answers` (number per question),
        `temperature`, `max_new` and `kl`.
    tags : list of str or None
        The tags around the reasoning, if the model writes its reasoning.
    """

    label = "reinforce"

    def __init__(
        self,
        work: WorkDir,
        lm: "ECGLM",
        samples: SampleBuilder,
        settings: dict[str, Any],
        steps: int,
        every: int,
        training: Sequence[ReadingPlan],
        validation: Sequence[Question],
        tell: Callable[[str], object],
        tags: Sequence[str] | None,
    ):
        super().__init__(work, lm, samples, settings, steps, every, training, validation, tell)
        self.tags = tags
        self.ahead = False  # a step's batches depend on the sampled answers, so they cannot be prepared early
        self.numbers: dict[str, float] = {}  # log values of the current step
        # this process's sampled answers in the current step: sums of reward, right answers, ids, answers
        self.tally = np.zeros(4)
        self.whole = unsplittable_labels([q.truth for plan in training for q in plan.questions])
        self.initial = {name: p.detach().clone() for name, p in lm.named_parameters() if p.requires_grad}

    def synchronized(self) -> "ECGLM":
        """Return the model unwrapped: `update` sums the gradients over the processes itself."""
        return self.lm

    def update(self, groups: Sequence[Sequence[EpochItem]]) -> tuple[Losses, float]:
        """Update the weights once with sampled answers to the questions of plans; see `Trainer.update`."""
        settings, lm = self.settings, self.lm
        lm.eval()  # no dropout: the update must use the same probabilities as sampling
        rate, self.tally = self.set_rate(), np.zeros(4)
        asked = [[q for _, i in group for q in self.training[i].questions] for group in groups]
        before = np.cumsum([0, *map(len, asked)])
        own = range(self.rank, len(groups), self.processes)
        sampled = [self.sample(asked[number], int(before[number])) for number in own]
        *tally, total = sum_over_processes(
            [*self.tally, sum(one.times * len(one.ids) for answers in sampled for one in answers)], lm.device
        )
        reward, right, written, count = tally
        self.numbers = {
            **{"reward": reward / count, "exact": 100 * right / count},
            "answer_tokens": written / count,
        }
        summed = [torch.zeros(2, device=lm.device)]  # loss and KL of each batch
        for answers in sampled:
            readings = self.readings(answers)
            for start in range(0, len(readings), settings["batch"]):
                summed.append(self.learn(readings[start : start + settings["batch"]], total))
        sum_gradients(p for p in lm.parameters() if p.requires_grad)
        self.apply_gradients()
        sums = torch.stack(summed).cpu().double().sum(0).tolist()
        loss, self.numbers["kl"] = sum_over_processes(sums, lm.device)
        return (loss, None), rate

    def learn(self, readings: Sequence[WeightedReading], total: float) -> torch.Tensor:
        """Add the gradients of a batch of readings.

        Parameters
        ----------
        readings : list of WeightedReading
        total : float
            Sampled ids of the step, over all processes.

        Returns
        -------
        float32 tensor (2,)
            The batch's parts of the loss and of the mean KL to the initial model.
        """
        batch = self.samples.batch([reading for reading, _, _ in readings]).to(self.lm.device)
        advantage = _padded([advantages for _, advantages, _ in readings], batch.ids)
        times = _padded([counts for _, _, counts in readings], batch.ids)
        with torch.no_grad(), self.initial_weights():
            reference = self.log_probabilities(batch)
        with recomputing_layers(self.lm.base):
            logs = self.log_probabilities(batch)
            ratio = reference - logs
            distance = (ratio.exp() - ratio - 1) * times.flatten()[batch.text]
            part = (self.settings["kl"] * distance - advantage.flatten()[batch.text] * logs).sum() / total
            self.scaler.scale(part).backward()
        return torch.stack([part.detach(), distance.detach().sum() / total])

    def sample(self, questions: Sequence[Question], before: int = 0) -> list[SampledAnswer]:
        """Sample answers to questions, and return them with their advantages.

        Parameters
        ----------
        questions : list of Question
        before : int
            Number of questions earlier in the step: an answer's random numbers follow from its index in the step.
        """
        copies, end_ids = self.settings["answers"], self.samples.prompt.end_ids
        prompts = [self.samples(question, asked=True)[0] for question in questions]
        repeated = [ids for ids in prompts for _ in range(copies)]
        seed = [self.settings["seed"], self.step]
        sampler = Sampler(self.settings["temperature"], 0)
        first = before * copies
        sampler.random = [np.random.default_rng([*seed, first + i]) for i in range(len(repeated))]
        picks = RecordedPicks(sampler, end_ids, len(repeated))
        self.lm.answer(repeated, end_ids, answer_budget(self.lm, prompts, self.settings["max_new"]), picks)
        written = [ids for ids, _ in picks.answers()]
        rewards, right = np.empty((2, len(questions), copies))
        for i, ids in enumerate(written):
            place = divmod(i, copies)
            rewards[place], right[place] = self.rated(questions[place[0]], ids)
        differences = rewards - rewards.mean(1, keepdims=True)
        advantage = differences / (rewards.std(1, keepdims=True) + 1e-4)
        self.tally += [rewards.sum(), right.sum(), sum(map(len, written)), len(written)]
        answers = []
        for number, prompt in enumerate(prompts):
            equal: dict[tuple[int, ...], list[float]] = {}
            for k in range(copies):
                equal.setdefault(tuple(written[number * copies + k]), []).append(advantage[number, k])
            answers += [
                SampledAnswer(prompt, ids, float(np.sum(values)), len(values))
                for ids, values in equal.items()
            ]
        return answers

    def rated(self, question: Question, ids: Sequence[int]) -> tuple[float, bool]:
        """Return the reward of an answer, and whether it is right."""
        end_ids = self.samples.prompt.end_ids
        text = self.samples.prompt.text([i for i in ids if i not in end_ids])
        answer = split_reasoning(text, self.tags) if self.tags else ReasonedAnswer("", text, True)
        length = min(1.0, len(ids) / self.settings["max_new"])
        reward = total_reward(self.settings["rewards"], answer, question, self.whole, length)
        return reward, exact_match(answer.answer, question.truth, self.whole)

    def readings(self, sampled: Sequence[SampledAnswer]) -> list[WeightedReading]:
        """Put answers after one reading of their ECG, or one each if the base model cannot share it."""
        layout = self.samples.prompt.layout
        groups: dict[int | bytes, tuple[np.ndarray, list[SampledAnswer]]] = {}
        for number, answer in enumerate(sampled):
            begin = answer.prompt[: layout.prefix(answer.prompt)]
            key = number if self.samples.together == 1 else begin.tobytes()
            groups.setdefault(key, (begin, []))[1].append(answer)
        return [self.reading(begin, answers) for begin, answers in groups.values()]

    def reading(self, begin: np.ndarray, sampled: Sequence[SampledAnswer]) -> WeightedReading:
        """Return a reading of shared ids followed by the answers in parallel."""
        shared = self.samples.prompt.layout.positions(begin)
        ids, labels, positions = [begin], [np.full(len(begin), IGNORED)], [shared]
        for answer in sampled:
            question = answer.prompt[len(begin) :]
            written = np.array(answer.ids, np.int64)
            ids.append(np.concatenate([question, written]))
            labels.append(np.concatenate([np.full(len(question), IGNORED), written]))
            positions.append(shared[-1] + 1 + np.arange(len(ids[-1])))
        lengths = [len(part) for part in ids]
        owner = np.repeat(np.arange(len(ids)), lengths)
        advantage = np.repeat([0.0, *(answer.advantage for answer in sampled)], lengths)
        times = np.repeat([0.0, *(float(answer.times) for answer in sampled)], lengths)
        reading = Reading(np.concatenate(ids), np.concatenate(labels), np.concatenate(positions), owner)
        return reading, advantage, times

    def log_probabilities(self, batch: Batch) -> torch.Tensor:
        """Return the log probabilityat the sampling temperature of each labelled id of a batch."""
        with self.lm.autocast():
            logits, _ = self.lm.outputs(
                lambda states: states.flatten(0, 1).index_select(0, batch.text - 1),
                **self.lm.inputs(batch.ids, batch.positions, batch.owner),
            )
        logs = (logits.float() / self.settings["temperature"]).log_softmax(-1)
        return logs.gather(-1, batch.labels.flatten()[batch.text][:, None])[:, 0]

    @contextlib.contextmanager
    def initial_weights(self) -> Iterator[None]:
        """Use the initial weights inside the block."""
        trained = {name: p for name, p in self.lm.named_parameters() if name in self.initial}
        weights = {name: p.data for name, p in trained.items()}
        for name, p in trained.items():
            p.data = self.initial[name]
        try:
            yield
        finally:
            for name, p in trained.items():
                p.data = weights[name]

    def log_row(self, rate: float, losses: Losses) -> dict[str, Any]:
        return {"step": self.step, "learning_rate": rate, **self.numbers}

    def log_validation(self, loss: float) -> dict[str, Any]:
        return {"val_reward": loss}

    def status(self) -> str:
        return f"reward {np.mean([row['reward'] for row in self.rows[-20:]]):.3f}"

    def validate(self) -> float:
        """Report the mean reward of greedy answers to validation questions, and keep the best weights."""
        reward = self.validation_reward(self.validation)
        trained = ""
        if self.rows:
            recent = np.mean([row["reward"] for row in self.rows[-self.every :]])
            trained = f"reward {recent:.3f} of sampled answers, "
        self.tell(f"step {self.step}: {trained}{reward:.3f} of greedy answers to validation questions")
        self.keep_if_best(-reward)
        return reward

    def validation_reward(self, questions: Sequence[Question]) -> float:
        """Return the mean reward of greedy answers to questions. A stop signal ends it immediately."""
        rewards: list[float] = []
        size = 4 * self.settings["batch"]
        self.lm.eval()
        with self.stop.at_once():
            for start in range(0, len(questions), size * self.processes):
                self.stop.check()
                own = start + size * self.rank
                if some := questions[own : own + size]:
                    rewards += self.rewards(some)
        (total,) = sum_over_processes([sum(rewards)], self.lm.device)
        return total / len(questions)

    def rewards(self, questions: Sequence[Question]) -> list[float]:
        """Return the reward of the greedy answer to each question."""
        prompts = [self.samples(question, asked=True)[0] for question in questions]
        budget = answer_budget(self.lm, prompts, self.settings["max_new"])
        answers = self.lm.answer(prompts, self.samples.prompt.end_ids, budget)
        return [self.rated(q, ids)[0] for q, ids in zip(questions, answers, strict=True)]

    def result(self) -> dict[str, Any]:
        """Load the best weights, and return the results of the run."""
        self.load_best()
        last = self.rows[-max(1, self.step // 10) :]
        mean = {name: float(np.mean([row[name] for row in last])) for name in COLUMNS[2:6]}
        return {
            "steps": self.step,
            **mean,
            "val_reward": -self.best[1] if self.best else None,
            "best_step": self.best[0] if self.best else self.step,
            "trainable_parameters": sum(p.numel() for p in self.initial.values()),
        }

    def write_log(self, picture: bool) -> None:
        """Write reward, length and KL as CSV, and plot them if `picture` is true."""
        training_log.write_csv(self.work.reward_csv, self.rows, COLUMNS)
        if picture:
            training_log.plot_rewards(self.work.reward_picture, self.rows)
            self.drawn = time.monotonic()


def _padded(rows: Sequence[np.ndarray], ids: torch.Tensor) -> torch.Tensor:
    """Return the values of each id of a batch, padded with 0 on the right."""
    padded = torch.zeros(ids.shape, dtype=torch.float32)
    for row, values in zip(padded, rows, strict=True):
        row[: len(values)] = torch.from_numpy(np.asarray(values, np.float32))
    return padded.to(ids.device)
