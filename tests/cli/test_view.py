"""c2f_view: the address that is printed, the browser that is opened, and how it ends."""
import re
import signal
import subprocess
import sys
import urllib.request
import webbrowser
from http.server import ThreadingHTTPServer

import pytest

from c2f_nnunet.cli import view

INDEX = '{"version": 1, "title": "t", "organs": [], "colours": [], "cases": []}'


@pytest.fixture
def out(tmp_path):
    (tmp_path / "viewer").mkdir()
    (tmp_path / "viewer" / "cases.json").write_text(INDEX)
    return tmp_path


@pytest.fixture
def ended(monkeypatch):
    """Ctrl-C as soon as it serves; the pages that were opened in the browser."""
    def stop(self, poll_interval=0.5):
        raise KeyboardInterrupt

    opened = []
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", stop)
    monkeypatch.setattr(webbrowser, "get", lambda: type("Browser", (), {"open": lambda self, url: opened.append(url)})())
    return opened


def test_the_browser_is_opened_at_the_printed_address(out, ended, capsys):
    assert view.main([str(out)]) == 0
    url = re.fullmatch(r"0 cases at (http://127\.0\.0\.1:\d+/) \(Ctrl-C ends\)\n\n", capsys.readouterr().out)[1]
    assert ended == [url]


def test_no_browser(out, ended, monkeypatch):
    assert view.main([str(out), "--no_browser"]) == 0 and not ended

    def none():
        raise webbrowser.Error("no browser")

    monkeypatch.setattr(webbrowser, "get", none)
    assert view.main([str(out)]) == 0
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser("must-not-be-run"))  # a text browser would take the terminal
    assert view.main([str(out)]) == 0


def test_a_real_process_serves_until_it_is_interrupted(out):
    # tests that run in the background ignore Ctrl-C, and so would what they start
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n" \
           "from c2f_nnunet.cli import view; sys.exit(view.main(sys.argv[1:]))"
    args = [sys.executable, "-c", code, str(out), "--no_browser"]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        url = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())[0]
        with urllib.request.urlopen(url + "viewer/cases.json") as answer:
            assert answer.read().decode() == INDEX
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0 and not errors


def test_a_folder_without_a_viewer(tmp_path, capsys):
    assert view.main([str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}: nothing to view there")


@pytest.mark.parametrize("args, told", [
    ([], "the following arguments are required: OUT"),
    (["x", "--port", "65536"], "argument --port: '65536' is not a port from 0 to 65535"),
    (["x", "--port", "-1"], "argument --port: '-1' is not a port from 0 to 65535"),
])  # fmt: skip
def test_a_wrong_value_is_named(misused, args, told):
    assert misused(view, *args).startswith(told)


def test_help_names_every_option(helps):
    shown = helps(view)
    for option in ("OUT ", "--port N", "--no_browser "):
        assert option in shown, option
    assert shown.endswith("example: c2f_view out")
