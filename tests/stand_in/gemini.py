"""Gemini's generateContent and streamGenerateContent.

Source: https://ai.google.dev/api/generate-content; error details are google.rpc.RetryInfo, QuotaFailure and ErrorInfo
(https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto).
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .protocol import Frame, Protocol, new_id, words
from .request import Asked
from .script import Answer, Call, HttpError, Refusal, RunCommand, Structured, WriteFile

STOPS = {"end": "STOP", "length": "MAX_TOKENS", "refused": "SAFETY"}
METRIC = "generativelanguage.googleapis.com/generate_content_free_tier_requests"
QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error, "
    "head over to: https://ai.google.dev/gemini-api/docs/rate-limits.\n* Quota exceeded for metric: "
    f"{METRIC}, limit: {{limit}}"
)
ERRORS = {
    "rate_limit": (429, "RESOURCE_EXHAUSTED", QUOTA.format(limit=10)),
    "usage_limit": (429, "RESOURCE_EXHAUSTED", QUOTA.format(limit=250)),
    "overloaded": (503, "UNAVAILABLE", "The model is overloaded. Please try again later."),
    "server_error": (500, "INTERNAL", "An internal error has occurred."),
    "unauthorized": (401, "UNAUTHENTICATED", "Request had invalid authentication credentials."),
    "forbidden": (403, "PERMISSION_DENIED", "The caller does not have permission"),
    "context_overflow": (
        400,
        "INVALID_ARGUMENT",
        "The input token count (1500000) exceeds the maximum number of tokens allowed (1048576).",
    ),
}


class GenerateContent(Protocol):
    def read(self, method: str, path: str, query: Mapping[str, list[str]], body: Any) -> Asked | None:
        found = re.fullmatch(r"/v1(?:beta)?/models/([^/:]+):(\w+)", path)
        if method != "POST" or found is None:
            return None
        model, verb = found.groups()
        if verb == "countTokens":
            return Asked(model, stream=False, aside={"totalTokens": 1000})
        if verb not in ("generateContent", "streamGenerateContent"):
            return None
        said: list[str] = []
        results: list[str] = []
        for content in reversed(body["contents"]):
            if content.get("role") == "model":
                break
            parts = content["parts"]
            said.insert(0, "\n".join(part["text"] for part in parts if "text" in part))
            answers = (part["functionResponse"] for part in parts if "functionResponse" in part)
            results[:0] = [json.dumps(answer["response"]) for answer in answers]
        offered = (one for tool in body.get("tools", ()) for one in tool.get("functionDeclarations", ()))
        tools = tuple(declared["name"] for declared in offered)
        stream = verb == "streamGenerateContent" and query.get("alt") == ["sse"]
        schema = body.get("generationConfig", {}).get("responseJsonSchema")
        aside = Answer(act=Structured(_example(schema))) if schema else None  # which model to take, say
        return Asked(model, stream, tools, "\n".join(said), tuple(results), aside)

    def whole(self, asked: Asked, answer: Answer) -> Any:
        parts = _parts(answer)
        return {**_candidate(parts, STOPS[answer.stop]), **_envelope(asked, answer)}

    def stream(self, asked: Asked, answer: Answer) -> Iterable[Frame]:
        envelope = _envelope(asked, answer)
        for part in _parts(answer):
            if "text" in part:
                for word in words(part["text"]):
                    yield Frame({**_candidate([{"text": word}]), **envelope}, word=True)
            else:
                yield Frame({**_candidate([part]), **envelope})
        yield Frame({**_candidate([], STOPS[answer.stop]), **envelope})

    def refuse(self, asked: Asked, refusal: Refusal) -> HttpError:
        status, name, message = ERRORS[refusal.why]
        details: list[dict[str, Any]] = []
        if refusal.why == "usage_limit":
            details = [_quota(asked, "PerDay", 250), _retry(41)]  # a daily quota names a useless delay besides
        elif refusal.retry_after is not None:
            details = [_quota(asked, "PerMinute", 10), _retry(refusal.retry_after)]
            message += f"\nPlease retry in {refusal.retry_after}s."
        error: dict[str, Any] = {"code": status, "message": message, "status": name}
        return HttpError(status, {"error": {**error, "details": details} if details else error})

    def fail(self, asked: Asked, error: HttpError) -> Iterable[Frame]:
        yield Frame(error.body)


def _example(schema: Mapping[str, Any]) -> Any:
    """Some value that the schema allows, as far as the program's own questions need it."""
    if "enum" in schema:
        return schema["enum"][0]
    match schema["type"]:
        case "object":
            return {name: _example(value) for name, value in schema["properties"].items()}
        case "number" | "integer":
            return schema.get("minimum", 1)
        case "boolean":
            return False
        case "array":
            return []
        case _:
            return "As it should be."


def _quota(asked: Asked, period: str, limit: int) -> dict[str, Any]:
    violation = {
        "quotaMetric": METRIC,
        "quotaId": f"GenerateRequests{period}PerProjectPerModel-FreeTier",
        "quotaDimensions": {"location": "global", "model": asked.model},
        "quotaValue": str(limit),
    }
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


def _retry(seconds: int) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{seconds}s"}


def _candidate(parts: list[dict[str, Any]], finish: str | None = None) -> dict[str, Any]:
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    return {"candidates": [{**candidate, "finishReason": finish} if finish else candidate]}


def _envelope(asked: Asked, answer: Answer) -> dict[str, Any]:
    tokens = answer.tokens
    usage = {
        "promptTokenCount": tokens.input,
        "cachedContentTokenCount": tokens.cached,
        "candidatesTokenCount": tokens.output,
        "totalTokenCount": tokens.input + tokens.output,
    }
    return {"usageMetadata": usage, "modelVersion": asked.model, "responseId": new_id("")}


def _parts(answer: Answer) -> list[dict[str, Any]]:
    match answer.act:
        case Call():
            call = answer.act
        case WriteFile(path, content):
            call = Call("write_file", {"file_path": path, "content": content})
        case RunCommand(command):
            call = Call("run_shell_command", {"command": command, "description": "Run it", "is_background": False})
        case Structured(value):
            return [{"text": json.dumps(value)}]
        case None:
            return [{"text": answer.text}]
    said = [{"text": answer.text}] if answer.text else []
    return [*said, {"functionCall": {"name": call.name, "args": dict(call.arguments)}}]
