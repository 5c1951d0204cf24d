"""The conversations of the page, and the one thread that runs the model."""

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ecgbyte_cli.inference.conversation import Conversation
from ecgbyte_cli.inference.everyday import RHYTHM, question_about
from ecgbyte_cli.inference.findings_reading import read_findings
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.inference.turn import Turn
from ecgbyte_cli.inference.witness import percent
from ecgbyte_cli.render import terminal
from ecgbyte_cli.render.measured_facts import measured_facts
from ecgbyte_cli.web.middleware import Refused
from ecgbyte_cli.web.recordings import RecordingList, id_of

MOST_CONVERSATIONS, MOST_BYTES = 64, 2**30  # open conversations, and bytes of the recordings in them
MOST_WAITING = 64  # requests that wait for the model
MOST_ECGS = 4  # ECGs in a conversation
Result = TypeVar("Result")


@dataclass
class ChatSession:
    """A conversation, and the event that stops the answer being written."""

    id: str
    conversation: Conversation
    stop: threading.Event = field(default_factory=threading.Event)
    said: list[str] = field(default_factory=list)  # warnings about recordings unlike the training data

    def describe(self) -> dict[str, Any]:
        """Return the ECGs and turns of the conversation, as the page shows them."""
        ecgs = [
            {
                "record": id_of(ecg.recording.path),
                "name": ecg.recording.name,
                "segment": ecg.number + 1,
                "segments": len(ecg.segments),
                "start": ecg.seconds[0],
                "seconds": ecg.seconds[1] - ecg.seconds[0],
                "leads": ecg.in_prompt[0],
                "tokens": len(ecg.tokens),
                "facts": terminal.panel_facts(ecg),
            }
            for ecg in self.conversation.ecgs
        ]
        turns = [
            self.describe_turn(turn)
            for turn in self.conversation.log
            if isinstance(turn, Turn) and not turn.error
        ]
        return {"conversation": self.id, "ecgs": ecgs, "turns": turns, "unlike": self.unlike()}

    def segment(self, number: int) -> None:
        """Read another segment of the last opened recording, and forget the warning about the previous segment."""
        name = self.conversation.segment(number).recording.name
        self.said = [line for line in self.said if not line.startswith(f"{name} is unlike")]

    def unlike(self) -> list[str]:
        """Return the warnings about recordings unlike the training data, however often they are requested."""
        lines = self.conversation.unlike()
        self.said += lines
        names = [ecg.recording.name for ecg in self.conversation.ecgs]
        return [line for line in self.said if any(line.startswith(f"{name} is unlike") for name in names)]

    def describe_findings(self) -> list[dict[str, Any]]:
        """Return the model's answers about all findings of each ECG, and the measurements."""
        session = self.conversation.session
        certainty = session.certainty

        def bar(kind: str, words: str, chance: float, present: bool) -> dict[str, Any]:
            return {
                "kind": kind,
                "words": words,
                "probability": chance,
                "shown": percent(chance),
                "present": present,
                "question": RHYTHM if kind == "rhythm" else question_about(words),
            }

        return [
            {
                "record": id_of(ecg.recording.path),
                "measured": measured_facts(ecg.recording, ecg.measurement),
                "calibrated_on": certainty and certainty.calibrated_on,
                "findings": [
                    bar("finding", words, chance, words in reading.present)
                    for words, chance in reading.findings.items()
                ],
                "rhythms": [
                    bar("rhythm", words, chance, words == reading.rhythm)
                    for words, chance in reading.rhythms.items()
                ],
                "conflicts": [conflict.as_json() for conflict in reading.conflicts],
            }
            for ecg in self.conversation.ecgs
            for reading in [read_findings(session, ecg)]
        ]

    def describe_turn(self, turn: Turn) -> dict[str, Any]:
        """Return a question and its answer, as the page shows them."""
        return turn.about() | {
            "certainty": turn.certainty(),
            "stopped": turn.stopped,
            "notes": turn.notes(),
            "without_ecg": turn.witness.text if turn.witness else "",
            "attributable": (turn.separate[-1] if turn.separate else turn).attributable,
            "conversation": self.id,
        }


class Conversations:
    """Open conversations with a model, and close the oldest if there are too many.

    One thread runs the model, one request at a time, and only that thread changes conversations. Other threads read
    and draw recordings meanwhile.

    Parameters
    ----------
    model : Session or None
        Without a model every request is refused.
    recordings : RecordingList
    """

    def __init__(self, model: Session | None, recordings: RecordingList):
        self.model, self.recordings = model, recordings
        self.worker = ThreadPoolExecutor(1, "model")
        self.waiting = 0
        self.sessions: OrderedDict[str, ChatSession] = OrderedDict()

    async def run(self, work: Callable[[], Result]) -> Result:
        """Run a function in the model's thread, after the requests that came before."""
        self.require_model()
        if self.waiting >= MOST_WAITING:
            raise Refused(503, "too many questions are waiting: try again later")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.worker, work)
        finally:
            self.waiting -= 1

    def require_model(self) -> Session:
        """Return the model, or refuse the request."""
        if self.model is None:
            raise Refused(404, "there is no model: start `ecgbyte serve --model FOLDER`")
        return self.model

    def find(self, parameters: Mapping[str, Any]) -> ChatSession:
        """Return the conversation that a request names."""
        self.require_model()
        number = parameters.get("conversation")
        session = self.sessions.get(number) if isinstance(number, str) else None
        if session is None:
            raise Refused(404, "no such conversation: it was closed or never existed")
        return session

    def open(self, parameters: Mapping[str, Any], beside: bool = False) -> ChatSession:
        """Open a recording in a new conversation, or alongside the ECGs of an existing conversation."""
        if not isinstance(parameters.get("record"), str):
            raise Refused(400, "`record` must be the id of a recording")
        path = self.recordings.path(parameters["record"])
        if beside and parameters.get("conversation"):
            session = self.find(parameters)
            if len(session.conversation.ecgs) >= MOST_ECGS:
                raise Refused(409, f"a conversation has at most {MOST_ECGS} ECGs")
            session.conversation.open(path)
        else:
            session = self._start(path)
            self.sessions[session.id] = session
        self.sessions.move_to_end(session.id)
        while len(self.sessions) > 1 and (
            len(self.sessions) > MOST_CONVERSATIONS or self._recording_bytes() > MOST_BYTES
        ):
            self.sessions.popitem(last=False)
        return session

    def close(self) -> None:
        """Stop all answers, and the model's thread."""
        for session in self.sessions.values():
            session.stop.set()
        self.worker.shutdown(wait=False, cancel_futures=True)

    def _start(self, path: str) -> ChatSession:
        model = self.require_model()
        return ChatSession(os.urandom(12).hex(), model.conversation([model.read(path)]))

    def _recording_bytes(self) -> int:
        """Return the bytes of the recordings in all conversations, each counted once."""
        conversations = [session.conversation for session in self.sessions.values()]
        ecgs = [ecg for c in conversations for turn in c.log if isinstance(turn, Turn) for ecg in turn.ecgs]
        ecgs += [ecg for c in conversations for ecg in c.ecgs]
        return sum({id(array): array.nbytes for ecg in ecgs for array in ecg.arrays()}.values())
