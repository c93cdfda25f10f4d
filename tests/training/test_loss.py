"""Losses against values worked out by hand on 4×4 slices."""
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import c2f_nnunet
from c2f_nnunet.planning.plan import LossPlan
from c2f_nnunet.training.loss import (
    ChannelSums, across_processes, channel_sums, class_weights, deep_supervised, dice, generalised_dice, make_loss, weighted_cross_entropy,
)

# one slice of 4×4 with background (12 voxels) and two organs (3 and 1 voxels)
TARGET = torch.tensor([[[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 2, 0], [0, 0, 0, 0]]])
KNOWN = torch.ones(1, 3, dtype=torch.bool)
PLANS = [
    LossPlan("weighted_ce", "predictions"),
    LossPlan("weighted_ce", "labels"),
    LossPlan("dice_ce", "tempered", 0.5),
    LossPlan("dice_focal", "none"),
    LossPlan("generalised_dice"),
]


def logits_of(p):
    """Logits whose softmax is p = (background, organ 1, organ 2), the same in each of the 16 voxels."""
    return torch.tensor(p).log().view(1, 3, 1, 1).expand(1, 3, 4, 4).clone()


def sums_of(p=(0.5, 0.25, 0.25), target=TARGET, known=KNOWN, gamma=0.0):
    return channel_sums(logits_of(p), target, known, gamma)


def perfect_logits(target=TARGET, channels=3):
    return 200.0 * (target[:, None] == torch.arange(channels).view(1, -1, 1, 1)).float()


def test_sums_by_hand():
    sums = sums_of()
    assert sums.voxels.tolist() == [16, 16, 16]
    assert sums.truth.tolist() == [12, 3, 1]
    assert sums.predicted.tolist() == pytest.approx([8, 4, 4])
    assert sums.overlap.tolist() == pytest.approx([6, 0.75, 0.25])
    assert sums.surprise.tolist() == pytest.approx([12 * math.log(2), 3 * math.log(4), math.log(4)])


@pytest.mark.parametrize(
    "reading, expected",
    [
        ("none", [1, 1, 1]),
        ("labels", [4 / 12, 13 / 3, 15 / 1]),  # (16 - n) / n with n = 12, 3, 1
        ("predictions", [8 / 8, 12 / 4, 12 / 4]),  # n = 8, 4, 4
    ],
)
def test_both_readings_of_equation_2(reading, expected):
    sums = sums_of()
    assert class_weights(sums, reading).tolist() == pytest.approx(expected)
    # equation (1): the mean over 16 voxels of w_j (-log p_j)
    by_hand = (12 * expected[0] * math.log(2) + 3 * expected[1] * math.log(4) + expected[2] * math.log(4)) / 16
    assert weighted_cross_entropy(sums, reading).item() == pytest.approx(by_hand)


def test_predictions_reading_sends_no_gradient_through_the_weights():
    logits = logits_of((0.5, 0.25, 0.25)).requires_grad_()
    make_loss(LossPlan("weighted_ce", "predictions"))(logits, TARGET, KNOWN).backward()
    # d/dlogit of w_j (-log p_j) / 16 at an organ-2 voxel, w = 3: 3 (p - y) / 16
    assert logits.grad[0, :, 2, 2].tolist() == pytest.approx([3 * 0.5 / 16, 3 * 0.25 / 16, 3 * (0.25 - 1) / 16])


def test_tempered_weights_have_mean_one_over_voxels():
    raw = [math.sqrt(4 / 12), math.sqrt(13 / 3), math.sqrt(15)]
    mean = (12 * raw[0] + 3 * raw[1] + raw[2]) / 16
    weights = class_weights(sums_of(), "tempered", 0.5)
    assert weights.tolist() == pytest.approx([w / mean for w in raw])
    plain = weighted_cross_entropy(sums_of(), "none")
    assert weighted_cross_entropy(sums_of(), "tempered", 0.0) == pytest.approx(plain.item())


