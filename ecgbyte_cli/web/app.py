"""The page and its JSON API: the routes, from the first to the last as docs/page.md lists them."""

import asyncio
import io
import json
import math
import os
import threading
import zipfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ecgbyte_cli import __version__, readers
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference import conversation_report
from ecgbyte_cli.inference.conversation import Conversation, RecordingLoader, Turn, remembers_earlier_turns
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.render import svg_sheet, terminal
from ecgbyte_cli.signal.tokenizer import character
from ecgbyte_cli.web.middleware import Guard, Refused
from ecgbyte_cli.web.recordings import RecordingList, id_of

NOTICE = "Research use only: this is no medical device."
MOST_TALKS, TALK_BYTES = 64, 2**30  # conversations that are kept, and the recordings in them
MOST_WAITING = 64  # requests that wait for the model
MOST_ECGS = 4  # in a conversation
MOST_QUESTION = 4000  # characters
MOST_LISTED = 500
CELL = 0.02  # s that an attribution is told for
# what docs/scores.md found on synthetic records whose cause is at a known place
_SEEN = (
    "On synthetic records most of it lay on the cause where something is there (an early beat, a raised ST segment), "
    "and no more than by chance where something is missing (a P wave). Measured on a small model: ecgbyte explain "
    "measures yours."
)
_CHANCE = "No evidence: on synthetic records it pointed at the cause no better than chance."
METHODS = {
    "integrated": _SEEN,
    "occlusion": _SEEN + " By deletion and insertion it was no better than chance.",
    "gradient": _CHANCE,
    "rollout": _CHANCE,
    "attention": _CHANCE,
}
TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
Result = TypeVar("Result")


@dataclass
class ChatSession:
    """A conversation, and how the answer that is being written is stopped."""

    id: str
    conversation: Conversation
    stop: threading.Event = field(default_factory=threading.Event)


