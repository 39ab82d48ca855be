"""The local server: the site's files on this machine alone, and a quiet end."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from kdbench import cli
from kdbench.board.build import build


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
