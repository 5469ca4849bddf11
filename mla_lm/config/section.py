"""The base of every section of the configuration: frozen, strict, checked once."""

import os
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, model_validator
from pydantic_core import PydanticCustomError

Name = Annotated[str, Field(min_length=1)]
PathName = Annotated[Name, AfterValidator(os.path.expanduser)]  # `~` is the home folder
Size = Annotated[int, Field(gt=0, lt=2**63)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Strings = Annotated[tuple[str, ...], Strict(False)]
PathNames = Annotated[tuple[PathName, ...], Strict(False)]
Rules = Iterable[tuple[str, bool, str]]


class Section(BaseModel):
    """A group of keys: unknown keys, NaN, infinities and silent conversions are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    def rules(self) -> Rules:
        """What must hold between keys: (key, whether it holds, the rule in words)."""
        return ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for key, holds, rule in self.rules():
            if not holds:
                context = {"rule": rule, "key": key, "value": value_at(self, key)}
                raise PydanticCustomError("rule", "{rule}", context)
        return self


def at_most(section: BaseModel, key: str, limit: str) -> tuple[str, bool, str]:
    """The rule that one key of a section may not exceed another."""
    value, bound = value_at(section, key), value_at(section, limit)
    return key, value <= bound, f"must be at most {limit}={bound}"


def value_at(section: Any, key: str) -> Any:
    """The value of a dotted key of a section or of nested mappings."""

    def inside(node: Any, name: str) -> Any:
        return node[name] if isinstance(node, Mapping) else getattr(node, name)

    return reduce(inside, key.split("."), section)


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, in order."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
