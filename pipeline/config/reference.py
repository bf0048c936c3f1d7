"""Makes the tables of docs/configuration.md from the models: every key with type, default and meaning.

python -m alignkd.pipeline.config.reference docs/configuration.md    # rewrite the tables of the page
"""

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel
from pydantic.fields import FieldInfo

from alignkd.disk.whole_file import write_whole
from alignkd.pipeline.config.problems import section_model
from alignkd.pipeline.config.run_config import RunConfig
from alignkd.pipeline.config.sections.store_list import LIST_ENTRIES
from alignkd.vlm.settings import MAX_COUNT, MAX_NUMBER, OneOf

BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
_POWERS: dict[Any, str] = {2**63: "2^63", 2**64: "2^64", 1e6: "1e6"}
_BASIC = {int: "whole number", float: "number", bool: "`true` or `false`", str: "text"}


def with_tables(page: str) -> str:
    """The page with new tables between `BEGIN` and `END`."""
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{tables()}\n{END}{rest.split(END)[1]}"


def tables() -> str:
    """A table for each section, as markdown."""
    parts = []
    for where, model in _sections(RunConfig):
        rows = [_row(name, field, meanings(model)[name], where) for name, field in model.model_fields.items()]
        parts += [f"### `{where}`\n", "| key | type | default | meaning |", "|:--|:--|:--|:--|", *rows, ""]
        if (entry := LIST_ENTRIES.get(model)) is not None:
            rows = [_row(name, field, meanings(entry)[name], where) for name, field in entry.model_fields.items()]
            parts += [f"### `{where}`, an entry of a list\n", "| key | type | default | meaning |", "|:--|:--|:--|:--|"]
            parts += [*rows, ""]
    return "\n".join(parts)


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Key -> its `description`, or its text in the model's docstring under `Attributes`."""
    lines = inspect.cleandoc(model.__doc__ or "").partition("Attributes:\n")[2].splitlines()
    found = {name: field.description for name, field in model.model_fields.items() if field.description}
    names: list[str] = []
    for line in lines:
        if match := re.match(r" {4}(\w+(?:, \w+)*): (.*)", line):
            names = match[1].split(", ")
            found |= dict.fromkeys(names, match[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text.strip() for name, text in found.items()}


def _sections(model: type[BaseModel], where: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    for name in model.model_fields:
        if (section := section_model(model, name)) is not None:
            inner = f"{where}.{name}" if where else name
            yield inner, section
            yield from _sections(section, inner)


def _row(name: str, field: FieldInfo, meaning: str, where: str) -> str:
    cells = [f"`{name}`", _type(field, f"{where}.{name}"), _default(field), re.sub(r"\bNone\b", "`null`", meaning)]
    return f"| {' | '.join(cells)} |"


def _type(field: FieldInfo, where: str) -> str:
    """What a key may be; a key that is a value or a section links to the section."""
    value, section = _type_of_value(field, where), f"section [`{where}`](#{where.replace('.', '')})"
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else ()
    has_section = any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)
    return f"{value}, or {section}" if has_section and value != section else value


def _type_of_value(field: FieldInfo, where: str) -> str:
    kind, details = _unwrapped(field)
    if choices := get_args(kind) if get_origin(kind) is Literal else _names(details):
        return " ".join(f"`{name}`" for name in choices)
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"section [`{where}`](#{where.replace('.', '')})"
    titles = [title for item in details if (title := getattr(item, "title", None))]
    return titles[0] if titles else " ".join([_BASIC[kind], *_limits(details)])


def _unwrapped(field: FieldInfo) -> tuple[Any, list[Any]]:
    """The type of a key without None and `Annotated`, and its details (limits, validators, title).

    Pydantic leaves the details of `Annotated[...] | None` in the annotation; otherwise it moves them to the field.
    """
    details: list[Any] = [field, *field.metadata]
    kinds = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else (field.annotation,)
    kind = next(kind for kind in kinds if kind is not type(None))
    for part in getattr(kind, "__metadata__", ()):
        details += [part, *getattr(part, "metadata", ())]
    return (get_args(kind)[0] if hasattr(kind, "__metadata__") else kind), details


def _names(details: list[Any]) -> tuple[str, ...]:
    found = [item.func.names for item in details if isinstance(item, AfterValidator) and isinstance(item.func, OneOf)]
    return found[0] if found else ()


def _limits(details: list[Any]) -> list[str]:
    found = [(sign, getattr(item, name, None)) for item in details for name, sign in _SIGNS.items()]
    shown = [
        f"{sign} {_POWERS.get(limit, limit)}" for sign, limit in found if limit not in (None, MAX_COUNT, MAX_NUMBER)
    ]
    return [", ".join(shown)] if shown else []


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "`{}`"
    if field.default is None:
        return "`null`"
    if isinstance(field.default, BaseModel):
        return "its defaults"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(map(str, field.default))}]`"
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


def main() -> None:
    """Rewrite the tables of the page."""
    page = Path(sys.argv[1])
    write_whole(page, with_tables(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
