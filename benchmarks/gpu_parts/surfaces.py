"""Surfaces on a device, of a network that fills it and of one that does not; rescalings of the latter."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable

from timing import interleaved, ratio  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
from surface import bare, ours
from torch import nn

import landscape
from gpu_parts.measuring import LOSS, Rows, finishing, images, timed
from gpu_parts.sizes import Sizes
from landscape import Problem
from landscape.invariance.invariance import rescaling_invariance
from landscape.surfaces.directions.directions import directions
from landscape.surfaces.grid.choice import choose
from trainers.datasets import load_data
from trainers.models import build_model


def surface(sizes: Sizes, device: torch.device) -> Rows:
    """A point of a surface in bfloat16 against the best bare forward in bfloat16."""
    shape = (3, sizes.side, sizes.side)
    model, x, y = images(sizes.network, shape, sizes.surface_images, device)
    low = copy.deepcopy(model).to(torch.bfloat16)
    points = sizes.surface_points
    arms: dict[str, Callable[[], object]] = {}
    for size in sizes.bare_sizes:
        plain = bare(model, x, y, size, True, points, accuracy=True)
        arms[f"autocast, {size}"] = _autocast(device, plain)
        arms[f"bfloat16 weights, {size}"] = bare(low, x.bfloat16(), y, size, True, points, accuracy=True)
    for name, network, inputs, precision in (
        ("ours, bfloat16", model, x, "bfloat16"),
        ("ours, weights in bfloat16", low, x.bfloat16(), "native"),
        ("ours, float32", model, x, "native"),
    ):
        problem = Problem(network, LOSS, [(inputs, y)], check=False)
        plane = directions("gaussian", problem)
        choice = choose({"": problem}, plane.center, plane.vectors, 441, precision=precision)
        arms[name] = ours(problem, choice, points)
    arms["autocast, again"] = arms[f"autocast, {sizes.bare_sizes[-1]}"]
    seconds = interleaved({arm: finishing(device, run) for arm, run in arms.items()}, sizes.rounds)
    medians = {arm: statistics.median(s) / points for arm, s in seconds.items()}
    kinds = ("autocast", "bfloat16")
    bases = [min((a for a in arms if a.startswith(k) and "again" not in a), key=medians.__getitem__) for k in kinds]
    rows: Rows = []
    for arm in sorted(arms, key=medians.__getitem__):
        percent = [f"{100 / ratio(seconds, arm, base):.1f}" for base in bases]
        rows.append([arm, 1e3 * medians[arm], sizes.surface_images / medians[arm], *percent])
    return rows


def _autocast(device: torch.device, run: Callable[[], object]) -> Callable[[], object]:
    def cast() -> object:
        with torch.autocast(device.type, torch.bfloat16):
            return run()

    return cast


def toy(device: torch.device) -> Problem:
    """The network of the ASAM report's Table II, untrained, on 500 points in the plane, in float64."""
    data = load_data("toy2d", n=500, n_test=2)
    every = torch.arange(500)
    network = build_model("table2-mlp", classes=2, input_shape=(2,)).double().to(device)
    batch = data.inputs(every).double().to(device), data.targets(every).to(device)
    return Problem(network, nn.functional.cross_entropy, [batch])


def toy_surface(sizes: Sizes, device: torch.device) -> Rows:
    """A whole surface of a network of 300 weights, checks and all, on the device and beside it on the CPU."""
    rows: Rows = []
    for where in dict.fromkeys((device, torch.device("cpu"))):
        problem = toy(where)
        seconds = []
        for _ in range(1 + sizes.rounds):
            result, spent = timed(where, lambda p=problem: landscape.surface(p, grid=sizes.toy_grid))
            seconds.append(spent)
        rows.append([str(where), f"{result.loss.size}", seconds[0], statistics.median(seconds[1:])])
    return rows


def invariance(sizes: Sizes, device: torch.device) -> Rows:
    """Every measure at rescalings of the same small network, on the device and beside it on the CPU."""
    rows: Rows = []
    for where in dict.fromkeys((torch.device("cpu"), device)):
        problem = toy(where)
        rescaling_invariance(problem, transforms=2)
        test, spent = timed(where, lambda p=problem: rescaling_invariance(p, transforms=sizes.transforms))
        rows.append([str(where), f"{sizes.transforms}", f"{len(test.names)}", spent])
    return rows
