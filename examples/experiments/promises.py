"""Test the promises of `ecgbyte findings --calibrate` where the truth is known.

    python examples/experiments/promises.py results/promises.json
    python examples/experiments/promises.py results/promises.json --table ludb.csv --labels ludb_labels.csv

Populations are binormal: scores of patients with and without the finding have normal distributions of one variance, so
that the error of every threshold is known exactly. The model's probabilities are right up to a factor and a shift of
their log-odds. Each sample of patients is calibrated afresh, and the error in the population compared with the promise.

With a table and labels, random halves of the patients are calibrated and the other half is scored: a description.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from ecgbyte_cli.evaluation.finding_scores import answer_scores, probability_scores
from ecgbyte_cli.evaluation.finding_truth import LabelledFinding, join_truth, read_finding_table
from ecgbyte_cli.evaluation.site_calibration import calibrate_finding
from ecgbyte_cli.inference.operating_points import OperatingPoint, log_odds

MAX_ERROR = 0.1
SAMPLES = 1000
SIZES = (50, 200, 1000)
OFF = ((1.0, 0.0), (0.5, 1.0), (2.0, -1.0))  # factor and shift of the log-odds
HALVES = 50


class Population(NamedTuple):
    """Patients with a finding, and the model's probabilities of it.

    Attributes
    ----------
    prevalence, auroc : float
    factor, shift : float
        The model's log-odds are the true ones times the factor, plus the shift.
    """

    prevalence: float
    auroc: float
    factor: float = 1.0
    shift: float = 0.0

    @property
    def distance(self) -> float:
        """Distance of the two normal distributions, in standard deviations."""
        return float(np.sqrt(2) * norm.ppf(self.auroc))

    def sample(self, patients: int, random: np.random.Generator) -> LabelledFinding:
        """Draw patients with one recording each."""
        truth = random.random(patients) < self.prevalence
        score = random.normal(self.distance * truth)
        logs = self.distance * score - self.distance**2 / 2 + log_odds(self.prevalence)
        chances = 1 / (1 + np.exp(-(self.factor * logs + self.shift)))
        names = np.array([f"p{i}" for i in range(patients)])
        return LabelledFinding("afib", "atrial fibrillation", chances, np.full(patients, "no"), truth, names)

    def errors(self, point: OperatingPoint) -> tuple[float, float, float]:
        """Return the shares of errors among yes and among no (0 without answers), and the share answered."""
        wrong, answered = [], 0.0
        for side, threshold in ((1, point.yes), (-1, point.no)):
            if threshold is None:
                wrong.append(0.0)
                continue
            logs = (log_odds(threshold) - self.shift) / self.factor - log_odds(self.prevalence)
            at = side * float(logs + self.distance**2 / 2) / self.distance
            present = self.prevalence * norm.sf(at - side * self.distance)
            absent = (1 - self.prevalence) * norm.sf(at)
            wrong.append(float((absent if side == 1 else present) / (present + absent)))
            answered += float(present + absent)
        return wrong[0], wrong[1], answered


def try_promises(population: Population, patients: int, samples: int, seed: int = 0) -> dict[str, Any]:
    """Calibrate fresh samples; return how often the population's error exceeds the promise, and the share answered."""
    random = np.random.default_rng(seed)
    found = np.array(
        [
            population.errors(calibrate_finding(population.sample(patients, random), MAX_ERROR)[0])
            for _ in range(samples)
        ]
    )
    over = found[:, :2] > MAX_ERROR
    return {
        **population._asdict(),
        **{"patients": patients, "samples": samples},
        **{"exceeded_yes": float(over[:, 0].mean()), "exceeded_no": float(over[:, 1].mean())},
        **{"exceeded_either": float(over.any(1).mean()), "answered": float(found[:, 2].mean())},
    }


def halves(labelled: list[LabelledFinding], seed: int = 0) -> list[dict[str, Any]]:
    """Calibrate random halves of the patients, and score the other half; return means over the halves."""
    random, rows = np.random.default_rng(seed), []
    for one in labelled:
        names = np.unique(one.patients)
        scores = []
        for _ in range(HALVES):
            half = set(random.permutation(names)[: len(names) // 2].tolist())
            inside = np.array([name in half for name in one.patients])
            parts = [one._replace(**{key: getattr(one, key)[some] for key in
                     ("probability", "answer", "truth", "patients")}) for some in (inside, ~inside)]  # fmt: skip
            scores.append(score_half(*parts))
        rows.append({"finding": one.name, "positives": int(one.truth.sum())} | mean_of(scores))
    return rows


def score_half(calibration: LabelledFinding, other: LabelledFinding) -> dict[str, float | None]:
    """Calibrate on one half, and score the other before and after."""
    point, _ = calibrate_finding(calibration, MAX_ERROR)
    after = np.array([point.recalibrated(p) for p in other.probability])
    answers = answer_scores(np.array([point.answer(p) for p in other.probability]), other.truth)
    wrong = answers["false_positives"] + answers["false_negatives"]
    said = round(answers["answered"] * len(other.truth))
    before = answer_scores(other.answer, other.truth)
    return {
        "log_loss_before": probability_scores(other.probability, other.truth)["log_loss"],
        "log_loss_after": probability_scores(after, other.truth)["log_loss"],
        "errors_before": (before["false_positives"] + before["false_negatives"]) / len(other.truth),
        "answered": answers["answered"],
        "errors_of_answered": wrong / said if said else None,
    }


def mean_of(scores: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Return the mean of each score over those that have it."""
    known = {key: [one[key] for one in scores if one[key] is not None] for key in scores[0]}
    return {key: float(np.mean(values)) if values else None for key, values in known.items()}


def main() -> None:
    """Run the experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--table", type=Path, help="a table of `ecgbyte findings`")
    parser.add_argument("--labels", type=Path, help="labels of its recordings")
    options = parser.parse_args()
    if options.table:
        rows = halves(join_truth(read_finding_table(options.table), options.labels))
    else:
        rows = [
            try_promises(Population(prevalence, auroc, *off), patients, options.samples)
            for prevalence in (0.02, 0.1, 0.5)
            for auroc in (0.8, 0.95)
            for off in OFF
            for patients in SIZES
        ]
    for row in rows:
        print(json.dumps(row))
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
