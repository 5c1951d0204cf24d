"""The answers without the ECG and with a flat line, as evidence of whether an answer depends on the ECG.

Models are trained on both kinds of prompt. An answer may not depend on the ECG if the model gives the same answer
without it, with at least `SHARE` times the probability.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ecgbyte_cli.signal.measured_lines import NOTHING

if TYPE_CHECKING:
    from ecgbyte_cli.inference.batch_answering import Answer
    from ecgbyte_cli.inference.session import Session

SHARE = 0.8
NO_ECG = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Witness:
    """The answers of a model to the same question without the ECG and with a flat line.

    Attributes
    ----------
    without, flat : tuple of (str, float)
        The most probable answer and its calibrated probability.
    same : float
        The probability, without the ECG, of the answer that was given with it.
    depends : bool
        Whether the answer depends on the ECG.
    """

    without: tuple[str, float]
    flat: tuple[str, float]
    same: float
    depends: bool

    @property
    def text(self) -> str:
        """Both answers in words."""
        return (
            f"without the ECG: {self.without[0]}, {percent(self.without[1])}; "
            f"with a flat line: {self.flat[0]}, {percent(self.flat[1])}"
        )

    @property
    def note(self) -> str:
        """A warning; empty if the answer depends on the ECG."""
        if self.depends:
            return ""
        return f"the model gives this answer without the ECG too ({percent(self.same)}): it may not depend on the ECG"

    def as_json(self) -> dict[str, Any]:
        """Return the witness for --json."""
        return {
            "without_ecg": {"answer": self.without[0], "probability": round(self.without[1], 6)},
            "flat_line": {"answer": self.flat[0], "probability": round(self.flat[1], 6)},
            "same_answer_without_ecg": round(self.same, 6),
            "depends_on_ecg": self.depends,
        }


def witness_of(
    probability: float, same: float, again: bool, without: tuple[str, float], flat: tuple[str, float]
) -> Witness:
    """Compare an answer with the answers to the same question without the ECG.

    Parameters
    ----------
    probability : float
        The answer's probability with the ECG.
    same : float
        Its probability without the ECG.
    again : bool
        Whether the model gives the same answer without the ECG.
    without, flat : (str, float)
        The most probable answer without the ECG and with a flat line, and its probability.
    """
    return Witness(without, flat, same, not (again and same >= SHARE * probability))


def witness_among(given: "Mapping[str, Sequence[Answer]]", number: int) -> Witness | None:
    """Return the witness of an answer from the controls; None without controls, or for a free-text answer."""
    names = ("signal", "no signal", "flat line")
    with_ecg, without, flat = (given[name][number] if name in given else None for name in names)
    if not (with_ecg and without and flat and with_ecg.weights and without.weights and flat.weights):
        return None
    assert with_ecg.place is not None
    same, again = without.weights[with_ecg.place], without.place == with_ecg.place
    best = [
        max((one.probability, one.answer), (one.other_probability or 0.0, one.other or ""))[::-1]
        for one in (without, flat)
    ]
    return witness_of(with_ecg.probability, same, again, *best)


def find_witness(
    session: "Session",
    question: str,
    answers: Sequence[str],
    weights: np.ndarray,
    earlier: Sequence[tuple[str, str]] = (),
) -> Witness:
    """Ask a model the same question without an ECG and with a flat line.

    Parameters
    ----------
    session, question, answers, earlier
        See `ask_without_ecg`.
    weights : numpy.ndarray
        float64 (answers,), probabilities with the ECG.
    """
    without, flat = ask_without_ecg(session, question, answers, earlier)
    given = session.choose(question, answers, weights)
    same = float(without[list(answers).index(given.answer)])
    again = session.choose(question, answers, without).answer == given.answer
    best = [(answers[int(one.argmax())], float(one.max())) for one in (without, flat)]
    return witness_of(given.probability, same, again, *best)


def ask_without_ecg(
    session: "Session", question: str, answers: Sequence[str], earlier: Sequence[tuple[str, str]] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of the possible answers, float64 (answers,), without an ECG and with a flat line.

    Parameters
    ----------
    session : Session
        Caches the result if there are no earlier turns.
    question : str
        Worded as in the prompt.
    answers : sequence of str
    earlier : sequence of (str, str)
        Earlier turns of the prompt.
    """
    key = question, tuple(answers)
    if earlier or key not in session.witnesses:
        flat = session.tokenizer.flat_line(session.segmenter)
        turns = [*earlier, (question, None)]
        prompts = [session.prompt_of([tokens], turns, [NOTHING])[0] for tokens in (NO_ECG, flat)]
        without, with_flat = session.weigh_prompts(prompts, answers, [question] * 2)
        if earlier:
            return without, with_flat
        session.witnesses[key] = without, with_flat
    return session.witnesses[key]


def percent(probability: float) -> str:
    """Format a probability as a percentage, never 0 or 100 %."""
    if 0.01 <= probability <= 0.99:
        return f"{100 * probability:.0f} %"
    return "over 99 %" if probability > 0.5 else "under 1 %"
