#!/usr/bin/env python3
"""A llama-server that thinks of nothing: it answers at once, in the real one's words, as its model file says.

The model file is a JSON object, read anew for each request:

    exit        exit status at the start                    hang        true: /health never says yes
    answer      the text, given word by word                thoughts    reasoning_content before it
    usage       [prompt_tokens, cached_tokens, completion_tokens]
    finish      finish_reason; null: none is sent           done        false: no [DONE] is sent
    context     tokens; a prompt of more words is refused   refuse      [status, body, headers] in place of an answer
    gate        a file to wait for, after the first word    die         "before" the answer or "during" it, so many
    dies        times as this says (without it each time)

It appends each request's body to MODEL.requests, a line each, and each start to MODEL.starts.
"""

import argparse
import json
import os
import signal
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Upstream(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    model: Path
    alias: str

    def script(self) -> dict[str, Any]:
        return json.loads(self.model.read_text())

    def do_GET(self) -> None:
        if self.path == "/health" and not self.script().get("hang"):
            self.reply(200, {"status": "ok"})
        elif self.path == "/health":
            self.reply(503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})
        else:
            self.reply(404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.model.with_suffix(".requests").open("ab") as log:
            log.write(body + b"\n")
        script, request = self.script(), json.loads(body)
        words = sum(len(message["content"].split()) for message in request["messages"])
        if "refuse" in script:
            self.reply(*script["refuse"])
        elif words > script.get("context", words):
            message = f"request ({words} tokens) exceeds the available context size ({script['context']} tokens)"
            kind = "exceed_context_size_error"
            error = {
                "code": 400,
                "message": message,
                "type": kind,
                "n_prompt_tokens": words,
                "n_ctx": script["context"],
            }
            self.reply(400, {"error": error})
        elif script.get("die") == "before":
            self.die()
        else:
            self.stream(script)

    def stream(self, script: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.event({"choices": [{"index": 0, "finish_reason": None, "delta": {"role": "assistant", "content": None}}]})
        for thought in script.get("thoughts", "").split():
            self.event({"choices": [{"index": 0, "finish_reason": None, "delta": {"reasoning_content": thought}}]})
        for number, word in enumerate(script.get("answer", "Yes.").split(" ")):
            delta = {"content": word if number == 0 else " " + word}
            self.event({"choices": [{"index": 0, "finish_reason": None, "delta": delta}]})
            if number == 0 and "gate" in script:
                while not Path(script["gate"]).exists():
                    time.sleep(0.01)
            if number == 0 and script.get("die") == "during":
                self.die()
        if script.get("finish", "stop"):
            finish = script.get("finish", "stop")
            self.event({"choices": [{"index": 0, "finish_reason": finish, "delta": {}}]})
        if "usage" in script:
            prompt, cached, completion = script["usage"]
            usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
            self.event({"choices": [], "usage": {**usage, "prompt_tokens_details": {"cached_tokens": cached}}})
        if script.get("done", True):
            self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def die(self) -> None:
        script = self.script()
        if "dies" in script:
            left = script["dies"] - 1
            self.model.write_text(json.dumps({**script, "dies": left, "die": script["die"] if left else None}))
        os.kill(os.getpid(), signal.SIGKILL)

    def event(self, document: dict[str, Any]) -> None:
        document = {**document, "id": "chatcmpl-1", "model": self.alias, "object": "chat.completion.chunk"}
        self.chunk(b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n")

    def chunk(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def reply(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    """The options that matter here; the real one's others are taken and ignored."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", default="")
    options, _ = parser.parse_known_args()
    with options.model.with_suffix(".starts").open("a") as log:
        log.write(f"{os.getpid()}\n")
    script = json.loads(options.model.read_text())
    if "exit" in script:
        raise SystemExit(script["exit"])
    Upstream.model, Upstream.alias = options.model, options.alias
    ThreadingHTTPServer.daemon_threads = True
    with ThreadingHTTPServer(("127.0.0.1", options.port), Upstream) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
