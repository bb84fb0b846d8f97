"""The core at its edges: what makes a bill larger than it looks, and callers who leave at a bad moment."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_service.errors import InvalidRequest
from llm_service.requests import parse_chat, parse_embeddings

HI = [{"role": "user", "content": "Hi"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": HI} | fields).encode()


def tool(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema}}


def nested(depth: int, each: int) -> dict[str, Any]:
    """A schema of definitions, each of which refers `each` times to the next."""
    definitions: dict[str, Any] = {
        f"D{n}": {"type": "object", "properties": {f"p{k}": {"$ref": f"#/$defs/D{n + 1}"} for k in range(each)}}
        for n in range(depth)
    }
    definitions[f"D{depth}"] = {"type": "string", "description": "x"}
    return {"type": "object", "properties": {"a": {"$ref": "#/$defs/D0"}}, "$defs": definitions}


def unfolded(schema: Any, definitions: dict[str, Any]) -> Any:
    """As LiteLLM's `unpack_defs` does it for Google's models."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            return unfolded(definitions[schema["$ref"].split("/")[-1]], definitions)
        return {name: unfolded(inner, definitions) for name, inner in schema.items() if name != "$defs"}
    return [unfolded(inner, definitions) for inner in schema] if isinstance(schema, list) else schema


# -- I1: the bound of the input


@pytest.mark.parametrize("place", ["tools", "functions", "response_format"])
def test_i1_references_in_schemas_count_as_what_they_become(place: str) -> None:
    schema = nested(6, 3)
    sent: dict[str, Any] = {
        "tools": {"tools": [tool(schema)]},
        "functions": {"functions": [{"name": "f", "parameters": schema}]},
        "response_format": {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}},
    }[place]
    becomes = len(json.dumps(unfolded(schema, schema["$defs"]), separators=(",", ":")))
    assert becomes > 20 * len(json.dumps(schema))
    parsed = parse_chat(chat(**sent))
    assert parsed.input_bound > becomes
    assert parsed.allowance > becomes - parsed.text_bytes  # a tokenizer's count of the text does not see it either


def test_i1_references_without_end_are_refused_and_recursive_ones_are_not() -> None:
    with pytest.raises(InvalidRequest, match="references"):
        parse_chat(chat(tools=[tool(nested(20, 3))]))
    node: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    tree = {"$ref": "#/$defs/Node", "$defs": {"Node": node}}
    assert parse_chat(chat(tools=[tool(tree)])).input_bound < 2_000
    everyone = {f"D{n}": {"anyOf": [{"$ref": f"#/$defs/D{k}"} for k in range(12)]} for n in range(12)}
    with pytest.raises(InvalidRequest, match="references"):
        parse_chat(chat(tools=[tool({"$ref": "#/$defs/D0", "$defs": everyone})]))


def test_i1_compatibility_characters_count_as_they_are_spelled_out() -> None:
    one = "\ufdfa"  # a whole sentence in one character: three bytes, and thirty-three in NFKC
    assert parse_chat(chat(messages=[{"role": "user", "content": one * 100}])).input_bound > 3_300
    assert parse_embeddings(json.dumps({"model": "m", "input": one * 100}).encode()).input_bound > 3_300
    assert parse_embeddings(json.dumps({"model": "m", "input": "中" * 100}).encode()).input_bound < 320
