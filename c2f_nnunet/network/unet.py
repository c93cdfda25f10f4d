"""The SE-U-Net of both stages: 2D for the three views, 3D for the organs' crops."""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..planning.plan import NetworkPlan
from .blocks import CONV, CONV_TRANSPOSE, MAX_POOL, ConvBlock


class SEUNet(nn.Module):
    """U-Net with SE blocks, max pooling, skip connections and deep supervision.

    forward: (B, in_channels, *shape) → list of logits (B, out_channels, *shape / stride), finest first; only the
    finest in eval mode or without deep supervision. Each spatial size must be divisible by the product of its strides.
    """

    def __init__(self, plan: NetworkPlan):
        super().__init__()
        d, f = plan.dimensions, plan.features

        def block(channels_in: int, level: int) -> ConvBlock:
            return ConvBlock(d, channels_in, f[level], plan.kernels[level], plan.norm, plan.se_ratio)

        self.encoder = nn.ModuleList([block(plan.in_channels if i == 0 else f[i - 1], i) for i in range(len(f))])
        self.pool = nn.ModuleList([MAX_POOL[d](s) for s in plan.strides])
        self.up = nn.ModuleList([CONV_TRANSPOSE[d](f[i + 1], f[i], s, stride=s, bias=False) for i, s in enumerate(plan.strides)])
        self.decoder = nn.ModuleList([block(2 * f[i], i) for i in range(len(f) - 1)])
        # the coarsest decoder level gets no head of its own: small organs vanish there
        heads = max(1, len(f) - 2) if plan.deep_supervision else 1
        self.heads = nn.ModuleList([CONV[d](f[i], plan.out_channels, 1) for i in range(heads)])
        self.apply(_initialise)
        for head in self.heads:
            nn.init.constant_(head.bias[:1], plan.background_prior)

    def forward(self, x: Tensor) -> list[Tensor]:
        skips = []
        for i, encode in enumerate(self.encoder):
            x = encode(x)
            if i < len(self.pool):
                skips.append(x)
                x = self.pool[i](x)
        if not self.decoder:  # too small a grid to pool
            return [self.heads[0](x)]
        outputs: list[Tensor] = []
        for i in reversed(range(len(self.decoder))):
            x = self.decoder[i](torch.cat([self.up[i](x), skips[i]], 1))
            if i == 0 or (self.training and i < len(self.heads)):
                outputs.insert(0, self.heads[i](x))
        return outputs


def _initialise(module: nn.Module) -> None:
    """Kaiming for leaky ReLU, as nnU-Net."""
    if isinstance(module, (*CONV.values(), *CONV_TRANSPOSE.values())):
        nn.init.kaiming_normal_(module.weight, a=0.01)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build_network(plan: NetworkPlan) -> SEUNet:
    """The network of a member; its weights are random (torch's global generator)."""
    return SEUNet(plan)
