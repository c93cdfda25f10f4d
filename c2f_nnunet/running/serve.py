"""The server behind c2f_view: one report's folder and the viewer's page, to programs on this computer alone.

What must not happen, and why it does not: another computer reads the scans (the socket is bound to 127.0.0.1); a page on
the web reads them through the user's browser, under a name that it points at 127.0.0.1 (the Host header must be ours) or by
embedding them (Cross-Origin-Resource-Policy); a request leaves the folder (names with "..", hidden files, and links that lead
outside are refused); the page sends something out (Content-Security-Policy). Nothing can be changed: GET and HEAD only.
"""
from __future__ import annotations

import logging
import shutil
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote

from ..errors import C2FError

log = logging.getLogger(__name__)
LOCAL = "127.0.0.1"
WEB = Path(str(files("c2f_nnunet"))) / "web"
WEB_PREFIX = "web"
PAGE = "index.html"
# what is handed out, by the end of the name
TYPES = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".json": "application/json", ".csv": "text/csv; charset=utf-8", ".md": "text/plain; charset=utf-8",
    ".txt": "text/plain; charset=utf-8", ".png": "image/png", ".nii.gz": "application/octet-stream",
}  # fmt: skip
HEADERS = {
    # 'unsafe-inline': the report is one file; blob: the viewer's worker; data: its built-in font
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' blob:; style-src 'self' 'unsafe-inline'; "
                               "img-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
                               "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Cross-Origin-Resource-Policy": "same-origin", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}  # fmt: skip


def find(root: Path, target: str) -> tuple[Path, str] | None:
    """The file that a request's target means, and its type; None where it means none that may be handed out.

    root: the report's folder, resolved. "/" is the viewer's page, "/web/NAME" one of its files, the rest lies below root.
    """
    path = unquote(target.partition("?")[0].partition("#")[0])
    if path == "/":
        path = f"/{WEB_PREFIX}/{PAGE}"
    first, *parts = path.split("/")
    if first or not parts or not all(p and not p.startswith(".") for p in parts):
        return None
    base, parts = (WEB, parts[1:]) if parts[0] == WEB_PREFIX else (root, parts)
    kind = next((kind for ending, kind in TYPES.items() if path.endswith(ending)), None)
    try:
        file = base.joinpath(*parts).resolve()
        inside = file.is_relative_to(base.resolve()) and file.is_file()
    except (OSError, ValueError):  # a name that is too long or holds a zero, a loop of links
        return None
    return (file, kind) if inside and kind else None


class Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD from `root`; the standard library's way asks for a class."""

    timeout = 60  # seconds that a silent connection may hold a thread
    server_version, sys_version = "c2f_view", ""

    def __init__(self, root: Path, *args):
        self.root = root
        super().__init__(*args)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, with_body: bool) -> None:
        if self.headers.get("Host", "").lower() not in own_names(self.server.server_port):
            self.send_error(HTTPStatus.FORBIDDEN, "only for this computer")
            return
        found = find(self.root, self.path)
        try:
            if found is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            with open(found[0], "rb") as content:
                self.send_response(HTTPStatus.OK)
                self.send_header("Content-Type", found[1])
                self.send_header("Content-Length", str(found[0].stat().st_size))
                self.end_headers()
                if with_body:
                    shutil.copyfileobj(content, self.wfile, 1 << 20)
        except OSError as e:  # the browser went on to another case, or the file is not readable
            log.debug("%s: %s", self.path, e)
            self.close_connection = True

    def end_headers(self) -> None:
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args) -> None:
        log.debug(format, *args)


def own_names(port: int) -> set[str]:
    """The Host headers under which a browser on this computer comes."""
    names = {LOCAL, "localhost"}
    return {f"{name}:{port}" for name in names} | (names if port == 80 else set())


def open_server(root: Path, port: int = 0) -> ThreadingHTTPServer:
    """A server for this folder, bound to 127.0.0.1; port 0: any free one. C2FError where the port is taken."""
    try:
        server = ThreadingHTTPServer((LOCAL, port), partial(Handler, Path(root).resolve()))
    except (OSError, OverflowError) as e:
        raise C2FError(f"--port {port}: cannot be used ({getattr(e, 'strerror', None) or e}); give another one, or leave --port out") from e
    return server


def address(server: ThreadingHTTPServer) -> str:
    return f"http://{LOCAL}:{server.server_port}/"
