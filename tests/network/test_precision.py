from types import SimpleNamespace

import pytest
import torch

from c2f_nnunet.errors import C2FError
from c2f_nnunet.network import precision
from c2f_nnunet.network.precision import autocast, default_device, find_device, has_bf16, is_out_of_memory, place

CPU = torch.device("cpu")


def only(monkeypatch, cuda=False, mps=False):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends, "mps", SimpleNamespace(is_available=lambda: mps))


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu"])
def test_a_device_that_is_not_there(name, monkeypatch):
    only(monkeypatch)
    says = f"^-device {name}: not available on this machine; use -device cpu or install a torch build with {name}$"
    with pytest.raises(C2FError, match=says):
        find_device(name)


def test_devices_that_are_there(monkeypatch):
    only(monkeypatch)
    assert find_device("cpu") == CPU and default_device() == "cpu"
    only(monkeypatch, mps=True)
    assert find_device("mps").type == "mps" and default_device() == "mps"
    only(monkeypatch, cuda=True, mps=True)
    assert find_device("cuda", rank=1) == torch.device("cuda", 1) and default_device() == "cuda"


@pytest.mark.parametrize(("able", "expected"), [
    ({"avx2": True, "avx512": True, "avx512_bf16": False, "amx_bf16": False}, False),
    ({"avx512_bf16": True}, True),
    ({"amx_bf16": True}, True),
    ({"bf16": True}, True),  # ARM
    ({}, False),
])  # fmt: skip
def test_bf16_on_cpus_only_in_hardware(able, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert has_bf16(CPU) is expected
    with autocast(CPU):
        assert torch.is_autocast_enabled("cpu") is expected


def test_without_torchs_table_there_is_no_bf16(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bf16(CPU) is False


def test_bf16_on_gpus_is_not_emulated(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: asked.append(including_emulation) or True)
    assert has_bf16(torch.device("cuda")) is True and asked == [False]
    assert has_bf16(torch.device("mps")) is False


@pytest.mark.parametrize(("dimensions", "layout"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_channels_last(dimensions, layout):
    conv = precision.place(torch.nn.Sequential({2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[dimensions](4, 4, 3)), CPU, dimensions)
    assert conv[0].weight.is_contiguous(memory_format=layout)
    assert place is precision.place


@pytest.mark.parametrize("error, expected", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 8.05 GB, other allocations: 3.11 GB, max allowed: 9.07 GB)."), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"), True),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    (RuntimeError("Given groups=1, weight of size [8, 3, 3, 3], expected input to have 3 channels, but got 4"), False),
])  # fmt: skip
def test_what_is_said_where_memory_is_short(error, expected):
    assert is_out_of_memory(error) == expected


def test_what_this_torch_says_where_memory_is_short():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)
