"""YAML 1.2 with its core schema, on PyYAML's parser: `off` is text, `010` is ten, a repeated key is an error.

PyYAML's own loaders follow YAML 1.1, in which `off` is false, `010` is eight and `1:30` is ninety, and they keep the
last of two equal keys. This module converts the parser's nodes itself, so that every error names a line.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from alignkd.vlm.errors import one_line
from alignkd.vlm.settings import described

TAG = "tag:yaml.org,2002:"
MAX_VALUES = 10_000
MAX_DIGITS = 400

# YAML 1.2.2, section 10.3.2: types of scalars without quotes; all other scalars are text.
_CORE: dict[str, tuple[re.Pattern[str], list[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"null|Null|NULL|~|"), ["n", "N", "~", ""], lambda text: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"), lambda text: text.lower() == "true"),
    "int": (re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"), list("-+0123456789"), lambda text: _integer(text)),
    "float": (
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        ),
        list("-+.0123456789"),
        lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
    ),
}


class YamlTextError(ValueError):
    """Invalid or unsupported YAML; the message does not contain the file name."""


class _Nodes(yaml.BaseLoader):
    """PyYAML's parser with the core schema's tags."""


class _Dumper(yaml.SafeDumper):
    """Quotes texts that YAML 1.1 or 1.2 would read as another type."""


for _name, (_pattern, _first, _) in _CORE.items():
    _Nodes.add_implicit_resolver(TAG + _name, re.compile(f"(?:{_pattern.pattern})$"), _first)
    _Dumper.add_implicit_resolver(TAG + _name, re.compile(f"(?:{_pattern.pattern})$"), _first)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text of one document.

    Raises:
        YamlTextError: invalid YAML, with line and column; more than `MAX_VALUES` values; or a list of these: repeated
            keys, merge keys, unsupported tags and keys, numbers of more than `MAX_DIGITS` digits.
    """
    try:
        node = yaml.compose(text, Loader=_Nodes)
    except yaml.MarkedYAMLError as error:
        raise YamlTextError(_syntax_problem(error, text)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlTextError(f"line {line}: YAML has no character U+{error.character:04X}; remove it") from error
    except RecursionError as error:
        raise YamlTextError("nested too deeply; flatten it") from error
    reading = _Reading()
    value = None if node is None else reading.value(node, "")
    if reading.problems:
        raise YamlTextError("; ".join(reading.problems))
    return value


def dump_yaml(values: Any) -> str:
    """Write plain values as YAML that `parse_yaml` and YAML 1.1 parsers read identically."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Reading:
    """Converts nodes to values and collects errors in `problems`."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._count = 0
        self._open: set[int] = set()

    def value(self, node: yaml.Node, where: str) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise YamlTextError(f"{_line(node)}: more than {MAX_VALUES:,} values, aliases included; shorten it")
        if id(node) in self._open:
            raise YamlTextError(f"{_line(node)}: the value {where or 'of the file'} contains itself; remove the alias")
        self._open.add(id(node))
        try:
            return self._value(node, where)
        finally:
            self._open.discard(id(node))

    def _value(self, node: yaml.Node, where: str) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{TAG}map":
            return self._mapping(node, where)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{TAG}seq":
            return [self.value(item, f"{where}[{index}]") for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        return self._refuse(node, f"the tag {_short(node.tag)} is not supported; remove it")

    def _mapping(self, node: yaml.MappingNode, where: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key is None:
                continue
            name = f"{where}.{key}" if where else key
            value = self.value(value_node, name)
            if key in values:
                first = f"{_shown(values[key])} on line {lines[key]}"
                second = f"{_shown(value)} on line {key_node.start_mark.line + 1}"
                self.problems.append(f"{name} is given twice: {first}, {second}; keep one")
            else:
                values[key], lines[key] = value, key_node.start_mark.line + 1
        return values

    def _key(self, node: yaml.Node) -> str | None:
        """The name of a key, a number from 0 in decimal digits; None for a refused key."""
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if plain and node.value == "<<":
            self._refuse(node, "'<<' (merge) was dropped from YAML with version 1.2; write the keys out")
        elif isinstance(node, yaml.ScalarNode):
            key = self._scalar(node)
            if isinstance(key, str):
                return key
            if type(key) is int and key >= 0:  # of a decoder layer; as in JSON, a text
                return str(key)
            self._refuse(node, f"a key must be a name, found {described(key)}; put it in quotes")
        else:
            kind = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
            self._refuse(node, f"a key must be a name, found {kind}; put text with brackets or braces in quotes")
        return None

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        name = node.tag.removeprefix(TAG)
        if name == "str":
            return node.value
        if name not in _CORE:
            return self._refuse(node, f"the tag {_short(node.tag)} is not supported; remove it")
        pattern, _, convert = _CORE[name]
        if name == "float" and _CORE["int"][0].fullmatch(node.value):
            convert = lambda text: float(_integer(text))  # noqa: E731
        elif pattern.fullmatch(node.value) is None:
            return self._refuse(node, f"{node.value[:40]!r} does not fit its tag {_short(node.tag)}; remove the tag")
        if name in ("int", "float") and len(node.value) > MAX_DIGITS:
            return self._refuse(node, f"a number of {len(node.value)} characters; shorten it")
        return convert(node.value)

    def _refuse(self, node: yaml.Node, problem: str) -> None:
        self.problems.append(f"{_line(node)}: {problem}")


def _integer(text: str) -> int:
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text, base)


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _short(tag: str) -> str:
    return tag.replace(TAG, "!!")[:60]


def _shown(value: Any) -> str:
    return described(value) if isinstance(value, dict | list) or value is None else f"{value!r}"[:60]


def _syntax_problem(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    if error.context == "expected a single document in the stream":
        return f"a second document starts on line {line}; a configuration file must have one"
    reported = error.context if error.problem == "second occurrence" else error.problem
    problem = one_line(reported or error.context).removesuffix("; first occurrence")
    return f"broken YAML at line {line}, column {column} ({problem}); {_next_step(problem, text, mark)}"


def _next_step(problem: str, text: str, mark: Any) -> str:
    index = mark.index if mark else 0
    if text[max(index - 1, 0) : index + 1] == "${":
        return 'put text with braces in quotes: "${NAME}/folder"'
    if "'\\t'" in problem:
        return "use blanks instead of tabs"
    if "cannot start any token" in problem:
        return "put text that starts with this character in quotes"
    if "mapping values are not allowed" in problem:
        return "fix the indentation, or put text with ': ' in quotes"
    if "duplicate anchor" in problem:
        return "give each anchor a unique name"
    if "escape" in problem:
        return "write a backslash twice, or use single quotes"
    return "fix it"
