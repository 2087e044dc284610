"""OpenAI's chat completions, streamed and not, as opencode and local servers speak them.

Source: https://platform.openai.com/docs/api-reference/chat and /chat-streaming.
"""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from . import openai_errors
from .protocol import Frame, Protocol, joined, new_id, words
from .request import Asked
from .script import Answer, Call, HttpError, Refusal, RunCommand, Structured, WriteFile

STOPS = {"end": "stop", "length": "length", "refused": "content_filter"}
TITLE = "You are a title generator"  # how opencode's request for a session's title begins


class ChatCompletions(Protocol):
    def read(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> Asked | None:
        if method != "POST" or path != "/v1/chat/completions":
            return None
        said: list[str] = []
        results: list[str] = []
        for message in reversed(body["messages"]):
            if message["role"] == "assistant":
                break
            if message["role"] == "user":
                said.insert(0, joined(message["content"]))
            elif message["role"] == "tool":
                results.insert(0, joined(message["content"]))
        tools = tuple(tool["function"]["name"] for tool in body.get("tools", ()))
        asked = Asked(body["model"], bool(body.get("stream")), tools, "\n".join(said), tuple(results))
        if joined(body["messages"][0]["content"]).startswith(TITLE):
            return Asked(asked.model, asked.stream, aside=Answer("A title"))
        return asked

    def whole(self, asked: Asked, answer: Answer) -> Any:
        said, call = _parts(answer)
        message: dict[str, Any] = {"role": "assistant", "content": said or None}
        if call is not None:
            message["tool_calls"] = [call]
        choice = {"index": 0, "message": message, "finish_reason": _stop(call, answer)}
        return {**_envelope(asked, "chat.completion"), "choices": [choice], "usage": _usage(answer)}

    def stream(self, asked: Asked, answer: Answer) -> Iterable[Frame]:
        said, call = _parts(answer)
        envelope = _envelope(asked, "chat.completion.chunk")

        def chunk(delta: dict[str, Any], finish: str | None = None, word: bool = False) -> Frame:
            return Frame({**envelope, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}, word=word)

        yield chunk({"role": "assistant", "content": ""})
        for word in words(said):
            yield chunk({"content": word}, word=True)
        if call is not None:
            yield chunk({"tool_calls": [{"index": 0, **call}]})
        yield chunk({}, _stop(call, answer))
        yield Frame({**envelope, "choices": [], "usage": _usage(answer)})
        yield Frame("[DONE]")

    def refuse(self, asked: Asked, refusal: Refusal) -> HttpError:
        return openai_errors.refuse(asked, refusal)

    def fail(self, asked: Asked, error: HttpError) -> Iterable[Frame]:
        yield Frame(error.body)


def _envelope(asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": new_id("chatcmpl-"), "object": kind, "created": int(time.time()), "model": asked.model}


def _usage(answer: Answer) -> dict[str, Any]:
    tokens = answer.tokens
    return {
        "prompt_tokens": tokens.input,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.input + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
    }


def _parts(answer: Answer) -> tuple[str, dict[str, Any] | None]:
    """The words, and the call as the protocol writes it."""
    match answer.act:
        case Call():
            call = answer.act
        case WriteFile(path, content):
            call = Call("write", {"filePath": path, "content": content})
        case RunCommand(command):
            call = Call("bash", {"command": command, "description": "Run it"})
        case Structured(value):
            return json.dumps(value), None
        case None:
            return answer.text, None
    function = {"name": call.name, "arguments": json.dumps(dict(call.arguments))}
    return answer.text, {"id": new_id("call_"), "type": "function", "function": function}


def _stop(call: dict[str, Any] | None, answer: Answer) -> str:
    return "tool_calls" if call is not None else STOPS[answer.stop]
