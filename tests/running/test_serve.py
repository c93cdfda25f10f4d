"""The viewer's server: what it hands out, and everything it must refuse."""
import http.client
import socket
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest

from c2f_nnunet.errors import C2FError
from c2f_nnunet.running import serve


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A report's folder beside files that must stay closed, and its server."""
    top = tmp_path_factory.mktemp("top")
    root = top / "out"
    (root / "viewer").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (top / "secret.json").write_text("{}")
    (root / "report.html").write_text("<p>report")
    (root / "viewer" / "a #1.nii.gz").write_bytes(b"\x1f\x8bvoxels")
    (root / "viewer" / "ct 10:30\\2.nii.gz").write_bytes(b"\x1f\x8bat half past ten")
    (root / "model.safetensors").write_text("weights")
    (root / ".hidden" / "x.json").write_text("{}")
    (root / "viewer" / ".x.json").write_text("{}")
    (root / "link.json").symlink_to(top / "secret.json")
    (root / "inner.html").symlink_to(root / "report.html")
    with serve.open_server(root) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield SimpleNamespace(root=root, port=server.server_port, server=server)
        server.shutdown()


def ask(site, target, method="GET", host=None, body=None):
    """Status, headers and body; the target goes out as it is, unlike in a browser, which tidies it up."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=10)
    connection.putrequest(method, target, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{site.port}")
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_the_folders_files(site):
    status, headers, content = ask(site, "/report.html?x=1#y")
    assert (status, headers["Content-Type"], content) == (200, "text/html; charset=utf-8", b"<p>report")
    status, headers, content = ask(site, "/viewer/a%20%231.nii.gz")
    assert (status, headers["Content-Type"], content) == (200, "application/octet-stream", b"\x1f\x8bvoxels")
    assert headers["Content-Length"] == "8" and "Content-Encoding" not in headers  # the viewer unpacks it
    assert ask(site, "/viewer/ct%2010%3A30%5C2.nii.gz")[2] == b"\x1f\x8bat half past ten"  # what a scan may be called
    assert ask(site, "/inner.html")[2] == b"<p>report"  # a link that stays inside


def test_the_viewers_page(site):
    status, headers, content = ask(site, "/")
    assert status == 200 and content == (serve.WEB / "index.html").read_bytes()
    for name, kind in (("viewer.js", "text/javascript"), ("viewer.css", "text/css"), ("niivue.umd.js", "text/javascript")):
        status, headers, content = ask(site, f"/web/{name}")
        assert status == 200 and headers["Content-Type"].startswith(kind) and content == (serve.WEB / name).read_bytes()


@pytest.mark.parametrize("target", [
    "/../secret.json", "/viewer/../../secret.json", "/%2e%2e/secret.json", "/viewer/%2e%2e%2f%2e%2e%2fsecret.json", "/..%5csecret.json",
    "/web/../../labels.py", "/web/%2e%2e/viewer/x.json", "//secret.json", "/./report.html", "/viewer//a%20%231.nii.gz", "/viewer/",
    "/viewer", "/link.json", "/.hidden/x.json", "/viewer/.x.json", "/model.safetensors", "/nothing.html", "/web", "/web/", "/web/nothing.js",
    "/report.html%00.json", "/C:/secret.json", "secret.json", "http://127.0.0.1/report.html", "/" + "a" * 5000 + ".html", "*", "?x=1",
])  # fmt: skip
def test_nothing_else_is_handed_out(site, target):
    status, _, content = ask(site, target)
    assert status == 404 and b"{}" not in content


@pytest.mark.parametrize("host", [
    "", "evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", "[::1]:{port}",
])  # fmt: skip
def test_another_name_for_this_computer_is_refused(site, host):
    """A page on the web may point its own name at 127.0.0.1 (DNS rebinding); the browser then sends that name."""
    status, _, content = ask(site, "/report.html", host=host.format(port=site.port))
    assert status == 403 and b"<p>report" not in content
    assert ask(site, "/report.html", host=f"LocalHost:{site.port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"])
def test_nothing_can_be_changed(site, method):
    assert ask(site, "/report.html", method)[0] == 501
    assert (site.root / "report.html").read_text() == "<p>report"


def test_head_tells_the_size_alone(site):
    status, headers, content = ask(site, "/report.html", "HEAD")
    assert (status, headers["Content-Length"], content) == (200, "9", b"")
    assert ask(site, "/nothing.html", "HEAD")[0] == 404


def test_every_answer_keeps_the_page_to_itself(site):
    for target in ("/", "/report.html", "/nothing"):
        headers = ask(site, target)[1]
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin" and headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'self';") and "http" not in headers["Content-Security-Policy"]


def test_only_this_computer_can_connect(site):
    assert site.server.server_address[0] == "127.0.0.1" and serve.address(site.server) == f"http://127.0.0.1:{site.port}/"
    own = set()
    with suppress(socket.gaierror):
        own = {a[4][0] for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {"127.0.0.1"}
    for address in own:  # the same computer by its name in the network
        with socket.socket() as s:
            s.settimeout(2)
            assert s.connect_ex((address, site.port)) != 0


def test_a_port_that_is_taken(site):
    with pytest.raises(C2FError, match=f"--port {site.port}: cannot be used .*; give another one, or leave --port out"):
        serve.open_server(site.root, site.port)


def test_port_80_is_left_out_of_the_host():
    assert "localhost" in serve.own_names(80) and "localhost" not in serve.own_names(8080)
