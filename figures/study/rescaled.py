"""What asam-fig2, asam-fig3 and asam-fig4 share: 50 rescalings of randomly initialized Table II networks."""

from __future__ import annotations

from typing import Any

import numpy as np

from figures.study.figure_data import FigureData
from figures.study.study import Study
from figures.study.tasks import Computation

TRANSFORMS, LOW, HIGH = 50, 0.5, 1.5
RHO = 0.5
"""The radius that the report trains with; it gives none for its Figures 3 and 4."""
SAMPLES = 500
SEEDS = 10
BIASES = ("scaled", "unscaled", "fixed", "asam-official")
TRANSFORMED = ("weights only", "weights and biases", "weights only, biases 0")


def rescale(*, seed: int, transforms: int, low: float, high: float, rho: float, samples: int) -> dict[str, Any]:
    """The invariance test of a random Table II network on the toy data, in float64."""
    import torch
    from torch import nn

    from landscape import Problem
    from landscape.invariance.invariance import rescaling_invariance
    from landscape.invariance.measures import InvarianceOptions
    from trainers.datasets import load_data
    from trainers.models import build_model

    data = load_data("toy2d", variance=15.0, n=samples, n_test=2, seed=seed)
    every = torch.arange(samples)
    network = build_model("table2-mlp", classes=2, input_shape=(2,), seed=seed).double()
    problem = Problem(network, nn.functional.cross_entropy, [(data.inputs(every).double(), data.targets(every))])
    settings = InvarianceOptions(rho=rho, adaptive_rho=rho, orders=(2.0,), steps=0, extra={})
    test = rescaling_invariance(problem, transforms=transforms, low=low, high=high, settings=settings, seed=seed)
    rows = {row["transform"]: row for row in test.biases}
    treated = [[rows[t]["relative_spread"][b] for b in BIASES] for t in TRANSFORMED]
    rotation = max((row["relative_spread"]["adaptive_sharpness"] for row in test.rotations), default=float("nan"))
    return {
        **{name: test.of(name) for name in test.names},
        "logits": test.logits,
        "output_change": float(test.output_changes.max()),
        "bias_spread": treated,
        "function_residual": [rows[t]["function_residual"] for t in TRANSFORMED],
        "rotation_spread": rotation,
    }


def computations(study: Study) -> dict[int, Computation]:
    """Seed -> the test of one network."""
    arguments = {"low": LOW, "high": HIGH, "rho": RHO, "samples": study.samples(SAMPLES)}
    arguments["transforms"] = TRANSFORMS if study.preset.epochs is None else 4
    return {s: Computation(f"{__name__}:rescale", (), {**arguments, "seed": s}) for s in study.seeds(SEEDS, SEEDS)}


def numbers(study: Study, measures: tuple[str, ...]) -> tuple[FigureData, dict[int, dict[str, np.ndarray]]]:
    """Measures of every network at every rescaling, and all that was computed."""
    tests = computations(study)
    results = {s: study.result(c) for s, c in tests.items()}
    arguments = dict(next(iter(tests.values())).arguments)
    del arguments["seed"]
    data = FigureData(facts={**arguments, "networks": len(results), "model": "table2-mlp, randomly initialized"})
    data.facts.update({"data": "toy2d:variance=15", "dtype": "float64"})
    data.axis("network", list(results))
    data.axis("transform", range(arguments["transforms"]))
    for name in measures:
        data.add(name, ("network", "transform"), [results[s][name] for s in results], "nats")
    return data, results


def spread(values: np.ndarray) -> np.ndarray:
    """(max - min) / |median| over the transforms, for every network."""
    return np.ptp(values, axis=-1) / np.abs(np.median(values, axis=-1))
