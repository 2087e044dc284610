"""The refusals that OpenAI's two protocols share.

Source: https://platform.openai.com/docs/guides/error-codes.
"""

from typing import Any

from .request import Asked
from .script import HttpError, Refusal

STATUS = {
    "rate_limit": 429,
    "usage_limit": 429,
    "overloaded": 503,
    "server_error": 500,
    "unauthorized": 401,
    "forbidden": 403,
    "context_overflow": 400,
}


def refuse(asked: Asked, refusal: Refusal) -> HttpError:
    again = f" Please try again in {refusal.retry_after}s." if refusal.retry_after is not None else ""
    rate = f"Rate limit reached for {asked.model} in organization org-1 on tokens per min (TPM): Limit 30000, Used 29000, Requested 5000.{again} Visit https://platform.openai.com/account/rate-limits to learn more."
    kind, code, message = {
        "rate_limit": ("tokens", "rate_limit_exceeded", rate),
        "usage_limit": (
            "insufficient_quota",
            "insufficient_quota",
            "You exceeded your current quota, please check your plan and billing details.",
        ),
        "overloaded": (
            "server_error",
            "server_is_overloaded",
            "Our servers are currently overloaded. Please try again later.",
        ),
        "server_error": (
            "server_error",
            None,
            "The server had an error while processing your request. Sorry about that!",
        ),
        "unauthorized": ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
        "forbidden": ("invalid_request_error", None, "You are not allowed to sample from this model."),
        "context_overflow": (
            "invalid_request_error",
            "context_length_exceeded",
            "Your input exceeds the context window of this model. Please adjust your input and try again.",
        ),
    }[refusal.why]
    body: dict[str, Any] = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    headers = {"retry-after": str(refusal.retry_after)} if refusal.retry_after is not None else {}
    return HttpError(STATUS[refusal.why], body, headers)
