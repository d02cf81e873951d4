"""Sharpness against its lower bound: the same passes in a hand-written loop, and the passes counted.

For every measure: passes over the examples (forward, backward) against the number that its definition needs, and its
time against a bare loop that makes as many passes and nothing else (bar 1.1x).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

from timing import interleaved, machine, ratio, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
from torch import nn

import landscape
from landscape import Problem
from trainers.models import build_model

LOSS = nn.CrossEntropyLoss()
Batches = list[tuple[torch.Tensor, torch.Tensor]]

# measure and its arguments -> passes (forward, backward) that the definition needs
CASES: dict[str, tuple[str, dict, tuple[int, int]]] = {
    "sam": ("sam_sharpness", {}, (2, 1)),
    "sam, 4 radii": ("sam_sharpness", {"rho": (0.01, 0.05, 0.1, 0.2)}, (5, 1)),
    "sam, m=128": ("sam_sharpness", {"m": 128}, (2, 1)),
    "adaptive, one step": ("adaptive_sharpness", {"one_step_only": True}, (2, 1)),
    "worst case, p=2": ("worst_case_sharpness", {"restarts": 1}, (21, 20)),
    "worst case, p=inf, |w|": (
        "worst_case_sharpness",
        {"p": math.inf, "rho": 1e-3, "scaling": "elementwise", "restarts": 1},
        (21, 20),
    ),
    "average, 10 draws": ("average_sharpness", {"draws": 10}, (11, 0)),
    "gradient norm": ("gradient_norm", {}, (1, 1)),
}


def bare(model: nn.Module, batches: Batches, forward: int, backward: int) -> Callable[[], None]:
    """As many passes as asked for, `backward` of the `forward` ones with a gradient, and nothing else."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def run() -> None:
        for _ in range(backward):
            for x, y in batches:
                torch.autograd.grad(LOSS(model(x), y), parameters)
        with torch.inference_mode():
            for _ in range(forward - backward):
                for x, y in batches:
                    LOSS(model(x), y)

    return run


def passes_and_time(model: nn.Module, batches: Batches, rounds: int) -> list[list[str]]:
    """One row per measure: passes made / needed, process time / time of the bare passes."""
    problem = Problem(model, LOSS, batches)
    rows = []
    for label, (name, arguments, needed) in CASES.items():
        measure = landscape.MEASURES[name]
        cost = measure(problem, **arguments).cost
        made = (cost["forward"], cost["backward"])
        arms = {"bare": bare(model, batches, *needed), "ours": lambda m=measure, a=arguments: m(problem, **a)}
        seconds = interleaved(arms, rounds=rounds, clock=time.process_time)
        counted = f"{made[0]:g}+{made[1]:g} / {needed[0]}+{needed[1]}"
        rows.append([label, counted, ratio(seconds, "ours", "bare")])
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=["mlp", "small-cnn", "resnet20"])
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--pixels", type=int, default=16)
    options = parser.parse_args()
    print(machine())
    for name in options.models:
        shape = (3, options.pixels, options.pixels)
        model = build_model(name, classes=10, input_shape=shape).eval()
        x, y = torch.randn(options.examples, *shape), torch.randint(0, 10, (options.examples,))
        rows = passes_and_time(model, list(zip(x.split(128), y.split(128), strict=True)), options.rounds)
        print(f"\n{name}\n\n{table(rows, ['measure', 'passes made / needed', 'time / bare passes'])}", flush=True)


if __name__ == "__main__":
    main()
