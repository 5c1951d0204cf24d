"""Routes under /api/records and /api/upload: recordings, their sheets and tokens."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ecgbyte_cli import readers
from ecgbyte_cli.inference.conversation import ECG
from ecgbyte_cli.inference.recording_loader import RecordingLoader
from ecgbyte_cli.render import svg_sheet
from ecgbyte_cli.signal.tokenizer import ECGTokenizer, character
from ecgbyte_cli.web.findings_index import FindingsIndex
from ecgbyte_cli.web.middleware import Refused
from ecgbyte_cli.web.parameters import query_number
from ecgbyte_cli.web.recordings import RecordingList

MOST_LISTED = 500


class Excerpt(NamedTuple):
    """A part of a recording."""

    signal: np.ndarray  # float32 (leads, samples), mV
    leads: list[str]
    start: float  # s
    seconds: float


class RecordingRoutes:
    """Routes that need no model.

    Parameters
    ----------
    recordings : RecordingList
    reader : RecordingLoader or None
        Provides the tokenizer for the tokens; None shows no tokens.
    index : FindingsIndex or None
        The findings for filtering the list; None without a model.
    """

    def __init__(
        self, recordings: RecordingList, reader: RecordingLoader | None, index: FindingsIndex | None
    ):
        self.recordings, self.reader, self.index = recordings, reader, index

    def routes(self) -> list[Route]:
        """Return the routes."""
        record = "/api/records/{id}"
        return [
            Route("/api/records", self.records),
            Route(record, self.record),
            Route(f"{record}/signal", self.signal),
            Route(f"{record}/tokens", self.tokens),
            Route(f"{record}/sheet.svg", self.sheet),
            Route(f"{record}/thumbnail.svg", self.thumbnail),
            Route("/api/upload/{name}", self.upload, methods=["PUT"]),
            Route("/api/upload/{into}/check", self.check, methods=["POST"]),
        ]

    def records(self, request: Request) -> Response:
        """GET /api/records?find=WORDS&folder=F&finding=WORDS&rhythm=WORDS&offset=0&limit=100, or ?path=PATH"""
        if "path" in request.query_params:
            number = self.recordings.at(request.query_params["path"])
            return JSONResponse({"id": number, "name": self._name(number)})
        if "look" in request.query_params:
            self.recordings.look()
        query = request.query_params
        listed = self.recordings.listed(query.get("find", "")[:200], query.get("folder", "")[:1000])
        reply: dict[str, Any] = {}
        finding, rhythm = query.get("finding", ""), query.get("rhythm", "")
        if finding or rhythm:
            if self.index is None:
                raise Refused(404, "there is no model that reads findings")
            self.index.want()
            listed = [entry for entry in listed if self.index.fits(entry["id"], finding, rhythm)]
            reply = {"read": self.index.count(), "of": len(self.recordings.ids())}
        offset = int(query_number(request, "offset", 0, 0))
        limit = int(query_number(request, "limit", 100, 1, MOST_LISTED))
        folders = {"folders": self.recordings.folders()} if offset == 0 else {}
        return JSONResponse(
            {"total": len(listed), "records": listed[offset : offset + limit], **reply, **folders}
        )

    def record(self, request: Request) -> Response:
        """GET /api/records/ID"""
        recording = self._recording(request)
        seconds = recording.seconds
        length = self.reader.tokenizer.signal["segment_seconds"] if self.reader else None
        return JSONResponse(
            {
                "id": request.path_params["id"],
                "name": self._name(request.path_params["id"]),
                "leads": recording.leads,
                "drawn": svg_sheet.drawable_leads(recording, 0, 0.1)[1],
                "fs": recording.fs,
                "samples": recording.signal.shape[1],
                "seconds": seconds,
                "start": recording.start and recording.start.isoformat(),
                "comments": recording.comments[:200],
                "segments": int(seconds / length + 1e-9) if length else None,
            }
        )

    def signal(self, request: Request) -> Response:
        """GET /api/records/ID/signal?start=0&seconds=10&leads=II,V1"""
        recording = self._recording(request)
        excerpt = _excerpt(request, recording)
        header = {
            "start": excerpt.start,
            "seconds": excerpt.seconds,
            "fs": recording.fs,
            "leads": excerpt.leads,
            "samples": excerpt.signal.shape[1],
        }
        return Response(
            excerpt.signal.astype("<f4").tobytes(),
            media_type="application/octet-stream",
            headers={"x-ecg": json.dumps(header)},  # ASCII
        )

    def sheet(self, request: Request) -> Response:
        """GET /api/records/ID/sheet.svg?start=0&seconds=10&layout=3x4&speed=25&gain=10&leads=II"""
        query = request.query_params
        svg = svg_sheet.svg_sheet(
            self._recording(request),
            query_number(request, "start", 0),
            query_number(request, "seconds", 10),
            query.get("layout", svg_sheet.LAYOUTS[0]),
            query_number(request, "speed", 25),
            query_number(request, "gain", 10),
            query["leads"].split(",") if query.get("leads") else None,
            self._name(request.path_params["id"]),
        )
        return Response(svg, media_type="image/svg+xml")

    def thumbnail(self, request: Request) -> Response:
        """GET /api/records/ID/thumbnail.svg"""
        return Response(svg_sheet.svg_thumbnail(self._recording(request)), media_type="image/svg+xml")

    def tokens(self, request: Request) -> Response:
        """GET /api/records/ID/tokens?segment=1"""
        if self.reader is None:
            raise Refused(404, "there is no tokenizer: run `ecgbyte learn`, or use a model, which has one")
        path = self.recordings.path(request.path_params["id"])
        number = int(query_number(request, "segment", 1))
        first, tokenizer = self.reader.read(path), self.reader.tokenizer
        if not 1 <= number <= len(first.segments):
            raise Refused(404, f"{self.recordings.name(path)} only has segments 1 to {len(first.segments)}")
        ecg = self.reader.segment(first.recording, first.segments, number - 1)
        settings = tokenizer.signal
        return JSONResponse(
            {
                "fs": settings["fs"],
                "leads": settings["leads"],
                "read": ecg.in_prompt[0],
                "segment": number,
                "segments": len(ecg.segments),
                "start": ecg.seconds[0],
                "seconds": settings["segment_seconds"],
                "count": len(ecg.tokens),
            }
            | describe_tokens(ecg, tokenizer)
        )

    async def upload(self, request: Request) -> Response:
        """PUT /api/upload/NAME?into=UPLOAD"""
        into, records = await self.recordings.drop(
            request.path_params["name"], request.stream(), request.query_params.get("into")
        )
        return JSONResponse({"into": into, "records": records}, 201)

    def check(self, request: Request) -> Response:
        """POST /api/upload/UPLOAD/check"""
        read, failed = self.recordings.check(request.path_params["into"])
        return JSONResponse({"read": read, "failed": failed})

    def _name(self, number: str) -> str:
        return self.recordings.name(self.recordings.path(number))

    def _recording(self, request: Request) -> readers.Recording:
        return self.recordings.recording(request.path_params["id"])


def describe_tokens(ecg: ECG, tokenizer: ECGTokenizer) -> dict[str, Any]:
    """Return the letters of each token and the span of each occurrence in a segment.

    Returns
    -------
    dict
        `letters`: token id to letters; `spans`: rows of (token id, lead, first sample, end, lowest mV, highest mV).
    """
    letters, lo, hi = tokenizer.quantize(ecg.segments[ecg.number][1])
    level = tokenizer.to_mv(letters, lo, hi).ravel()
    spans = tokenizer.spans(ecg.tokens)
    starts = spans[:, 1] * tokenizer.signal["samples"] + spans[:, 2]  # the spans tile the segment
    extremes: tuple[Callable[..., np.ndarray], ...] = (np.minimum.reduceat, np.maximum.reduceat)
    low, high = (reduceat(level, starts).round(3).tolist() for reduceat in extremes)
    ids, first = np.unique(ecg.tokens, return_index=True)
    stops = np.cumsum(tokenizer.lengths[ecg.tokens])
    begins, flat = stops - tokenizer.lengths[ecg.tokens], letters.ravel()
    spelled = {
        int(i): "".join(map(character, flat[begins[k] : stops[k]].tolist()))
        for i, k in zip(ids, first, strict=True)
    }
    rows = zip(ecg.tokens[spans[:, 0]].tolist(), *spans[:, 1:].T.tolist(), low, high, strict=True)
    return {"letters": spelled, "spans": list(rows)}


def _excerpt(request: Request, recording: readers.Recording) -> Excerpt:
    """Return the part and the leads of a recording that a request names."""
    whole = recording.seconds
    start = query_number(request, "start", 0, 0, whole)
    seconds = query_number(request, "seconds", 10, 0, svg_sheet.LONGEST)
    signal, names = svg_sheet.drawable_leads(recording, start, seconds)
    if not signal.shape[1]:
        raise Refused(404, f"the recording is {whole:g} s long: it has no signal at {start:g} s")
    leads = request.query_params.get("leads")
    if leads:
        wanted = list(dict.fromkeys(leads.split(",")))
        missing = [lead for lead in leads.split(",") if lead not in names]
        if missing:
            raise Refused(404, f"no lead {', '.join(missing)[:200]}: only {', '.join(names)}")
        signal, names = signal[[names.index(lead) for lead in wanted]], wanted
    return Excerpt(signal, names, start, seconds)
