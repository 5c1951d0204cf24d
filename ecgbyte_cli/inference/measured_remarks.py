"""Compare the answers to many questions with measurements of their recordings."""

import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

from ecgbyte_cli import readers
from ecgbyte_cli.cli.app import caused_by_interrupt
from ecgbyte_cli.cli.output import note
from ecgbyte_cli.inference.conflicts import answers_of, own_conflicts
from ecgbyte_cli.inference.device_statements import device_conflicts, device_statements
from ecgbyte_cli.inference.measured_answers import answer_measured
from ecgbyte_cli.inference.measured_wordings import match_measured
from ecgbyte_cli.questions.question_file import Question
from ecgbyte_cli.runtime.processes import in_parallel
from ecgbyte_cli.signal.measure import measure_stretch
from ecgbyte_cli.signal.measure_table import PRELOAD
from ecgbyte_cli.signal.measurement import Measurement
from ecgbyte_cli.signal.normal_limits import age_and_sex
from ecgbyte_cli.storage.files import read_json, read_table
from ecgbyte_cli.storage.workdir import WorkDir


class MeasuredSegment(NamedTuple):
    """The measurement of a segment, the age and sex of the patient, and the recorder's own statements."""

    measurement: Measurement
    age: float | None
    sex: str | None
    statements: list[str]


def measured_remarks(
    work: WorkDir, questions: Sequence[Question], answers: Sequence[str], only: Sequence[bool]
) -> list[dict[str, Any]]:
    """Compare each answer with a measurement of its recording.

    Parameters
    ----------
    work : WorkDir
        Recordings with measurable questions are read again from its paths.
    questions : sequence of Question
    answers : sequence of str
        The model's answers.
    only : sequence of bool
        Whether an answer is about the recording's first segment alone. Other answers are not compared.

    Returns
    -------
    list of dict
        `measured`, if a measurement answers the question, and `conflicts`, if one contradicts the answer: lists in
        the format of `MeasuredAnswer.as_json` and `Conflict.as_json`.
    """
    said: list[dict[str, str]] = []
    by_segment: dict[int, dict[str, str]] = defaultdict(dict)
    for question, answer, alone in zip(questions, answers, only, strict=True):
        one = len(question.segments) == 1 and alone
        said.append(answers_of(question.question, answer) if one else {})
        if one and (said[-1] or match_measured(question.question)):
            by_segment[question.segments[0]] |= said[-1]
    measured = _measure(work, sorted(by_segment))
    remarks: list[dict[str, Any]] = []
    for question, own, alone in zip(questions, said, only, strict=True):
        segment = measured.get(question.segments[0]) if len(question.segments) == 1 and alone else None
        remarks.append({})
        if segment is None:
            continue
        about = segment.measurement, segment.age, segment.sex
        conflicts = own_conflicts(own, by_segment[question.segments[0]], *about)
        found = [one.as_json() for one in conflicts]
        found += [one.as_json() for one in device_conflicts(own, segment.statements)]
        if found:
            remarks[-1]["conflicts"] = found
        if values := answer_measured(question.question, *about):
            remarks[-1]["measured"] = values.as_json()
    return remarks


def _measure(work: WorkDir, segments: Sequence[int]) -> dict[int, MeasuredSegment]:
    """Measure segments of a work folder; leave out recordings that can no longer be read."""
    table = read_table(work.symbol_segments)
    if not segments or "path" not in table:
        return {}
    seconds = read_json(work.symbol_settings)["settings"]["segment_seconds"]
    tasks = ((i, table["path"][i], float(table["start"][i]), seconds, work.reading()) for i in segments)
    measured: dict[int, MeasuredSegment] = {}
    jobs = min(os.cpu_count() or 1, -(-len(segments) // 64))  # a process takes a second to start
    with closing(in_parallel(measure_segment, tasks, jobs, PRELOAD)) as results:  # type: ignore[type-var]
        for i, segment in results:
            if segment is not None:
                measured[i] = segment
    if len(measured) < len(segments):
        note(
            f"{len(segments) - len(measured)} recordings can no longer be read at the paths that "
            "`ecgbyte symbolize` stored: answers about them are not compared with measured values"
        )
    return measured


def measure_segment(
    number: int, path: str, start: float, seconds: float, reading: dict[str, Any]
) -> tuple[int, MeasuredSegment | None]:
    """Measure one segment; return its number, and None if its recording cannot be read."""
    try:
        recording = readers.read_recording(path, **reading)
    except readers.Unusable as error:
        if caused_by_interrupt(error):
            raise KeyboardInterrupt from None
        return number, None
    measurement = measure_stretch(recording, start, start + seconds)
    return number, MeasuredSegment(measurement, *age_and_sex(recording), device_statements(recording))
