"""`bench list` and `bench show`: what there is, and what one method, metric, attack or suite
does.
"""

from __future__ import annotations

import inspect
import json
from typing import Annotated, Any

import typer

from bench.cli.app import app
from bench.cli.options import Json
from bench.registry import registry
from bench.registry.listing import ATTRIBUTES, kind_of
from bench.registry.registry import Entry


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(help="methods, metrics, attacks or suites; all by default.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List what can be named: methods, metrics, attacks, suites, with those of installed plug-ins
    and which of these are broken.
    """
    from bench.cli.show import listing_text
    from bench.registry.listing import list_names

    found = list_names(kind)
    print(json.dumps(found, indent=1) if as_json else listing_text(found))


@app.command(epilog="Example:  bench show wanda")
def show(
    name: Annotated[str, typer.Argument(help="A method, metric, attack or suite.")],
    as_json: Json = False,
) -> None:
    """Show what a name stands for: its parameters with defaults, its paper, what it needs; or a
    suite's protocol.
    """
    from bench.cli.show import show_text

    print(show_text(name, as_json))


def listing_text(found: dict[str, dict[str, str]]) -> str:
    width = max((len(name) for names in found.values() for name in names), default=0)
    lines = []
    for plural, names in found.items():
        lines += [
            f"{plural}:",
            *(f"  {name:<{max(width, 16)}} {summary}" for name, summary in names.items()),
        ]
        lines += [] if names else ["  (none yet)"]
    return "\n".join(lines)


def show_text(name: str, as_json: bool) -> str:
    """The facts of one name, as text or JSON; a suite's are always JSON."""
    if registry.knows("suite", name) or name.endswith(".toml"):
        return json.dumps(_suite_facts(name), indent=1)
    facts = _class_facts(registry.find(kind_of(name), name))
    return json.dumps(facts, indent=1) if as_json else _facts_text(name, facts)


def _suite_facts(name: str) -> dict[str, Any]:
    from bench.suite.load import load_suite
    from bench.suite.needs import lenient, missing_assets

    suite = lenient(load_suite(name))
    lacking = [one.name for one in missing_assets(suite)]
    facts = suite.settings.model_dump(mode="json", exclude_none=True) | {
        "fingerprint": None if lacking else suite.fingerprint
    }
    facts["prompts"] = {
        role: facts["prompts"][role] | {"count": len(suite.prompts(role))}
        for role in suite.settings.prompts
    }
    return facts | (
        {"missing": lacking, "get": f"bench fetch --suite {suite.called}"} if lacking else {}
    )


def _class_facts(entry: Entry) -> dict[str, Any]:
    cls = entry.load()
    schema = cls.model_json_schema()
    properties, required = schema.get("properties", {}), set(schema.get("required", ()))
    return {
        "kind": entry.kind,
        "description": inspect.cleandoc(cls.__doc__ or ""),
        **(
            {"distribution": f"{entry.plugin.distribution} {entry.plugin.version}"}
            if entry.plugin
            else {}
        ),
        **{name: getattr(cls, name) for name in ATTRIBUTES if getattr(cls, name, None)},
        "parameters": {
            field: _field_facts(about, field in required) for field, about in properties.items()
        },
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
        allowed = (
            "|".join(about["allowed"]) if isinstance(about["allowed"], list) else about["allowed"]
        )
        default = "required" if about["required"] else f"default {about['default']}"
        lines.append(f"  -p {field}={allowed}  ({default})  {about['description']}")
    return "\n".join(lines)
