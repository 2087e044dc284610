"""One chat completion as a child process: a JSON document on standard input, JSON lines on standard output.

The adapter `openai` starts it by path with `python -I`: it imports nothing of Taskyard, so that a request is under way
in a third of a second. The document:

    url           address of the chat/completions endpoint
    key_env       variable that holds the key, or null
    retries       how often a 429 is repeated, as its Retry-After says
    request       body of the request; it is always sent as a stream

The lines, by their `type`, are what the adapter's Reading understands:

    text          delta: more of the answer            thinking   delta: more of what the model thought before it
    note          delta: what the server says of itself (a proxy that loads a model)
    usage         usage: the object that the server sent, model: the one that answered
    refused       message, wait: seconds until the request is repeated
    done          finish_reason: the whole answer has come
    error         status, body: the server refused; retry_after: seconds, at: the time of that (epoch seconds), or null
    unreachable   message: there was no connection, or it broke before an answer
    cut           message: the stream ended, but the answer had not

The last line is one of the last four, and the exit code is 0 after `done`, else 1. There is no read time-out: a server
that swaps models is silent while it loads one, and while it waits for the requests of another to end.
The stream is that of https://platform.openai.com/docs/api-reference/chat-streaming.
"""

import email.utils
import json
import os
import re
import ssl
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT = 5.0  # seconds
WRITE_TIMEOUT = 60.0  # seconds without progress
RESTARTS = 1  # repetitions after a model's process died under the request: llama-swap starts it again
RESTART_WAIT = 1.0  # seconds
LONGEST_WAIT = 60.0  # seconds; what asks for more is for the yard to wait for
BODY_LIMIT = 16 * 1024  # bytes of a refusal
FLUSH = 1.0  # seconds between two lines of the answer

Line = dict[str, Any]


def main() -> int:
    """Do what the document says; the exit code."""
    document = json.load(sys.stdin)
    import httpx

    headers = {"Accept": "application/json, text/event-stream"}
    if document["key_env"]:
        headers["Authorization"] = "Bearer " + os.environ[document["key_env"]]
    timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT, write=WRITE_TIMEOUT)
    # Loading the certificates takes as long as everything else together; a context without any trusts nobody.
    trusted = True if document["url"].startswith("https:") else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with httpx.Client(headers=headers, timeout=timeout, verify=trusted, trust_env=False) as client:
        last = converse(client, document["url"], document["request"], document["retries"])
    tell(last)
    return 0 if last["type"] == "done" else 1


def converse(client: "httpx.Client", url: str, request: dict[str, Any], retries: int) -> Line:
    """Ask until there is an answer or no use in asking again; returns the last line."""
    restarts = RESTARTS
    while True:
        last = ask(client, url, request)
        if last["type"] != "error":
            return last
        if limited(last) and retries > 0:
            retries -= 1
            wait = 1.0 if last["retry_after"] is None else last["retry_after"]
        elif died(last) and restarts > 0:
            restarts -= 1
            wait = RESTART_WAIT
        else:
            return last
        if wait > LONGEST_WAIT:
            return last
        tell({"type": "refused", "message": f"{last['status']}: {last['body'][:300]}", "wait": wait})
        time.sleep(wait)


def limited(error: Line) -> bool:
    """Too many requests. An account that is used up says 429 too, but no wait helps it."""
    return error["status"] == 429 and "insufficient_quota" not in error["body"]


def died(error: Line) -> bool:
    """The model's process died before it answered, so nothing is told twice. llama-swap sends a 502 without a body."""
    return error["status"] == 502 or (error["status"] == 500 and "exited prematurely" in error["body"])


def ask(client: "httpx.Client", url: str, request: dict[str, Any]) -> Line:
    """One request; tells the answer as it comes and returns the last line."""
    import httpx

    answered = False
    try:
        with client.stream("POST", url, json={**request, "stream": True}) as response:
            if response.status_code != 200:
                return refusal(response)
            answered = True
            return relay(events(response.iter_bytes()))
    except (httpx.TransportError, httpx.DecodingError) as error:
        message = f"{type(error).__name__}: {error}"
        return {"type": "cut" if answered else "unreachable", "message": message}


