import enum
import re
from datetime import date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, ConfigDict, Field, TypeAdapter

from gateway.stack.simulated_provider.instances import instance
from gateway.stack.simulated_provider.patterns import matching


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Tree(BaseModel):
    name: str
    children: list["Tree"] = []
    parent: "Tree | None" = None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[str] = Field(min_length=2, max_length=3)


class Everything(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: Annotated[str, Field(min_length=3, max_length=12)]
    long: Annotated[str, Field(min_length=200)]
    code: Annotated[str, Field(pattern=r"^[A-Z]{2}-\d{3,5}$")]
    score: Annotated[float, Field(gt=0, lt=1)]
    even: Annotated[int, Field(multiple_of=2, ge=3)]
    below: Annotated[int, Field(lt=-5)]
    colour: Colour
    when: datetime
    day: date
    lasts: timedelta
    id: UUID
    link: AnyUrl
    price: Decimal
    pair: tuple[int, str]
    some: Annotated[set[int], Field(min_length=3)]
    table: dict[str, list[int]]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    either: int | str | None
    maybe: Tree | None
    yes: bool
    nothing: None
    anything: Any
    tree: Tree


@pytest.mark.parametrize("seed", range(60))
def test_a_pydantic_model_accepts_its_instance(seed: int) -> None:
    Everything.model_validate(instance(Everything.model_json_schema(), Random(seed)))


def test_the_same_seed_gives_the_same_instance() -> None:
    schema = Everything.model_json_schema()
    assert instance(schema, Random(4)) == instance(schema, Random(4))


BOUNDS = st.tuples(st.integers(-50, 50), st.integers(0, 40)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(BOUNDS, st.randoms(use_true_random=False))
def test_whole_numbers_are_within_their_bounds(bounds: tuple[int, int], random: Random) -> None:
    low, high = bounds
    assert low <= instance({"type": "integer", "minimum": low, "maximum": high}, random) <= high
    over = instance({"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high + 1}, random)
    assert low < over < high + 1


@given(BOUNDS, st.randoms(use_true_random=False))
def test_texts_and_arrays_have_the_length_asked_for(bounds: tuple[int, int], random: Random) -> None:
    least, most = abs(bounds[0]), abs(bounds[0]) + bounds[1] - bounds[0]
    assert least <= len(instance({"type": "string", "minLength": least, "maxLength": most}, random)) <= most
    array = instance({"type": "array", "items": {"type": "integer"}, "minItems": least, "maxItems": most}, random)
    assert least <= len(array) <= most


@pytest.mark.parametrize(
    "pattern",
    [r"^\d{4}-\d{2}$", r"^(foo|bar)+$", r"^[^@\s]+@[a-z]+\.com$", r"abc?", r"^(?!-)[a-z-]{3,8}$", r"^\S{3}\W\w*$"],
)
def test_a_pattern_is_matched(pattern: str) -> None:
    for seed in range(20):
        assert re.search(pattern, matching(pattern, Random(seed), 0, 200))


GEMINI = {
    "type": "OBJECT",
    "properties": {"n": {"type": "INTEGER", "minimum": 3}, "s": {"type": "STRING", "enum": ["a"]}},
    "required": ["n", "s"],
}


def test_upper_case_types_are_understood() -> None:
    made = instance(GEMINI, Random(0))
    assert made["n"] >= 3
    assert made["s"] == "a"


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ({"allOf": [{"type": "integer", "minimum": 4}, {"maximum": 4}]}, [4]),
        ({"const": {"a": 1}}, [{"a": 1}]),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, [1, 2]),
        ({"type": ["string", "null"], "enum": ["x", None]}, ["x", None]),
        ({"type": "object", "additionalProperties": {"const": 1}, "minProperties": 1, "maxProperties": 1}, None),
        ({"$ref": "#/definitions/a~1b", "definitions": {"a/b": {"const": 5}}}, [5]),
        ({"anyOf": [{"type": "integer", "minimum": 2, "maximum": 1}, {"const": 7}]}, [7]),
        ({"type": "array", "uniqueItems": True, "minItems": 2, "items": {"enum": [1, 2]}}, [[1, 2], [2, 1]]),
    ],
)
def test_less_common_words(schema: dict[str, Any], values: list[Any] | None) -> None:
    made = instance(schema, Random(1))
    assert list(made.values()) == [1] if values is None else made in values


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/missing"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "object", "properties": {"me": {"$ref": "#"}}, "required": ["me"]},
        {"type": "integer", "minimum": 2, "maximum": 1},
        {"type": "string", "pattern": "("},
        {"type": "array", "uniqueItems": True, "minItems": 3, "items": {"enum": [1, 2]}},
    ],
)
def test_what_nothing_satisfies_is_an_error(schema: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        instance(schema, Random(1))


def test_type_adapters_of_unions_of_lists() -> None:
    adapter = TypeAdapter(list[Cat | Dog] | dict[str, Tree])
    for seed in range(30):
        adapter.validate_python(instance(adapter.json_schema(), Random(seed)))
