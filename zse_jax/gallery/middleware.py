"""Rejects requests that the page does not need, before Gradio handles them.

Gradio can serve files and accept uploads. The page needs neither, because drawings and thumbnails
are sent as text. So these routes return 404, and requests larger than a drawing return 413.
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


class Guard:
    """ASGI middleware that rejects file routes and large requests."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]):
        """Wraps `app`."""
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Responds with 404 or 413, or calls the app."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _CLOSED.match(scope["path"].removeprefix(scope.get("root_path", ""))):
            await _refuse(send, 404, "This page serves no files.")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
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
