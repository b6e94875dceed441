"""The JSON schema of recipe files, by which editors complete and check them (yaml-language-server, draft 7).

It is looser than `load_recipe` where a file may `extends` another: nothing is required but a component's `type`, and
entries of a table may be null, which removes them.
"""

from typing import Any

from omnikit.component import Component
from omnikit.recipe_schema import Recipe
from omnikit.registry import KINDS, Registry

__all__ = ["json_schema"]

Schema = dict[str, Any]
TABLES = ("encoders", "modalities", "data", "heldout", "stages")


def json_schema(registry: Registry) -> Schema:
    """The schema of a recipe that is made of this registry's components."""
    schema = Recipe.model_json_schema(by_alias=True)
    parts: Schema = schema.pop("$defs")
    _loosen(parts)
    for name in ("Rule", "Share"):
        parts[name] = {"oneOf": [{"type": "number", "exclusiveMinimum": 0}, parts[name]]}
    stage = parts["Stage"]["properties"]
    stage["train"]["additionalProperties"] = {"oneOf": [{"const": "frozen"}, {"$ref": "#/$defs/Rule"}]}
    stage["before"] = {
        "type": "string",
        "description": "In a file with `extends`: the stage that this new one precedes.",
    }
    for kind in (kind for kind in KINDS if kind != "benchmark"):  # no recipe names one
        parts[kind] = _of_kind(kind, registry, parts)
    properties = schema["properties"]
    for table in TABLES:
        properties[table]["additionalProperties"] = {
            "anyOf": [properties[table]["additionalProperties"], {"type": "null"}]
        }
        properties[table].pop("minProperties", None)
    properties["extends"] = {"type": "string", "description": "A recipe file that this one changes, relative to it."}
    schema.pop("required")
    whole: Schema = _draft_7({"$schema": "http://json-schema.org/draft-07/schema#", **schema, "$defs": parts})
    return whole


def _loosen(parts: Schema) -> None:
    for part in parts.values():
        part.pop("required", None)


def _of_kind(kind: str, registry: Registry, parts: Schema) -> Schema:
    """A component of this kind: a bare word, a mapping by its type, or (over `extends`) options alone."""
    bare, mappings = list[str](), list[Schema]()
    for type in registry.types(kind):
        name = f"{kind}.{type}"
        component = registry.get(kind, type)
        parts[name], is_bare = _of_component(component, name, parts)
        mappings.append({"$ref": f"#/$defs/{name}"})
        bare += [type] if is_bare else []
    untyped: Schema = {"type": "object", "not": {"required": ["type"]}}
    return {"oneOf": [*([{"enum": bare}] if bare else []), *mappings, untyped]}


def _of_component(component: type[Component], name: str, parts: Schema) -> tuple[Schema, bool]:
    """The schema of one Config class, and whether it can stand as a bare word."""
    schema = component.model_json_schema(by_alias=True, ref_template=f"#/$defs/{name}.{{model}}")
    for inner, found in schema.pop("$defs", {}).items():
        parts[f"{name}.{inner}"] = found
    required = schema.pop("required", [])
    if not component.presets:
        schema["required"] = ["type", *required]
    else:  # a preset may fill any of them
        schema["required"] = ["type"]
        if "preset" in schema["properties"]:
            schema["properties"]["preset"] = {"enum": [*component.presets, None]}
    schema["properties"] = {"type": {"const": component.type}, **schema["properties"]}
    return schema, not required


def _draft_7(schema: Any) -> Any:  # noqa: ANN401
    """The schema in words of draft 7: tuples by `items`, our marks for components as references."""
    if isinstance(schema, list):
        return [_draft_7(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(kind := schema.get("component"), str) and kind in KINDS:
        return {"$ref": f"#/$defs/{kind}"}
    if isinstance(schema.get("prefixItems"), list):
        schema = {"additionalItems": False, **schema, "items": schema["prefixItems"]}
        del schema["prefixItems"]
    return {key: _draft_7(part) for key, part in schema.items()}
