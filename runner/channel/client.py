#!/usr/bin/env python3
"""taskyard-agent: the tools of an attempt's channel for whatever runs in it, a shell script for example.

    taskyard-agent                                      what there is, within a task
    taskyard-agent spawn-task "write the tests" --agent codex
    taskyard-agent wait-for 12 13
    taskyard-agent call save_checkpoint '{"status": "half", "progress": 0.5}'

Values without a name fill what is required, else what comes first; "-" reads standard input. Prints the answer as JSON.
Exit code: 0; 1 where the yard refuses, which is told on standard error; 2 for anything else. A single file with nothing
but the standard library: it is copied into the sandbox.
"""

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Any

TIMEOUT = 600  # seconds; the yard's database may be away for a while


class Wrong(Exception):
    """The command line cannot be carried out; the message says why."""


def main(arguments: list[str]) -> int:
    """Carry out a command line; returns the exit code."""
    try:
        if arguments and arguments[0] in ("-h", "--help") and not within():
            print((__doc__ or "").rsplit(" A single file", 1)[0])
            return 0
        if not arguments or arguments[0] in ("-h", "--help"):
            print(overview(ask("tools/list", {})["tools"]))
            return 0
        name, given = arguments[0].replace("-", "_"), arguments[1:]
        if name == "call":
            if len(given) != 2:
                raise Wrong("call takes a tool and a JSON object")
            name, values = given[0].replace("-", "_"), document(given[1])
        else:
            tools = {tool["name"]: tool for tool in ask("tools/list", {})["tools"]}
            if name not in tools:
                raise Wrong(f"there is no tool {arguments[0]}; taskyard-agent alone tells what there is")
            values = read(tools[name]["inputSchema"], given)
        answer = ask("tools/call", {"name": name, "arguments": values})
    except Wrong as wrong:
        print(f"taskyard-agent: {wrong}", file=sys.stderr)
        return 2
    text = "\n".join(part["text"] for part in answer["content"])
    if answer.get("isError"):
        print(text, file=sys.stderr)
        return 1
    print(text)
    return 0


def overview(tools: list[dict[str, Any]]) -> str:
    """What there is, for a person."""
    lines = ["taskyard-agent TOOL [VALUE ...] [--NAME VALUE ...]"]
    for tool in tools:
        names = " ".join(f"--{name.replace('_', '-')}" for name in tool["inputSchema"].get("properties", {}))
        lines += ["", f"{tool['name'].replace('_', '-')} {names}".rstrip(), f"    {tool['description']}"]
    return "\n".join(lines)


def read(schema: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """The arguments of a tool from words of a command line, by its JSON schema. Raises Wrong."""
    properties: dict[str, dict[str, Any]] = schema.get("properties", {})
    nameless = [*schema.get("required", []), *(name for name in properties if name not in schema.get("required", []))]
    found: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if word.startswith("--") and len(word) > 2:
            name, equals, text = word[2:].partition("=")
            name = name.replace("-", "_")
            if name not in properties:
                raise Wrong(
                    f"there is no {word}; there are: {', '.join('--' + p.replace('_', '-') for p in properties)}"
                )
            if properties[name].get("type") == "boolean" and not equals:
                found[name] = True
                continue
            if not equals:
                if not left:
                    raise Wrong(f"{word} wants a value")
                text = left.pop(0)
        else:
            free = [name for name in nameless if name not in found or properties[name].get("type") == "array"]
            if not free:
                raise Wrong(f"{word!r} is one value too many")
            name, text = free[0], word
        value = converted(name, properties[name], sys.stdin.read() if text == "-" else text)
        found[name] = (
            found.get(name, []) + value
            if isinstance(value, list) and properties[name].get("type") == "array"
            else value
        )
    return found


def converted(name: str, schema: dict[str, Any], text: str) -> Any:
    """A word as its schema wants it. Raises Wrong."""
    kind = schema.get("type")
    try:
        if kind == "string":
            return text
        if kind == "integer":
            return int(text)
        if kind == "number":
            return float(text)
        if kind == "boolean":
            return {"true": True, "false": False}[text]
        if kind == "array" and not text.startswith("["):
            items = schema.get("items", {"type": "string"})
            # A text may well have commas in it: several are given one by one.
            return [converted(name, items, one) for one in ([text] if items["type"] == "string" else text.split(","))]
        return json.loads(text)
    except (ValueError, KeyError):
        raise Wrong(f"--{name.replace('_', '-')}: {text!r} is no {kind or 'JSON'}") from None


def document(text: str) -> dict[str, Any]:
    """A JSON object. Raises Wrong."""
    try:
        found: Any = json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        raise Wrong(f"this is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Wrong("the arguments are a JSON object")
    return found  # pyright: ignore[reportUnknownVariableType]


def within() -> bool:
    """Whether this runs in a task that has a channel."""
    return bool(os.environ.get("TASKYARD_CHANNEL") and os.environ.get("TASKYARD_TOKEN"))


def ask(method: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """One request to the channel. Raises Wrong where there is none, or no answer."""
    if not within():
        raise Wrong("there is no channel here: this works within a task that a runner started")
    request = urllib.request.Request(
        os.environ["TASKYARD_CHANNEL"],
        json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}).encode(),
        {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Authorization": f"Bearer {os.environ['TASKYARD_TOKEN']}",
        },
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=TIMEOUT) as reply:
            answer = json.load(reply)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise Wrong(f"the channel does not answer: {error}") from None
    if "error" in answer:
        raise Wrong(answer["error"].get("message", "the channel refused"))
    return answer["result"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