class Service:
    """What the routes do.

    All work of the model is done by one thread, one request after the other, and conversations are touched by
    that thread alone; recordings are read and drawn by others meanwhile.

    Parameters
    ----------
    shelf : Shelf
    model : Session or None
    reader : Reader or None
        Whose tokens are shown; that of the model, or of a tokenizer alone.
    """

    def __init__(self, shelf: RecordingList, model: Session | None, reader: RecordingLoader | None):
        self.shelf, self.model, self.reader = shelf, model, reader
        self.worker = ThreadPoolExecutor(1, "model")
        self.waiting = 0
        self.talks: OrderedDict[str, ChatSession] = OrderedDict()
        page = files("ecgbyte_cli") / "web" / "page"
        self.page = {name: (page / name).read_bytes() for name in ("index.html", "page.js", "page.css")}

    # ---- the page

    def static(self, request: Request) -> Response:
        """GET /, /page.js, /page.css"""
        name = request.url.path.strip("/") or "index.html"
        return Response(self.page[name], media_type=TYPES[name.rpartition(".")[2]])

    def about(self, request: Request) -> Response:
        """GET /api"""
        model = self.model and {
            "folder": self.model.about["folder"],
            "base": self.model.about["base"],
            "notice": self.model.about["notice"],
            "keeps_context": remembers_earlier_turns(self.model.about),
            "most_ecgs": self.model.about.get("most_ecgs", 1),
        }
        signal = self.reader and self.reader.tokenizer.signal
        return JSONResponse(
            {
                "version": __version__,
                "notice": NOTICE,
                "model": model,
                "tokens": signal and {key: signal[key] for key in ("fs", "leads", "segment_seconds")},
                "methods": METHODS if model else {},
                "upload_bytes": self.shelf.upload_bytes,
            }
        )

    # ---- recordings

    def records(self, request: Request) -> Response:
        """GET /api/records?find=WORDS&offset=0&limit=100, or ?path=PATH"""
        if "path" in request.query_params:
            number = self.shelf.at(request.query_params["path"])
            return JSONResponse({"id": number, "name": self.shelf.name(self.shelf.path(number))})
        if "look" in request.query_params:
            self.shelf.look()
        listed = self.shelf.listed(request.query_params.get("find", "")[:200])
        offset, limit = (
            int(_query_number(request, "offset", 0)),
            int(_query_number(request, "limit", 100, 1, MOST_LISTED)),
        )
        return JSONResponse({"total": len(listed), "records": listed[offset : offset + limit]})

    def record(self, request: Request) -> Response:
        """GET /api/records/ID"""
        recording = self._recording(request)
        seconds = recording.signal.shape[1] / recording.fs
        each = self.reader.tokenizer.signal["segment_seconds"] if self.reader else None
        return JSONResponse(
            {
                "id": request.path_params["id"],
                "name": self.shelf.name(self.shelf.path(request.path_params["id"])),
                "leads": recording.leads,
                "drawn": svg_sheet.drawable_leads(recording, 0, 0.1)[1],
                "fs": recording.fs,
                "samples": recording.signal.shape[1],
                "seconds": seconds,
                "start": recording.start and recording.start.isoformat(),
                "comments": recording.comments[:200],
                "segments": int(seconds / each + 1e-9) if each else None,
            }
        )

    def signal(self, request: Request) -> Response:
        """GET /api/records/ID/signal?start=0&seconds=10&leads=II,V1"""
        recording = self._recording(request)
        signal, names, start, seconds = self._stretch(request, recording)
        told = {
            "start": start,
            "seconds": seconds,
            "fs": recording.fs,
            "leads": names,
            "samples": signal.shape[1],
        }
        return Response(
            signal.astype("<f4").tobytes(),
            media_type="application/octet-stream",
            headers={"x-ecg": json.dumps(told)},  # ASCII
        )

    def sheet(self, request: Request) -> Response:
        """GET /api/records/ID/sheet.svg?start=0&seconds=10&layout=3x4&speed=25&gain=10&leads=II"""
        query = request.query_params
        drawn = svg_sheet.svg_sheet(
            self._recording(request),
            _query_number(request, "start", 0),
            _query_number(request, "seconds", 10),
            query.get("layout", svg_sheet.LAYOUTS[0]),
            _query_number(request, "speed", 25),
            _query_number(request, "gain", 10),
            query["leads"].split(",") if query.get("leads") else None,
            self.shelf.name(self.shelf.path(request.path_params["id"])),
        )
        return Response(drawn, media_type="image/svg+xml")

    def thumbnail(self, request: Request) -> Response:
        """GET /api/records/ID/thumbnail.svg"""
        return Response(svg_sheet.svg_thumbnail(self._recording(request)), media_type="image/svg+xml")

    def tokens(self, request: Request) -> Response:
        """GET /api/records/ID/tokens?segment=1"""
        if self.reader is None:
            raise Refused(404, "there is no tokenizer: `ecgbyte learn` makes one, and each model has its own")
        path, number = self.shelf.path(request.path_params["id"]), int(_query_number(request, "segment", 1))
        first, tokenizer = self.reader.read(path), self.reader.tokenizer
        if not 1 <= number <= len(first.segments):
            raise Refused(404, f"{self.shelf.name(path)} has the segments 1 to {len(first.segments)}")
        ecg = self.reader.segment(first.recording, first.segments, number - 1)
        letters, lo, hi = tokenizer.quantize(ecg.segments[ecg.number][1])
        level = tokenizer.to_mv(letters, lo, hi).ravel()
        spans = tokenizer.spans(ecg.tokens)
        places = spans[:, 1] * tokenizer.signal["samples"] + spans[:, 2]  # they tile the segment
        low, high = (f.reduceat(level, places).round(3).tolist() for f in (np.minimum, np.maximum))
        ids, where = np.unique(ecg.tokens, return_index=True)
        stops = np.cumsum(tokenizer.lengths[ecg.tokens])
        starts, flat = stops - tokenizer.lengths[ecg.tokens], letters.ravel()
        spelled = {
            int(i): "".join(map(character, flat[starts[w] : stops[w]].tolist()))
            for i, w in zip(ids, where, strict=True)
        }
        rows = zip(ecg.tokens[spans[:, 0]].tolist(), *spans[:, 1:].T.tolist(), low, high, strict=True)
        told = {key: tokenizer.signal[key] for key in ("fs", "leads")}
        told |= {"segment": number, "segments": len(ecg.segments), "start": ecg.seconds[0]}
        return JSONResponse(
            told | {"seconds": tokenizer.signal["segment_seconds"], "count": len(ecg.tokens)}
            | {"letters": spelled, "spans": list(rows)}
        )  # fmt: skip

    async def upload(self, request: Request) -> Response:
        """PUT /api/upload/NAME?into=DROP"""
        into, records = await self.shelf.drop(
            request.path_params["name"], request.stream(), request.query_params.get("into")
        )
        return JSONResponse({"into": into, "records": records}, 201)

    # ---- questions

    async def conversation(self, request: Request) -> Response:
        """POST /api/conversation {conversation, do: open | segment | clear, record, number}"""
        asked = await _body(request)

        def work():
            what = asked.get("do", "open")
            if what == "open":
                made = self._open(asked, beside=True)
            else:
                made = self._talk(asked)
                if what == "segment":
                    made.conversation.segment(_body_integer(asked, "number"))
                elif what == "clear":
                    made.conversation.clear()
                else:
                    raise Refused(400, "do: open, segment or clear")
            return self._state(made)

        return JSONResponse(await self._by_model(work))

    async def ask(self, request: Request) -> Response:
        """POST /api/ask {question, conversation or record, stream}"""
        asked = await _body(request)
        question = asked.get("question")
        if not isinstance(question, str) or not question.strip():
            raise Refused(400, "question: a text")
        if len(question) > MOST_QUESTION:
            raise Refused(413, f"a question has {MOST_QUESTION} characters at most")
        if self.model is None or asked.get("conversation"):
            self._talk(asked)  # refused now, before an answer is begun
        stop, pieces = threading.Event(), asyncio.Queue[str | None]()
        loop = asyncio.get_running_loop()
        if asked.get("conversation") in self.talks:
            self.talks[asked["conversation"]].stop = stop

        def show(piece):
            if stop.is_set():
                raise KeyboardInterrupt  # what ends an answer early, and keeps what there is
            if piece and asked.get("stream"):
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        def work():
            made = self._talk(asked) if asked.get("conversation") else self._open(asked)
            made.stop = stop
            return self._turn(made, made.conversation.ask(question.strip(), show))

        if not asked.get("stream"):
            return JSONResponse(await self._by_model(work))

        async def events() -> AsyncIterator[str]:
            done = asyncio.ensure_future(self._by_model(work))
            done.add_done_callback(lambda _: pieces.put_nowait(None))
            try:
                while (piece := await pieces.get()) is not None:
                    yield _event(piece=piece)
                try:
                    yield _event(done=await done)
                except Failure as error:
                    yield _event(error=error.message)
            finally:  # also where the page has gone
                stop.set()
                done.cancel()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def stop(self, request: Request) -> Response:
        """POST /api/stop {conversation}"""
        self._talk(await _body(request)).stop.set()
        return JSONResponse({"stopped": True})

    async def attribution(self, request: Request) -> Response:
        """POST /api/attribution {conversation, method}"""
        asked = await _body(request)
        method = asked.get("method", "integrated")
        if not isinstance(method, str) or method not in METHODS:
            raise Refused(400, f"method: one of {', '.join(METHODS)}")

        def work():
            from ecgbyte_cli.evaluation.attribution_measures import sum_windows

            drew = conversation_report.attribute_answer(self._talk(asked).conversation, method)
            signal = drew.ecg.signal
            width = max(1, round(CELL * signal["fs"]))
            sums = sum_windows(drew.density, width)
            return {
                "method": method,
                "verdict": METHODS[method],
                "question": drew.turn.question,
                "answer": drew.turn.answer,
                "record": id_of(drew.ecg.recording.path),
                "start": drew.ecg.seconds[0],
                "leads": signal["leads"],
                "cell_seconds": width / signal["fs"],
                "shares": sums.round(7).tolist(),
                "words": [
                    [word, round(float(v), 5)] for word, v in zip(drew.words, drew.values, strict=True)
                ],
                "on_text": float(drew.values.sum()) if drew.words else None,
            }

        return JSONResponse(await self._by_model(work))

    async def save(self, request: Request) -> Response:
        """GET /api/save?conversation=ID"""

        def work():
            conversation = self._talk(request.query_params).conversation
            made, pictures = io.BytesIO(), []
            with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
                for i, ecg in enumerate(conversation.ecgs):
                    pictures.append(f"ecg{i + 1}.svg")
                    archive.writestr(pictures[-1], svg_sheet.svg_sheet(ecg.recording, ecg.seconds[0]))
                archive.writestr(
                    "conversation.md",
                    conversation_report.conversation_markdown(conversation, pictures, terminal.panel_facts),
                )
            return made.getvalue()

        headers = {"content-disposition": 'attachment; filename="conversation.zip"'}
        return Response(await self._by_model(work), media_type="application/zip", headers=headers)

    # ---- what they share

    def _recording(self, request: Request) -> readers.Recording:
        return self.shelf.recording(request.path_params["id"])

    def _stretch(self, request, recording):
        """The stretch and the leads that a request asks for: signal, names, start, seconds."""
        whole = recording.signal.shape[1] / recording.fs
        start = _query_number(request, "start", 0, 0, whole)
        seconds = _query_number(request, "seconds", 10, 0, svg_sheet.LONGEST)
        signal, names = svg_sheet.drawable_leads(recording, start, seconds)
        if not signal.shape[1]:
            raise Refused(404, f"the recording is {whole:g} s long: nothing is at {start:g} s")
        wanted = request.query_params.get("leads")
        if wanted:
            missing = [lead for lead in wanted.split(",") if lead not in names]
            if missing:
                raise Refused(404, f"no lead {', '.join(missing)[:200]}: there are {', '.join(names)}")
            names_wanted = list(dict.fromkeys(wanted.split(",")))
            signal, names = signal[[names.index(lead) for lead in names_wanted]], names_wanted
        return signal, names, start, seconds

    async def _by_model(self, work: Callable[[], Result]) -> Result:
        """Have the model's thread do something, behind what others wait for."""
        if self.model is None:
            raise Refused(404, "there is no model: start `ecgbyte serve --model FOLDER`")
        if self.waiting >= MOST_WAITING:
            raise Refused(503, "too many questions wait: ask again in a while")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.worker, work)
        finally:
            self.waiting -= 1

    def _talk(self, asked) -> ChatSession:
        """The conversation that a request names."""
        if self.model is None:
            raise Refused(404, "there is no model: start `ecgbyte serve --model FOLDER`")
        number = asked.get("conversation")
        found = self.talks.get(number) if isinstance(number, str) else None
        if found is None:
            raise Refused(404, "no such conversation: it was closed, or there is none")
        return found

    def _open(self, asked, beside=False):
        """Open a recording, in a new conversation or beside those of the one that is named."""
        if not isinstance(asked.get("record"), str):
            raise Refused(400, "record: the id of one")
        path, model = self.shelf.path(asked["record"]), self.model
        if beside and asked.get("conversation"):
            made = self._talk(asked)
            if len(made.conversation.ecgs) >= MOST_ECGS:
                raise Refused(409, f"no more than {MOST_ECGS} ECGs at once")
            made.conversation.open(path)
        else:
            ecg = model.reader.read(path)
            made = ChatSession(os.urandom(12).hex(), model.conversation([ecg]))
            self.talks[made.id] = made
        self.talks.move_to_end(made.id)
        while len(self.talks) > 1 and (len(self.talks) > MOST_TALKS or self._held() > TALK_BYTES):
            self.talks.popitem(last=False)
        return made

    def _held(self):
        """Bytes of the recordings in all conversations."""
        every = [made.conversation for made in self.talks.values()]
        ecgs = [ecg for c in every for turn in c.log if isinstance(turn, Turn) for ecg in turn.ecgs]
        ecgs += [ecg for c in every for ecg in c.ecgs]
        arrays = {
            id(a): a.nbytes for ecg in ecgs for a in (ecg.recording.signal, *(s for _, s in ecg.segments))
        }
        return sum(arrays.values())

    def _state(self, made):
        """What a page shows of a conversation."""
        conversation = made.conversation
        ecgs = [
            {
                "record": id_of(ecg.recording.path),
                "name": ecg.recording.name,
                "segment": ecg.number + 1,
                "segments": len(ecg.segments),
                "start": ecg.seconds[0],
                "seconds": ecg.seconds[1] - ecg.seconds[0],
                "tokens": len(ecg.tokens),
                "facts": terminal.panel_facts(ecg),
            }
            for ecg in conversation.ecgs
        ]
        turns = [self._turn(made, turn) for turn in conversation.log if isinstance(turn, Turn)]
        return {"conversation": made.id, "ecgs": ecgs, "turns": turns, "unlike": conversation.unlike()}

    def _turn(self, made, turn):
        told = {"certainty": turn.certainty(), "stopped": turn.stopped, "conversation": made.id}
        return turn.about() | told


