import pytest
import torch

from c2f_nnunet.network.blocks import SqueezeExcite
from c2f_nnunet.network.unet import build_network
from c2f_nnunet.planning.plan import NetworkPlan


def plan(strides, features=None, kernels=None, norm="instance", deep=True, channels_in=2, channels_out=3) -> NetworkPlan:
    d = len(strides[0]) if strides else 2
    features = features or tuple(4 * 2**i for i in range(len(strides) + 1))
    return NetworkPlan(d, channels_in, channels_out, features, strides, kernels or ((3,) * d,) * len(features), norm, deep_supervision=deep)


FLAT, TWO = (1, 2, 2), (2, 2, 2)
CASES = {  # strides, input size, sizes of the outputs with deep supervision
    "2d": (((2, 2),) * 3, (16, 24), [(16, 24), (8, 12)]),  # four levels: the coarsest decoder level has no head
    "2d, two levels": (((2, 2),), (8, 8), [(8, 8)]),
    "3d": ((TWO,) * 3, (8, 16, 16), [(8, 16, 16), (4, 8, 8)]),
    "3d of thick slices": ((FLAT, TWO, FLAT), (6, 16, 24), [(6, 16, 24), (6, 8, 12)]),
    "3d, five levels": ((FLAT, TWO, TWO, FLAT), (8, 32, 32), [(8, 32, 32), (8, 16, 16), (4, 8, 8)]),
    "stride 3": (((3, 2), (1, 2)), (9, 8), [(9, 8)]),
    "no pooling": ((), (5, 7), [(5, 7)]),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_output_shapes(name, norm):
    strides, shape, expected = CASES[name]
    network, x = build_network(plan(strides, norm=norm)), torch.randn(2, 2, *shape)
    assert [tuple(y.shape) for y in network(x)] == [(2, 3, *s) for s in expected]  # finest first
    with torch.no_grad():
        assert [tuple(y.shape) for y in network.eval()(x)] == [(2, 3, *shape)]


def test_without_deep_supervision_there_is_one_head():
    network = build_network(plan(((2, 2),) * 3, deep=False))
    assert len(network.heads) == 1 and len(network(torch.randn(1, 2, 16, 16))) == 1


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_reaches_every_parameter(name, norm, deep):
    torch.manual_seed(0)
    strides, shape, _ = CASES[name]
    network = build_network(plan(strides, norm=norm, deep=deep))
    for module in network.modules():
        if isinstance(module, SqueezeExcite):
            torch.nn.init.ones_(module.squeeze.bias)  # else chance may shut all four ReLUs of a small block
    sum((y * torch.randn_like(y)).sum() for y in network(torch.randn(2, 2, *shape))).backward()
    dead = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not dead


def test_skips_carry_detail_that_poolings_lose():
    """A checkerboard pools to a constant; its pattern can come through only along the skip connection."""
    torch.manual_seed(0)
    network = build_network(plan(((2, 2), (2, 2)), channels_in=1)).eval()
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2
    (out,) = network(board[None, None].float())
    inner = out[0, :, 4:12, 4:12]
    assert (inner[:, :, ::2] - inner[:, :, 1::2]).abs().max() > 0.01


def test_eval_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    network = build_network(plan(((2, 2), (2, 2)), norm="batch"))
    network(torch.randn(4, 2, 8, 8))  # running statistics
    x = torch.randn(3, 2, 8, 8)
    with torch.no_grad():
        together, alone = network.eval()(x)[0], network(x[1:2])[0]
    assert torch.allclose(together[1:2], alone, atol=1e-5)


def test_kernels_and_features_are_the_plans():
    network = build_network(plan((FLAT, TWO), features=(4, 6, 10), kernels=((1, 3, 3), (3, 3, 3), (3, 3, 3))))
    first = [block.layers[0] for block in network.encoder]
    assert [(c.kernel_size, c.out_channels) for c in first] == [((1, 3, 3), 4), ((3, 3, 3), 6), ((3, 3, 3), 10)]
    assert [u.stride for u in network.up] == [FLAT, TWO]
