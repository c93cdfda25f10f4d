"""Memory arithmetic: what training a network needs, and the batch and features that a budget allows."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .plan import NetworkPlan

BYTES = 4  # activations are counted in fp32: autocast to bf16 only lowers the figure
TENSORS_PER_CONVOLUTION = 3.0  # kept for the backward pass: convolution output, normalised output, and the gradient in flight
STATE_COPIES = 5  # weights, gradients, two optimiser moments, running average


@dataclass(frozen=True)
class Budget:
    """What a plan may use. memory_gb: for one training; accelerator: planned for a GPU (or only for CPU cores)."""

    memory_gb: float
    accelerator: bool
    why: str


def activations_per_sample(network: NetworkPlan, shape: tuple[int, ...]) -> float:
    """Elements that one sample's forward and backward pass keep."""
    size, total, voxels = list(shape), network.in_channels * math.prod(shape), []
    for step in (*network.strides, None):
        voxels.append(math.prod(size))
        size = [n / k for n, k in zip(size, step)] if step else size
    levels = len(network.features)
    for i in range(levels):
        f, v = network.features[i], voxels[i]
        blocks = 2 if i < levels - 1 else 1  # encoder and decoder, but one at the bottom
        total += blocks * f * v * (2 * TENSORS_PER_CONVOLUTION + 1)  # two convolutions, one gated output
        total += 3 * f * v if i < levels - 1 else 0  # upsampled tensor and the concatenation of both
    outputs = voxels if network.deep_supervision else voxels[:1]
    total += 6 * network.out_channels * sum(outputs[: max(1, levels - 2)])  # logits, log-softmax, softmax and gradients
    return total


def parameters(network: NetworkPlan) -> int:
    """Number of weights (convolutions and transposed convolutions; the rest is under one per cent)."""
    f, total = network.features, 0
    for i, kernel in enumerate(network.kernels):
        k = math.prod(kernel)
        total += k * ((network.in_channels if i == 0 else f[i - 1]) * f[i] + f[i] * f[i])
        if i < len(f) - 1:
            total += k * (2 * f[i] * f[i] + f[i] * f[i]) + f[i] * f[i + 1] * math.prod(network.strides[i])
    return total


def training_memory_gb(network: NetworkPlan, shape: tuple[int, ...], batch_size: int) -> float:
    """Peak memory of a training step in GiB: kept activations of the batch and the copies of the weights."""
    return BYTES * (batch_size * activations_per_sample(network, shape) + STATE_COPIES * parameters(network)) / 2**30


def largest_batch(network: NetworkPlan, shape: tuple[int, ...], budget: Budget, wanted: int, least: int) -> int:
    """The wanted batch size, halved while it does not fit the budget, but not below `least`."""
    batch = wanted
    while batch > least and training_memory_gb(network, shape, batch) > budget.memory_gb:
        batch = max(least, batch // 2)
    return batch


def with_features(network: NetworkPlan, features: tuple[int, ...]) -> NetworkPlan:
    return replace(network, features=features)
