"""Rules of the source that keep a fault from coming back: who writes tensor files, which encoding texts have."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "evaluation", "teacher_dump", "student_train", "vlm", "storage", "disk")


def trees(*words: str) -> Iterator[tuple[str, ast.Module]]:
    """Path and syntax tree of every module that has one of some words in it."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            if any(word in text for word in words):
                yield str(path.relative_to(ROOT)), ast.parse(text)


def mentions(tree: ast.Module, name: str) -> bool:
    """Whether `name` is imported, or used as an attribute."""
    imported = any(name in {alias.name for alias in node.names} for node in ast.walk(tree) if is_import(node))  # type: ignore[attr-defined]
    return imported or any(node.attr == name for node in ast.walk(tree) if isinstance(node, ast.Attribute))


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def test_one_module_writes_safetensors_files() -> None:
    """`save_file` makes files of mode 0600 that only their owner can read; `vlm/weights/tensor_file.py` mends it."""
    for name, allowed in (("save_file", {"vlm/weights/tensor_file.py"}), ("serialize_file", set())):
        found = {path for path, tree in trees(name) if mentions(tree, name)}
        assert found == allowed, name


def test_nobody_makes_temporary_files_that_keep_their_mode() -> None:
    """`mkstemp` and `NamedTemporaryFile` make 0600 too: for a file that is renamed into place, `disk/whole_file.py`."""
    for name in ("mkstemp", "NamedTemporaryFile"):
        assert not [path for path, tree in trees(name) if mentions(tree, name)], name


def test_every_text_names_its_encoding() -> None:
    """Otherwise it is the locale's: ISO-8859-1 on many clusters."""
    found = [
        f"{path}:{call.lineno}"
        for path, tree in trees("_text(", "open(")
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and opens_text(call) and "encoding" not in {word.arg for word in call.keywords}
    ]
    assert not found


def opens_text(call: ast.Call) -> bool:
    """`read_text`, `write_text`, and `open` in a text mode: of `Path`, or the built-in one."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name in ("read_text", "write_text"):
        return True
    if name != "open" or (
        isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("os", "Image", "tarfile")
    ):
        return False
    arguments = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    if isinstance(call.func, ast.Attribute):  # of a Path: no mode is text; `open(path)` of a store takes something else
        return not call.args or any(mode in ("r", "w", "a", "x", "r+") for mode in modes)
    return not any("b" in mode for mode in modes)


def test_the_rule_sees_what_it_is_for() -> None:
    bad = "p.read_text()", "p.write_text(x)", "p.open()", "p.open('a')", "open(p)", "open(p, 'w')"
    good = (
        "p.open('rb')",
        "open(p, 'rb')",
        "os.open(p, 1)",
        "Image.open(p)",
        "self.files.open(p, what)",
        "tarfile.open(fileobj=f, mode='r:')",
    )
    assert all(opens_text(ast.parse(text, mode="eval").body) for text in bad)  # type: ignore[arg-type]
    assert not any(opens_text(ast.parse(text, mode="eval").body) for text in good)  # type: ignore[arg-type]
