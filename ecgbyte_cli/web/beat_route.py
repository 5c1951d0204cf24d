"""The route of the picture of a recording's median beat."""

import threading

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ecgbyte_cli.signal.measure import measure_stretch
from ecgbyte_cli.web.parameters import query_number
from ecgbyte_cli.web.recordings import RecordingList

SECONDS = 10.0  # length that is measured, as in `ecgbyte plot beat`


class BeatRoute:
    """The median beat of each lead, with the measured boundaries of P, QRS and T."""

    def __init__(self, recordings: RecordingList):
        self.recordings = recordings
        self.drawing = threading.Lock()  # matplotlib draws one picture at a time

    def routes(self) -> list[Route]:
        """Return the route."""
        return [Route("/api/records/{id}/beat.png", self.beat)]

    def beat(self, request: Request) -> Response:
        """GET /api/records/ID/beat.png?start=0"""
        from ecgbyte_cli.render.beat_figure import plot_beat
        from ecgbyte_cli.render.figures import png_bytes

        number = request.path_params["id"]
        recording = self.recordings.recording(number)
        start = query_number(request, "start", 0, 0, recording.seconds)
        measurement = measure_stretch(recording, start, start + SECONDS)
        with self.drawing:
            picture = png_bytes(plot_beat(measurement, self.recordings.name(self.recordings.path(number))))
        return Response(picture, media_type="image/png")
