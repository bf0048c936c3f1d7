"""Run by the interpreter that has the wheel: what is in the wheel, and which files its names come from.

Usage: python check_installed.py WHEEL CHECKOUT
"""

import subprocess
import sys
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import alignkd

ROOMS = ("disk", "evaluation", "pipeline", "storage", "student_train", "teacher_dump", "vlm")


def main(wheel: Path, checkout: Path) -> None:
    """Assert what a user relies on."""
    with ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"alignkd", f"alignkd-{alignkd.__version__}.dist-info"}, f"the wheel holds {sorted(tops)}"
    packed = {name for name in names if name.startswith("alignkd/")}
    assert packed == expected(checkout), f"differs from the checkout: {sorted(packed ^ expected(checkout))}"
    assert "alignkd/py.typed" in packed

    prefix = Path(sys.prefix)
    for module in (alignkd, *(import_module(f"alignkd.{room}") for room in ROOMS)):
        assert prefix in Path(str(module.__file__)).parents, f"{module.__name__} is {module.__file__}"
    assert prefix in Path(str(distribution("alignkd").locate_file(""))).parents
    for name in ("pipeline", "storage", "vlm"):
        assert import_module(name).OWNER == "somebody else", f"{name} is {import_module(name).__file__}"
    for name in alignkd.__all__:
        getattr(alignkd, name)
    strays = [
        name
        for name, module in list(sys.modules.items())
        if checkout in Path(getattr(module, "__file__", None) or "/").parents and name.split(".")[0] == "alignkd"
    ]
    assert strays == [], f"imported from the checkout: {strays}"
    print(f"wheel: {len(packed)} files below alignkd/, imported from {alignkd.__file__}")


def expected(checkout: Path) -> set[str]:
    """The files that git knows in the package and in the folders that its links lead to."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/alignkd", *ROOMS],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [name.removeprefix("src/alignkd/") for name in listed.stdout.splitlines()]
    return {f"alignkd/{name}" for name in files if name not in ROOMS and (checkout / "src/alignkd" / name).is_file()}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