@pytest.mark.parametrize("reading", ["labels", "predictions", "tempered"])
def test_no_division_by_zero_without_organs_or_predictions(reading):
    # only background, predicted with certainty: n is 16, 0, 0
    sums = channel_sums(perfect_logits(torch.zeros_like(TARGET)), torch.zeros_like(TARGET), KNOWN)
    weights = class_weights(sums, reading)
    assert torch.isfinite(weights).all() and weights.max() <= 16
    # organs labelled but never predicted: the predicted sum of 0 counts as one voxel
    sums = channel_sums(perfect_logits(torch.zeros_like(TARGET)), TARGET, KNOWN)
    assert class_weights(sums, "predictions").tolist() == [1 / 16, 16, 16]
    assert torch.isfinite(weighted_cross_entropy(sums, reading))


def test_dice_by_hand():
    # organ 1: 2·0.75 / (3 + 4); organ 2: 2·0.25 / (1 + 4)
    assert dice(sums_of()).item() == pytest.approx(1 - (1.5 / 7 + 0.5 / 5) / 2)


def test_an_organ_that_has_not_started_pulls_as_much_however_faint_it_is():
    # both organs with p in every voxel: D = 2·3 p / (3 + 16 p) and 2 p / (1 + 16 p); at 1e-4 far under the start of 0.1
    values, pulls = [], []
    for p in (1e-4, 1e-6):
        logits = logits_of((1 - 2 * p, p, p)).requires_grad_()
        value = dice(channel_sums(logits, TARGET, KNOWN))
        value.backward()
        by_hand = [1 - 0.1 - 0.1 * math.log(2 * n * p / (n + 16 * p) / 0.1) for n in (3, 1)]
        assert value.item() == pytest.approx(sum(by_hand) / 2, rel=1e-4)
        values.append(value.item())
        pulls.append(logits.grad[0, 2, 2, 2].item())  # organ 2 in its only voxel: d/dz of -0.1 ln p, halved by the mean of two organs
    assert values[1] > values[0] > 1
    assert pulls == pytest.approx([-0.05, -0.05], rel=0.01)


def test_dice_goes_on_smoothly_where_an_organ_starts():
    def at(score):  # one voxel of truth and of prediction: D is the overlap
        overlap = torch.tensor([0.0, score], requires_grad=True)
        ones = torch.ones(2)
        value = dice(ChannelSums(ones, ones, ones, overlap, ones))
        value.backward()
        return value.item(), overlap.grad[1].item()

    below, above = at(0.1 - 1e-5), at(0.1 + 1e-5)
    assert below == pytest.approx(above, rel=1e-3) and above == pytest.approx((0.9, -1), rel=1e-3)


def test_dice_of_an_organ_with_no_probability_at_all_is_finite():
    logits = perfect_logits(torch.zeros_like(TARGET)).requires_grad_()
    value = dice(channel_sums(logits, TARGET, KNOWN))
    value.backward()
    assert 1 < value.item() < 3 and logits.grad.isfinite().all()


def test_dice_leaves_out_absent_organs():
    without_2 = TARGET.where(TARGET != 2, 0)
    assert dice(sums_of(target=without_2)).item() == pytest.approx(1 - 1.5 / 7)
    logits = logits_of((0.5, 0.25, 0.25)).requires_grad_()
    value = dice(channel_sums(logits, torch.zeros_like(TARGET), KNOWN))
    value.backward()
    assert value.item() == 0 and logits.grad.abs().max() == 0


def test_dice_is_taken_over_the_batch_not_per_sample():
    # sample 1: organ 1 fully found; sample 2: none of its 3 voxels. Batch Dice 2·3 / (6 + 3) = 2/3, mean of samples 1/2
    target = torch.cat([TARGET, TARGET]).where(torch.cat([TARGET, TARGET]) != 2, 0)
    logits = perfect_logits(torch.cat([target[:1], torch.zeros_like(TARGET)]))
    assert dice(channel_sums(logits, target, KNOWN.expand(2, 3))).item() == pytest.approx(1 / 3)


