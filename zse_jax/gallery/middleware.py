"""Rejects requests that the page does not need, before Gradio handles them.

Gradio can serve files and accept uploads. The page needs neither, because drawings and thumbnails
are sent as text. So these routes return 404, and requests larger than a drawing return 413.
The page's functions accept JSON only, which other sites cannot make a browser send to this page.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST_REQUEST = 8 * 2**20
"""Size limit of a request body in bytes."""

_CLOSED = re.compile(r"/+(?:gradio_api/+)?(?:file=|file/|upload|proxy=|stream/|dev/|vibe|runs)")

_FUNCTIONS = re.compile(r"/+(?:gradio_api/+)?component_server")


class Guard:
    """ASGI middleware that rejects file routes, large requests, and calls by other sites."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]):
        """Wraps `app`."""
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Responds with 404, 413 or 415, or calls the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        headers = dict(scope["headers"])
        if _CLOSED.match(path):
            await _refuse(send, 404, "This page serves no files.")
            return
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if _FUNCTIONS.match(path) and kind != b"application/json":
            await _refuse(send, 415, "The functions of this page accept JSON only.")
            return
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > LARGEST_REQUEST:
            await _refuse(send, 413, "The request is larger than a drawing.")
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST_REQUEST:  # the request has no Content-Length
                return {"type": "http.disconnect"}
            return message

        await self._app(scope, limited, send)


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
