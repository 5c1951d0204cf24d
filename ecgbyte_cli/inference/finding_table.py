"""The rows and columns of the findings table: every question about every segment of the recordings.

An ECG is read once for all questions.
"""

import base64
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ecgbyte_cli import readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.conversation import ECG
from ecgbyte_cli.inference.findings_reading import conflicts_among
from ecgbyte_cli.inference.operating_points import NO, YES, OperatingPoint
from ecgbyte_cli.inference.recording_loader import RecordingLoader
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.inference.trained_questions import RHYTHM, TrainedQuestion
from ecgbyte_cli.model import folder_checks
from ecgbyte_cli.runtime import cluster
from ecgbyte_cli.runtime.memory import out_of_memory
from ecgbyte_cli.runtime.processes import threads
from ecgbyte_cli.signal.measurement import VALUES
from ecgbyte_cli.storage.files import array_writer
from ecgbyte_cli.storage.row_table import Row

TOGETHER = 8  # ECGs read in one batch
KEYS = ("record", "path", "patient", "recorded", "segment", "start")
MEASURED = (*VALUES, "flags", "quality")
REMARKS = ("unlike", "conflicts")
EMBEDDING = "embedding"  # entry of a row, base64; not a column
NUMBERS = {"segment": int, "start": float} | dict.fromkeys(VALUES, float)


def columns_of(questions: Sequence[TrainedQuestion]) -> dict[str, type]:
    """Return name and type of each table column.

    A finding has its probability, `p_NAME`, and then its answer, `NAME`; any other question has its answer first.
    """
    columns: dict[str, type] = {name: NUMBERS.get(name, str) for name in KEYS}
    for one in questions:
        pair = {f"p_{one.name}": float, one.name: str}
        columns |= pair if one.verify else dict(reversed(pair.items()))
    return columns | {name: NUMBERS.get(name, str) for name in (*MEASURED, *REMARKS)}


def finding_rows(
    paths: Sequence[str], asked: dict[str, Any], ahead: int = 0
) -> Iterator[tuple[str, list[Row] | Failure]]:
    """Yield the rows of each recording, one per segment, or the reason it was skipped.

    Parameters
    ----------
    paths : list of str
    asked : dict
        `model`, `base`, `device`, `sha256` (model folder, folder of its base model or None, device or None, SHA-256
        of ecgbyte.json), `reading` (see `session.reading_options`), `questions` (of `TrainedQuestion`s, as lists),
        `points` (name to `OperatingPoint`, as a list), `salt` (of `readers.patient_key`) and `embeddings` (whether to
        add them).
    ahead : int
        Threads that read and measure recordings while the GPU computes; 0 reads them one after another.

    Raises
    ------
    Failure
        If the model cannot be loaded, or fails.
    """
    model = asked["model"], asked["base"], asked["device"], asked["sha256"]
    session = _session(*model, json.dumps(asked["reading"]))
    waiting: list[tuple[str, list[ECG] | Failure]] = []
    with _threads(session):
        for path, given in _read(session.reader, paths, ahead):
            waiting.append((path, given))
            if sum(len(ecgs) for _, ecgs in waiting if isinstance(ecgs, list)) >= TOGETHER:
                yield from _answered(session, waiting, asked)
                waiting = []
        yield from _answered(session, waiting, asked)


def _read(
    loader: RecordingLoader, paths: Sequence[str], ahead: int
) -> Iterator[tuple[str, list[ECG] | Failure]]:
    """Yield the ECGs of each recording, or the reason it was skipped, in order."""

    def read(path: str) -> list[ECG] | Failure:
        try:
            recording, cut = loader.segments(path)
            ecgs = [loader.segment(recording, cut, number) for number in range(len(cut))]
        except Failure as error:
            return error
        if ahead:
            for ecg in ecgs:
                _ = ecg.measurement  # computed here, in the reading thread, and cached
        return ecgs

    if not ahead:
        yield from ((path, read(path)) for path in paths)
        return
    with threads(ahead) as pool:
        begun: deque[tuple[str, Future[list[ECG] | Failure]]] = deque()
        for path in paths:
            begun.append((path, pool.submit(read, path)))
            if len(begun) > 2 * ahead:
                first, future = begun.popleft()
                yield first, future.result()
        for first, future in begun:
            yield first, future.result()


@lru_cache(1)
def _session(model: str, base: str | None, device: str | None, sha256: str, reading: str) -> Session:
    """Open a model, once per process."""
    if folder_checks.model_sha256(Path(model)) != sha256:
        raise Failure(f"{model} was replaced during the run: run `ecgbyte findings` again")
    session = Session.open(model, None, base, cluster.device_here(device), **json.loads(reading))
    session.load()
    return session


