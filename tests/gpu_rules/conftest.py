"""What the checks of this folder share. Only `test_in_a_process_of_its_own.py` is a test of the suite.

The fixtures import what they need when they are asked for: nothing here touches torch in the process of other tests.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# The modules beside this file; the checks' process starts here, and no other test's module has such a name.
sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="session")
def registered() -> torch.device:
    """The pretend device; before the first backward pass, when autograd counts the devices."""
    from pretend_device import register

    return register()


@pytest.fixture(scope="session")
def jobs(registered: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`GoldenJobs`: dumps and trainings of the golden pair, on the CPU and on the pretend device."""
    from golden_jobs import GoldenJobs

    return GoldenJobs(tmp_path_factory.mktemp("gpu_rules"))


@pytest.fixture
def device(registered: torch.device) -> Iterator[torch.device]:
    """The pretend device, its log empty."""
    from pretend_device import LOG, pretend_device

    with pretend_device() as device:
        LOG.clear()
        yield device