def refusal(response: "httpx.Response") -> Line:
    body = b""
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) >= BODY_LIMIT:
            break
    now = time.time()
    return {
        "type": "error",
        "status": response.status_code,
        "body": body[:BODY_LIMIT].decode("utf-8", "replace"),
        "retry_after": retry_after(response.headers.get("Retry-After"), now),
        "at": now,
    }


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    if re.fullmatch(r"\d{1,8}(\.\d+)?", header):
        return float(header)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
    except ValueError:
        return None


def events(chunks: Iterable[bytes]) -> Iterator[str]:
    """The data of each event, and bare lines of JSON: so does a proxy tell of an error after it has sent the status.

    Lines end with a line feed alone. (What str.splitlines() takes for one, U+2028 say, comes unescaped inside JSON.)
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from filter(None, map(datum, lines))
    if last := datum(rest):
        yield last


def datum(line: bytes) -> str | None:
    text = line.decode("utf-8", "replace").strip()
    if text.startswith("data:"):
        return text.removeprefix("data:").strip()
    return text if text.startswith("{") else None


def relay(stream: Iterable[str]) -> Line:
    """Tell the answer; returns the last line. It is done with a finish_reason and [DONE], and with nothing less."""
    answer, finish = Answer(), None
    for text in stream:
        if text == "[DONE]":
            answer.flush()
            if finish is None:
                return {"type": "cut", "message": "The stream ended without a finish_reason."}
            return {"type": "done", "finish_reason": finish}
        try:
            chunk = as_object(json.loads(text))
        except ValueError:
            chunk = {}
        if not chunk:
            answer.flush()
            return {"type": "cut", "message": f"The stream holds what is no JSON object: {text[:300]}"}
        if chunk.get("error"):
            answer.flush()
            return broken(chunk["error"], text)
        finish = answer.take(chunk) or finish
    answer.flush()
    return {"type": "cut", "message": "The stream ended without [DONE]."}


def broken(error: Any, text: str) -> Line:
    """The server's error in the midst of a stream: the status is in llama-server's `code`, if anywhere."""
    code = as_object(error).get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else None
    return {"type": "error", "status": status, "body": text[:BODY_LIMIT], "retry_after": None, "at": time.time()}


def as_object(value: Any) -> dict[str, Any]:
    """The object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownVariableType]


class Answer:
    """Gathers the deltas, a token each, into lines of about a second."""

    def __init__(self) -> None:
        self._kind = "text"
        self._pending = ""
        self._flushed = 0.0

    def take(self, chunk: dict[str, Any]) -> str | None:
        """Take one chunk of the stream; returns its finish_reason."""
        if chunk.get("usage"):
            tell({"type": "usage", "usage": chunk["usage"], "model": chunk.get("model")})
        finish = None
        for choice in map(as_object, chunk.get("choices") or []):
            delta = as_object(choice.get("delta"))
            # llama-swap's own words, while it loads a model, come as thoughts in chunks that have no id.
            kind = "thinking" if chunk.get("id") else "note"
            self._add(kind, delta.get("reasoning_content") or delta.get("reasoning"))
            self._add("text", delta.get("content"))
            finish = choice.get("finish_reason") or finish
        return finish

    def flush(self) -> None:
        if self._pending:
            tell({"type": self._kind, "delta": self._pending})
        self._pending = ""
        self._flushed = time.monotonic()

    def _add(self, kind: str, delta: str | None) -> None:
        if not delta:
            return
        if kind != self._kind:
            self.flush()
            self._kind = kind
        # PostgreSQL text holds no NUL, and nothing that is not Unicode can be sent to it (half a surrogate pair, say).
        self._pending += delta.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
        if time.monotonic() - self._flushed >= FLUSH:
            self.flush()


def tell(line: Line) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())
