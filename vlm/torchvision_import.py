"""Makes torchvision importable beside a build of torch that its compiled operators do not fit.

transformers imports torchvision wherever it is installed. A CUDA build of torchvision beside a CPU build of torch
then ends every import of transformers with "operator torchvision::nms does not exist", because torchvision registers
functions for operators that its library could not define. Image processing uses none of these operators.
"""

import importlib.util
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

_REGISTRATIONS = "_meta_registrations.py"


@cache
def make_torchvision_importable() -> Any:
    """Define the operators that torchvision refers to and could not load; call before importing transformers.

    Nothing is done without torchvision, where it is imported already, or where its library can be loaded.

    Returns:
        The library that holds the definitions: they exist as long as it does. None if nothing was done.
    """
    if "torchvision" in sys.modules:
        return None
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    import torch

    folder = Path(found.origin).parent
    if _loads(folder):
        return None
    source = (folder / _REGISTRATIONS).read_text(encoding="utf-8")
    names = {*re.findall(r'"torchvision::(\w+)"', source), *re.findall(r'register_meta\("(\w+)"\)', source)}
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in sorted(names):
        library.define(f"{name}(Tensor a) -> Tensor")
    return library


def _loads(folder: Path) -> bool:
    """Whether torchvision's compiled operators fit this torch."""
    import torch

    for library in folder.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
        return True
    return True  # a build with another layout: it decides itself
