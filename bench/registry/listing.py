"""What `bench list` and `bench show` tell: every name with one line about it, and the facts behind one name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from typing import Any

from bench.base.errors import UnknownName
from bench.registry import registry
from bench.registry.plugins import plugins
from bench.registry.registry import Entry

ATTRIBUTES = ("where", "needs", "paper", "version", "neutral", "threat", "names", "roles")


def list_names(plural: str | None) -> dict[str, dict[str, str]]:
    """Names and summaries by kind (`methods`, ...), all kinds by default. A plug-in's summary ends with its distribution and version."""
    kinds = {f"{kind}s": kind for kind in (*registry.KINDS, "suite")}
    if plural is not None and plural not in kinds:
        raise UnknownName("kind", plural, kinds)
    found = {name: registry.entries(kinds[name]) for name in ([plural] if plural else kinds)}
    tried = _try_plugins(entry for named in found.values() for entry in named.values())
    return {plural: {name: _line(entry, tried) for name, entry in named.items()} for plural, named in found.items()}


def _try_plugins(entries: Iterable[Entry]) -> dict[Entry, str]:
    strangers = [entry for entry in entries if entry.plugin and not entry.plugin.problem and entry.kind != "suite"]
    if not strangers:
        return {}
    from bench.registry.probe import probe

    return probe(strangers)


def _line(entry: Entry, tried: dict[Entry, str]) -> str:
    summary = tried.get(entry) or entry.summary
    return f"{summary} [{entry.plugin.distribution} {entry.plugin.version}]" if entry.plugin else summary


def listing_text(found: dict[str, dict[str, str]]) -> str:
    width = max((len(name) for names in found.values() for name in names), default=0)
    lines = []
    for plural, names in found.items():
        lines += [f"{plural}:", *(f"  {name:<{max(width, 16)}} {summary}" for name, summary in names.items())]
        lines += [] if names else ["  (none yet)"]
    return "\n".join(lines)


def show_text(name: str, as_json: bool) -> str:
    """The facts of one name, as text or JSON; a suite's are always JSON."""
    if registry.knows("suite", name) or name.endswith(".toml"):
        return json.dumps(_suite_facts(name), indent=1)
    facts = _class_facts(registry.find(kind_of(name), name))
    return json.dumps(facts, indent=1) if as_json else _facts_text(name, facts)


def kind_of(name: str) -> str:
    """Whether a name or file is a method, metric or attack. Raises `UnknownName` when it is none."""
    kind = _kind_of_file(name) if name.endswith(".py") else next((kind for kind in registry.KINDS if registry.knows(kind, name)), None)
    if kind is None:
        kinds = ("suite", *registry.KINDS)
        full_names = [plugin.full_name for kind in kinds for plugin in plugins(kind)] if "/" in name else []
        raise UnknownName("name", name, full_names or (known for kind in kinds for known in registry.entries(kind)))
    return kind


def _kind_of_file(name: str) -> str:
    """The kind whose base class a file of the user's derives from, read without importing it; method where that cannot be told."""
    return next((kind for kind in registry.KINDS if not registry.find(kind, name).summary.startswith("broken")), "method")


def _suite_facts(name: str) -> dict[str, Any]:
    from bench.running.plan import lenient, missing_assets
    from bench.suite.suite import load_suite

    suite = lenient(load_suite(name))
    lacking = [one.name for one in missing_assets(suite)]
    facts = suite.settings.model_dump(mode="json", exclude_none=True) | {"fingerprint": None if lacking else suite.fingerprint}
    facts["prompts"] = {role: facts["prompts"][role] | {"count": len(suite.prompts(role))} for role in suite.settings.prompts}
    return facts | ({"missing": lacking, "get": f"bench fetch --suite {suite.called}"} if lacking else {})


def _class_facts(entry: Entry) -> dict[str, Any]:
    cls = entry.load()
    schema = cls.model_json_schema()
    properties, required = schema.get("properties", {}), set(schema.get("required", ()))
    return {
        "kind": entry.kind,
        "description": inspect.cleandoc(cls.__doc__ or ""),
        **({"distribution": f"{entry.plugin.distribution} {entry.plugin.version}"} if entry.plugin else {}),
        **{name: getattr(cls, name) for name in ATTRIBUTES if getattr(cls, name, None)},
        "parameters": {field: _field_facts(about, field in required) for field, about in properties.items()},
    }


def _field_facts(schema: dict[str, Any], required: bool) -> dict[str, Any]:
    return {
        "default": None if required else schema.get("default"),
        "required": required,
        "allowed": schema.get("enum") or schema.get("type"),
        "description": schema.get("description", ""),
    }


def _facts_text(name: str, facts: dict[str, Any]) -> str:
    lines = [f"{facts['kind']} {name}: {facts['description']}"]
    for key in ("distribution", *ATTRIBUTES):
        if key in facts:
            value = facts[key]
            lines.append(f"  {key}: {', '.join(value) if isinstance(value, tuple) else value}")
    for field, about in facts["parameters"].items():
        allowed = "|".join(about["allowed"]) if isinstance(about["allowed"], list) else about["allowed"]
        default = "required" if about["required"] else f"default {about['default']}"
        lines.append(f"  -p {field}={allowed}  ({default})  {about['description']}")
    return "\n".join(lines)