def test_generalised_dice_by_hand():
    weights = [1 / 144, 1 / 9, 1]
    overlap, total = [6, 0.75, 0.25], [20, 7, 5]
    by_hand = 1 - 2 * sum(w * o for w, o in zip(weights, overlap)) / sum(w * t for w, t in zip(weights, total))
    assert generalised_dice(sums_of()).item() == pytest.approx(by_hand)


def test_generalised_dice_ignores_absent_classes():
    target = torch.zeros_like(TARGET)  # only background: 1 - 2·8 / (16 + 8)
    assert generalised_dice(sums_of(target=target)).item() == pytest.approx(1 / 3)


def test_focal_by_hand():
    sums = sums_of(gamma=2.0)
    assert sums.surprise.tolist() == pytest.approx([12 * 0.5**2 * math.log(2), 3 * 0.75**2 * math.log(4), 0.75**2 * math.log(4)])
    loss = make_loss(LossPlan("dice_focal", dice_weight=3.0))(logits_of((0.5, 0.25, 0.25)), TARGET, KNOWN)
    assert loss.item() == pytest.approx(3 * dice(sums).item() + sums.surprise.sum().item() / 16)


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.name}-{p.class_weights}")
def test_perfect_prediction_is_zero_and_a_wrong_one_is_not(plan):
    loss = make_loss(plan)
    assert loss(perfect_logits(), TARGET, KNOWN).item() == pytest.approx(0, abs=1e-6)
    assert loss(perfect_logits(TARGET.flip(-1)), TARGET, KNOWN).item() > 0.3


@pytest.mark.parametrize("plan", PLANS, ids=lambda p: f"{p.name}-{p.class_weights}")
def test_unknown_organ_is_background(plan):
    """With organ 2 unknown, the loss is that of two channels with organ 2's probability in the background."""
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    known = torch.tensor([[True, True, False]])
    merged = torch.stack([logits[:, [0, 2]].logsumexp(1), logits[:, 1]], 1)
    merged.retain_grad()
    loss = make_loss(plan)
    expected = loss(merged, TARGET.where(TARGET != 2, 0), KNOWN[:, :2])
    expected.backward()
    share = logits[:, [0, 2]].detach().softmax(1)  # how the merged background's gradient is shared out
    by_hand = torch.stack([merged.grad[:, 0] * share[:, 0], merged.grad[:, 1], merged.grad[:, 0] * share[:, 1]], 1)
    for target in (TARGET, TARGET.where(TARGET != 2, 0)):  # a stray label of an unknown organ changes nothing
        logits.grad = None
        value = loss(logits, target, known)
        value.backward()
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(logits.grad, by_hand)


def test_unknown_in_one_sample_counts_only_the_other():
    target, known = torch.cat([TARGET, TARGET]), torch.tensor([[True, True, True], [True, True, False]])
    sums = channel_sums(logits_of((0.5, 0.25, 0.25)).expand(2, 3, 4, 4), target, known)
    assert sums.voxels.tolist() == [32, 32, 16]
    assert sums.truth.tolist() == [12 + 13, 6, 1]
    assert sums.predicted.tolist() == pytest.approx([8 + 12, 8, 4])
    assert class_weights(sums, "labels").tolist() == pytest.approx([7 / 25, 26 / 6, 15])


@pytest.mark.parametrize("plan", [p for p in PLANS if p.class_weights != "predictions"], ids=lambda p: f"{p.name}-{p.class_weights}")
def test_gradient_agrees_with_finite_differences(plan):
    torch.manual_seed(1)
    logits = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    target, known = torch.cat([TARGET, TARGET.flip(1)]), torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradcheck(lambda x: make_loss(plan)(x, target, known), logits)


def test_half_precision_logits_are_computed_in_float32():
    logits = logits_of((0.5, 0.25, 0.25)).bfloat16()
    value = make_loss(PLANS[2])(logits, TARGET, KNOWN)
    assert value.dtype == torch.float32
    assert value == make_loss(PLANS[2])(logits.float(), TARGET, KNOWN)


