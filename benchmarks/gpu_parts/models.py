"""Language models with random weights on a device: curvature and a surface against passes by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from language import Language
from torch import Tensor

import landscape
from gpu_parts.measuring import Rows, free, peak, timed
from gpu_parts.products import by_hand
from gpu_parts.sizes import Sizes
from landscape import Problem


def language(make: Callable[[Sizes], Language]) -> Callable[[Sizes, torch.device], Rows]:
    """Curvature and a surface of a language model with random weights: `Language` of the sizes."""

    def measure(sizes: Sizes, device: torch.device) -> Rows:
        torch.manual_seed(0)
        model = make(sizes).to(device).eval()
        words = model.get_parameter("embedding.weight").shape[0]
        ids = torch.randint(0, words, (sizes.sequences, sizes.tokens), device=device)
        batch = {"input_ids": ids, "labels": ids}
        problem = Problem(model, None, [batch], check=False)
        parameters = list(model.parameters())
        v = [torch.randn_like(p) for p in parameters]

        def row(name: str, run: Callable[[], Any], units: Callable[[Any], int] | None, unit: float) -> list[object]:
            """Of one call whose kernels have run before; `units` of its result take `unit` seconds each by hand."""
            made: list[tuple[Any, float]] = []
            used = peak(device, lambda: made.append(timed(device, run)))
            result, seconds = made.pop()
            count = 1 if units is None else units(result)
            vectors = "-" if math.isnan(used) else f"{used / (4 * problem.dimension):.1f}"
            return [name, seconds, count, seconds / (count * unit) if unit else 1.0, vectors]

        bare = {
            "a forward pass by hand, float32": forward(model, batch, device, torch.float32),
            "a forward pass by hand, bfloat16": forward(model, batch, device, torch.bfloat16),
            "a product by hand": by_hand(lambda: model(**batch).loss, parameters, v),
        }
        for run in bare.values():
            run()
        rows = [row(name, run, None, 0.0) for name, run in bare.items()]
        plain, half, product = (float(str(r[1])) for r in rows)
        del v, bare
        free(device)
        return [
            *rows,
            row("critical sharpness", lambda: landscape.critical_sharpness(problem), lambda r: r.forwards, plain),
            row("surface in bfloat16", lambda: grid(problem, sizes.language_grid), lambda r: r.loss.size, half),
            row(
                "largest eigenvalue",
                lambda: landscape.top_eigenvalues(problem, k=1, tol=0.01),
                lambda r: r.hvps,
                product,
            ),
        ]

    return measure


def forward(
    model: Language, batch: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> Callable[[], object]:
    """The loss by hand."""

    def run() -> float:
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32):
            return float(model(**batch).loss)

    return run


def grid(problem: Problem, points: int) -> landscape.Surface:
    """A surface of that many points per axis."""
    return landscape.surface(problem, grid=points, precision="bfloat16")
