"""OpenAI's Responses, streamed and not, with the limits of a ChatGPT plan as Codex meets them.

Source: https://platform.openai.com/docs/api-reference/responses-streaming; usage_limit_reached and the x-codex-*
headers are undocumented and named as Codex reads them (codex-rs/codex-api).
"""

import json
import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

from . import openai_errors
from .protocol import Frame, Protocol, joined, new_id, words
from .request import Asked
from .script import Answer, Call, HttpError, Refusal, RunCommand, Structured, WriteFile

OUTPUTS = ("function_call_output", "custom_tool_call_output")
ANSWERS = ("function_call", "custom_tool_call", "reasoning")


class Responses(Protocol):
    def read(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> Asked | None:
        if method != "POST" or path != "/v1/responses":
            return None
        said: list[str] = []
        results: list[str] = []
        items = body["input"]
        for item in reversed([{"role": "user", "content": items}] if isinstance(items, str) else items):
            if item.get("role") == "assistant" or item.get("type") in ANSWERS:
                break
            if item.get("role") == "user":
                said.insert(0, joined(item["content"]))
            elif item.get("type") in OUTPUTS:
                results.insert(0, joined(item["output"]))
        tools = tuple(tool.get("name", tool["type"]) for tool in body.get("tools", ()))
        return Asked(body["model"], bool(body.get("stream")), tools, "\n".join(said), tuple(results))

    def whole(self, asked: Asked, answer: Answer) -> Any:
        items = _items(asked, answer)
        if answer.stop == "length":
            why = {"reason": "max_output_tokens"}
        elif answer.stop == "refused":
            why = {"reason": "content_filter"}
        else:
            why = None
        tokens = answer.tokens
        return {
            **_response(asked, "incomplete" if why else "completed"),
            "output": items,
            "incomplete_details": why,
            "usage": {
                "input_tokens": tokens.input,
                "input_tokens_details": {"cached_tokens": tokens.cached},
                "output_tokens": tokens.output,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": tokens.input + tokens.output,
            },
        }

    def stream(self, asked: Asked, answer: Answer) -> Iterable[Frame]:
        final = self.whole(asked, answer)
        yield _frame("response.created", response={**_response(asked, "in_progress"), "id": final["id"]})
        for index, item in enumerate(final["output"]):
            yield _frame("response.output_item.added", output_index=index, item=_begun(item))
            if item["type"] == "message":
                place: dict[str, Any] = {"item_id": item["id"], "output_index": index, "content_index": 0}
                part = item["content"][0]
                yield _frame("response.content_part.added", **place, part={**part, "text": ""})
                for word in words(part["text"]):
                    yield _frame("response.output_text.delta", word=True, **place, delta=word)
                yield _frame("response.output_text.done", **place, text=part["text"])
                yield _frame("response.content_part.done", **place, part=part)
            else:
                field = "arguments" if item["type"] == "function_call" else "input"
                name = "function_call_arguments" if item["type"] == "function_call" else "custom_tool_call_input"
                place = {"item_id": item["id"], "output_index": index}
                yield _frame(f"response.{name}.delta", **place, delta=item[field])
                yield _frame(f"response.{name}.done", **place, **{field: item[field]})
            yield _frame("response.output_item.done", output_index=index, item=item)
        yield _frame(f"response.{final['status']}", response=final)

    def refuse(self, asked: Asked, refusal: Refusal) -> HttpError:
        if refusal.resets_at is None:
            return openai_errors.refuse(asked, refusal)
        reset = math.ceil(refusal.resets_at.timestamp())
        error = {
            "type": "usage_limit_reached",
            "message": "The usage limit has been reached",
            "plan_type": "plus",
            "resets_at": reset,
            "resets_in_seconds": max(0, reset - int(time.time())),
        }
        return HttpError(429, {"error": error}, _windows(reset, weekly=refusal.window == "weekly"))

    def fail(self, asked: Asked, error: HttpError) -> Iterable[Frame]:
        told = error.body["error"]
        reason = {"code": told.get("code") or told["type"], "message": told["message"]}
        yield _frame("response.created", response=_response(asked, "in_progress"))
        yield _frame("response.failed", response={**_response(asked, "failed"), "error": reason})


def _windows(reset: int, weekly: bool) -> dict[str, str]:
    """The headers of both windows of a plan, of which one is used up; the other has time left."""
    used = {"primary": "40", "secondary": "100"} if weekly else {"primary": "100", "secondary": "40"}
    resets = (
        {"primary": int(time.time()) + 3600, "secondary": reset}
        if weekly
        else {"primary": reset, "secondary": reset + 3 * 86400}
    )
    minutes = {"primary": "300", "secondary": "10080"}
    headers = {f"x-codex-{w}-used-percent": used[w] for w in used}
    headers |= {f"x-codex-{w}-window-minutes": minutes[w] for w in used}
    return headers | {f"x-codex-{w}-reset-at": str(resets[w]) for w in used}


def _frame(kind: str, word: bool = False, **data: Any) -> Frame:
    return Frame({"type": kind, **data}, kind, word)


def _response(asked: Asked, status: str) -> dict[str, Any]:
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "model": asked.model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
    }


def _items(asked: Asked, answer: Answer) -> list[dict[str, Any]]:
    said, call, patch = answer.text, None, None
    match answer.act:
        case Call():
            call = answer.act
        case WriteFile(path, content):
            patch = _patch(path, content)
            if "apply_patch" not in asked.tools:
                call, patch = _shell(asked, f"apply_patch <<'EOF'\n{patch}EOF\n"), None
        case RunCommand(command):
            call = _shell(asked, command)
        case Structured(value):
            said = json.dumps(value)
        case None:
            pass
    items: list[dict[str, Any]] = []
    if said or (call is None and patch is None):
        part: dict[str, Any] = {"type": "output_text", "text": said, "annotations": []}
        message = {"type": "message", "id": new_id("msg_"), "role": "assistant", "status": "completed"}
        items.append({**message, "content": [part]})
    called = {"call_id": new_id("call_"), "status": "completed"}
    if call is not None:
        arguments = json.dumps(dict(call.arguments))
        server, _, name = call.name.rpartition("__")
        # Tools of MCP servers are deferred: not offered by name, but known by it and their server's.
        names = {"name": name, "namespace": server} if server.startswith("mcp__") else {"name": call.name}
        items.append({"type": "function_call", "id": new_id("fc_"), **called, **names, "arguments": arguments})
    if patch is not None:
        items.append(
            {"type": "custom_tool_call", "id": new_id("ctc_"), **called, "name": "apply_patch", "input": patch}
        )
    return items


def _begun(item: dict[str, Any]) -> dict[str, Any]:
    """The item as it is announced: in progress, and empty."""
    field = next(name for name in ("content", "arguments", "input") if name in item)
    return {**item, field: type(item[field])(), "status": "in_progress"}


def _shell(asked: Asked, command: str) -> Call:
    """Codex offers its shell under one of three names, by model."""
    if "exec_command" in asked.tools:
        return Call("exec_command", {"cmd": command})
    if "shell_command" in asked.tools:
        return Call("shell_command", {"command": command})
    return Call("shell", {"command": ["bash", "-lc", command]})


def _patch(path: str, content: str) -> str:
    added = "".join(f"+{line}\n" for line in content.splitlines())
    return f"*** Begin Patch\n*** Add File: {path}\n{added}*** End Patch\n"
