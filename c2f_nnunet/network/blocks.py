"""The parts of the SE-U-Net; one definition for 2D and 3D."""
from __future__ import annotations

import torch
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
CONV_TRANSPOSE = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
NORM = {
    ("instance", 2): lambda n: nn.InstanceNorm2d(n, affine=True),
    ("instance", 3): lambda n: nn.InstanceNorm3d(n, affine=True),
    ("batch", 2): nn.BatchNorm2d,
    ("batch", 3): nn.BatchNorm3d,
}


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al., 2018): global mean → two linear layers → a gate per channel. (B, C, *) in and out."""

    def __init__(self, channels: int, ratio: int):
        super().__init__()
        hidden = max(4, channels // ratio)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean(tuple(range(2, x.ndim)))))))
        return x * gate.reshape(*gate.shape, *(1,) * (x.ndim - 2)).to(x.dtype)


class ConvBlock(nn.Module):
    """Two (convolution, normalisation, leaky ReLU) and an SE block: (B, C_in, *) → (B, C_out, *)."""

    def __init__(self, dimensions: int, channels_in: int, channels_out: int, kernel: tuple[int, ...], norm: str, se_ratio: int):
        super().__init__()
        layers = []
        for n in (channels_in, channels_out):
            # no bias: the normalisation that follows removes it
            layers += [
                CONV[dimensions](n, channels_out, kernel, padding=tuple(k // 2 for k in kernel), bias=False),
                NORM[norm, dimensions](channels_out),
                nn.LeakyReLU(0.01, inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        self.attention = SqueezeExcite(channels_out, se_ratio)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(self.layers(x))
