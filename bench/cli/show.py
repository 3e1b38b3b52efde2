"""`bench show`: what one method, metric, attack, detector or suite does."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from bench.base.errors import UserError, one_line
from bench.base.text import paragraphs
from bench.cli.app import app, examples
from bench.cli.options import Json
from bench.registry import registry
from bench.registry.listing import ATTRIBUTES, kind_of
from bench.registry.registry import Entry


@app.command(epilog=examples("bench show wanda", "bench show testbed"))
def show(
    name: Annotated[str, typer.Argument(help="A method, metric, attack, detector or suite.")],
    as_json: Json = False,
) -> None:
    """Show what a name stands for: its parameters, paper and needs, or a suite's protocol."""
    print(show_text(name, as_json))


def show_text(name: str, as_json: bool) -> str:
    """The facts of one name, as text or JSON; a suite's are always JSON."""
    if registry.knows("suite", name) or name.endswith(".toml"):
        return json.dumps(_suite_facts(name), indent=1)
    if name.endswith(".json"):
        raise UserError(
            f"{name} is no method, metric, attack, detector or suite: bench report shows a record"
        )
    facts = _class_facts(registry.find(kind_of(name), name))
    # What a stranger's class states of itself may be no JSON; then it is shown as text.
    return json.dumps(facts, indent=1, default=str) if as_json else _facts_text(name, facts)


def _joined(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _suite_facts(name: str) -> dict[str, Any]:
    """The settings of a suite with the counts of its prompts, and what it lacks here."""
    from bench.suite.detection import Judged
    from bench.suite.load import load_suite
    from bench.suite.needs import lenient, missing_assets

    suite = lenient(load_suite(name))
    lacking = [asset.name for asset in missing_assets(suite)]
    facts = suite.settings.model_dump(mode="json", exclude_none=True) | {
        "fingerprint": None if lacking else suite.fingerprint
    }
    facts["prompts"] = {
        role: facts["prompts"][role] | {"count": len(suite.prompts(role))}
        for role in suite.settings.prompts
    }
    if suite.settings.detection is not None:
        try:
            facts["detection"]["prompts"] = Judged(suite).counts
        except UserError as error:
            facts["detection"]["prompts"] = str(error)
    return facts | (
        {"missing": lacking, "get": f"bench fetch --suite {suite.called}"} if lacking else {}
    )


def _class_facts(entry: Entry) -> dict[str, Any]:
    """What a class states of itself, and its parameters. Raises `UserError` where they cannot be
    described.
    """
    cls = entry.load()
    try:
        schema = cls.model_json_schema()
    except Exception as error:  # a stranger's parameters may be of any type
        raise UserError(
            f"{entry.kind} {entry.name}: its parameters cannot be shown: {one_line(error)[:300]}"
        ) from error
    properties, required = schema.get("properties", {}), set(schema.get("required", ()))
    return {
        "kind": entry.kind,
        "description": "\n\n".join(paragraphs(cls.__doc__ or "")),
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
            lines.append(f"  {key}: {_joined(value)}")
    for field, about in facts["parameters"].items():
        allowed = (
            "|".join(about["allowed"]) if isinstance(about["allowed"], list) else about["allowed"]
        )
        default = "required" if about["required"] else f"default {about['default']}"
        lines.append(f"  -p {field}={allowed}  ({default})  {about['description']}")
    return "\n".join(lines)
