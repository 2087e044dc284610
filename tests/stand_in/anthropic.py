"""Anthropic's Messages, streamed and not.

Source: https://docs.anthropic.com/en/api/messages, /messages-streaming, /errors and /rate-limits; the
anthropic-ratelimit-unified-* headers of subscriptions are undocumented and named as Claude Code reads them.
"""

import json
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from .protocol import Frame, Protocol, joined, new_id, words
from .request import Asked
from .script import Answer, Call, HttpError, Refusal, RunCommand, Structured, WriteFile

STOPS = {"end": "end_turn", "length": "max_tokens", "refused": "refusal"}
ERRORS = {
    "rate_limit": (
        429,
        "rate_limit_error",
        "This request would exceed your organization's rate limit of 50 requests per minute.",
    ),
    "usage_limit": (
        429,
        "rate_limit_error",
        "This request would exceed your account's rate limit. Please try again later.",
    ),
    "overloaded": (529, "overloaded_error", "Overloaded"),
    "server_error": (500, "api_error", "Internal server error"),
    "unauthorized": (401, "authentication_error", "invalid x-api-key"),
    "forbidden": (403, "permission_error", "Your API key does not have permission to use the specified resource."),
    "context_overflow": (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum"),
}


class Messages(Protocol):
    def read(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> Asked | None:
        if method == "POST" and path == "/v1/messages/count_tokens":
            return Asked(body["model"], stream=False, aside={"input_tokens": 1000})
        if method != "POST" or path != "/v1/messages":
            return None
        said: list[str] = []
        results: list[str] = []
        for message in reversed(body["messages"]):
            if message["role"] == "assistant":
                break
            said.insert(0, joined(message["content"]))
            parts: list[dict[str, Any]] = [] if isinstance(message["content"], str) else message["content"]
            results[:0] = [joined(part.get("content")) for part in parts if part["type"] == "tool_result"]
        tools = tuple(tool["name"] for tool in body.get("tools", ()))
        return Asked(body["model"], bool(body.get("stream")), tools, "\n".join(said), tuple(results))

    def whole(self, asked: Asked, answer: Answer) -> Any:
        blocks = _blocks(asked, answer)
        return {
            **_envelope(asked, answer, answer.tokens.output),
            "content": blocks,
            "stop_reason": _stop(blocks, answer),
        }

    def stream(self, asked: Asked, answer: Answer) -> Iterable[Frame]:
        yield _frame({"type": "message_start", "message": _envelope(asked, answer, 1)})
        yield _frame({"type": "ping"})
        blocks = _blocks(asked, answer)
        for index, block in enumerate(blocks):
            empty: dict[str, Any]
            if block["type"] == "text":
                empty = {**block, "text": ""}
                deltas = [{"type": "text_delta", "text": word} for word in words(block["text"])]
            else:
                empty = {**block, "input": {}}
                deltas = [{"type": "input_json_delta", "partial_json": json.dumps(block["input"])}]
            yield _frame({"type": "content_block_start", "index": index, "content_block": empty})
            for delta in deltas:
                yield _frame({"type": "content_block_delta", "index": index, "delta": delta}, word=True)
            yield _frame({"type": "content_block_stop", "index": index})
        stop = {"stop_reason": _stop(blocks, answer), "stop_sequence": None}
        yield _frame({"type": "message_delta", "delta": stop, "usage": {"output_tokens": answer.tokens.output}})
        yield _frame({"type": "message_stop"})

    def refuse(self, asked: Asked, refusal: Refusal) -> HttpError:
        status, kind, message = ERRORS[refusal.why]
        request = new_id("req_")
        headers = {"request-id": request}
        if refusal.retry_after is not None:
            headers["retry-after"] = str(refusal.retry_after)
        if refusal.resets_at is not None:
            headers |= _window(refusal)
        return HttpError(
            status, {"type": "error", "error": {"type": kind, "message": message}, "request_id": request}, headers
        )

    def fail(self, asked: Asked, error: HttpError) -> Iterable[Frame]:
        yield _frame({"type": "message_start", "message": _envelope(asked, Answer(), 1)})
        yield _frame(error.body)


def _window(refusal: Refusal) -> dict[str, str]:
    """The headers of a used-up window of a subscription."""
    assert refusal.resets_at is not None
    reset = math.ceil(refusal.resets_at.timestamp())
    claim, short = ("five_hour", "5h") if refusal.window == "five_hour" else ("seven_day", "7d")
    prefix = "anthropic-ratelimit-unified"
    return {
        f"{prefix}-status": "rejected",
        f"{prefix}-reset": str(reset),
        f"{prefix}-representative-claim": claim,
        f"{prefix}-overage-status": "rejected",
        f"{prefix}-overage-disabled-reason": "org_level_disabled",
        f"{prefix}-{short}-status": "rejected",
        f"{prefix}-{short}-utilization": "1.0",
        f"{prefix}-{short}-reset": str(reset),
        "retry-after": str(max(0, reset - int(time.time()))),
    }


def _frame(data: Any, word: bool = False) -> Frame:
    return Frame(data, data["type"], word)


def _envelope(asked: Asked, answer: Answer, output: int) -> dict[str, Any]:
    tokens = answer.tokens
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": tokens.input - tokens.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": tokens.cached,
            "output_tokens": output,
            "service_tier": "standard",
        },
    }


def _blocks(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    said, call = answer.text, None
    match answer.act:
        case Call():
            call = answer.act
        case WriteFile(path, content):
            call = Call("Write", {"file_path": path, "content": content})
        case RunCommand(command):
            call = Call("Bash", {"command": command, "description": "Run it"})
        case Structured(value) if "StructuredOutput" in asked.tools:
            call = Call("StructuredOutput", value)
        case Structured(value):
            said = json.dumps(value)
        case None:
            pass
    if said or call is None:
        blocks.append({"type": "text", "text": said})
    if call is not None:
        blocks.append({"type": "tool_use", "id": new_id("toolu_"), "name": call.name, "input": dict(call.arguments)})
    return blocks


def _stop(blocks: list[dict[str, Any]], answer: Answer) -> str:
    return "tool_use" if blocks[-1]["type"] == "tool_use" else STOPS[answer.stop]
