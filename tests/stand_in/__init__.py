"""A stand-in for the vendors' APIs, for tests that run the real command-line tools.

It speaks Anthropic's Messages, OpenAI's Responses and chat completions, and Gemini's generateContent, at one address per
account. What an account answers is a script in the test; the same steps serve every tool:

    from tests.stand_in import StandIn, run_command, text, usage_limit, write_file

    with StandIn() as api:
        plan_a, plan_b = api.account("plan-a"), api.account("plan-b")
        plan_a.script(write_file("notes.txt", "half done"), usage_limit(resets_at=in_an_hour))
        plan_b.script(run_command("echo the rest >> notes.txt"), text("All done."))
        ...  # run Claude Code with ANTHROPIC_BASE_URL=plan_a.url, Codex with base_url=plan_b.url + "/v1"
        plan_b.wait_for(2, seconds=60)
        assert [request.status for request in plan_a.requests] == [200, 429]
        assert "half done" in plan_b.requests[1].results[0]

        # The whole account is limited, and the limit lifts by itself; no step of the script is used up meanwhile.
        plan_a.limit(usage_limit(resets_at=in_three_seconds))
        ...
        assert plan_a.most_within(timedelta(seconds=3)) == 1 and plan_b.most_at_once <= 2

        # Several tasks at once: a function answers each by what it says.
        plan_b.script(lambda now, request: stalled("Hm.") if "riddle" in request.text else text("42"))
        ...
        plan_b.release()

How true it is to the vendors is what tests/test_stand_in.py shows, with the tools themselves.
"""

from .account import Account, Model
from .request import Request
from .script import (
    Answer,
    HttpError,
    Refusal,
    Step,
    Tokens,
    context_overflow,
    cut,
    forbidden,
    http_error,
    overloaded,
    rate_limited,
    run_command,
    server_error,
    silent,
    slow,
    stalled,
    structured,
    text,
    tool_call,
    unauthorized,
    usage_limit,
    write_file,
)
from .server import StandIn

__all__ = [
    "Account",
    "Answer",
    "HttpError",
    "Model",
    "Refusal",
    "Request",
    "StandIn",
    "Step",
    "Tokens",
    "context_overflow",
    "cut",
    "forbidden",
    "http_error",
    "overloaded",
    "rate_limited",
    "run_command",
    "server_error",
    "silent",
    "slow",
    "stalled",
    "structured",
    "text",
    "tool_call",
    "unauthorized",
    "usage_limit",
    "write_file",
]
