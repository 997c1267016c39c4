"""What the page's server refuses before anything of it reads it.

Gradio can serve files and take uploads; the page needs neither, as drawings and thumbnails travel
as text. So the addresses for that do not exist here, and no request is larger than a drawing.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST_REQUEST = 8 * 2**20
"""Bytes of a request's body."""

_CLOSED = re.compile(
    r"/+(?:gradio_api/+)?(?:file=|file/|upload|proxy=|stream/|component_server|dev/|vibe|runs)"
)


class Guard:
    """ASGI middleware."""

    def __init__(self, app: Callable[[Message, Receive, Send], Awaitable[None]]):
        """Guards `app`."""
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answers 404 or 413, or hands the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _CLOSED.match(scope["path"].removeprefix(scope.get("root_path", ""))):
            await _refuse(send, 404, "This page serves no files.")
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > LARGEST_REQUEST:
            await _refuse(send, 413, "That is larger than a drawing.")
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > LARGEST_REQUEST:  # of a request that does not say its length
                return {"type": "http.disconnect"}
            return message

        await self._app(scope, limited, send)


async def _refuse(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
