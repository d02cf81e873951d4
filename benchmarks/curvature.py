"""Eigenvalues and traces against PyHessian, curvlinops with ARPACK, and hessian-eigenthings, in one run.

Bars: every top-5 eigenvalue within 1e-3 of a float64 reference, with a residual below 1e-3 |lambda|, in at most 16
products on the MLP; at most 0.25x PyHessian's time at equal accuracy and 0.6x the best peer's; a product 1.05x a
hand-written double backward that rebuilds its graph, 0.75x once graphs are kept; the exact trace in 3 products' time on
the MLPs, in 0.2x of 100 Hutchinson probes on the ResNet.

`benchmarks/peers.py` says how to install the peers; those that are not are skipped with a message.

Times are CPU seconds (the machine may be shared), given in units of the hand-written double backward timed beside them
in the same round. `--images` bounds the ResNet's examples: one of its products over 1,797 images takes 25 CPU seconds.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from timing import machine, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import peers  # isort: skip
from peers import LOSS, Case, K  # isort: skip

import numpy as np
import torch
from torch import Tensor, nn

import landscape
from landscape.curvature import operators
from landscape.curvature.exact.trace import ggn_squares
from landscape.curvature.products.hessian_graph import HessianGraph
from trainers.data import Source, data_directory
from trainers.data.digits import digits
from trainers.data.idx import fashion_mnist
from trainers.models import build_model


def problem(case: Case) -> landscape.Problem:
    """Ours, over one batch as it comes: the size of the chunks is chosen within what is timed."""
    return landscape.Problem(case.model, LOSS, [(case.x, case.y)], check=False)


def bare(case: Case) -> Callable[[], Any]:
    """Hand-written double backward that rebuilds its graph, one batch."""
    v = [torch.randn_like(p) for p in case.parameters]

    def product() -> Any:
        gradients = torch.autograd.grad(LOSS(case.model(case.x), case.y), case.parameters, create_graph=True)
        return torch.autograd.grad(gradients, case.parameters, v)

    return product


def train(model: nn.Module, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    """Momentum SGD, batches of 128, cosine schedule; enough for a low loss."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    steps = epochs * -(-len(x) // 128)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=generator).split(128):
            optimizer.zero_grad()
            LOSS(model(x[index]), y[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def cases(names: list[str], images: int) -> Iterator[Case]:
    """The problems that were asked for."""
    source = Source("digits", data_directory(), 0)
    data = digits(source)
    x, y = torch.cat([data.x_train, data.x_test]), torch.cat([data.y_train, data.y_test])
    if "mlp" in names:
        model = build_model("mlp", classes=10, input_shape=(64,), hidden=(100, 100))
        yield Case("MLP 64-100-100-10, 1,797 digits", train(model, x.flatten(1), y, 20), x.flatten(1), y)
    if "large-mlp" in names:
        try:
            clothes = fashion_mnist(Source("fashion-mnist", data_directory(), 0))
        except landscape.InputError as error:
            print(f"large-mlp skipped: {error}", file=sys.stderr)
        else:
            x3, y3 = clothes.x_train[:2000].flatten(1).float() / 255, clothes.y_train[:2000]
            model = build_model("mlp", classes=10, input_shape=(784,), hidden=(1000, 1000))
            yield Case("MLP 784-1000-1000-10, 2,000 Fashion-MNIST", train(model, x3, y3, 10), x3, y3)
    if "resnet20" in names:
        large = nn.functional.interpolate(x[:images], size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
        model = build_model("resnet20", classes=10, input_shape=(3, 32, 32))
        large, labels = large.contiguous(), y[:images]
        yield Case(f"ResNet-20, {len(large)} digits at 3x32x32", train(model, large, labels, 8), large, labels)


def reference(case: Case) -> None:
    """Float64 truth: ARPACK on our double backward at tolerance 1e-8; the trace by C backward passes."""
    from scipy.sparse.linalg import eigsh

    double = landscape.Problem(case.model.double(), LOSS, [(case.x.double(), case.y)], check=False)
    operator = operators.hessian(double).to_scipy()
    case.values = np.sort(eigsh(operator, k=K, which="LA", tol=1e-8, return_eigenvectors=False))[::-1]
    case.trace = float(torch.stack(ggn_squares(double).tensors).sum())
    case.model.float()


# -- arms -------------------------------------------------------------------------------------------------------------


def eigenvalue_arms(case: Case, seed: int) -> Iterator[peers.Arm]:
    """Top five eigenvalues by everyone, at the settings that reach 1e-3 and at the peers' defaults."""

    def ours(verify: bool) -> peers.Outcome:
        result = landscape.top_eigenvalues(problem(case), k=K, tol=1e-3, seed=seed, verify=verify)
        assert result.converged
        return peers.Outcome(result.values, result.hvps)

    yield "ours, tol 1e-3", lambda: ours(verify=False)
    yield "ours, verified", lambda: ours(verify=True)
    yield from peers.eigenvalue_arms(case, seed)


def trace_arms(case: Case, seed: int, probes: int) -> Iterator[peers.Arm]:
    """The trace by everyone."""

    def ours(method: str) -> peers.Outcome:
        result = landscape.trace(problem(case), method=method, probes=probes, seed=seed)
        assert result.exact == (method == "exact")
        assert result.matrix == "hessian"
        return peers.Outcome(np.array([result.value]), result.hvps)

    yield "ours, exact", lambda: ours("exact")
    yield f"ours, Hutch++ {probes}", lambda: ours("hutch++")
    yield f"ours, Hutchinson {probes}", lambda: ours("hutchinson")
    yield from peers.trace_arms(case, seed, probes)


# -- measuring --------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """(result, CPU seconds)."""
    gc.collect()
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def unit(case: Case) -> float:
    """CPU seconds of the hand-written product: the smaller of two."""
    product = bare(case)
    return min(timed(product)[1] for _ in range(2))


def measured(
    case: Case, rounds: int, arms: Callable[[int], Iterator[peers.Arm]], truth: np.ndarray | float
) -> list[list]:
    """Rows (arm, products, worst relative error, median cost in hand-written products), arms interleaved."""
    rows: dict[str, list[tuple[int, float, float]]] = {}
    for seed in range(rounds):
        for name, work in arms(seed):
            base = unit(case)
            outcome, seconds = timed(work)
            error = float(np.max(np.abs(outcome.values / truth - 1)))
            rows.setdefault(name, []).append((outcome.products, error, seconds / base))
    return [
        [
            name,
            f"{min(r[0] for r in seen)}-{max(r[0] for r in seen)}",
            max(r[1] for r in seen),
            statistics.median(r[2] for r in seen),
        ]
        for name, seen in rows.items()
    ]


def kernels(case: Case, rounds: int) -> list[list]:
    """Rows (kernel, cost in hand-written products)."""
    ours = problem(case)
    graph, v = HessianGraph(ours), torch.randn(ours.dimension)
    graph.product(v)
    arms = {
        "problem.hvp (graph rebuilt)": lambda: ours.hvp(v),
        f"kept graph ({graph.graphs.kept_bytes / 2**20:.0f} MB, {len(graph.graphs)} chunks)": lambda: graph.product(v),
    }
    product = bare(case)
    ratios: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, work in arms.items():
            ratios[name].append(timed(work)[1] / timed(product)[1])
    return [[name, statistics.median(values)] for name, values in ratios.items()]


def main() -> None:
    """Print one section per problem."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=["mlp", "large-mlp", "resnet20"])
    parser.add_argument("--rounds", type=int, default=3, help="seeds")
    parser.add_argument("--probes", type=int, default=99, help="products of the estimated traces")
    parser.add_argument("--images", type=int, default=1797, help="examples of the ResNet")
    parser.add_argument("--out", type=Path, help="also append to this file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)

    def say(text: str) -> None:
        print(text, flush=True)
        if options.out:
            with options.out.open("a", encoding="utf-8") as stream:
                stream.write(text + "\n")

    say(f"{machine()}\n")
    for case in cases(options.problems, options.images):
        reference(case)
        say(f"## {case.name}\n\nTruth: {np.round(case.values, 5).tolist()}, trace {case.trace:.6g}.\n")
        say(table(kernels(case, max(options.rounds, 5)), ["product", "cost"]) + "\n")

        rows = measured(case, options.rounds, lambda seed, c=case: eigenvalue_arms(c, seed), case.values)
        say(table(rows, ["top five eigenvalues", "products", "worst relative error", "cost"]) + "\n")
        rows = measured(case, options.rounds, lambda seed, c=case: trace_arms(c, seed, options.probes), case.trace)
        say(table(rows, ["trace", "products", "worst relative error", "cost"]) + "\n")


if __name__ == "__main__":
    main()
