"""Routes that ask the model: conversations, streamed answers, attribution and saving."""

import asyncio
import io
import json
import re
import threading
import zipfile
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from ecgbyte_cli.failure import Failure
from ecgbyte_cli.inference import conversation_report
from ecgbyte_cli.inference.conversation import Conversation
from ecgbyte_cli.inference.conversation_report import AnswerAttribution
from ecgbyte_cli.render import svg_sheet, terminal
from ecgbyte_cli.web.conversations import Conversations
from ecgbyte_cli.web.middleware import Refused
from ecgbyte_cli.web.parameters import body_integer, json_body
from ecgbyte_cli.web.recordings import id_of

MOST_QUESTION = 4000  # characters
CELL = 0.02  # resolution of an attribution, in s
# measured on synthetic records with a known location of the cause: docs/attribution.md
_SEEN = (
    "On synthetic records most of it was at the cause if that is visible (an early beat, a raised ST segment), "
    "but no more than by chance if something is missing (a P wave). Measured on a small model: ecgbyte explain "
    "measures this for yours."
)
_CHANCE = "No evidence: on synthetic records it found the cause no better than chance."
METHODS = {
    "integrated": _SEEN,
    "occlusion": _SEEN + " By deletion and insertion it was no better than chance.",
    "gradient": _CHANCE,
    "rollout": _CHANCE,
    "attention": _CHANCE,
}


MARK = re.compile(r"\s*(<[^<>]*>|\[[A-Z]+\]|\\n)*\s*")  # special tokens and line ends


class ConversationRoutes:
    """Routes that need the model."""

    def __init__(self, conversations: Conversations):
        self.conversations = conversations

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/api/conversation", self.conversation, methods=["POST"]),
            Route("/api/conversation", self.existing),
            Route("/api/findings", self.findings, methods=["POST"]),
            Route("/api/ask", self.ask, methods=["POST"]),
            Route("/api/stop", self.stop, methods=["POST"]),
            Route("/api/attribution", self.attribution, methods=["POST"]),
            Route("/api/save", self.save),
        ]

    async def conversation(self, request: Request) -> Response:
        """POST /api/conversation {conversation, do: open | segment | clear, record, number}"""
        body = await json_body(request)

        def work() -> dict[str, Any]:
            action = body.get("do", "open")
            if action == "open":
                session = self.conversations.open(body, beside=True)
            else:
                session = self.conversations.find(body)
                if action == "segment":
                    session.segment(body_integer(body, "number"))
                elif action == "clear":
                    session.conversation.clear()
                else:
                    raise Refused(400, "`do` must be open, segment or clear")
            return session.describe()

        return JSONResponse(await self.conversations.run(work))

    async def existing(self, request: Request) -> Response:
        """GET /api/conversation?conversation=ID"""
        return JSONResponse(
            await self.conversations.run(lambda: self.conversations.find(request.query_params).describe())
        )

    async def findings(self, request: Request) -> Response:
        """POST /api/findings {conversation}: of each of its ECGs"""
        body = await json_body(request)

        def work() -> dict[str, Any]:
            return {"ecgs": self.conversations.find(body).describe_findings()}

        return JSONResponse(await self.conversations.run(work))

    async def ask(self, request: Request) -> Response:
        """POST /api/ask {question, conversation or record, stream}"""
        body = await json_body(request)
        question = body.get("question")
        if not isinstance(question, str) or not question.strip():
            raise Refused(400, "`question` must be a text")
        if len(question) > MOST_QUESTION:
            raise Refused(413, f"a question has {MOST_QUESTION} characters at most")
        self.conversations.require_model()
        stop = threading.Event()
        if body.get("conversation"):  # refuse now, before an answer starts
            self.conversations.find(body).stop = stop
        if body.get("stream"):
            return StreamingResponse(self._events(body, question, stop), media_type="text/event-stream")
        return JSONResponse(await self.conversations.run(self._answer(body, question, stop, lambda _: None)))

    def _answer(
        self, body: dict[str, Any], question: str, stop: threading.Event, show: Callable[[str], None]
    ) -> Callable[[], dict[str, Any]]:
        """Return a function that answers a question; `show` is called with each piece of the answer."""

        def show_or_stop(piece: str) -> None:
            if stop.is_set():
                raise KeyboardInterrupt  # ends the answer, and keeps the text so far
            if piece:
                show(piece)

        def work() -> dict[str, Any]:
            conversations = self.conversations
            session = conversations.find(body) if body.get("conversation") else conversations.open(body)
            session.stop = stop
            return session.describe_turn(session.conversation.ask(question.strip(), show_or_stop))

        return work

    async def _events(self, body: dict[str, Any], question: str, stop: threading.Event) -> AsyncIterator[str]:
        """Answer a question; yield the server-sent events."""
        pieces, loop = asyncio.Queue[str | None](), asyncio.get_running_loop()

        def show(piece: str) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        answer = asyncio.ensure_future(self.conversations.run(self._answer(body, question, stop, show)))
        answer.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield _event(piece=piece)
            try:
                yield _event(done=await answer)
            except Failure as error:
                yield _event(error=error.message)
        finally:  # also if the page has gone
            stop.set()
            answer.cancel()

    async def stop(self, request: Request) -> Response:
        """POST /api/stop {conversation}"""
        self.conversations.find(await json_body(request)).stop.set()
        return JSONResponse({"stopped": True})

    async def attribution(self, request: Request) -> Response:
        """POST /api/attribution {conversation, method}"""
        body = await json_body(request)
        method = body.get("method", "integrated")
        if not isinstance(method, str) or method not in METHODS:
            raise Refused(400, f"`method` must be one of {', '.join(METHODS)}")
        return JSONResponse(
            await self.conversations.run(
                lambda: describe_attribution(self.conversations.find(body).conversation, method)
            )
        )

    async def save(self, request: Request) -> Response:
        """GET /api/save?conversation=ID"""
        content = await self.conversations.run(
            lambda: zip_conversation(self.conversations.find(request.query_params).conversation)
        )
        headers = {"content-disposition": 'attachment; filename="conversation.zip"'}
        return Response(content, media_type="application/zip", headers=headers)


