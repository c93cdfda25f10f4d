"""Memory arithmetic: what training a network and predicting with it need, and the batch and features that a budget allows."""
from __future__ import annotations

import math
from dataclasses import dataclass

from .plan import NetworkPlan

BYTES = 4  # activations are counted in fp32: autocast to bf16 only lowers the figure
KEPT_A_BLOCK = 5  # for the backward pass: two convolutions' outputs, two normalised ones (the ReLU is in place), one gated one
KEPT_A_JOIN = 2  # upsampled tensor and skip, concatenated: twice the level's features
KEPT_A_POOLING = 3  # of the pooled size: its output, and the 64-bit indices of the maxima
KEPT_BY_LOSS = 3.25  # per output channel: logits, log-softmax, softmax and the labels' mask of one byte
IN_FLIGHT = 3  # gradients alive at the finest level, where the backward pass begins and memory peaks
WORKED_ON = 6  # times the finest level's features, in prediction: joined skip, convolution's and normalisation's output and scratch
ANSWERS = 6  # times the output channels: logits and softmax, those of the mirrored batch, and their mean
STATE_COPIES = 5  # weights, gradients, two optimiser moments, running average


@dataclass(frozen=True)
class Budget:
    """What a plan may use. memory_gb: for one training; accelerator: planned for a GPU (or only for CPU cores)."""

    memory_gb: float
    accelerator: bool
    why: str


def activations_per_sample(network: NetworkPlan, shape: tuple[int, ...]) -> float:
    """Elements that one sample's forward pass keeps, and the gradients beside them at the peak."""
    size, voxels = list(shape), [math.prod(shape)]
    for step in network.strides:
        size = [n / k for n, k in zip(size, step)]
        voxels.append(math.prod(size))
    f, bottom = network.features, len(network.features) - 1
    total = network.in_channels * voxels[0] + KEPT_A_BLOCK * f[bottom] * voxels[bottom]
    for i in range(bottom):  # encoder and decoder of each level above the bottom
        total += (2 * KEPT_A_BLOCK + KEPT_A_JOIN) * f[i] * voxels[i] + KEPT_A_POOLING * f[i] * voxels[i + 1]
    outputs = voxels[: max(1, bottom - 1)] if network.deep_supervision else voxels[:1]
    total += KEPT_BY_LOSS * network.out_channels * sum(outputs)
    return total + IN_FLIGHT * max(f[0], network.out_channels) * voxels[0]


def parameters(network: NetworkPlan) -> int:
    """Number of weights (convolutions and transposed convolutions; the rest is under three per cent)."""
    f, total = network.features, 0
    for i, kernel in enumerate(network.kernels):
        k = math.prod(kernel)
        total += k * ((network.in_channels if i == 0 else f[i - 1]) * f[i] + f[i] * f[i])
        if i < len(f) - 1:
            total += k * (2 * f[i] * f[i] + f[i] * f[i]) + f[i] * f[i + 1] * math.prod(network.strides[i])
    return total


def training_memory_gb(network: NetworkPlan, shape: tuple[int, ...], batch_size: int) -> float:
    """Peak memory of a training step in GiB: kept activations of the batch and the copies of the weights.

    Measured on CPUs it is 0 to 8 % above the true peak (tests/planning/test_budget.py); a GPU's libraries take workspaces besides.
    """
    return BYTES * (batch_size * activations_per_sample(network, shape) + STATE_COPIES * parameters(network)) / 2**30


def prediction_memory_gb(network: NetworkPlan, shape: tuple[int, ...], batch_size: int) -> float:
    """Peak memory of predicting a batch, mirrored too, in GiB, without the weights; at most, and up to about twice what it is.

    Nothing is kept for a backward pass but the skips; the finest level's last block, or the answers after it, take most.
    """
    size, voxels = list(shape), [math.prod(shape)]
    for step in network.strides:
        size = [n / k for n, k in zip(size, step)]
        voxels.append(math.prod(size))
    f, out = network.features, network.out_channels
    skips = sum(features * n for features, n in zip(f[:-1], voxels))
    below = f[1] * voxels[1] if network.strides else 0
    block = skips + below + WORKED_ON * f[0] * voxels[0] + out * voxels[0]
    return BYTES * batch_size * (2 * network.in_channels * voxels[0] + max(block, ANSWERS * out * voxels[0])) / 2**30


def largest_batch(network: NetworkPlan, shape: tuple[int, ...], budget: Budget, wanted: int, least: int) -> int:
    """The wanted batch size, halved while it does not fit the budget, but not below `least`."""
    batch = wanted
    while batch > least and training_memory_gb(network, shape, batch) > budget.memory_gb:
        batch = max(least, batch // 2)
    return batch


def features_rule(base: int, budget: Budget) -> str:
    """Why this many features."""
    return f"base {base}: planned for {'an accelerator' if budget.accelerator else 'CPU cores'}, doubled at each level"


def batch_rule(network: NetworkPlan, shape: tuple[int, ...], budget: Budget, wanted: int, why: str, batch: int) -> str:
    """Why this batch size was wanted, why it is what it is, and what it needs."""
    needs = training_memory_gb(network, shape, batch)
    rule = f"{wanted} ({why}), halved while a step needs more than {budget.memory_gb:.1f} GB; needs {needs:.2f} GB"
    return rule if needs <= budget.memory_gb else rule + ", over the budget: a smaller batch does not train well"
