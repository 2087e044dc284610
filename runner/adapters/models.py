"""Which models an OpenAI-compatible server has, and which of them are in memory now.

Shapes as in llama-swap (GET /v1/models and /running) and in llama-server's router mode (`status` in GET /v1/models).
"""

import json
import socket
import time
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from .base import Offer
from .fields import obj, objs
from .tools import fingerprint

PROBE_TIMEOUT = 3.0  # seconds
LOADED_TIMEOUT = 1.0
BODY_LIMIT = 4 << 20  # bytes


class NoAnswer(Exception):
    """The server did not answer in time, or not with JSON; the message says which. `status` is what it answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def offer(base_url: str, key: str | None) -> Offer:
    """What probe() tells of the server."""
    login = account(base_url, key)
    try:
        listing = get(base_url.rstrip("/") + "/models", key, PROBE_TIMEOUT)
    except NoAnswer as error:
        if error.status in (401, 403):
            return Offer("unauthenticated", login, detail=f"{base_url} refuses the key: {error}.")
        if error.status == 404:  # a server may have a single model and no list
            return Offer("ready", login)
        return Offer("missing", login, detail=f"{base_url} does not answer: {error}.")
    return Offer("ready", login, models=sorted(set(names(listing))))


def account(base_url: str, key: str | None) -> str:
    """host:port, and the key's fingerprint. A loopback address becomes this host's name: each host has its own."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if _is_loopback(host):
        host = socket.gethostname()
    return f"{host}:{port} key:{fingerprint(key)}" if key else f"{host}:{port}"


def names(listing: Any) -> list[str]:
    """All names that may be asked for: ids, and what llama-swap (`meta`) and llama-server list beside them."""
    found: list[Any] = []
    for entry in objs(obj(listing).get("data")):
        found.append(entry.get("id"))
        match entry:
            case {"meta": {"llamaswap": {"aliases": [*aliases]}}} | {"aliases": [*aliases]}:
                found += aliases
            case _:
                pass
    return [name for name in found if isinstance(name, str)]


def in_memory(base_url: str, key: str | None) -> list[str] | None:
    """The models in memory, or on their way there, under all their names; None where the server cannot tell.

    Newer versions of llama-swap, and llama-server's router mode, tell it in GET /v1/models; older versions of
    llama-swap in GET /running, which knows no aliases. Takes 2 seconds at most.
    """
    base_url = base_url.rstrip("/")
    try:
        listing = get(base_url + "/models", key, LOADED_TIMEOUT)
        entries = objs(obj(listing).get("data"))
        if any("status" in entry for entry in entries):
            now = [entry for entry in entries if obj(entry.get("status")).get("value") == "loaded"]
            return sorted(set(names({"data": now})))
        running = obj(get(base_url.removesuffix("/v1") + "/running", key, LOADED_TIMEOUT)).get("running")
    except NoAnswer:
        return None
    if not isinstance(running, list):
        return None
    return sorted(model["model"] for model in objs(running) if model.get("state") in ("ready", "starting"))


def get(url: str, key: str | None, seconds: float) -> Any:
    """The JSON at an address, within so many seconds. Raises NoAnswer."""
    import ssl  # both only where a host has such a provider

    import httpx

    deadline = time.monotonic() + seconds
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Loading the certificates costs more than the request; a context without any trusts nobody.
    trusted = True if url.startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    body = b""
    try:
        with (
            httpx.Client(headers=headers, timeout=seconds, verify=trusted, trust_env=False) as client,
            client.stream("GET", url) as response,
        ):
            if response.status_code != 200:
                raise NoAnswer(f"status {response.status_code}", response.status_code)
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > deadline or len(body) > BODY_LIMIT:
                    raise NoAnswer("it takes too long")
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise NoAnswer(str(error) or type(error).__name__) from None
    try:
        return json.loads(body)
    except ValueError:
        raise NoAnswer("what it sends is not JSON", 200) from None


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified
