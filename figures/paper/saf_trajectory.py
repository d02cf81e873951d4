"""The poster's derivation, step by step: the trajectory loss against gamma-weighted SAM sharpness."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.drawing import bands, style
from figures.study.figure import Figure
from figures.study.figure_data import FigureData
from figures.study.study import Computation, Study
from figures.study.verdict import Claim
from landscape import statistics
from landscape.registry import register

RUNS = {"no momentum": (0.0, "cosine"), "momentum 0.9": (0.9, "cosine"), "constant rate": (0.0, "constant")}
RHO = 0.05
LR = 0.1


def follow(
    *,
    data: str,
    model: str,
    momentum: float,
    schedule: str,
    lr: float,
    rho: float,
    epochs: int,
    seed: int,
    device: str,
    data_dir: str | None,
) -> dict[str, Any]:
    """Train by SGD and record both sides of the poster's chain at every step, on one fixed batch B of 128 examples.

    drop_i = L_B(theta_i) - L_B(theta_(i+1)); product_i = gamma_i R_B(theta_i) R_Bi(theta_i) with gamma_i =
    (eta_i / rho^2) cos(grad L_B, grad L_Bi) and R the one-step SAM sharpness; B_i is the batch of step i.
    """
    import torch
    import torch.nn.functional as F

    from landscape.random import stream
    from trainers.data.batches import TrainingBatches
    from trainers.data.datasets import load_data
    from trainers.loop.budget import Schedule
    from trainers.models import build_model
    from trainers.names import parse_name

    name, arguments = parse_name(data)
    it = load_data(name, data_dir=data_dir, **{"seed": seed, **arguments}).to(device)
    model_name, model_arguments = parse_name(model)
    network = build_model(model_name, classes=it.classes, input_shape=it.input_shape, seed=seed, **model_arguments)
    network.to(device).double()
    tensors = list(network.parameters())
    optimizer = torch.optim.SGD(tensors, lr=lr, momentum=momentum)
    chosen = torch.randperm(it.size("train"), generator=stream(seed, "fixed batch"))[:128]
    fixed = (it.inputs(chosen).double(), it.targets(chosen))
    rate = Schedule(schedule, lr)

    def at(batch: tuple[Any, Any]) -> tuple[Any, list[Any]]:
        loss = F.cross_entropy(network(batch[0]), batch[1])
        return loss.detach(), list(torch.autograd.grad(loss, tensors))

    def rise(batch: tuple[Any, Any], loss: Any, gradient: list[Any], norm: Any) -> Any:
        with torch.no_grad():
            old = [t.clone() for t in tensors]
            for t, g in zip(tensors, gradient, strict=True):
                t.add_(g * (rho / norm))
            found = F.cross_entropy(network(batch[0]), batch[1]) - loss
            for t, o in zip(tensors, old, strict=True):
                t.copy_(o)
        return found

    rows, step = [], 0
    loader = TrainingBatches(it, 64, stream(seed, "order"), augment=False, drop_last=True)
    total = epochs * len(loader)
    for epoch in range(epochs):
        for inputs, targets, _ in TrainingBatches(
            it, 64, stream(seed, f"order {epoch}"), augment=False, drop_last=True
        ):
            batch = (inputs.double(), targets)
            loss, gradient = at(batch)
            fixed_loss, fixed_gradient = at(fixed)
            norms = [torch.sqrt(sum((g * g).sum() for g in gs)) for gs in (gradient, fixed_gradient)]
            inner = sum((a * b).sum() for a, b in zip(gradient, fixed_gradient, strict=True))
            eta = rate.rate(step, step / total)
            gamma = eta / rho**2 * inner / (norms[0] * norms[1])
            product = gamma * rise(batch, loss, gradient, norms[0]) * rise(fixed, fixed_loss, fixed_gradient, norms[1])
            for t, g in zip(tensors, gradient, strict=True):
                t.grad = g
            optimizer.param_groups[0]["lr"] = eta
            optimizer.step()
            after = F.cross_entropy(network(fixed[0]), fixed[1]).detach()
            rows.append(torch.stack([fixed_loss - after, product, eta * inner, fixed_loss]))
            step += 1
    table = torch.stack(rows).cpu().numpy().T
    per_epoch = table[:3].reshape(3, epochs, -1).mean(axis=-1)
    names = ("drop", "product", "first_order")
    telescope = table[0].sum() - (table[3][0] - float(after))
    return {**dict(zip(names, per_epoch, strict=True)), "telescope": telescope}


@register("saf-trajectory", source="SAF/MESA poster, the derivation of the trajectory loss")
class Derivation(Figure):
    """The trajectory loss against gamma-weighted SAM sharpness along a run, without and with momentum."""

    title = "Is the trajectory loss the sharpness?"

    def _runs(self, study: Study) -> dict[tuple[str, int], Computation]:
        settings = {"data": "digits", "model": "mlp:hidden=64x64", "lr": LR, "rho": RHO, "epochs": study.epochs(15)}
        return {
            (name, s): Computation(
                f"{__name__}:follow", (), {**settings, "momentum": momentum, "schedule": schedule, "seed": s}
            )
            for name, (momentum, schedule) in RUNS.items()
            for s in study.seeds(5, 10)
        }

    def plan(self, study: Study) -> list[Computation]:
        """Three kinds of run."""
        return list(self._runs(study).values())

    def collect(self, study: Study) -> FigureData:
        """Per-epoch means of the decrease of the loss and of the sharpness product."""
        found = {key: study.result(c) for key, c in self._runs(study).items()}
        arguments = dict(next(iter(self._runs(study).values())).arguments)
        seeds = study.seeds(5, 10)
        for name in ("momentum", "schedule", "seed"):
            del arguments[name]
        numbers = FigureData(
            facts={**arguments, "seeds": len(seeds), "fixed batch": 128, "batch": 64, "dtype": "float64"}
        )
        numbers.axis("run", RUNS)
        numbers.axis("seed", seeds)
        numbers.axis("epoch", range(1, len(found["no momentum", seeds[0]]["drop"]) + 1))
        for name in ("drop", "product", "first_order"):
            values = [[found[r, s][name] for s in seeds] for r in RUNS]
            numbers.add(name, ("run", "seed", "epoch"), values, "nats a step")
        telescope = [[float(found[r, s]["telescope"]) for s in seeds] for r in RUNS]
        numbers.add("telescope_residual", ("run", "seed"), telescope, "nats")
        return numbers

    def draw(self, numbers: FigureData) -> Any:
        """A panel a kind of run."""
        import matplotlib.pyplot as plt

        figure, panels = plt.subplots(1, 3, figsize=(style.PAGE, 2.5), sharey=True, layout="constrained")
        names = {"drop": "decrease of $L_B$", "first_order": "$\\eta\\,\\nabla L_B\\cdot\\nabla L_{B_i}$"}
        names["product"] = "$\\gamma\\,R_B R_{B_i}$"
        for axes, run in zip(panels, numbers["run"], strict=True):
            for i, (name, text) in enumerate(names.items()):
                dash = ("-", ":", "--")[i]
                bands.band(
                    axes, numbers["epoch"], numbers.at(name, run=run), style.color(i), linestyle=dash, label=text
                )
            axes.axhline(0, color="#bbbbbb", linewidth=0.6, zorder=0)
            momentum, schedule = RUNS[str(run)]
            axes.set_title(f"momentum {momentum:g}, {schedule} rate")
            axes.set_xlabel("epoch")
            style.whole_epochs(axes)
            axes.set_yscale("symlog", linthresh=1e-4)
        panels[0].set_ylabel("nats a step, mean of the epoch")
        panels[0].legend(loc="upper right")
        return figure

    def judge(self, numbers: FigureData) -> list[Claim]:
        """The telescoping sum; the chain with and without momentum; the decay with the learning rate."""
        drop, product, first = (numbers[n].sum(axis=-1) for n in ("drop", "product", "first_order"))
        ratio = product / drop
        runs = list(RUNS)
        last = numbers["product"][..., -max(1, numbers["product"].shape[-1] // 5) :].mean(axis=-1)
        fall = np.abs(last[runs.index("no momentum")]) / np.abs(last[runs.index("constant rate")])
        note = "Sums over the whole run on one fixed batch. The poster's chain holds to first order in the step."
        return [
            Claim(
                text="The mean decrease telescopes to the difference of the end points",
                quantity="largest residual of the sum over all runs",
                published="identity (with theta_1 included, which the poster leaves out)",
                ours=statistics.exact(float(np.abs(numbers["telescope_residual"]).max())),
                below=1e-10,
                unit="nats",
            ),
            Claim(
                text="Without momentum the decrease is eta <grad L_B, grad L_Bi>, the chain's middle",
                quantity="sum of eta <grad L_B, grad L_Bi> / decrease of L_B",
                published="1",
                ours=statistics.mean((first / drop)[runs.index("no momentum")]),
                above=0.8,
                below=1.25,
                note=note,
            ),
            Claim(
                text="Without momentum the trajectory loss is the gamma-weighted sharpness",
                quantity="sum of gamma R_B R_Bi / decrease of L_B",
                published="1",
                ours=statistics.mean(ratio[runs.index("no momentum")]),
                above=0.8,
                below=1.25,
                note=note,
            ),
            Claim(
                text="With momentum 0.9 it is so too",
                quantity="sum of gamma R_B R_Bi / decrease of L_B",
                published="1 (the poster trains with momentum and does not restrict the derivation)",
                ours=statistics.mean(ratio[runs.index("momentum 0.9")]),
                above=0.8,
                below=1.25,
                note=note + " Momentum 0.9 makes steps ten times as long: for small steps 0.1 would follow.",
            ),
            Claim(
                text="The sharpness that the trajectory sees decays with the learning rate",
                quantity="ln(|product| with the cosine / with a constant rate), last fifth of the run",
                published="below 0",
                ours=statistics.mean(np.log(fall), "paired t"),
                below=0.0,
            ),
        ]
