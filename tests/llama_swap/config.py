"""llama-swap's configuration file: macros, models, groups. Stricter than the original, which ignores unknown keys."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

MINIMUM_HEALTH_CHECK = 15  # seconds
TOP = {
    "healthCheckTimeout", "startPort", "logLevel", "unloadTimeout", "globalTTL", "sendLoadingState",
    "includeAliasesInList", "apiKeys", "macros", "models", "routing", "hooks",
}  # fmt: skip
MODEL = {"cmd", "proxy", "aliases", "ttl", "concurrencyLimit", "unloadTimeout", "name", "description", "metadata"}
GROUP = {"persistent", "swap", "exclusive", "members"}


class ConfigError(Exception):
    """The file is refused; the message says why."""


@dataclass(frozen=True)
class Group:
    """Which models may be in memory together. The defaults are the original's, and the second one is a trap."""

    swap: bool = True
    exclusive: bool = True
    persistent: bool = False
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """One entry of `models`; ttl and unload_timeout in seconds, ttl 0 for ever."""

    id: str
    argv: tuple[str, ...]
    proxy: str
    group: Group
    aliases: tuple[str, ...] = ()
    ttl: float = 0
    concurrency_limit: int = 10
    unload_timeout: float = 10
    priority: int = 0
    name: str = ""
    description: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Config:
    models: Mapping[str, ModelConfig]
    health_check_timeout: float
    send_loading_state: bool
    include_aliases: bool
    api_keys: tuple[str, ...]
    preload: tuple[str, ...]

    def find(self, name: object) -> ModelConfig | None:
        """By id or alias."""
        if isinstance(name, str) and name in self.models:
            return self.models[name]
        return next((model for model in self.models.values() if name in model.aliases), None)

    def rivals(self, model: ModelConfig) -> list[str]:
        """Those that a request to this model unloads."""
        found: list[str] = []
        for other in self.models.values():
            if other.id == model.id:
                continue
            if other.group == model.group:
                if model.group.swap:
                    found.append(other.id)
            elif model.group.exclusive and not other.group.persistent:
                found.append(other.id)
        return found


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Raises ConfigError."""
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    _known("the file", document, TOP)
    groups = _groups(document)
    macros = {name: str(text) for name, text in _at(document, "macros").items()}
    macros |= {f"env.{name}": text for name, text in environ.items()}
    priorities = _at(document, "routing", "scheduler", "settings", "fifo", "priority")
    models: dict[str, ModelConfig] = {}
    port = document.get("startPort", 5800)
    for name, entry in sorted(document["models"].items()):
        _known(f"the model {name}", entry, MODEL)
        own = {**macros, "PORT": str(port), "MODEL_ID": name}
        if "${PORT}" in expand(entry["cmd"], {**macros, "PORT": "${PORT}", "MODEL_ID": name}, final={"PORT"}):
            port += 1
        models[name] = ModelConfig(
            id=name,
            argv=tuple(shlex.split(expand(entry["cmd"], own), comments=True)),
            proxy=expand(entry.get("proxy", "http://localhost:${PORT}"), own),
            group=next((group for group in groups if name in group.members), Group(members=("(default)",))),
            aliases=tuple(entry.get("aliases", ())),
            ttl=document.get("globalTTL", 0) if entry.get("ttl", -1) == -1 else entry["ttl"],
            concurrency_limit=entry.get("concurrencyLimit", 10),
            unload_timeout=entry.get("unloadTimeout", document.get("unloadTimeout", 10)),
            priority=priorities.get(name, 0),
            name=entry.get("name", ""),
            description=entry.get("description", ""),
            metadata=entry.get("metadata", {}),
        )
    _check_names(models, groups)
    config = Config(
        models=models,
        health_check_timeout=max(MINIMUM_HEALTH_CHECK, document.get("healthCheckTimeout", 120)),
        send_loading_state=document.get("sendLoadingState", False),
        include_aliases=document.get("includeAliasesInList", False),
        api_keys=tuple(document.get("apiKeys", ())),
        preload=tuple(_at(document, "hooks", "on_startup").get("preload", ())),
    )
    for name in config.preload:
        if config.find(name) is None:
            raise ConfigError(f"preload: there is no model {name}")
    return config


def expand(text: str, macros: Mapping[str, str], final: frozenset[str] | set[str] = frozenset()) -> str:
    """Put in the macros until there are none left, but those in `final`. Raises ConfigError."""

    def one(match: re.Match[str]) -> str:
        if match[1] in final:
            return match[0]
        if match[1] not in macros:
            raise ConfigError(f"unknown macro {match[0]}")
        return macros[match[1]].strip()

    for _ in range(10):
        before, text = text, re.sub(r"\$\{([\w.-]+)\}", one, text)
        if text == before:
            return text
    raise ConfigError(f"macros without an end in {text}")


def _groups(document: Mapping[str, Any]) -> list[Group]:
    router = _at(document, "routing", "router")
    if router and router.get("use") != "group":
        raise ConfigError("routing.router.use: only group is known here")
    found: list[Group] = []
    for name, entry in _at(document, "routing", "router", "settings", "groups").items():
        _known(f"the group {name}", entry, GROUP)
        flags = {key: entry[key] for key in entry if key != "members"}
        found.append(Group(**flags, members=tuple(entry["members"])))
    return found


def _check_names(models: Mapping[str, ModelConfig], groups: list[Group]) -> None:
    names = [name for model in models.values() for name in (model.id, *model.aliases)]
    members = [member for group in groups for member in group.members]
    for what, found in (("name", names), ("member", members)):
        if len(set(found)) < len(found):
            raise ConfigError(f"a {what} occurs twice: {sorted(found)}")
    for member in members:
        if member not in models:
            raise ConfigError(f"a group has the member {member}, which is no model")


def _at(document: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = document
    for part in path:
        found = found.get(part) or {}
    return found


def _known(where: str, entry: Mapping[str, Any], known: set[str]) -> None:
    for key in entry:
        if key not in known:
            raise ConfigError(f"{where} has an unknown key {key}")
