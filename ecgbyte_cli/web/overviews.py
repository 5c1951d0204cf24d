"""The heart rate over a whole recording, for the page's navigation strip."""

import math
import threading
from collections import OrderedDict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.readers import Recording
from ecgbyte_cli.signal.measure import heart_rate
from ecgbyte_cli.web.parameters import query_number
from ecgbyte_cli.web.recordings import RecordingList

STEPS = (10, 60, 300)  # seconds between two rates
MEASURED = 15  # longest part that a rate is measured on, in s
MOST_STEPS = 2000
MOST_KEPT = 16  # recordings kept


class Overview:
    """The rates of a recording, measured step by step in a thread.

    Parameters
    ----------
    recording : Recording
    """

    def __init__(self, recording: Recording):
        self.recording = recording
        self.step = next((s for s in STEPS if recording.seconds / s <= MOST_STEPS), STEPS[-1])
        self.measured = min(self.step, MEASURED)
        self.count = math.ceil(recording.seconds / self.step)
        self.rates: list[float | None] = []
        self.stopped = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        for number in range(self.count):
            if self.stopped.is_set():
                return
            try:
                start = number * self.step
                rate = heart_rate(self.recording.part(start, start + self.measured))
            except (Failure, OSError):  # for example a file that has become shorter
                rate = None
            self.rates.append(rate)

    def describe(self, first: int = 0) -> dict[str, Any]:
        """Return the rates from step `first` to the last measured one."""
        rates = [None if rate is None else round(rate, 1) for rate in self.rates[first:]]
        return {
            "step": self.step,
            "measured": self.measured,
            "steps": self.count,
            "first": first,
            "rates": rates,
        }


class OverviewRoute:
    """The route of the heart rate over a recording."""

    def __init__(self, recordings: RecordingList):
        self.recordings = recordings
        self.kept: OrderedDict[str, Overview] = OrderedDict()
        self.lock = threading.Lock()

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/api/records/{id}/overview", self.overview)]

    def overview(self, request: Request) -> Response:
        """GET /api/records/ID/overview?first=0"""
        number = request.path_params["id"]
        recording = self.recordings.recording(number)
        first = int(query_number(request, "first", 0, 0))
        with self.lock:
            known = self.kept.get(number)
            if known is None or known.recording is not recording:
                if known:
                    known.stopped.set()
                self.kept[number] = known = Overview(recording)
            self.kept.move_to_end(number)
            while len(self.kept) > MOST_KEPT:
                self.kept.popitem(last=False)[1].stopped.set()
        return JSONResponse(known.describe(first))

    def close(self) -> None:
        """Stop measuring."""
        for overview in self.kept.values():
            overview.stopped.set()
