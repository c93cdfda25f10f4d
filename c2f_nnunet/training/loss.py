"""The losses. Every voxel is visited once, giving sums per channel (ChannelSums); each loss is a small reduction of them.

A loss is a function loss(logits, target, known) -> scalar:
  logits (B, C, *spatial): channel 0 is the background, channel i + 1 the organ i; any float type, float32 inside.
  target (B, *spatial): integer channels 0…C-1.
  known (B, C) bool: False where organ c was not annotated in sample b; the background is always known.
An unknown organ may be anywhere in the background, so its probability is merged into the background's (marginal
cross-entropy, Shi et al. 2021, doi 10.1016/j.media.2021.101979), and it enters no Dice term of that sample.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import interpolate

from ..planning.plan import LossPlan

FOCAL_GAMMA = 2.0  # Lin et al. 2017
DICE_START = 0.1  # an organ with a batch Dice under this has not started (documentation/experiments.md, 43)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ChannelSums:
    """Sums (C,) over batch, space and processes; an organ's leave out the samples in which it is unknown.

    voxels: how many voxels were looked at; truth: Σ y; predicted: Σ ŷ; overlap: Σ y ŷ; surprise: -Σ y (1-ŷ)^γ log ŷ.
    """

    voxels: Tensor
    truth: Tensor
    predicted: Tensor
    overlap: Tensor
    surprise: Tensor


def channel_sums(logits: Tensor, target: Tensor, known: Tensor, focal_gamma: float = 0.0) -> ChannelSums:
    """The sums that all losses are made of; arguments as for every loss."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    known = known.to(logits.device)
    log_p = torch.log_softmax(logits, 1)
    p = log_p.exp()
    if not known.all():
        log_p, p, target = _merge_unknown(log_p, target, known)
    channels = torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.ndim - 2))
    y = target[:, None] == channels
    nll = -log_p if focal_gamma == 0 else -log_p * (1 - p) ** focal_gamma
    voxels = known.sum(0).to(p.dtype) * target[0].numel()
    over = (0, *range(2, logits.ndim))
    # where, not a product: a log-probability of -inf times y = 0 would be NaN
    sums = [voxels, y.sum(over).to(p.dtype), p.sum(over), (y * p).sum(over), torch.where(y, nll, 0).sum(over)]
    return ChannelSums(*across_processes(torch.stack(sums)))


