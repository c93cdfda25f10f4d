"""Devices, memory layout and mixed precision: one place where hardware differs."""
from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import nn

from ..errors import C2FError


def find_device(name: str, rank: int = 0) -> torch.device:
    """'cpu', 'cuda' or 'mps' → a device that is there; C2FError otherwise."""
    if name == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", rank)
    if name == "mps" and torch.backends.mps.is_available():
        return torch.device("mps")
    if name == "cpu":
        return torch.device("cpu")
    raise C2FError(f"-device {name}: not available on this machine; use -device cpu or install a torch build with {name}")


def default_device() -> str:
    """The best device that is there."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 arithmetic is in the hardware; emulated it is slower than fp32 (on a CPU without it about twice)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        able = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(able.get("amx_bf16") or able.get("avx512_bf16") or able.get("bf16"))
    return False


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that a device's memory is too small: CUDA has a type of its own for it, MPS and CPUs have words."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, torch.OutOfMemoryError) or any(w in str(error) for w in words)


def autocast(device: torch.device):
    """bf16 autocast where the hardware has it; otherwise nothing. bf16 needs no loss scaling."""
    return torch.autocast(device.type, torch.bfloat16) if has_bf16(device) else nullcontext()


def place(network: nn.Module, device: torch.device, dimensions: int) -> nn.Module:
    """To the device in channels-last layout, which batch normalisation and 3D convolutions are fastest in on CPUs."""
    return network.to(device, memory_format=torch.channels_last if dimensions == 2 else torch.channels_last_3d)
