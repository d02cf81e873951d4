"""Training steps of methods on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import methods
import torch
from timing import palindromes

from gpu_parts.measuring import Rows, gigabytes, peak
from gpu_parts.sizes import Sizes


def steps(network: str, side: str, batch: str, names: Sequence[str]) -> Callable[[Sizes, torch.device], Rows]:
    """A step of methods; `network`, `side` and `batch` name fields of the sizes."""

    def measure(sizes: Sizes, device: torch.device) -> Rows:
        torch.manual_seed(0)
        values = (getattr(sizes, field) for field in (network, side, batch))
        bench = methods.Bench.of(*values, device, "bfloat16")
        groups = methods.groups_of(bench, list(names))
        memory = {name: gigabytes(peak(device, arms["step"])) for name, arms in groups.items()}
        seconds = palindromes(groups, sizes.step_seconds, least=sizes.step_rounds)
        return [[*row, memory[str(row[0])]] for row in methods.rows(seconds)]

    return measure
