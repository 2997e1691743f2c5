"""The page's own files: `GET /` and `GET /page/NAME`, read once, small, and the same for everybody.

They hold no secret, so they need no key; the data that they show comes from `/api/live`, which needs one. The
headers keep a browser from loading or running files from elsewhere, and the page from being put in a frame.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from exod.errors import RequestError

_MODULES: Final = (
    *("page", "stream", "texts"),
    *("mesh_picture", "rtt_chart", "speed_chart", "event_list", "model_list"),
    *("chat", "actions"),
)

TYPES: Final = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **{f"{name}.js": "text/javascript; charset=utf-8" for name in _MODULES},
}
"""Every file of the page. What is not named here is not served."""

SECURITY_HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",  # a browser asks each time and mostly gets 304, so an upgrade shows at once
}


def is_page(path: str) -> bool:
    """Is it one of the page's files, which need no key?"""
    return path == "/" or path.startswith("/page/")


class PageFiles:
    """Reads all files when it is made."""

    def __init__(self) -> None:
        folder = files("exod.http") / "page"
        self._bodies = {name: (folder / name).read_bytes() for name in TYPES}
        self._tags = {name: f'"{hashlib.sha256(body).hexdigest()[:16]}"' for name, body in self._bodies.items()}

    def routes(self) -> list[Route]:
        return [Route("/", self._index), Route("/page/{name}", self._file)]

    async def _index(self, request: Request) -> Response:
        return self._answer("index.html", request)

    async def _file(self, request: Request) -> Response:
        return self._answer(request.path_params["name"], request)

    def _answer(self, name: str, request: Request) -> Response:
        if name not in self._bodies:
            raise RequestError("not_found", f"/page/{name[:100]}: the page has no such file")
        headers = {**SECURITY_HEADERS, "etag": self._tags[name]}
        if request.headers.get("if-none-match") == self._tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(self._bodies[name], media_type=TYPES[name], headers=headers)
