"""The findings of the recordings in the list, read in the background for filters while no question is waiting."""

import threading
import time
from concurrent.futures import CancelledError
from dataclasses import dataclass

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference.findings_reading import read_findings
from ecgbyte_cli.web.conversations import Conversations
from ecgbyte_cli.web.recordings import RecordingList

LINGER = 20.0  # seconds that reading continues after the last request with a filter
PAUSE = 0.05  # seconds between checks for waiting questions


@dataclass(frozen=True)
class ReadFindings:
    """The findings and the rhythm that the model reports for a recording."""

    findings: frozenset[str]
    rhythm: str | None


NOT_READ = ReadFindings(frozenset(), None)  # a recording that the model cannot read


class FindingsIndex:
    """Findings and rhythm in the first segment of each recording, keyed by its id.

    Parameters
    ----------
    recordings : RecordingList
    conversations : Conversations
        Its thread runs the model.
    """

    def __init__(self, recordings: RecordingList, conversations: Conversations):
        self.recordings, self.conversations = recordings, conversations
        self.read: dict[str, ReadFindings] = {}
        self.wanted_until = 0.0
        self.closed = threading.Event()
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None

    def want(self) -> None:
        """Read the unread recordings in the background, as long as this is called regularly."""
        with self.lock:
            self.wanted_until = time.monotonic() + LINGER
            if self.thread is None or not self.thread.is_alive():
                self.thread = threading.Thread(target=self._run, daemon=True)
                self.thread.start()

    def count(self) -> int:
        """Return the number of recordings read so far."""
        return sum(number in self.read for number in self.recordings.ids())

    def fits(self, number: str, finding: str, rhythm: str) -> bool:
        """Return whether a recording has been read and has the finding and the rhythm; empty words match all."""
        read = self.read.get(number)
        return (
            read is not None
            and (not finding or finding in read.findings)
            and (not rhythm or rhythm == read.rhythm)
        )

    def close(self) -> None:
        """Stop reading."""
        self.closed.set()

    def _run(self) -> None:
        for number in self.recordings.ids():
            if number in self.read:
                continue
            while self.conversations.waiting and not self.closed.is_set():
                time.sleep(PAUSE)
            if self.closed.is_set() or time.monotonic() > self.wanted_until:
                return
            try:
                self.read[number] = self.conversations.worker.submit(self._read, number).result()
            except (RuntimeError, CancelledError):  # the worker has been shut down
                return

    def _read(self, number: str) -> ReadFindings:
        session = self.conversations.require_model()
        try:
            reading = read_findings(session, session.read(self.recordings.path(number)))
        except (Failure, RuntimeError, MemoryError):
            return NOT_READ
        present = frozenset(words for words, chance in reading.findings.items() if chance > 0.5)
        return ReadFindings(present, reading.rhythm)
