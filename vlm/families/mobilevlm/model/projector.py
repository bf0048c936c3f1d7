"""Vision projectors: tower features [B, patches, D_vision] -> vision embeddings [B, P, D], by `mm_projector_type`.

| type | what it is | P |
|---|---|---|
| `ldpnetv2` | LDPv2 of MobileVLM V2 (arXiv 2402.03766, section 3.3) | grid x grid, 12 x 12 officially |
| `ldpnet` | LDP of MobileVLM (arXiv 2312.16886, section 3.3), `projector_ldp.py` | a quarter of the patches |
| `linear` | one linear layer (LLaVA) | patches |
| `mlp{N}x_gelu` | N linear layers with GELU between them (LLaVA 1.5: N = 2) | patches |

Module names give the keys of the original's checkpoints: `mlp.mlp.{0,2}.*` and `peg.peg.0.*`, `model.*`, `weight` and
`bias`, or `{0,2,...}.*`.
"""

import re
from math import isqrt

from torch import Tensor, nn
from torch.nn import functional

from alignkd.vlm.families.mobilevlm.model.projector_ldp import LDPProjector, halved

PROJECTOR_TYPES = ("ldpnetv2", "ldpnet", "linear", "mlp{N}x_gelu")
_MLP = re.compile(r"mlp([1-9]\d?)x_gelu")


def is_projector_type(name: object) -> bool:
    """Whether `build_projector` supports it."""
    return isinstance(name, str) and (name in PROJECTOR_TYPES[:3] or _MLP.fullmatch(name) is not None)


def projector_grid(name: str, patch_grid: int, pooled_grid: int) -> int:
    """Side of the square of vision tokens of the output.

    Args:
        name: `mm_projector_type`.
        patch_grid: side of the square of input patches.
        pooled_grid: side of the grid that `ldpnetv2` pools to.
    """
    if name == "ldpnetv2":
        return pooled_grid
    return halved(patch_grid) if name == "ldpnet" else patch_grid


def build_projector(name: str, vision_size: int, hidden_size: int, pooled_grid: int) -> nn.Module:
    """The projector of a supported type; weights are random."""
    if name == "ldpnetv2":
        return LDPv2Projector(vision_size, hidden_size, pooled_grid)
    if name == "ldpnet":
        return LDPProjector(vision_size, hidden_size)
    if name == "linear":
        return nn.Linear(vision_size, hidden_size)
    depth = _MLP.fullmatch(name)
    assert depth is not None, name
    layers: list[nn.Module] = [nn.Linear(vision_size, hidden_size)]
    for _ in range(1, int(depth[1])):
        layers += [nn.GELU(), nn.Linear(hidden_size, hidden_size)]
    return nn.Sequential(*layers)


class _FeatureTransform(nn.Module):
    """Point-wise MLP D_vision -> D -> D."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_features, out_features), nn.GELU(), nn.Linear(out_features, out_features))

    def forward(self, features_BND: Tensor) -> Tensor:
        out: Tensor = self.mlp(features_BND)
        return out


class _PositionInjection(nn.Module):
    """Depthwise 3 x 3 convolution with a residual (positional encoding generator)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.peg = nn.Sequential(nn.Conv2d(channels, channels, 3, stride=1, padding=1, groups=channels))

    def forward(self, grid_BDhw: Tensor) -> Tensor:
        out: Tensor = self.peg(grid_BDhw) + grid_BDhw
        return out


class _GridPooling(nn.Module):
    """Mean over equal parts of the grid, or nearly equal ones: [B, D, h, w] -> [B, D, grid, grid]."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, grid_BDhw: Tensor) -> Tensor:
        height, width = grid_BDhw.shape[2:]
        if height % self.grid or width % self.grid:
            return functional.adaptive_avg_pool2d(grid_BDhw, (self.grid, self.grid))
        # the same function, but its backward pass adds in one order on CUDA, too
        return functional.avg_pool2d(grid_BDhw, (height // self.grid, width // self.grid))


class LDPv2Projector(nn.Module):
    """Projector of MobileVLM V2: P = grid x grid."""

    def __init__(self, vision_size: int, hidden_size: int, grid: int) -> None:
        super().__init__()
        self.mlp = _FeatureTransform(vision_size, hidden_size)
        self.dwn = _GridPooling(grid)
        self.peg = _PositionInjection(hidden_size)

    def forward(self, features_BND: Tensor) -> Tensor:
        hidden_BND = self.mlp(features_BND)
        num, patches, size = hidden_BND.shape
        grid_BDhw = hidden_BND.transpose(1, 2).reshape(num, size, isqrt(patches), isqrt(patches))
        pooled: Tensor = self.peg(self.dwn(grid_BDhw))
        return pooled.flatten(2).transpose(1, 2)
