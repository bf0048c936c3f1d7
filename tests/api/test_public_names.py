"""`import alignkd` offers what it lists, lazily and typed."""

import ast
import pickle
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

import alignkd

SOURCE = Path(alignkd.__file__)


def test_dir_lists_the_public_names() -> None:
    assert dir(alignkd) == sorted(alignkd.__all__)
    assert len(set(alignkd.__all__)) == len(alignkd.__all__)
    with pytest.raises(AttributeError, match="module 'alignkd' has no attribute 'dumps'"):
        alignkd.dumps  # noqa: B018


@pytest.mark.parametrize("name", alignkd.__all__)
def test_a_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(alignkd, name)
    assert name == "__version__" or value.__doc__


def test_type_checkers_see_the_same_objects() -> None:
    """The imports under TYPE_CHECKING are those of `__getattr__`."""
    block = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.asname or alias.name: (node.module, alias.name) for node in imports for alias in node.names}
    assert {*typed, "__version__"} == set(alignkd.__all__)
    for name, (module, original) in typed.items():
        found = __import__(str(module), fromlist=[original])
        assert getattr(found, original) is getattr(alignkd, name), name


def test_types_are_shipped() -> None:
    assert files("alignkd").joinpath("py.typed").is_file()


def test_looking_into_a_store_loads_neither_torch_nor_zarr(store: Path) -> None:
    code = (
        "import sys, alignkd; before = set(sys.modules)\n"
        "assert not [name for name in sys.modules if name.startswith('alignkd.')]\n"
        "store = alignkd.open_store(sys.argv[1]); repr((store, store[0], store.manifest)); store.logprobs(0)\n"
        "assert alignkd.verify(sys.argv[1]).ok\n"
        "print([name for name in ('torch', 'zarr', 'transformers', 'webdataset', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, store], capture_output=True, text=True, env=_environment())
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "alignkd"]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, env=_environment())
    assert shown.stdout.startswith("Usage: alignkd [OPTIONS] COMMAND")
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True, env=_environment())
    assert alignkd.__version__ in version.stdout
    failed = subprocess.run([*command, "shards", "ls", "/nowhere"], capture_output=True, text=True, env=_environment())
    assert failed.returncode == 1 and failed.stderr.startswith("alignkd: ") and failed.stderr.count("\n") == 1


def test_only_our_own_program_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from alignkd.pipeline.console.program import _is_our_process

    for program, expected in (
        ("/usr/bin/alignkd", True),
        ("/lib/python/alignkd/__main__.py", True),
        ("/lib/python/alignkd/pipeline/cli.py", True),
        ("/lib/python/pytest/__main__.py", False),
        ("/lib/python/ipykernel_launcher.py", False),
        ("-c", False),
    ):
        monkeypatch.setattr(sys, "argv", [program])
        assert _is_our_process() == expected, program


def test_errors_have_one_base_class() -> None:
    classes = [getattr(alignkd.errors, name) for name in alignkd.errors.__all__]
    assert all(issubclass(error, alignkd.AlignkdError) for error in classes)
    assert issubclass(alignkd.AlignkdError, ValueError)
    again = pickle.loads(pickle.dumps(alignkd.errors.StoreError("store a: is gone; restore it")))
    assert type(again) is alignkd.errors.StoreError and str(again) == "store a: is gone; restore it"


def test_the_command_ends_with_one_line_for_our_errors_only(capsys: pytest.CaptureFixture[str]) -> None:
    from alignkd.pipeline.console.errors import clean_errors

    class ForeignError(ValueError):
        """Of a plug-in whose name begins as ours."""

    ForeignError.__module__ = "alignkd.storage.errors"
    for error, is_clean in ((alignkd.errors.TrainError("a: b; c"), True), (ForeignError("a"), False)):

        @clean_errors
        def command(error: ValueError = error) -> None:
            raise error

        with pytest.raises(SystemExit if is_clean else ForeignError):
            command()
    assert capsys.readouterr().err == "alignkd: a: b; c\n"


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(SOURCE.parents[1]), "OMP_NUM_THREADS": "1"}