def test_deep_supervision_weights_and_nearest_target():
    seen = []

    def record(logits, target, known):
        seen.append(target)
        return logits.mean()

    fine, middle, coarse = (torch.full((1, 3, n, n), v) for n, v in ((4, 1.0), (2, 10.0), (1, 100.0)))
    assert deep_supervised(record)([fine, middle, coarse], TARGET, KNOWN).item() == pytest.approx((4 * 1 + 2 * 10 + 100) / 7)
    assert deep_supervised(record, [3, 1])([fine, middle], TARGET, KNOWN).item() == pytest.approx((3 * 1 + 10) / 4)
    # of each 2×2 block the voxel at its far corner, as near to the block's centre as the others
    assert seen[1].tolist() == [[[1, 0], [0, 0]]] and seen[1].dtype == TARGET.dtype
    assert deep_supervised(record)([fine], TARGET, KNOWN).item() == 1  # eval mode: the finest alone
    with pytest.raises(ValueError, match="zip"):
        deep_supervised(record, [1, 1, 1])([fine, middle], TARGET, KNOWN)


def test_one_process_is_left_alone():
    tensor = torch.ones(3, requires_grad=True)
    assert across_processes(tensor) is tensor


TRAIN = """
import json, sys, torch, torch.distributed as dist
from c2f_nnunet.planning.plan import LossPlan
from c2f_nnunet.training.loss import deep_supervised, make_loss
rank, world, meeting, plans = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])
torch.set_num_threads(1)
if world > 1:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
mine = slice(rank * 4 // world, (rank + 1) * 4 // world)
results = []
for plan in plans:
    torch.manual_seed(0)
    image, network = torch.randn(4, 2, 4, 4), torch.nn.Conv2d(2, 3, 3, padding=1)
    target = (torch.rand(4, 4, 4) * 3).long()
    target[:2] = target[:2].clamp(max=1)  # organ 2 in the second half of the batch only
    known = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
    network = torch.nn.parallel.DistributedDataParallel(network) if world > 1 else network
    optimiser, loss = torch.optim.SGD(network.parameters(), lr=0.5), deep_supervised(make_loss(LossPlan(**plan)))
    for _ in range(3):
        optimiser.zero_grad()
        logits = network(image[mine])
        value = loss([logits, torch.nn.functional.avg_pool2d(logits, 2)], target[mine], known[mine])
        value.backward()
        optimiser.step()
        results.append([value.item()])
    results += [p.detach().flatten().tolist() for p in network.parameters()]
if rank == 1:  # one process validates alone: it must not wait for the other
    with torch.no_grad():
        loss([logits], target[mine], known[mine])
print(json.dumps(results))
if world > 1:
    dist.barrier()
    dist.destroy_process_group()
"""


def run_processes(world, meeting):
    """The TRAIN script in `world` processes; what each printed: losses, weights and biases, for each plan in turn."""
    environment = os.environ | {"PYTHONPATH": str(Path(c2f_nnunet.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    plans = json.dumps([asdict(plan) for plan in PLANS])
    commands = [[sys.executable, "-c", TRAIN, str(rank), str(world), str(meeting), plans] for rank in range(world)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for command in commands]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * world
    return [json.loads(output) for output in outputs]


def test_two_processes_follow_one_with_the_doubled_batch(tmp_path):
    (alone,) = run_processes(1, "")
    first, second = run_processes(2, tmp_path / "meeting")
    assert first == second and len(first) == len(PLANS) * 5
    for ours, theirs in zip(first, alone, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


def test_dice_weight_zero_leaves_cross_entropy():
    plan = replace(PLANS[2], dice_weight=0.0)
    value = make_loss(plan)(logits_of((0.5, 0.25, 0.25)), TARGET, KNOWN)
    assert value.item() == pytest.approx(weighted_cross_entropy(sums_of(), "tempered", 0.5).item())