@contextmanager
def _threads(session: Session) -> Iterator[None]:
    """Use one thread for a small model, because several processes run at once; larger models use all threads."""
    import torch

    before = torch.get_num_threads()
    if session.about["base"] in folder_checks.BUILT:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _answered(
    session: Session, waiting: Sequence[tuple[str, list[ECG] | Failure]], asked: dict[str, Any]
) -> Iterator[tuple[str, list[Row] | Failure]]:
    """Yield the rows of recordings that have been read."""
    questions = [TrainedQuestion(*one) for one in asked["questions"]]
    points = {name: OperatingPoint(*point) for name, point in asked["points"].items()}
    every = [ecg for _, ecgs in waiting if isinstance(ecgs, list) for ecg in ecgs]
    given = iter(_weighed(session, every, questions, asked["embeddings"]))
    for path, ecgs in waiting:
        if isinstance(ecgs, Failure):
            yield path, ecgs
        else:
            yield (
                path,
                [_row(session, path, ecg, questions, points, *next(given), asked["salt"]) for ecg in ecgs],
            )


def _weighed(
    session: Session, ecgs: Sequence[ECG], questions: Sequence[TrainedQuestion], embeddings: bool
) -> Iterator[tuple[list[np.ndarray], np.ndarray | None]]:
    """Yield the probabilities of the answers to all questions about each ECG, and its embedding if wanted."""
    from ecgbyte_cli.model.beginnings import states_after

    written = [[session.prompt.written(answer) for answer in one.answers] for one in questions]
    for start in range(0, len(ecgs), TOGETHER):
        some = ecgs[start : start + TOGETHER]
        prompts = [session.prompt_ids([ecg], [(one.text, None)])[0] for ecg in some for one in questions]
        try:
            logs = iter(session.lm.weigh(prompts, written * len(some)))
            states = (
                states_after(session.lm, prompts[:: len(questions)]) if embeddings else [None] * len(some)
            )
        except (RuntimeError, MemoryError) as error:
            if out_of_memory(error):
                raise Failure("out of memory: lower --jobs; what is finished is kept") from error
            raise
        for state in states:
            yield [session.weights(one.answers, next(logs), one.text) for one in questions], state


def _row(
    session: Session,
    path: str,
    ecg: ECG,
    questions: Sequence[TrainedQuestion],
    points: Mapping[str, OperatingPoint],
    weights: Sequence[np.ndarray],
    embedding: np.ndarray | None,
    salt: str,
) -> Row:
    """Return the row of a segment."""
    recording, measurement = ecg.recording, ecg.measurement
    row: Row = {"record": recording.name, "path": path, "patient": readers.patient_key(recording, salt)}
    row["recorded"] = recording.start.isoformat(timespec="seconds") if recording.start else None
    row |= {"segment": ecg.number, "start": ecg.seconds[0]}
    answers: dict[str, str] = {}
    for one, chances in zip(questions, weights, strict=True):
        if one.verify:
            yes = float(chances[[answer.casefold() for answer in one.answers].index(YES)])
            probability, answers[one.name] = points[one.name].recalibrated(yes), points[one.name].answer(yes)
        else:
            chosen = session.choose(one.text, one.answers, chances)
            probability, answers[one.name] = chosen.probability, chosen.answer
        # six significant digits, because a rare finding has a small probability
        row |= {f"p_{one.name}": float(f"{probability:.6g}"), one.name: answers[one.name]}
    row |= {name: value for name, value in measurement.values().items() if name in MEASURED}
    said = {
        one.words: answers[one.name]
        for one in questions
        if answers[one.name] in (YES, NO) or one.name == RHYTHM
    }
    row["conflicts"] = "; ".join(_conflicts(said, ecg))
    certainty, signal = session.certainty, ecg.segments[ecg.number][1]
    row["unlike"] = "; ".join(certainty.unlike(ecg.tokens, signal, session.tokenizer)) if certainty else ""
    if embedding is not None:
        row[EMBEDDING] = base64.b64encode(embedding.astype("<f4").tobytes()).decode()
    return row


def _conflicts(said: Mapping[str, str], ecg: ECG) -> list[str]:
    """Describe the answers that contradict a measured value, the recorder or another answer."""
    return [f"{one.finding} {one.answer}, but {one.brief}" for one in conflicts_among(said, ecg)]


def write_embeddings(path: Path, recordings: Iterable[Sequence[Row]]) -> None:
    """Write the embeddings of rows as a .npy array: float32 (rows, d), in the order of the table.

    Parameters
    ----------
    path : Path
    recordings : iterable of lists of dict
        This is iterated twice.
    """
    rows = sum(map(len, recordings))
    first = next(iter(recordings))[0]
    width = len(_embedding(first))
    with array_writer(path, np.float32, (rows, width)) as write:
        for some in recordings:
            for row in some:
                write(_embedding(row))


def _embedding(row: Row) -> np.ndarray:
    return np.frombuffer(base64.b64decode(str(row[EMBEDDING])), "<f4")
