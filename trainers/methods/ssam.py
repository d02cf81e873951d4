"""SSAM: sparse sharpness-aware minimization.

Paper: Mi, Shen, Ren, Zhou, Sun, Ji, Tao 2022, arXiv 2210.05177. Official implementation: Mi-Peng/
Sparse-Sharpness-Aware-Minimization. As there: the perturbation is normalized with the dense norm and masked afterwards,
so that it is shorter than rho.
Deviations from it: the Fisher mask exists from the first step on (there all zeros until the first refresh: the first
step is SGD); per-example gradients are taken in evaluation mode (there in training mode on batches of one example,
which spoils BatchNorm statistics); fewer than 10 samples are possible (there a division by zero); dynamic masks are
refreshed after the step by the gradient at w (there between the two passes), and as many entries grow as were dropped.
Sparsity saves no time on ordinary hardware: nothing is gained over SAM but the regularization.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscape.ball.perturbation import ascent
from landscape.errors import InputError, unknown
from landscape.problem.batches import Batch
from landscape.random import stream
from landscape.registry import register
from trainers.method import network
from trainers.method.averages import sum_over_processes
from trainers.method.method import Context, Method, Pass, State, Step, Task, require

MASKS = ("fisher", "dynamic")


@register(
    "ssam",
    source="rho 0.1, sparsity 0.5, 16 samples, every epoch: README of the authors' code (ResNet-18, CIFAR-10)",
    cost="(2 + samples / (every * examples)) forward + (2 + samples / (every * examples)) backward; 2 of each between "
    "refreshes and with dynamic masks",
    statistics="the first pass, at the unperturbed weights",
)
@dataclass(frozen=True)
class SSAM(Method):
    """SAM that perturbs a part of the weights: epsilon = rho (g / ||g||) masked.

    The Fisher mask keeps the entries with the largest sum of squared gradients of single examples; the dynamic mask
    starts at random, and at each refresh drops the active entries with the smallest |g| (a share of drop (1 + cos(pi
    t/T)) / 2) and grows as many inactive ones at random.

    Args:
        rho: radius of the ball; the masked perturbation is shorter.
        sparsity: share of the entries that is not perturbed.
        mask: "fisher" or "dynamic".
        every: epochs between two refreshes of the mask.
        samples: training examples that the Fisher information is estimated from.
        drop: share of the active entries that a dynamic mask exchanges at the beginning.
    """

    rho: float = 0.1
    sparsity: float = 0.5
    mask: str = "fisher"
    every: int = 1
    samples: int = 16
    drop: float = 0.5

    needs_batch = True

    def __post_init__(self) -> None:
        require(self.rho >= 0, f"rho must be >= 0, received {self.rho}: the authors' value is 0.1")
        require(0 <= self.sparsity < 1, f"sparsity must be in [0, 1), received {self.sparsity}: 0 is SAM")
        require(self.every >= 1, f"every must be at least 1 epoch, received {self.every}")
        require(self.samples >= 1, f"samples must be at least 1 example, received {self.samples}")
        require(0 <= self.drop <= 1, f"drop must be in [0, 1], received {self.drop}: the authors' value is 0.5")
        if self.mask not in MASKS:
            raise unknown("mask", self.mask, MASKS)
        other, name = ("dynamic", "drop") if self.mask == "fisher" else ("fisher", "samples")
        default = getattr(self, name) == getattr(SSAM, name)
        require(default, f"{name}={getattr(self, name)} belongs to mask={other}, the mask is {self.mask}: leave it out")

    def init(self, task: Task, context: Context) -> State:
        """The first mask. Masks are refreshed at the first step of every `every`-th epoch after that."""
        if self.mask == "fisher":
            return {"mask": self._fisher_mask(task, context), "epoch": context.epoch}
        scores = torch.rand(task.layout.dimension, generator=stream(context.seed, "ssam"), dtype=torch.float32)
        return {"mask": _top(scores, self._active(task)).to(task.device), "epoch": context.epoch}

    def compute(self, step: Step, state: State) -> Pass:
        """The gradient at w, then the gradient at w + epsilon."""
        clean = step.backward()
        gradient = step.gradients()
        if self.mask == "dynamic" and self._refreshes(step.context, state):
            step.memory["gradient"] = gradient
        kept = step.layout.unflatten(state["mask"])
        epsilon = [e * k for e, k in zip(ascent(gradient, self.rho), kept, strict=True)]
        with step.perturbed(epsilon):
            step.backward()
        return clean

    def gradient(self, step: Step, state: State) -> Pass:
        """As every method; the Fisher mask is refreshed before, once for all m-groups."""
        if self.mask == "fisher" and self._refreshes(step.context, state):
            state["mask"] = self._fisher_mask(step.task, step.context)
            state["epoch"] = step.context.epoch
        return super().gradient(step, state)

    def after_step(self, step: Step, state: State) -> None:
        """Refresh a dynamic mask."""
        if self.mask == "dynamic" and self._refreshes(step.context, state):
            state["mask"] = self._exchanged(step, state["mask"])
            state["epoch"] = step.context.epoch

    def _refreshes(self, context: Context, state: State) -> bool:
        return context.epoch % self.every == 0 and context.epoch != state["epoch"]

    def _active(self, task: Task) -> int:
        return task.layout.dimension - math.ceil(task.layout.dimension * self.sparsity)

    def _fisher_mask(self, task: Task, context: Context) -> Tensor:
        known = context.training_set
        if known is None:
            raise InputError(
                "ssam estimates the Fisher information from training examples outside the batch: give method.init a "
                "Context(training_set=...), or choose mask='dynamic'"
            )
        generator = stream(context.seed, f"ssam:{context.step}")
        chosen = torch.randperm(known.examples, generator=generator)[: self.samples]
        return _top(fisher_diagonal(task, known.batch(chosen)), self._active(task))

    def _exchanged(self, step: Step, mask: Tensor) -> Tensor:
        active = self._active(step.task)
        share = self.drop * (1 + math.cos(math.pi * step.context.progress)) / 2
        exchanged = min(int(active * share), mask.numel() - active)
        size = step.layout.flatten(step.memory["gradient"]).abs().masked_fill(~mask, -1)
        draws = (
            torch.rand(mask.numel(), generator=step.generator("ssam"), dtype=torch.float32)
            .to(mask.device)
            .masked_fill(mask, -1)
        )
        return _top(size, active - exchanged) | _top(draws, exchanged)


def fisher_diagonal(task: Task, batch: Batch) -> Tensor:
    """Diagonal of the empirical Fisher information at the true labels, sum_i g_i^2: flat (d,).

    g_i is the gradient of example i in evaluation mode, so that no BatchNorm statistic moves. With several processes
    each takes its share. Cost: one forward and one backward pass per example.
    """
    total = [torch.zeros_like(p) for p in task.parameters]
    with _evaluating(task.model), torch.enable_grad():
        for i in range(task.rank, batch.size, task.world):
            one = batch.rows(i, i + 1)
            outputs = task.model(*one.args, **one.kwargs)
            loss = outputs.loss if task.loss is None else task.loss(network.logits_of(outputs), one.target).mean()
            gradients = torch.autograd.grad(loss, task.parameters, allow_unused=True, materialize_grads=True)
            torch._foreach_addcmul_(total, gradients, gradients)
    task.passes.forward += batch.size
    task.passes.backward += batch.size
    if task.world > 1:
        sum_over_processes(total)
    return task.layout.flatten(total)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def _top(scores: Tensor, count: int) -> Tensor:
    """Mask of the `count` largest scores."""
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    return mask.index_fill_(0, torch.topk(scores, count, sorted=False).indices, True)
