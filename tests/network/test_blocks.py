import pytest
import torch

from c2f_nnunet.network.blocks import CONV, ConvBlock, SqueezeExcite


@pytest.mark.parametrize("shape", [(2, 8, 5, 6), (2, 8, 3, 4, 5)])
def test_one_gate_per_sample_and_channel(shape):
    block, x = SqueezeExcite(8, ratio=4), torch.rand(shape) + 0.5
    gates = (block(x) / x).flatten(2)
    assert gates.shape[:2] == (2, 8)
    assert torch.allclose(gates, gates[..., :1].expand_as(gates), atol=1e-6)  # the same everywhere in a channel
    assert ((gates > 0) & (gates < 1)).all() and gates[..., 0].unique().numel() == 16


@pytest.mark.parametrize(("channels", "ratio", "hidden"), [(64, 8, 8), (16, 8, 4), (8, 1, 8)])
def test_the_squeeze_never_falls_under_four(channels, ratio, hidden):
    block = SqueezeExcite(channels, ratio)
    assert block.squeeze.weight.shape == (hidden, channels) and block.excite.weight.shape == (channels, hidden)


def test_gates_are_sigmoids_of_the_mean():
    """Weights by hand: one hidden unit passes channel 0's mean on to both gates, once positive and once negative."""
    block = SqueezeExcite(2, 8)
    for p in block.parameters():
        torch.nn.init.zeros_(p)
    block.squeeze.weight.data[0, 0] = 1.0
    block.excite.weight.data[:, 0] = torch.tensor([1.0, -1.0])
    x = torch.ones(1, 2, 2, 2)
    x[0, 0] = torch.tensor([[1.0, 3.0], [2.0, 2.0]])  # mean 2
    out = block(x)
    assert out[0, 0, 0, 1].item() == pytest.approx(3 * torch.sigmoid(torch.tensor(2.0)).item())
    assert out[0, 1, 0, 0].item() == pytest.approx(torch.sigmoid(torch.tensor(-2.0)).item())


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize(("dimensions", "kernel", "shape"), [(2, (3, 3), (6, 7)), (3, (3, 3, 3), (4, 5, 6)), (3, (1, 3, 3), (4, 5, 6))])
def test_a_block_keeps_the_size(dimensions, kernel, shape, norm):
    block = ConvBlock(dimensions, 3, 8, kernel, norm, 8)
    assert block(torch.randn(2, 3, *shape)).shape == (2, 8, *shape)
    convolutions = [m for m in block.modules() if isinstance(m, CONV[dimensions])]
    assert [m.kernel_size for m in convolutions] == [kernel, kernel] and all(m.bias is None for m in convolutions)


def test_a_flat_kernel_does_not_mix_slices():
    block, x = ConvBlock(3, 1, 4, (1, 3, 3), "batch", 8).eval(), torch.zeros(1, 1, 3, 5, 5)
    block.attention = torch.nn.Identity()  # its mean does mix them, as it should
    x[0, 0, 1, 2, 2] = 1.0
    out = block(x)
    assert out[0, :, 1].abs().max() > 0 and out[0, :, 0].abs().max() == out[0, :, 2].abs().max() == 0
