"""Completion and depth of ECG-Reasoning-Benchmark (Oh et al., arXiv 2603.14326), like its heuristic evaluator.

A sample asks for a diagnosis, then goes through loops of criterion, finding, grounding in the ECG, and decision. Every
step is asked after the true answers to all earlier steps, so that one run scores all steps.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ecgbyte_cli.evaluation.metrics import bootstrap, confidence_interval
from ecgbyte_cli.failure import Failure

Sample = Mapping[str, Any]
FURTHER = "further findings are required to confirm the diagnosis"
LEAD = r"(?:iii|ii|i|avr|avl|avf|v[1-6])"
LEADS_NAMED = re.compile(rf"\bleads?\s+{LEAD}\b(?:(?:\s*,\s*(?:and\s+)?|\s+and\s+){LEAD}\b)*")
RANGE = re.compile(r"\[?\s*-?\d+\.?\d*\s*[^\d\s]*\s*-\s*-?\d+\.?\d*\s*[^\d\s]*\s*\]?")
# release 0.0.2 reworded the criterion that rules out left bundle branch block, and generated its samples again
RULED_OUT, RULES_OUT = "must be ruled out before diagnosis", "left bundle branch block"
FASCICULAR = ("left_anterior_fascicular_block", "left_posterior_fascicular_block")
RENEWED = (
    *FASCICULAR,
    *("left_ventricular_hypertrophy", "third_degree_av_block"),
    *("premature_atrial_complex", "premature_ventricular_complex"),
)
UNKNOWN = "unknown"


class Judged(NamedTuple):
    """A sample with its steps judged.

    Attributes
    ----------
    initial : bool
        Whether the first diagnosis is right.
    steps : list of (str, bool)
        Type of each step of the reasoning, and whether it is right.
    hard, soft : bool
        Whether all steps are right; `soft` accepts a decision before all findings are established.
    depths : list of float
        For each loop with grounding, 0 to 4: the number of steps before the first error; grounding counts as one.
    decided : bool
        Whether the last decision is right, after the true answers to all earlier steps.
    """

    initial: bool
    steps: list[tuple[str, bool]]
    hard: bool
    soft: bool
    depths: list[float]
    decided: bool


def _yes_no(text: str) -> str:
    """Return yes or no if a text begins or ends with it, else the text itself."""
    bare = text.strip().strip(".").lower()
    for word in ("yes", "no"):
        if bare.startswith((word, f"**{word}**")) or bare.endswith((word, f"**{word}**")):
            return word
    return bare


def _leads(text: str) -> set[str]:
    """Return the leads that a text names, as `lead v1`."""
    bare = text.lower()
    if bare.startswith(("ads ", "ad ")):  # a truncated "leads"
        bare = "le" + bare
    bare = bare.strip("-: \n\t")
    if phrases := LEADS_NAMED.findall(bare):
        return {f"lead {lead}" for phrase in phrases for lead in re.findall(rf"\b{LEAD}\b", phrase)}
    bare = bare.replace("and", ",").replace("leads", "lead")
    separator = next((mark for mark in ",;/\n" if mark in bare), None)
    parts = {part.strip().strip("-").strip() for part in (bare.split(separator) if separator else [bare])} - {
        ""
    }
    return {f"lead {part}" if re.fullmatch(LEAD, part) else part for part in parts}


def _measured(truth: str, text: str) -> bool:
    """Return whether a range is the true one, possibly without brackets or with words after it."""
    true, said = (" ".join(of.lower().split()) for of in (truth, text))
    if true == said:
        return True
    found = RANGE.match(said) if RANGE.match(true) else None
    return bool(found) and true == f"[{found[0].removeprefix('[').removesuffix(']')}]"  # type: ignore[index]


RIGHT: dict[str, Callable[[list[str], str], bool]] = {
    "initial_diagnostic_question": lambda true, said: true[0].strip().lower() == _yes_no(said),
    "criterion_selection": lambda true, said: true[0].strip().lower() == said.strip("-").strip().lower(),
    "finding_identification": lambda true, said: true[0].strip().lower() == _yes_no(said),
    "lead_grounding": lambda true, said: {lead.strip().lower() for lead in true} == _leads(said),
    "wave_grounding": lambda true, said: true[0].strip().lower() == said.strip().lower(),
    "measurement_grounding": lambda true, said: _measured(true[0], said),
    "diagnostic_decision": lambda true, said: true[0].strip().lower() == _yes_no(said),
}


def judge(sample: Sample) -> Judged:
    """Judge the responses of a sample.

    Raises
    ------
    KeyError, TypeError
        If it is malformed, or a step has no `model_response`, as in forced-commit files.
    """
    data = sample["data"]
    initial = _is_right(
        data["initial_diagnostic_question"], ["yes" if sample["metadata"]["dx_label"] else "no"]
    )
    steps: list[tuple[str, bool]] = []
    depths: list[float] = []
    hard = soft = True
    decided = False
    for loop in data["reasoning"]:
        going, depth = True, 0.0
        for name, value in loop.items():
            group = value if isinstance(value, list) else [value]
            for step in group:
                right = _is_right(step)
                steps.append((step["question_type"], right))
                going = going and right
                depth += going / len(group)
                hard = hard and right
                soft = soft and (right or _may_pass(step))
            if name == "diagnostic_decision":
                decided = steps[-1][1]
        if loop.get("ecg_grounding"):
            depths.append(depth)
    return Judged(initial, steps, hard, soft, depths, decided)


def _is_right(step: Mapping[str, Any], truth: list[str] | None = None) -> bool:
    """Return whether the response to a step is right."""
    answer = step["answer"]
    true = truth or (answer if isinstance(answer, list) else [answer])
    return RIGHT[step["question_type"]](true, step["model_response"])


def _may_pass(step: Mapping[str, Any]) -> bool:
    """Return whether the true decision is that further findings are required."""
    return step["question_type"] == "diagnostic_decision" and str(step["answer"]).lower() == FURTHER


def key_of(sample: Sample) -> tuple[str, ...]:
    """Return the key that identifies a sample."""
    about = sample["metadata"]
    return tuple(
        str(about.get(name)) for name in ("data_source", "ecg_id", "target_dx", "dx_label", "path_idx")
    )


def release_of(samples: Sequence[Sample]) -> str:
    """Return the release of samples, from their questions: 0.0.1, 0.0.2 or `unknown`.

    Only samples of fascicular blocks that rule out left bundle branch block show it.
    """
    for sample in samples:
        if sample["metadata"].get("target_dx") not in FASCICULAR:
            continue
        for loop in sample["data"]["reasoning"]:
            step = loop.get("criterion_selection") or {}
            if RULED_OUT in str(step.get("question")):
                return "0.0.2"
            if RULES_OUT in str(step.get("answer")).lower():
                return "0.0.1"
    return UNKNOWN


def score_samples(
    answered: Mapping[str, Sequence[Sample]], benchmark: Sequence[Sample], seed: int = 0
) -> dict[str, Any]:
    """Score the responses to samples, and compare them with the responses about twins of the ECGs.

    Parameters
    ----------
    answered : mapping
        `signal` and the controls, mapped to the samples with the model's responses.
    benchmark : list of dict
        The samples without responses, all from one release.
    seed : int
        Seed of the bootstrap over patients.

    Returns
    -------
    dict
        `release`, `renewed` (samples of diagnoses that 0.0.2 generated again), `questions` (samples), `unanswered`,
        `patients`; the scores of `_scores`; `control` (name to its scores) and `gain` (name to the differences of
        `completion_hard`, `completion_soft` and `depth`, with intervals).

    Raises
    ------
    Failure
        If samples are malformed, answered twice or of another release, or none is answered for all controls.
    """
    known = {key_of(sample): sample for sample in benchmark}
    judged = {name: _judge_all(samples, known, name) for name, samples in answered.items()}
    keys = [key for key in known if all(key in of for of in judged.values())]
    if not keys:
        raise Failure("no sample is answered with the signal and with every control")
    patients = [
        str(known[k]["metadata"].get("subject_id") or known[k]["metadata"].get("ecg_id")) for k in keys
    ]
    drawn = {name: _draw([of[key] for key in keys], patients, seed) for name, of in judged.items()}
    scores = {name: _scores([judged[name][key] for key in keys], drawn[name]) for name in judged}
    controls = [name for name in judged if name != "signal"]
    return {
        "release": release_of(benchmark),
        "renewed": sum(known[key]["metadata"].get("target_dx") in RENEWED for key in keys),
        "questions": len(keys),
        "unanswered": len(known) - len(keys),
        "patients": len(set(patients)),
        **scores["signal"],
        "control": {name: scores[name] for name in controls},
        "gain": {
            name: {
                measure: {
                    "difference": scores["signal"][measure] - scores[name][measure],
                    "interval": confidence_interval(values - drawn[name][measure]),
                }
                for measure, values in drawn["signal"].items()
            }
            for name in controls
        },
    }


def _judge_all(
    samples: Sequence[Sample], known: Mapping[tuple[str, ...], Sample], control: str
) -> dict[tuple[str, ...], Judged]:
    """Judge samples , keyed by `_key`."""
    judged: dict[tuple[str, ...], Judged] = {}
    for sample in samples:
        try:
            key = key_of(sample)
            name = f"sample {' '.join(key)} (control {control})"
            if key in judged:
                raise Failure(f"{name} is answered twice")
            if key not in known or _questions(sample) != _questions(known[key]):
                raise Failure(
                    f"{name} is not as in the question file: another release of the benchmark was answered"
                )
            judged[key] = judge(sample)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise Failure(
                "a sample is malformed, or a step has no model_response, as after --inference-mode forced-commit: "
                f"{error}"
            ) from error
    return judged


def _questions(sample: Sample) -> list[tuple[str, str]]:
    """Return the questions of a sample with their true answers."""
    data = sample["data"]
    steps = [data["initial_diagnostic_question"]]
    for loop in data["reasoning"]:
        for value in loop.values():
            steps += value if isinstance(value, list) else [value]
    return [(step["question"], str(step["answer"])) for step in steps]


def _draw(judged: Sequence[Judged], patients: Sequence[str], seed: int) -> dict[str, np.ndarray]:
    """Return completion in percent and depth in every draw of a bootstrap over patients."""
    flags = {"completion_hard": [one.hard for one in judged], "completion_soft": [one.soft for one in judged]}
    drawn = bootstrap({name: np.array(of, float) for name, of in flags.items()}, patients, seed)
    loops = [(depth, p) for one, p in zip(judged, patients, strict=True) for depth in one.depths]
    if loops:
        depths, whose = zip(*loops, strict=True)
        drawn["depth"] = bootstrap({"depth": np.array(depths)}, whose, seed)["depth"] / 100
    return drawn


def _scores(judged: Sequence[Judged], drawn: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the scores of judged samples.

    `completion_hard`, `completion_soft`, `initial_accuracy`, `diagnosis_accuracy` (the last decision, after true
    reasoning) and `by_step` in percent; `depth` 0 to 4 over loops with grounding, missing if there are none; and the
    `…_interval` of completion and depth.
    """
    steps: dict[str, list[bool]] = {}
    for one in judged:
        for kind, right in one.steps:
            steps.setdefault(kind, []).append(right)
    depths = [depth for one in judged for depth in one.depths]
    return {
        "completion_hard": 100 * float(np.mean([one.hard for one in judged])),
        "completion_soft": 100 * float(np.mean([one.soft for one in judged])),
        **({"depth": float(np.mean(depths))} if depths else {}),
        **{f"{name}_interval": confidence_interval(values) for name, values in drawn.items()},
        "initial_accuracy": 100 * float(np.mean([one.initial for one in judged])),
        "diagnosis_accuracy": 100 * float(np.mean([one.decided for one in judged])),
        "by_step": {kind: 100 * float(np.mean(right)) for kind, right in sorted(steps.items())},
    }
