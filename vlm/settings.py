"""What all sections of a configuration file share: strict values, and paths as users write them."""

import os
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from alignkd.vlm.errors import one_line

MAX_COUNT = 2**31 - 1
# Far below the largest float32, so that a setting times a loss or a gradient stays finite.
MAX_NUMBER = 1e30

# The type of an error whose message is complete, including what was found.
COMPLETE = "complete"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Settings(BaseModel):
    """A section: unknown keys, numbers in quotes, `true` as a number and infinite numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _leave_empty_sections_out(cls, values: Any) -> Any:
        """Treat an inner section whose keys are all commented out as absent."""
        if not isinstance(values, dict):
            return values
        sections = {name for name, field in cls.model_fields.items() if isinstance(field.default, BaseModel)}
        return {key: value for key, value in values.items() if value is not None or key not in sections}


class OneOf:
    """A validator that accepts one of `names`, which are known only at run time."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __call__(self, name: str) -> str:
        if name not in self.names:
            raise ValueError(f"expected one of {', '.join(self.names)}")
        return name


def described(value: Any) -> str:
    """Describe a value of a configuration file: `the number 2024`, `the text 'x'`, `a list`, `nothing`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"[:80]
    if isinstance(value, str):
        return f"the text {one_line(repr(value))[:80]}" if value else "an empty text"
    return {"list": "a list", "tuple": "a list", "dict": "a mapping"}.get(type(value).__name__, type(value).__name__)


def expanded(text: str) -> str:
    """A path or URL with `$NAME`, `${NAME}` and a leading `~` replaced; `$$` stands for a dollar sign.

    Raises:
        ValueError: a variable that is unset or empty, another use of `$`, an unknown user, control characters, or an
            empty text.
    """
    if not text.strip():
        raise ValueError("expected a path, found an empty text")
    if control := _CONTROL.search(text):
        raise ValueError(f"has the character {control[0]!r} in {text!r}; write a backslash twice, or use single quotes")
    found = os.path.expanduser(_with_variables(text))  # noqa: PTH111 (a URL must keep its slashes)
    if found.startswith("~"):
        user = found.partition("/")[0]
        raise ValueError(
            f"the home folder {user!r} in {text!r} is not known; write the path out, or start it with './'"
        )
    return found


def _with_variables(text: str) -> str:
    template = string.Template(text)
    if not template.is_valid():
        raise ValueError(
            f"has a '$' in {text!r} that does not start a name; $NAME and ${{NAME}} are variables, $$ is a dollar sign"
        )
    for name in template.get_identifiers():
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            raise ValueError(f"the environment variable {name} in {text!r} is {state}; set it, or write the path out")
    return template.substitute(os.environ)


def _path_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, str):
        try:
            return expanded(value)
        except ValueError as error:
            raise PydanticCustomError(COMPLETE, "{problem}", {"problem": str(error)}) from None
    step = "; put it in quotes" if isinstance(value, int | float) else ""
    problem = f"expected a path, found {described(value)}{step}"
    raise PydanticCustomError(COMPLETE, "{problem}", {"problem": problem})


def _location(value: Any) -> Path | str:
    """A folder as a path, a URL as text: as a path it would lose a slash."""
    text = _path_text(value)
    return text if "://" in text else Path(text)


# The titles are what docs/configuration.md calls these types.
UserPath = Annotated[Path, BeforeValidator(lambda value: Path(_path_text(value))), Field(title="path")]
UserLocation = Annotated[Path | str, BeforeValidator(_location), Field(title="path or URL")]
# Image processor of models of transformers: the one that transformers selects, or the one that needs no torchvision.
ProcessorKind = Literal["auto", "pil"]
CheckpointName = Annotated[str, BeforeValidator(_path_text), Field(title="path or hub id")]

Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
CountFromZero = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Amount = Annotated[float, Field(ge=0, le=MAX_NUMBER)]
Positive = Annotated[float, Field(gt=0, le=MAX_NUMBER)]
