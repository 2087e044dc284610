"""The server behind the gateway: addresses and keys that cannot be, its certificate, and a company's proxy before it."""

import subprocess
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from taskyard.runner.adapters.base import Upstream
from taskyard.runner.sandbox import gateway
from taskyard.runner.sandbox.errors import SandboxError
from taskyard.runner.sandbox.gateway import Gateway
from taskyard.runner.sandbox.network import Verdict
from taskyard.runner.sandbox.proxy import Proxy, Streams, dial
from tests.fleet import until
from tests.jail_servers import Line, serving
from tests.recording_api import ApiServer
from tests.test_sandbox_gateway import BEARER, KEY, ask


@pytest.mark.parametrize("key", [f"{KEY}\n", f"{KEY}\r\nX: y", "schlüssel", f" {KEY}", f"{KEY}\x00"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_quoted(key: str) -> None:
    with pytest.raises(SandboxError, match=r"api\.example\.com cannot be sent: X-Api-Key") as refused:
        Gateway(Upstream("https://api.example.com", {"X-Api-Key": key}))
    assert key.strip() not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["", "ftp://a.example.com", "https://", "https://u:p@a.example.com", "http://a/?x=y", "http://a:b"]
)
def test_an_address_that_cannot_be_an_api_is_refused(url: str) -> None:
    with pytest.raises(SandboxError, match="API"):
        Gateway(Upstream(url))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for api.example.com that trusts itself, with its key."""
    made = tmp_path / "api.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    named = ["-subj", "/CN=api.example.com", "-addext", "subjectAltName=DNS:api.example.com"]
    subprocess.run([*command, *named, "-keyout", made, "-out", tmp_path / "cert.pem"], check=True, capture_output=True)
    made.write_text(made.read_text() + (tmp_path / "cert.pem").read_text())
    return made


def test_a_companys_proxy_is_used_and_certificates_are_checked(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway, "_trusted", httpx.create_ssl_context)
    server = ApiServer(certificate)

    async def resolve(host: str) -> list[str]:
        return ["93.184.215.14"]

    async def near(address: str, port: int) -> Streams:
        return await dial("127.0.0.1", server.port)

    notes: list[Verdict] = []
    with ExitStack() as stack:
        stack.callback(server.close)
        company = stack.enter_context(
            serving(Proxy(("api.example.com",), (), notes.append, resolve=resolve, dial=near))
        )
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{company}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        failed: list[Verdict] = []
        with serving(Gateway(Upstream("https://api.example.com", BEARER), failed.append)) as port, Line(port) as line:
            assert line.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").rest() == b""
        assert failed[0].reason == "it has a certificate that is not trusted here"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with serving(Gateway(Upstream("https://api.example.com/v1", BEARER))) as port:
            assert ask(port, path="/responses")[1] == b"ok"
        until(lambda: len(notes) == 2)
        with (
            serving(Gateway(Upstream("https://other.example.com", BEARER), failed.append)) as port,
            Line(port) as line,
        ):
            assert line.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").rest() == b""
        assert "it could not be reached through HTTPS_PROXY" in [verdict.reason for verdict in failed]
    [asked] = server.api.asked
    assert (asked.line, asked.values("authorization")) == ("POST /v1/responses HTTP/1.1", [f"Bearer {KEY}"])
    assert asked.values("host") == ["api.example.com"]


def test_a_proxy_that_cannot_be_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "gopher://user:secret@proxy.example.com")
    with pytest.raises(SandboxError, match="HTTPS_PROXY") as refused:
        Gateway(Upstream("https://api.example.com"))
    assert "secret" not in str(refused.value)
