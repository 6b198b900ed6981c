"""What values of the configuration may be: names, paths, bins, numbers; and what every section is."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from icprobe.errors import ConfigError
from icprobe.formatting import BIN_FORMS, parse_bin

Dtype = Literal["float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


# What pandas takes for a missing value where it reads a table without being told otherwise.
MISSING_TO_PANDAS = {"NA", "NULL", "NaN", "None", "nan", "null"}


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or ".." in name:
        raise ValueError("use a plain name: letters, digits, '.', '_' and '-', beginning with a letter or digit")
    if name in MISSING_TO_PANDAS:
        raise ValueError("choose another name, because this word means a missing value in tables")
    return name


def _bin(text: str) -> str:
    try:
        found = parse_bin(text)
    except ConfigError:
        raise ValueError(BIN_FORMS) from None
    if found.number.as_tuple().exponent < -2:
        raise ValueError(BIN_FORMS)
    return str(found)


def _path(text: str) -> str:
    if not text.strip() or not text.isprintable() or any(c in "{}" for c in text):
        raise ValueError("use a path without braces (Snakemake's wildcards), tabs and line breaks")
    return text


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}") from None
    if not text:
        raise ValueError("an empty pattern would match every name; write all")
    return text


def _number(value: Any) -> Any:
    # To pydantic true is 1.
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


def _none_for_false(value: Any) -> Any:
    return None if value is False else value


Name = Annotated[str, AfterValidator(_plain_name)]
Pattern = Annotated[str, AfterValidator(_pattern)]
FilePath = Annotated[str, AfterValidator(_path)]
Bin = Annotated[str, AfterValidator(_bin)]
Float = Annotated[float, Field(ge=0), BeforeValidator(_number)]
OrLeftOut = Annotated[Float | Literal[False] | None, AfterValidator(_none_for_false)]  # of a parameter of a request
PositiveFloat = Annotated[float, Field(gt=0), BeforeValidator(_number)]
Fraction = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_number)]
Count = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(_number)]
Seed = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_number)]


def how(default: Any, description: str) -> Any:
    """A key that says how jobs compute and changes no bit of a result. It is no part of a dump, and so of no param."""
    return Field(default, description=f"{description} A change reruns nothing.", exclude=True)


class Section(BaseModel):
    """A mapping of the configuration: unknown keys are refused, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    def execution(self) -> dict[str, Any]:
        """The keys that say how jobs compute (`how`), of this section and of those within it."""
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if field.exclude:
                found[name] = value
            elif isinstance(value, Section) and (within := value.execution()):
                found[name] = within
        return found


def slice_of(section: Section | None, *keys: str) -> dict[str, Any] | None:
    """Some keys of a section (all, if none is named) as plain values: what a rule gives its job as params."""
    return None if section is None else section.model_dump(mode="json", include=set(keys) or None)
