"""What this machine and its Python environment are: versions, extras, devices and their free memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import torch

import landscape
from landscape.problem.memory import free_memory, size

NEEDED = (
    *("torch", "numpy", "scipy", "h5py", "click", "rich", "matplotlib", "pillow", "plotly", "jinja2", "pooch"),
    "scikit-learn",
)
EXTRAS = {
    "vision": ("torchvision", "timm"),
    "hf": ("transformers", "safetensors", "peft", "datasets"),
    "llc": ("arviz-stats",),
    "text": ("tokenizers",),
    "notebook": ("pandas", "xarray"),
}
"""Extra -> the distributions that it installs, as in pyproject.toml."""


def versions() -> str:
    """This toolkit, Python, the system and what is always installed, in a line each."""
    first = f"landscape {landscape.__version__}, Python {platform.python_version()}, {platform.platform()}"
    return f"{first}\n{', '.join(map(_version, NEEDED))}"


def extras() -> Iterator[str]:
    """A line for every extra: what of it is there, or how to install it."""
    for extra, names in EXTRAS.items():
        held = ", ".join(map(_version, names))
        missing = any(_installed(n) is None for n in names)
        yield f"[{extra}] {held}{f': pip install {_quoted(extra)}' if missing else ''}"


def devices() -> Iterator[str]:
    """A line for the processor and one for every GPU, with the memory that is free."""
    cpu = torch.device("cpu")
    waiting = os.environ.get("OMP_WAIT_POLICY", "unset").lower()
    yield (
        f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {size(free_memory(cpu))} of memory free; "
        f"OMP_WAIT_POLICY is {waiting}{'' if waiting == 'passive' else ' (PASSIVE is faster where other jobs run)'}"
    )
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        free = free_memory(torch.device("cuda", i))
        yield f"cuda:{i}: {facts.name}, {size(free)} of {size(facts.total_memory)} free"
    if not torch.cuda.is_available():
        built = torch.version.cuda
        yield f"cuda: none ({f'built for CUDA {built}, no GPU answers' if built else 'torch is built without'})"


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _version(name: str) -> str:
    return f"{name} {_installed(name) or 'missing'}"


def _quoted(extra: str) -> str:
    return f"'loss-landscape-toolkit[{extra}]'"
