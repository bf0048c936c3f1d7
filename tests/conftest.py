"""Fixtures for every room: the golden cases and a tiny MobileVLM checkpoint."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")

GOLDEN = Path(__file__).parent / "golden" / "mobilevlm_v2_tiny"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with a tiny teacher and student and the outputs of the original implementation."""
    return GOLDEN


@pytest.fixture(scope="session")
def golden_images() -> Path:
    """Folder of the golden samples' images."""
    return GOLDEN.parent / "images"


@pytest.fixture(scope="session")
def golden_expected() -> dict[str, Any]:
    """Loss terms of the original, by sample id."""
    return {case["id"]: case for case in json.loads((GOLDEN / "expected.json").read_text())}
