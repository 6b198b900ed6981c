"""config.schema.json and docs/configuration.md, from the models of the configuration.

python -m icprobe.config.schema          writes both
python -m icprobe.config.schema --check  fails where they are not what it would write
"""

import json
import sys
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from icprobe.artifacts import PACKAGE, write_text
from icprobe.config import Config

ROOT = PACKAGE.parents[1]
LARGEST = 2**31  # what bounds every whole number is not worth a word in a table

INTRODUCTION = """\
# The configuration

This page lists every key of the configuration, with its type, default and meaning. `make schema` generates it from
`sections.py`, `selections.py`, `training.py`, `truth.py`, `estimate.py` and `sources.py` in `src/icprobe/config`; do
not edit it.

`config.yaml` is the demo's. `--configfile other.yaml` overrides its keys: mappings merge, lists replace, and `null`
removes a key (two keys of `evaluation.llm` say what null means there; `wandb: null` and `evaluation: null` switch these
sections off). A file that brings its own data (a table of `data`, or `attribution.external`) stands alone: it inherits
nothing from the demo, unless you name `config.yaml` before it. Unknown keys are refused. YAML reads a number such as
`2e-7` as a string; icprobe reads it as a number all the same. For editors that know JSON schemas there is
`config.schema.json`.
"""


class _Untitled(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def json_schema() -> dict[str, Any]:
    """The JSON schema of a complete configuration, with defaults and descriptions."""
    schema = Config.model_json_schema(schema_generator=_Untitled)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def files() -> dict[str, str]:
    """{path from the repository root: text} of all that is generated."""
    return {
        "config.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n",
        "docs/configuration.md": markdown(json_schema()),
    }


def markdown(schema: dict[str, Any]) -> str:
    """All keys with type, default and description, one table for each section."""
    sections = schema["$defs"]
    parts = [INTRODUCTION, "## Top level\n", _table(schema["properties"], schema["required"], sections)]
    found = [part for key, section in schema["properties"].items() for part in _section(key, section, sections)]
    return "\n".join([*parts, *dict.fromkeys(found)])  # what several kinds of a section have within them, once


def _section(place: str, field: dict[str, Any], sections: dict[str, Any]) -> list[str]:
    """Headings and tables of the sections that a field leads to, deepest last; `place` is its dotted key."""
    parts = []
    for name in _references(field):
        section = sections[name]
        source = section["properties"].get("source", {}).get("const")
        mark = ".{name}" if "additionalProperties" in field else ""
        lines = [
            f"## `{place}{mark}`{f' with `source: {source}`' if source else ''}\n",
            f"{section['description']}\n",
            _table(section["properties"], section.get("required", []), sections),
        ]
        parts.append("\n".join(lines))
        for key, inner in section["properties"].items():
            parts += _section(f"{place}{mark}.{key}", inner, sections)
    return parts


def _references(field: Any) -> list[str]:
    if isinstance(field, list):
        return [name for part in field for name in _references(part)]
    if not isinstance(field, dict):
        return []
    if "$ref" in field:
        return [field["$ref"].rsplit("/", 1)[1]]
    inside = ("anyOf", "oneOf", "items", "additionalProperties")
    return [name for key in inside for name in _references(field.get(key))]


def _table(fields: dict[str, Any], required: list[str], sections: dict[str, Any]) -> str:
    lines = ["| key | type | default | what it is |", "|---|---|---|---|"]
    for key, field in fields.items():
        if key in required:
            default = "required"
        elif "default" not in field:
            default = "as described"  # it depends on other keys
        elif isinstance(field["default"], dict) and _references(field):
            default = "below"
        else:
            default = f"`{json.dumps(field['default'], ensure_ascii=False)}`"
        text = field.get("description") or " ".join(sections[name]["description"] for name in _references(field))
        cells = [f"`{key}`", _type(field), default, text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field or "oneOf" in field:
        return "mapping (below)"
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"])
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    kind = field["type"]
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if kind == "object":
        return f"mapping of names to {_type(field['additionalProperties'])}"
    words = {"string": "string", "integer": "whole number", "boolean": "true or false", "null": "`null`"}
    bounds = [
        f"{sign} {field[name]:g}"
        for name, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
        if name in field and field[name] != LARGEST
    ]
    return " ".join([words.get(kind, kind), " and ".join(bounds)]).strip()


def main(arguments: list[str]) -> int:
    """Writes the files, or with --check compares them; returns the exit code."""
    stale = [
        name
        for name, text in files().items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text(encoding="utf-8") != text
    ]
    if "--check" not in arguments:
        for name in stale:
            write_text(ROOT / name, files()[name])
            print(f"wrote {name}")
        return 0
    if stale:
        print(f"{' and '.join(stale)} do not fit the models of the sections; run: make schema", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
