"""A site over HTTP, for one's own machine."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from kdbench.board.place import MARKER
from kdbench.errors import UsageError

HOST = "127.0.0.1"
NAMES = ("localhost", HOST, "::1")
"""Names of this machine for itself."""


class _Handler(SimpleHTTPRequestHandler):
    """Files of the site and nothing else, also where links lead out of it; says nothing on the terminal.

    Who asks for another host came by a name that was made to point here, and is refused.
    """

    def send_head(self) -> io.BytesIO | BinaryIO | None:
        if not self._asked_here():
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST, "This is another host")
            return None
        if not self._within():
            self.send_error(HTTPStatus.NOT_FOUND, "No such page")
            return None
        return super().send_head()

    def _asked_here(self) -> bool:
        given = self.headers.get("Host")
        try:
            return given is None or urlsplit(f"//{given}").hostname in NAMES
        except ValueError:
            return False

    def _within(self) -> bool:
        root = Path(self.directory).resolve()
        try:
            place = Path(self.translate_path(self.path))
            place = (place / "index.html" if place.is_dir() else place).resolve()
            return place.is_relative_to(root) and place.is_file()
        except (OSError, ValueError, RuntimeError):  # a null byte, a name too long, links in a circle
            return False

    def list_directory(self, path: object) -> io.BytesIO | None:
        self.send_error(HTTPStatus.NOT_FOUND, "No such page")
        return None

    def end_headers(self) -> None:
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def serve(site: Path, port: int, tell: Callable[[str], object]) -> None:
    """Serve ``site`` on this machine alone until interrupted; ``tell`` gets the address, port 0 picks a free one.

    Raises UsageError for a folder that no build has made, and for a port that cannot be had.
    """
    if not (site / MARKER).is_file():
        raise UsageError(f"{site} is no leaderboard. Make one: kdbench leaderboard build RECORDS -o {site}")
    handler = functools.partial(_Handler, directory=str(site))
    try:
        server = ThreadingHTTPServer((HOST, port), handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there are 65,535"
        raise UsageError(f"Port {port} cannot be had ({reason}); --port 0 finds a free one.") from None
    with server:
        tell(f"http://{HOST}:{server.server_port}/")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return