def build_app(
    service: Service,
    host: str = "127.0.0.1",
    token: str | None = None,
    started: Callable | None = None,
    allowed: Iterable[tuple[str, int | None]] = (),
) -> Starlette:
    """The application.

    Parameters
    ----------
    service : Service
    host : str
        What the server listens at.
    token : str or None
        What a request must know where that is not loopback.
    started : callable or None
        Called once the server is about to listen.
    allowed : iterable of (str, int or None)
        Further names of the server (see `guard.allowed_host`).
    """

    @asynccontextmanager
    async def life(_):
        if started:
            started()
        yield
        for made in service.talks.values():
            made.stop.set()
        service.worker.shutdown(wait=False, cancel_futures=True)
        service.shelf.close()

    api, one = "/api/records", "/api/records/{id}"
    return Starlette(
        routes=[
            *(Route(path, service.static) for path in ("/", "/page.js", "/page.css")),
            Route("/favicon.ico", lambda request: Response(status_code=204)),
            Route("/api", service.about),
            Route(api, service.records),
            Route(one, service.record),
            Route(f"{one}/signal", service.signal),
            Route(f"{one}/tokens", service.tokens),
            Route(f"{one}/sheet.svg", service.sheet),
            Route(f"{one}/thumbnail.svg", service.thumbnail),
            Route("/api/upload/{name}", service.upload, methods=["PUT"]),
            Route("/api/conversation", service.conversation, methods=["POST"]),
            Route("/api/ask", service.ask, methods=["POST"]),
            Route("/api/stop", service.stop, methods=["POST"]),
            Route("/api/attribution", service.attribution, methods=["POST"]),
            Route("/api/save", service.save),
        ],
        middleware=[
            Middleware(
                Guard, host=host, token=token, upload_bytes=service.shelf.upload_bytes, allowed=list(allowed)
            )
        ],
        exception_handlers={
            Failure: _failed,
            HTTPException: _failed,
            ClientDisconnect: _failed,
            Exception: _failed,
        },
        lifespan=life,
    )


def _failed(request: Request, error: Exception) -> Response:
    """An error as JSON: a line that says what is wrong."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, Failure):
        return JSONResponse({"error": error.message}, getattr(error, "status", 422))
    return JSONResponse({"error": f"the server failed ({type(error).__name__})"}, 500)


async def _body(request):
    """The JSON object that a request carries."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "Content-Type: application/json")
    try:
        asked = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(asked, dict):
        raise Refused(400, "the body is no JSON object")
    return asked


def _query_number(request, name, usual, least=-math.inf, most=math.inf):
    """A number of a request's address, moved into its range."""
    try:
        value = float(request.query_params.get(name, usual))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Refused(400, f"{name}: a number")
    return min(max(value, least), most)


def _body_integer(asked, name):
    value = asked.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise Refused(400, f"{name}: a whole number")
    return value


def _event(**told):
    """A server-sent event."""
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"
