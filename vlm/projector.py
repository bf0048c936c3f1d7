"""LDPv2, the vision projector of MobileVLM V2 (arXiv 2402.03766, section 3.3).

Module names give the official checkpoint keys `mlp.mlp.{0,2}.*` and `peg.peg.0.*`.
"""

from torch import Tensor, nn


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


class LDPv2Projector(nn.Module):
    """Tower features [B, patches, D_vision] -> vision embeddings [B, P, D] with P = grid x grid."""

    def __init__(self, vision_size: int, hidden_size: int, grid: int) -> None:
        super().__init__()
        self.mlp = _FeatureTransform(vision_size, hidden_size)
        self.dwn = nn.AdaptiveAvgPool2d((grid, grid))
        self.peg = _PositionInjection(hidden_size)

    def forward(self, features_BND: Tensor) -> Tensor:
        hidden_BND = self.mlp(features_BND)
        num, patches, size = hidden_BND.shape
        side = int(patches**0.5)
        grid_BDhw = hidden_BND.transpose(1, 2).reshape(num, size, side, side)
        pooled: Tensor = self.peg(self.dwn(grid_BDhw))
        return pooled.flatten(2).transpose(1, 2)
