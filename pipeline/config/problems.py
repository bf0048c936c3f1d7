"""Messages for problems of a configuration: the key, the expected and the found value, the next step."""

import difflib
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from alignkd.pipeline.config.sections.store_list import LIST_ENTRIES
from alignkd.vlm.errors import one_line
from alignkd.vlm.settings import COMPLETE, described

# type of a pydantic error -> what was expected
_WRONG_TYPE = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "model_type": "a section with keys",
    "dict_type": "a section with keys",
    "tuple_type": "a section with keys, or a list of them",
}
# Number of a section's keys that a message lists.
SHOWN_KEYS = 12
_LIMITS = {
    "greater_than": ("gt", "above"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "below"),
    "less_than_equal": ("le", "at most"),
}


def problem_of(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """Format one of pydantic's errors as one line.

    Args:
        error: an item of `ValidationError.errors()`.
        root: the validated model; its keys are suggested for an unknown key.
    """
    where = ".".join(map(str, error["loc"])) or "configuration"
    return f"{where}: {_reason(error, root)}"


def _reason(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    kind, value, context = str(error["type"]), error["input"], error.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return f"expected letters, digits, '_', '-' and '.', found {_value(value)}"
    if kind == "extra_forbidden":
        return f"unknown key{_suggestion(error['loc'], root)}"
    if kind == "missing":
        return "missing"
    if kind == COMPLETE:
        return one_line(error["msg"])
    if kind in _WRONG_TYPE:
        return f"expected {_WRONG_TYPE[kind]}, found {described(value)}{_next_step(kind, value)}"
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"expected {words} {context[name]:.16g}, found {value}"[:120]
    if kind == "finite_number":
        return f"expected a finite number, found {value}"
    if kind == "literal_error":
        return f"expected {context['expected']}, found {_value(value)}"
    reason = one_line(str(error["msg"]).removeprefix("Value error, "))
    # a validator of a whole list names what it found in it
    is_whole = isinstance(value, dict | tuple) or (kind == "value_error" and isinstance(value, list))
    return reason if is_whole else f"{reason}, found {_value(value)}"


def _value(value: Any) -> str:
    """Show a text as its repr, any other value by its kind."""
    return one_line(repr(value))[:80] if isinstance(value, str) else described(value)


def _next_step(kind: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return "; put it in quotes"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {value:.0f}"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return _number_in(value)
    return ""


def _number_in(text: str) -> str:
    """Suggest the number that a text seems to mean: a number in quotes, or one with the underscores of YAML 1.1."""
    plain = text.strip().replace("_", "")
    try:
        float(plain)
    except ValueError:
        return ""
    return f"; write {plain} without {'underscores' if '_' in text else 'quotes'}" if plain[-1:].isdigit() else ""


def _suggestion(location: tuple[Any, ...], root: type[BaseModel]) -> str:
    """Suggest the known key nearest to an unknown one, or list the first known keys."""
    model: type[BaseModel] | None = root
    for part in location[:-1]:
        if isinstance(part, int):  # a place in a list
            model = LIST_ENTRIES.get(model, model) if model else None
        else:
            model = section_model(model, part)
    known = list(model.model_fields) if model is not None else []
    nearest = difflib.get_close_matches(str(location[-1]), known, n=1)
    if nearest or not known:
        return f" (did you mean {nearest[0]!r}?)" if nearest else ""
    shown = ", ".join(known[:SHOWN_KEYS])
    more = f" and {len(known) - SHOWN_KEYS} more, see docs/configuration.md" if len(known) > SHOWN_KEYS else ""
    return f" (known: {shown}{more})"


def section_model(model: type[BaseModel] | None, key: str) -> type[BaseModel] | None:
    """The model of a key that is a section; None for any other key."""
    annotation: Any = model.model_fields[key].annotation if model and key in model.model_fields else None
    candidates = [annotation, *getattr(annotation, "__args__", ())]
    return next((item for item in candidates if isinstance(item, type) and issubclass(item, BaseModel)), None)
