"""Where the arithmetic happens, and what has to be written down about it."""

import platform
import sys
from typing import Any

import numpy
import torch

from regtrain.contract.errors import ResourceError


def device_of(name: str) -> torch.device:
    """`auto`: the first GPU if there is one, else the CPU.

    Raises:
        ResourceError: a GPU was asked for that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ResourceError(f"device {name!r} was asked for and torch {torch.__version__} sees {torch.cuda.device_count()} GPUs here: use --device auto or cpu")
    if device.type == "cuda":  # the same seed twice gives the same bits
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and thread count: a job is bit for bit repeatable where these are equal."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "platform": sys.platform,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "device_kind": device.type,
        "threads": torch.get_num_threads(),
    }
