"""How often a computation waits for the device."""

import warnings
from collections.abc import Callable

import torch


def waits(device: torch.device, action: Callable[[], object]) -> int:
    """Call `action` and count how often it waits for the device; on a CPU, never."""
    if device.type != "cuda":
        action()
        return 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            action()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(warning.message) for warning in caught)
