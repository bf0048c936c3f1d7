"""Computes the LDP numbers of test_projectors.py with the original's building blocks. No test: it needs them.

    pip install torchvision timm
    python tests/vlm/families/mobilevlm/model/check_projector.py

The two blocks are torchvision's `InvertedResidual` with timm's `LayerNormAct2d` and a hard sigmoid in the squeeze and
excitation, as MobileVLM's `vision_projector.py` puts them together.
"""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import timm
import torch
import torchvision
from timm.layers.norm_act import LayerNormAct2d
from torch import Tensor, nn
from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig
from torchvision.ops.misc import SqueezeExcitation

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[4] / "src"))
spec = importlib.util.spec_from_file_location("test_projectors", HERE / "test_projectors.py")
assert spec is not None and spec.loader is not None
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)


def original(channels: int) -> Tensor:
    """Tokens 0, 70 and 143 of the output, first three channels."""
    norm = partial(LayerNormAct2d, act_layer=None)
    excitation = partial(SqueezeExcitation, scale_activation=nn.Hardsigmoid)
    blocks = [
        InvertedResidual(
            InvertedResidualConfig(channels, 3, channels, channels, True, "HS", stride, 1, 1), norm, excitation
        )
        for stride in (1, 2)
    ]
    mlp = nn.Sequential(nn.Linear(32, channels), nn.GELU(), nn.Linear(channels, channels))
    for number, parameter in enumerate(p for part in (mlp, *blocks) for p in part.parameters()):
        parameter.data = tests.waves(tuple(parameter.shape), number)
    with torch.no_grad():
        grid = mlp(tests.waves((1, 576, 32), 99)).permute(0, 2, 1).reshape(1, channels, 24, 24)
        for block in blocks:
            grid = block(grid)
    return grid.flatten(2).permute(0, 2, 1)[0, [0, 70, 143], :3]


if __name__ == "__main__":
    for channels in tests.ORIGINAL:
        print(channels, [[round(value, 6) for value in row] for row in original(channels).tolist()])
    print(f"torchvision {torchvision.__version__}, timm {timm.__version__}")
