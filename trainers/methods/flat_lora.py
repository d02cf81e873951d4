"""Flat-LoRA: train adapters under noise in the weights that they are merged into.

Paper: Li, He, Li, Wang, Shang, Huang 2025, arXiv 2409.14396. Official implementation: nblt/Flat-LoRA.
As there: the noise of an entry of the merged weight W' has standard deviation sigma ||row|| / sqrt(columns), and sigma
rises from 0 to rho along half a cosine over the run.
Deviations from it: weights are restored by copying (there the noise is drawn again by its seed and subtracted); the
seed is the run's and the step's (there: the clock's fraction of a second); a network without adapters is perturbed in
its own weights of two and more dimensions, every filter a row (the paper's rule for full fine-tuning).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from landscape.ball.perturbation import perturbed
from landscape.registry import register
from trainers.method.method import Context, Method, Pass, State, Step, Task, require


@register(
    "flat-lora",
    source="rho 0.05: README of nblt/Flat-LoRA, arXiv 2409.14396",
    cost="1 forward + 1 backward",
    statistics="the only pass, at the perturbed weights",
)
@dataclass(frozen=True)
class FlatLoRA(Method):
    """The gradient of the adapters under noise in the merged weights W' = W + s B A: W + sigma ||W'_i|| / sqrt(n) z.

    z is standard normal, W'_i the row of the entry and n its length; sigma = rho (1 - cos(pi t / T)) / 2. The layers
    are those of peft's LoRA; their base weights W, which are not trained, are restored after the pass.

    Args:
        rho: noise at the end of the run, as a share of a row's norm.
    """

    rho: float = 0.05

    needs_progress = True
    needs_whole_tensors = "it draws noise by the rows of merged weights"

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the authors' value is 0.05")

    def init(self, task: Task, context: Context) -> State:
        """Nothing is remembered; the weights below adapters must be floating-point."""
        for weight, _, _ in _places(task):
            require(
                weight.is_floating_point(),
                f"flat-lora adds noise to the weights below the adapters, and one is of {weight.dtype}: load the base "
                "network without quantization",
            )
        return {}

    def compute(self, step: Step, state: State) -> Pass:
        """One pass under noise."""
        generator = step.generator("flat-lora", step.task.device)
        sigma = self.rho * (1 - math.cos(math.pi * step.context.progress)) / 2
        weights, noise = [], []
        for weight, merged, axis in _places(step.task):
            others = [a for a in range(merged.dim()) if a != axis]
            rows = torch.linalg.vector_norm(merged, dim=others, keepdim=True, dtype=torch.float64)
            scale = sigma * rows / math.sqrt(merged.numel() / merged.shape[axis])
            z = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)
            weights.append(weight)
            noise.append(z * scale.to(z.dtype))
        with perturbed(weights, noise):
            return step.backward()


@torch.no_grad()
def _places(task: Task) -> Iterator[tuple[Tensor, Tensor, int]]:
    """(what is perturbed, the merged weight, its output dimension) of each adapted layer, or of each weight."""
    layers: list[Any] = [m for m in task.model.modules() if _adapters(m)]
    for layer in layers:
        base = layer.base_layer.weight
        merged = base.detach() + sum(layer.get_delta_weight(name) for name in _adapters(layer))
        yield (
            base.detach(),
            merged,
            int(getattr(layer, "fan_in_fan_out", False)),
        )  # GPT-2's weights are (inputs, outputs)
    if not layers:
        for slot, parameter in zip(task.layout, task.parameters, strict=True):
            if slot.kind == "weight":
                yield parameter.detach(), parameter.detach(), slot.filter_axis


def _adapters(layer: Any) -> list[str]:
    """The active adapters of a layer of peft's LoRA; none of another module."""
    if not all(hasattr(layer, name) for name in ("base_layer", "get_delta_weight", "lora_A")):
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]
