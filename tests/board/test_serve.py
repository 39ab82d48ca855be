"""The local server: the site's files on this machine alone, and a quiet end."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from kdbench.board import serve as serving
from kdbench.board.build import build
from kdbench.cli import main as cli


def test_it_serves_the_site_and_ends_quietly(records: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    build([records], site)
    command = [sys.executable, "-m", "kdbench.cli", "leaderboard", "serve", str(site), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            address = process.stdout.readline().split()[0]
            assert address.startswith("http://127.0.0.1:")
            with urllib.request.urlopen(f"{address}task/imagined.html") as answer:
                assert answer.read() == (site / "task" / "imagined.html").read_bytes()
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
            for absent in ("task/", "nowhere.html", "..%2f..%2fetc/passwd"):
                with pytest.raises(urllib.error.HTTPError, match="404"):
                    urllib.request.urlopen(address + absent)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0 and process.stderr.read() == ""
        finally:
            process.kill()


def test_open_shows_the_address_in_the_browser(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site, shown = tmp_path / "site", []
    build([records], site)
    monkeypatch.setattr("click.launch", shown.append)
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", lambda server: None)
    assert cli.entry(["leaderboard", "serve", str(site), "--port", "0", "--open"]) == 0
    assert shown == [capsys.readouterr().out.split()[0]]
    assert cli.entry(["leaderboard", "serve", str(site), "--port", "0"]) == 0
    assert len(shown) == 1


def test_a_folder_that_no_build_made_is_not_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.entry(["leaderboard", "serve", str(tmp_path)]) == 2
    assert "is no leaderboard. Make one: kdbench leaderboard build" in capsys.readouterr().err


def test_a_taken_port_is_told(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import socket

    site = tmp_path / "site"
    build([records], site)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.entry(["leaderboard", "serve", str(site), "--port", str(port)]) == 2
    assert f"Port {port} cannot be had" in capsys.readouterr().err


@pytest.fixture
def server(records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A site being served."""
    build([records], tmp_path / "site")
    started: list[ThreadingHTTPServer] = []
    ready = threading.Event()
    real = ThreadingHTTPServer.serve_forever

    def begin(one: ThreadingHTTPServer) -> None:
        started.append(one)
        ready.set()
        real(one, poll_interval=0.02)

    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", begin)
    thread = threading.Thread(target=serving.serve, args=(tmp_path / "site", 0, lambda address: None))
    thread.start()
    assert ready.wait(30)
    yield started[0]
    started[0].shutdown()
    thread.join()


def ask(server: ThreadingHTTPServer, path: str, host: str | None = "localhost") -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.putrequest("GET", path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_links_lead_nowhere_outside_the_site(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "index.html").write_text("secret")
    (site / "file.html").symlink_to(tmp_path / "secret" / "index.html")
    (site / "folder").symlink_to(tmp_path / "secret", target_is_directory=True)
    (site / "own").mkdir()
    (site / "own" / "index.html").symlink_to(tmp_path / "secret" / "index.html")
    (site / "circle.html").symlink_to(site / "circle.html")
    (site / "inside.html").symlink_to(site / "index.html")
    for path in ("/file.html", "/folder/index.html", "/folder/", "/own/", "/circle.html"):
        assert ask(server, path) == 404, path
    for path in ("/", "/index.html", "/inside.html", "/task/imagined.html"):
        assert ask(server, path) == 200, path


def test_odd_requests_are_answered_without_a_traceback(
    server: ThreadingHTTPServer, capfd: pytest.CaptureFixture[str]
) -> None:
    for path in ("/%00", "/index.html%00.css", "/" + "x" * 5000, "/%ff%fe", "/..%2f..%2fetc/passwd"):
        assert ask(server, path) == 404, path
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "[::2]", "[", ""])
def test_who_asks_for_another_host_is_refused(server: ThreadingHTTPServer, host: str) -> None:
    assert ask(server, "/index.html", host) == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1", "127.0.0.1:8000", "[::1]:8000", None])
def test_this_machine_is_answered_by_all_its_names(server: ThreadingHTTPServer, host: str | None) -> None:
    assert ask(server, "/index.html", host) == 200
