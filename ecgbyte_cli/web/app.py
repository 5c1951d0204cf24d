"""The page and its JSON API as a Starlette application; docs/page-api.md describes the routes."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from importlib.resources import files

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ecgbyte_cli import __version__
from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference import everyday
from ecgbyte_cli.inference.conversation import origin, remembers_earlier_turns
from ecgbyte_cli.inference.recording_loader import RecordingLoader
from ecgbyte_cli.inference.session import Session
from ecgbyte_cli.web.beat_route import BeatRoute
from ecgbyte_cli.web.conversation_routes import METHODS, ConversationRoutes
from ecgbyte_cli.web.conversations import Conversations
from ecgbyte_cli.web.findings_index import FindingsIndex
from ecgbyte_cli.web.middleware import Guard
from ecgbyte_cli.web.overviews import OverviewRoute
from ecgbyte_cli.web.recording_routes import RecordingRoutes
from ecgbyte_cli.web.recordings import RecordingList

EXAMPLES = ("afib", "mi", "lvh", "clbbb")  # findings in the example questions
NOTICE = "Research use only: this is not a medical device."
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


class Service:
    """The content of the page: recordings, conversations with a model, and the page's own files.

    Parameters
    ----------
    recordings : RecordingList
    model : Session or None
    reader : RecordingLoader or None
        Provides tokens: the model's reader, or a tokenizer's reader without a model.
    """

    def __init__(self, recordings: RecordingList, model: Session | None, reader: RecordingLoader | None):
        self.recordings, self.model, self.reader = recordings, model, reader
        self.conversations = Conversations(model, recordings)
        self.index = FindingsIndex(recordings, self.conversations) if model else None
        self.overviews = OverviewRoute(recordings)
        page = (files("ecgbyte_cli") / "web" / "page").iterdir()
        self.page = {f"/{file.name}": file.read_bytes() for file in page if _media_type(file.name)}

    def routes(self) -> list[Route]:
        """Return all routes."""
        return [
            *(Route(path, self.static) for path in ("/", *self.page)),
            Route("/favicon.ico", lambda request: Response(status_code=204)),
            Route("/api", self.about),
            *RecordingRoutes(self.recordings, self.reader, self.index).routes(),
            *BeatRoute(self.recordings).routes(),
            *self.overviews.routes(),
            *ConversationRoutes(self.conversations).routes(),
        ]

    def static(self, request: Request) -> Response:
        """GET / and the page's files"""
        path = request.url.path if request.url.path in self.page else "/index.html"
        return Response(self.page[path], media_type=_media_type(path))

    def about(self, request: Request) -> Response:
        """GET /api"""
        model = self.model and {
            "folder": self.model.about["folder"],
            "base": self.model.about["base"],
            "origin": origin(self.model.about),
            "notice": self.model.about["notice"],
            "keeps_context": remembers_earlier_turns(self.model.about),
            "most_ecgs": self.model.about.get("most_ecgs", 1),
            **describe_questions(self.model),
        }
        signal = self.reader and self.reader.tokenizer.signal
        return JSONResponse(
            {
                "version": __version__,
                "notice": NOTICE,
                "model": model,
                "tokens": signal and {key: signal[key] for key in ("fs", "leads", "segment_seconds")},
                "methods": METHODS if model else {},
                "upload_bytes": self.recordings.upload_bytes,
            }
        )

    def close(self) -> None:
        """Stop answers, and remove uploads."""
        if self.index:
            self.index.close()
        self.overviews.close()
        self.conversations.close()
        self.recordings.close()


def build_app(
    service: Service,
    host: str = "127.0.0.1",
    token: str | None = None,
    started: Callable[[], None] | None = None,
    allowed: Iterable[tuple[str, int | None]] = (),
) -> Starlette:
    """Build the application.

    Parameters
    ----------
    service : Service
    host : str
        The address that the server listens on.
    token : str or None
        The token that requests need if others can reach the server.
    started : callable or None
        Called once the server is about to listen.
    allowed : iterable of (str, int or None)
        More names of the server (see `middleware.allowed_host`).
    """

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        if started:
            started()
        yield
        service.close()

    guard = Middleware(
        Guard, host=host, token=token, upload_bytes=service.recordings.upload_bytes, allowed=list(allowed)
    )
    errors = (Failure, HTTPException, ClientDisconnect, Exception)
    return Starlette(
        routes=service.routes(),
        middleware=[guard],
        exception_handlers={error: _error_response for error in errors},
        lifespan=lifespan,
    )


def describe_questions(model: Session) -> dict[str, list[str]]:
    """Return the findings and the rhythms that a model knows, and example questions."""
    certainty = model.certainty
    if certainty is None:
        return {"findings": [], "rhythms": [], "examples": []}
    rhythm = certainty.match(everyday.RHYTHM)
    known = model.known_findings
    examples = [*(text for text in everyday.GENERAL if certainty.match(text))]
    examples += [everyday.ask_about(name) for name in EXAMPLES if name in known]
    return {
        "findings": list(everyday.list_parts(certainty, known).values()),
        "rhythms": list(rhythm.answers or []) if rhythm else [],
        "examples": [*examples, *(["Describe this ECG."] if known else []), "How long is the QT interval?"],
    }


def _media_type(name: str) -> str | None:
    return TYPES.get(name[name.rfind(".") :])


def _error_response(request: Request, error: Exception) -> Response:
    """Return an error as JSON: one line."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, Failure):
        return JSONResponse({"error": error.message}, getattr(error, "status", 422))
    return JSONResponse({"error": f"the server failed ({type(error).__name__})"}, 500)