def _merge_unknown(log_p: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, probabilities and target after unknown organs became background; their own channels are 0."""
    unknown = ~known.view(*known.shape, *[1] * (log_p.ndim - 2))
    merging = unknown.clone()
    merging[:, 0] = True
    background = log_p.masked_fill(~merging, -torch.inf).logsumexp(1, keepdim=True)
    log_p = torch.cat([background, log_p[:, 1:]], 1)
    is_known = known.gather(1, target.long().flatten(1)).view(target.shape)
    return log_p.masked_fill(unknown, 0), log_p.exp().masked_fill(unknown, 0), target.where(is_known, 0)


class _SumOverProcesses(torch.autograd.Function):
    """all_reduce(sum) forwards, all_reduce(sum) of the gradients backwards."""

    @staticmethod
    def forward(ctx, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return _SumOverProcesses.apply(gradient)


def across_processes(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes of a distributed training; the tensor itself where there is only this process.

    Why P processes with batch B then follow one with batch P·B exactly: every process computes the same L = f(S) of the
    total S = Σ_r s_r. Its backward pass sums dL/dS over the processes, so process r holds P f'(S) ds_r/dθ, and DDP's
    averaging gives 1/P Σ_r P f'(S) ds_r/dθ = f'(S) dS/dθ: the gradient of one process that sees all samples. Averaging
    per-process losses would not: a ratio of sums (Dice, class weights) is not the mean of the ratios.

    Without a gradient (validation) nothing is exchanged, so that one process may validate alone without waiting forever.
    """
    if not (dist.is_available() and dist.is_initialized() and tensor.requires_grad):
        return tensor
    return _SumOverProcesses.apply(tensor)


def class_weights(sums: ChannelSums, reading: str, temper: float = 0.5) -> Tensor:
    """Weights (C,) of the cross-entropy's classes; no gradient flows through them.

    predictions, labels: the paper's equation (2), w_j = (N - n_j) / n_j with n_j = Σ_i ŷ_ij or Σ_i y_ij. N counts the
    voxels of the samples in which j is known, so with full annotation it is the paper's N.
    tempered: the labels' weights to the power `temper`, scaled so that the mean over voxels Σ_j n_j w_j / N is 1: the loss
    keeps plain cross-entropy's scale, and temper 0 is plain cross-entropy.
    Guard: numerator and denominator are never taken below one voxel, so an absent class weighs at most N.
    """
    if reading == "none":
        return torch.ones_like(sums.truth)
    n = (sums.predicted if reading == "predictions" else sums.truth).detach()
    weights = (sums.voxels - n).clamp(min=1) / n.clamp(min=1)
    if reading != "tempered":
        return weights
    weights = weights**temper
    return weights * sums.voxels[0] / (sums.truth * weights).sum()


def weighted_cross_entropy(sums: ChannelSums, reading: str = "predictions", temper: float = 0.5) -> Tensor:
    """The paper's equation (1): -(1/N) Σ_i Σ_j w_j y_ij log ŷ_ij (focal where the sums were made with a gamma)."""
    return (class_weights(sums, reading, temper).detach() * sums.surprise).sum() / sums.voxels[0]


def dice(sums: ChannelSums) -> Tensor:
    """Mean over the organs of 1 - D, D = 2 Σ y ŷ / Σ (y + ŷ) with the sums taken over the whole batch ("batch Dice").

    Where D is under DICE_START = d: 1 - d - d ln(D / d), which goes on smoothly from there. The gradient of 1 - D fades with the organ's
    probabilities, so that an organ which the network does not see yet, or small beside many false voxels, may never start;
    the logarithm's (Wong et al. 2018, arXiv 1809.00076) does not. In 0…1, and above 1 for an organ that has hardly started.

    An organ that no voxel of the batch is labelled with gives no term: 2·0 / Σ ŷ is 0 for any ŷ > 0, which would pull on
    false positives however faint; the cross-entropy deals with them smoothly. With no organ at all the value is 0.
    """
    present = sums.truth[1:] > 0
    score = 2 * sums.overlap[1:] / (sums.truth + sums.predicted)[1:].clamp(min=1)  # a present organ has at least one voxel
    faint = 1 - DICE_START - DICE_START * (score.clamp(1e-8, DICE_START) / DICE_START).log()
    return (torch.where(score < DICE_START, faint, 1 - score) * present).sum() / present.sum().clamp(min=1)


def generalised_dice(sums: ChannelSums) -> Tensor:
    """1 - 2 Σ_j w_j Σ_i y ŷ / Σ_j w_j Σ_i (y + ŷ) over all channels, background too; w_j = 1 / (Σ_i y_ij)²; in 0…1.

    The paper prints a further 1/M before the fraction, with which a perfect prediction would give 1 - 1/M; it is left
    out, as in Sudre et al. 2017 (arXiv 1707.03237), so that perfect is 0. A class without a voxel in the batch has w = 0.
    """
    weights = (sums.truth > 0) / sums.truth.clamp(min=1) ** 2
    return 1 - 2 * (weights * sums.overlap).sum() / (weights * (sums.truth + sums.predicted)).sum()


def dice_ce(sums: ChannelSums, plan: LossPlan) -> Tensor:
    """dice_weight · Dice + cross-entropy, which is focal where the sums were made with a gamma."""
    return plan.dice_weight * dice(sums) + weighted_cross_entropy(sums, plan.class_weights, plan.temper)


REDUCTIONS: dict[str, Callable[[ChannelSums, LossPlan], Tensor]] = {
    "dice_ce": dice_ce,
    "dice_focal": dice_ce,
    "weighted_ce": lambda sums, plan: weighted_cross_entropy(sums, plan.class_weights, plan.temper),
    "generalised_dice": lambda sums, plan: generalised_dice(sums),
}


def make_loss(plan: LossPlan) -> Loss:
    """The plan's loss(logits, target, known) -> scalar."""
    reduction = REDUCTIONS[plan.name]
    gamma = FOCAL_GAMMA if plan.name == "dice_focal" else 0.0

    def loss(logits: Tensor, target: Tensor, known: Tensor) -> Tensor:
        return reduction(channel_sums(logits, target, known, gamma), plan)

    return loss


def deep_supervised(loss: Loss, weights: Sequence[float] | None = None) -> Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]:
    """The weighted mean of `loss` over logits at several resolutions, listed from fine to coarse.

    weights: one per resolution, scaled to sum 1; None halves them at each step, 1, 1/2, 1/4, …, for as many as come.
    The target (B, *spatial), at the finest resolution, is taken down by the nearest voxel centre.
    """

    def total(logits: Sequence[Tensor], target: Tensor, known: Tensor) -> Tensor:
        shares = [0.5**i for i in range(len(logits))] if weights is None else weights
        terms = [w * loss(x, _at_shape(target, x.shape[2:]), known) for w, x in zip(shares, logits, strict=True)]
        return sum(terms) / sum(shares)

    return total


def _at_shape(target: Tensor, shape: torch.Size) -> Tensor:
    """The target (B, *spatial) on a coarser grid; 'nearest' would take a corner's voxel, 'nearest-exact' the centre's."""
    if target.shape[1:] == shape:
        return target
    return interpolate(target[:, None].float(), shape, mode="nearest-exact")[:, 0].to(target.dtype)