def describe_attribution(conversation: Conversation, method: str) -> dict[str, Any]:
    """Return the attribution of the last answer to each cell of each lead, and to each word."""
    from ecgbyte_cli.evaluation.attribution_measures import sum_windows

    attributed = conversation_report.attribute_answer(conversation, method)
    signal = attributed.ecg.signal
    width = max(1, round(CELL * signal["fs"]))  # samples
    words, values = _readable(attributed)
    return {
        "method": method,
        "verdict": METHODS[method],
        "question": attributed.turn.question,
        "answer": attributed.turn.answer,
        "record": id_of(attributed.ecg.recording.path),
        "start": attributed.ecg.seconds[0],
        "leads": signal["leads"],
        "cell_seconds": width / signal["fs"],
        "shares": sum_windows(attributed.density, width).round(7).tolist(),
        "words": [[word, round(float(v), 5)] for word, v in zip(words, values, strict=True)],
        "on_text": float(attributed.values.sum()) if attributed.words else None,
    }


def _readable(attributed: AnswerAttribution) -> tuple[list[str], list[float]]:
    """Return the words of the question, and the share on each, without the prompt's special tokens.

    Empty for a model with a shorthand prompt, which would not be readable.
    """
    asked, turn = attributed.turn.asked, attributed.turn
    values = attributed.values.tolist()
    kept = [(word, v) for word, v in zip(attributed.words, values, strict=True) if not MARK.fullmatch(word)]
    if kept and asked and asked[0] not in (turn.question, turn.asked_as):
        kept = []
    return [word for word, _ in kept], [value for _, value in kept]


def zip_conversation(conversation: Conversation) -> bytes:
    """Return a zip file with the conversation as Markdown and its ECGs as SVG sheets."""
    content, pictures = io.BytesIO(), []
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, ecg in enumerate(conversation.ecgs):
            pictures.append(f"ecg{i + 1}.svg")
            archive.writestr(pictures[-1], svg_sheet.svg_sheet(ecg.recording, ecg.seconds[0]))
        text = conversation_report.conversation_markdown(conversation, pictures, terminal.panel_facts)
        archive.writestr("conversation.md", text)
    return content.getvalue()


def _event(**data: Any) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
