"""LDP, the vision projector of the first MobileVLM (arXiv 2312.16886, section 3.3): an MLP and two MobileNet blocks.

The blocks are MobileNetV3's inverted residuals without expansion: depthwise 3 x 3 convolution, squeeze and excitation,
point-wise convolution, with layer norm over the channels in place of batch norm. The second halves the grid.

Module names give the original's checkpoint keys `model.mlp.{1,3}.*`, `model.mb_block.{1,2}.block.0.{0,1}.*`,
`...block.1.{fc1,fc2}.*` and `...block.2.{0,1}.*`.
"""

from math import isqrt

from torch import Tensor, nn
from torch.nn import functional

NORM_EPS = 1e-5
SQUEEZE = 4
CHANNEL_STEP = 8


def halved(grid: int) -> int:
    """Side of a grid after the convolution with stride 2."""
    return (grid + 1) // 2


def squeezed_channels(channels: int) -> int:
    """A quarter of the channels, rounded as the original: to a multiple of 8, down by at most 10 %."""
    wanted = channels // SQUEEZE
    rounded = max(CHANNEL_STEP, (wanted + CHANNEL_STEP // 2) // CHANNEL_STEP * CHANNEL_STEP)
    return rounded + CHANNEL_STEP if 10 * rounded < 9 * wanted else rounded


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels at each grid position: [B, D, h, w]."""

    def forward(self, grid_BDhw: Tensor) -> Tensor:
        normed_BhwD = functional.layer_norm(
            grid_BDhw.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normed_BhwD.permute(0, 3, 1, 2)


class _SqueezeExcitation(nn.Module):
    """Scale each channel by a function of its mean over the grid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, squeezed_channels(channels), 1)
        self.fc2 = nn.Conv2d(squeezed_channels(channels), channels, 1)

    def forward(self, grid_BDhw: Tensor) -> Tensor:
        mean_BD11 = functional.adaptive_avg_pool2d(grid_BDhw, 1)
        scale_BD11 = functional.hardsigmoid(self.fc2(functional.relu(self.fc1(mean_BD11))))
        return grid_BDhw * scale_BD11


class _InvertedResidual(nn.Module):
    """Depthwise, squeeze and excitation, point-wise; with a residual if the grid size does not change."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.has_residual = stride == 1
        depthwise = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
        self.block = nn.Sequential(
            nn.Sequential(depthwise, _ChannelNorm(channels, NORM_EPS), nn.Hardswish()),
            _SqueezeExcitation(channels),
            nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), _ChannelNorm(channels, NORM_EPS)),
        )

    def forward(self, grid_BDhw: Tensor) -> Tensor:
        out: Tensor = self.block(grid_BDhw)
        return out + grid_BDhw if self.has_residual else out


class _LDPBlock(nn.Module):
    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        # the first entries do nothing in the original, but shift the numbers in the names
        self.mlp = nn.Sequential(
            nn.Identity(), nn.Linear(vision_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, hidden_size)
        )
        self.mb_block = nn.Sequential(
            nn.Identity(), _InvertedResidual(hidden_size, stride=1), _InvertedResidual(hidden_size, stride=2)
        )

    def forward(self, features_BND: Tensor) -> Tensor:
        hidden_BND = self.mlp(features_BND)
        num, patches, size = hidden_BND.shape
        grid_BDhw: Tensor = self.mb_block(hidden_BND.transpose(1, 2).reshape(num, size, isqrt(patches), isqrt(patches)))
        return grid_BDhw.flatten(2).transpose(1, 2)


class LDPProjector(nn.Module):
    """Tower features [B, patches, D_vision] -> vision embeddings [B, P, D], P a quarter of the patches."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__()
        self.model = _LDPBlock(vision_size, hidden_size)

    def forward(self, features_BND: Tensor) -> Tensor:
        out: Tensor = self.model(features_BND)
        return out
