"""Makes torchvision importable without importing alignkd, for processes that import another alignkd later."""

import importlib.util
import runpy
from pathlib import Path

_PRODUCT = Path(__file__).parents[2] / "vlm" / "torchvision_import.py"
# the definitions exist as long as this object
LIBRARY = runpy.run_path(str(_PRODUCT))["make_torchvision_importable"]()

if importlib.util.find_spec("torchvision") is not None:
    import torchvision  # noqa: F401
