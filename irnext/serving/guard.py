"""What comes before Gradio: only what the page needs gets through to it.

Gradio serves far more than one page needs, such as fetching addresses that a visitor names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..memory import format_size
from .storage import Storage

API = "/gradio_api"
READ = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|/(assets|static|svelte)/.*"
    rf"|{API}/(info|startup-events|theme\.css|queue/data|heartbeat/\w+|call/restore/\w+)"
)
FILE = f"{API}/file="
UPLOAD = f"{API}/upload"
JOIN = re.compile(rf"{API}/(queue/join|call/restore)/?")
END = re.compile(rf"{API}/(cancel|reset)/?")
CALL_SIZE = 64 * 1024  # bytes of a request other than an upload
NAME_SIZE = 64  # characters of a visitor's name, which Gradio keeps
FORM_SIZE = 64 * 1024  # bytes around a file in an upload
HEADERS = {
    # The page is self-contained: a browser that is told so sends nothing anywhere else.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "object-src 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Refusal(Exception):
    """A request goes no further: the status and the reason."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


class Guard:
    """ASGI middleware with a list of what is allowed; anything else is not found.

    Args:
        app: what is guarded.
        storage: of whose folder alone files are served, and may be named in a call.
        max_upload: bytes of a file.
    """

    def __init__(self, app: ASGIApp, storage: Storage, max_upload: int):
        self.app, self.storage, self.max_upload = app, storage, max_upload

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the start and the end; there are no web sockets
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            with contextlib.ExitStack() as until_answered:
                receive = await self.admit(scope, receive, until_answered)
                await self.app(scope, receive, send_with_headers)
        except Refusal as refusal:
            response = PlainTextResponse(str(refusal), refusal.status)
            await response(scope, receive, send_with_headers)
        except ClientDisconnect:  # in the middle of an upload: nobody waits for an answer
            pass
        except RuntimeError as error:
            if not isinstance(error.__cause__, HTTPException):
                raise
            # The stream of a call that is not, or no longer, known: it has told so.
            await send({"type": "http.response.body"})

    async def admit(self, scope: Scope, receive: Receive, until_answered: contextlib.ExitStack) -> Receive:
        """What the guarded application receives of a request; raises Refusal for one that is not allowed."""
        method, path = scope["method"], scope["path"]
        if method in ("GET", "HEAD"):
            if not READ.fullmatch(path) and not (path.startswith(FILE) and self.holds(path[len(FILE) :])):
                raise Refusal(404, "not found")
            return receive
        if method == "POST" and path == UPLOAD:
            size = declared_size(scope, self.max_upload + FORM_SIZE, "the picture's file", self.max_upload)
            try:
                until_answered.enter_context(self.storage.reserved(size))
            except BlockingIOError as error:
                raise Refusal(503, str(error)) from None
            await asyncio.to_thread(self.storage.make_room)
            scope["query_string"] = b""  # by which Gradio would keep, for ever, how far the upload is
            return receive
        if method != "POST" or not (JOIN.fullmatch(path) or END.fullmatch(path)):
            raise Refusal(404, "not found")
        declared_size(scope, CALL_SIZE, "the request", CALL_SIZE)
        return await self.checked_call(receive, JOIN.fullmatch(path) is not None)

    async def checked_call(self, receive: Receive, joins: bool) -> Receive:
        """Read a call, which must name no file but uploaded ones, and give it back to be read again.

        Gradio would download an address in place of a file, and, mounted, copy any file of the server.
        """
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)

        def check(pairs: list[tuple[str, object]]) -> dict[str, object]:
            for key, value in pairs:
                if key == "path" and value is not None and not (isinstance(value, str) and self.holds(value)):
                    raise Refusal(400, "give the picture as an uploaded file, not as a path or an address")
            return dict(pairs)

        try:
            call = json.loads(body, object_pairs_hook=check)
            json.dumps(call, allow_nan=False, ensure_ascii=False).encode()  # what Python alone takes for JSON
        except (ValueError, RecursionError):
            raise Refusal(400, "the request is not JSON") from None
        if joins:
            check_join(call)
        replay = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return replay.pop() if replay else await receive()

        return again

    def holds(self, path: str) -> bool:
        """Whether a path leads to something in the folder."""
        return "\0" not in path and Path(os.path.normpath(path)).is_relative_to(self.storage.folder)


def check_join(call: Any) -> None:
    """Raise Refusal for what would not be a call of the page's one function, and fail inside Gradio."""
    match call:
        case {"data": [dict() | None, str(), *_]}:
            pass
        case _:
            raise Refusal(400, 'give "data": [the picture as an uploaded file, the task]')
    visitor = call.get("session_hash")
    if call.get("fn_index") not in (None, 0) or not (visitor is None or len(str(visitor)) <= NAME_SIZE):
        raise Refusal(400, "there is no such function, or the session's name is too long")


def declared_size(scope: Scope, most: int, what: str, limit: int) -> int:
    """Bytes of a request's body as its header says, which the server holds it to."""
    size = Headers(scope=scope).get("content-length", "")
    if not size.isdecimal():
        raise Refusal(411, "the request does not say how long it is")
    if int(size) > most:
        raise Refusal(413, f"{what} is too large: at most {format_size(limit)}")
    return int(size)
