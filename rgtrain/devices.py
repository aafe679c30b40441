"""Which accelerators and which attention this machine offers, asked without importing torch."""

import importlib.util
import os
import shutil
import subprocess


def num_gpus() -> int:
    """CUDA devices this process may use: those nvidia-smi lists, or those CUDA_VISIBLE_DEVICES names of them."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    present = sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    return min(present, len([device for device in visible.split(",") if device.strip() not in ("", "-1")]))


def has_flash_attention() -> bool:
    """Whether flash-attn is installed."""
    return importlib.util.find_spec("flash_attn") is not None
