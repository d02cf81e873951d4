"""How work grows: with the weights d, the examples, the points of a surface, k eigenvalues, and processes.

    python benchmarks/growth.py [--tables d examples points k processes] [--largest 1e8]

Seconds are CPU time of one thread, medians of a few repetitions: a pass of the smallest networks takes less than a
millisecond, and rounds are as many as fit in a second. An exponent is the slope of log seconds over the log of what
grows, by least squares over the rows that are named.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from timing import machine, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import numpy as np
import torch
from torch import Tensor, nn

from landscape import Problem, surface, top_eigenvalues
from landscape.ball.vectors import dot
from landscape.curvature.basis import Basis
from landscape.curvature.products.hessian_graph import HessianGraph
from landscape.surfaces.directions.directions import directions
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation

LOSS = nn.CrossEntropyLoss()
FEATURES, CLASSES = 64, 10
SHOWN = (1, 5, 20)
"""Vectors of a basis against which a new one is made orthogonal, twice."""


def mlp(d: float, layers: int = 2) -> nn.Module:
    """A perceptron of about d weights: two hidden layers of one width."""
    # d = w^2 + (features + classes + 2) w + classes
    b = FEATURES + CLASSES + 2
    width = max(1, round((math.sqrt(b * b + 4 * (d - CLASSES)) - b) / 2))
    sizes = [FEATURES, *[width] * layers]
    hidden: list[nn.Module] = []
    for a, c in itertools.pairwise(sizes):
        hidden += [nn.Linear(a, c), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES))


def examples(count: int) -> tuple[Tensor, Tensor]:
    """Clusters, one a class, that overlap."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, FEATURES, generator=generator)
    y = torch.randint(0, CLASSES, (count,), generator=generator)
    return centers[y] + 2 * torch.randn(count, FEATURES, generator=generator), y


def made(d: float, count: int, **options: bool) -> Problem:
    """The loss of a perceptron over so many examples."""
    torch.manual_seed(0)
    return Problem(mlp(d), LOSS, [examples(count)], check=False, **options)


def seconds(run: Callable[[], object], most: int = 15, budget: float = 1.0) -> float:
    """Median CPU seconds of a call, after one that is not counted."""
    run()
    taken: list[float] = []
    while len(taken) < 3 or (len(taken) < most and sum(taken) < budget):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
        if sum(taken) > 4 * budget:
            break
    return statistics.median(taken)


def exponents(what: str, grown: Sequence[float], columns: Iterable[Sequence[float]], least: float) -> list[object]:
    """A row of slopes over the rows from `least` on."""
    x = np.log(grown)
    slopes = []
    for column in columns:
        y = np.log(column)
        kept = np.isfinite(y) & (np.array(grown) >= least)
        slopes.append(f"{np.polyfit(x[kept], y[kept], 1)[0]:.2f}")
    return [f"exponent, {what}", *slopes]


def of_weights(largest: float) -> str:
    """With d, over 64 examples in one batch."""
    count, grown, columns = 64, [], []
    for d in (1e4, 1e5, 1e6, 1e7, 3e7, 1e8):
        if d > largest:
            continue
        problem = made(d, count)
        v = torch.randn(problem.dimension)
        plane = directions("gaussian", problem)
        evaluation = GridEvaluation({"": problem}, plane.center, plane.vectors, Choice())
        graph = HessianGraph(problem)

        def points(evaluation: GridEvaluation = evaluation) -> Tensor:
            with evaluation.opened():
                return evaluation([(0.01, 0.001 * i) for i in range(4)])

        grown.append(float(problem.dimension))
        columns.append(
            [
                seconds(points) / 4,
                seconds(problem.gradient),
                seconds(lambda problem=problem, v=v: problem.hvp(v)),
                seconds(lambda graph=graph, v=v: graph.product(v)),
                seconds(lambda problem=problem, v=v: dot(problem.weights, v)),
                *(seconds(orthogonalizing(v, k)) for k in SHOWN if d * k <= 6.2e8),
            ]
        )
        columns[-1] += [math.nan] * (5 + len(SHOWN) - len(columns[-1]))
        del graph, evaluation, plane, problem
    header = ["d", "a point", "gradient", "product", "product, kept graph", "a dot"]
    header += [f"orthogonal to {k}" for k in SHOWN]
    rows: list[list[object]] = [
        [f"{g:,.0f}", *("-" if math.isnan(c) else f"{1e3 * c:.3g}" for c in line)]
        for g, line in zip(grown, columns, strict=True)
    ]
    rows.append(exponents("all rows", grown, zip(*columns, strict=True), 0))
    if sum(g > 9e5 for g in grown) > 1:
        rows.append(exponents("from 10^6 on", grown, zip(*columns, strict=True), 9e5))
    return f"Milliseconds over {count} examples; floor: {floor()}.\n\n{table(rows, header)}"


def orthogonalizing(v: Tensor, k: int) -> Callable[[], object]:
    """What a step of Lanczos does beside its product: Gram-Schmidt twice against k vectors, dots in float64."""
    basis = Basis(v)
    for i in range(k):
        basis.append(torch.randn(v.numel(), generator=torch.Generator().manual_seed(i)).div_(v.norm()))
    return lambda: basis.orthogonalize(v.clone())


def floor() -> str:
    """What this machine multiplies and moves."""
    a, b = torch.randn(1024, 1024), torch.randn(64, 1024)
    square, thin = seconds(lambda: a @ a), seconds(lambda: b @ a)
    long, out = torch.randn(30_000_000), torch.empty(30_000_000)
    moved = seconds(lambda: torch.add(long, long, alpha=0.5, out=out))
    return (
        f"{2 * 1024**3 / square / 1e9:.0f} GFlop/s in square products, {2 * 64 * 1024**2 / thin / 1e9:.0f} in those of "
        f"64 rows, {8 * 30e6 / moved / 1e9:.1f} GB/s in a sum of long vectors"
    )


def of_examples() -> str:
    """With the number of examples, at 10^5 weights."""
    grown, columns = [256.0, 1024.0, 4096.0, 16384.0, 65536.0], []
    for count in grown:
        problem = made(1e5, int(count))
        v = torch.randn(problem.dimension)
        columns.append([seconds(problem.loss), seconds(problem.gradient), seconds(lambda p=problem, v=v: p.hvp(v))])
        started, spent = problem.passes.hvp, time.process_time()
        result = top_eigenvalues(problem, k=1, tol=1e-3)
        columns[-1].append(time.process_time() - spent)
        columns[-1].append(max((problem.passes.hvp - started) / count, result.hvps))
    rows: list[list[object]] = [
        [f"{g:,.0f}", *(f"{1e3 * c:.3g}" for c in line[:-1]), f"{line[-1]:.0f}"]
        for g, line in zip(grown, columns, strict=True)
    ]
    rows.append([*exponents("all rows", grown, list(zip(*columns, strict=True))[:-1], 0), ""])
    return table(rows, ["examples", "loss", "gradient", "product", "largest eigenvalue", "its products"])


def of_points() -> str:
    """With the points of a surface, at 10^4 weights and 1,024 examples."""
    problem = made(1e4, 1024)
    surface(problem, grid=3)
    grown, columns = [], []
    for grid in (5, 11, 21, 41):
        with tempfile.TemporaryDirectory() as folder:
            paths = iter(Path(folder) / f"{i}.h5" for i in range(100))
            columns.append(
                [
                    seconds(lambda grid=grid: surface(problem, grid=grid), most=3),
                    seconds(lambda grid=grid, paths=paths: surface(problem, grid=grid, file=next(paths)), most=3),
                ]
            )
        grown.append(float(grid**2))
    rows: list[list[object]] = [
        [f"{g:,.0f}", *(f"{1e3 * c:.4g} ({1e3 * c / g:.2f})" for c in line)]
        for g, line in zip(grown, columns, strict=True)
    ]
    rows.append(exponents("all rows", grown, zip(*columns, strict=True), 0))
    return table(rows, ["points", "in memory: ms (a point)", "kept in a file: ms (a point)"])


def of_eigenvalues() -> str:
    """With k, at 10^5 and 10^6 weights, over 512 examples."""
    rows: list[list[object]] = []
    for d in (1e5, 1e6):
        problem = made(d, 512)
        for _ in range(60):  # off the start, where many eigenvalues are alike
            problem.parameters.write(problem.model, problem.weights - 0.2 * problem.gradient())
            problem = Problem(problem.model, LOSS, [examples(512)], check=False)
        graph, v = HessianGraph(problem), torch.randn(problem.dimension)
        product = seconds(lambda graph=graph, v=v: graph.product(v))
        grown, columns = (1, 2, 5, 10, 20), []
        for k in grown:
            started = time.process_time()
            result = top_eigenvalues(problem, k=k, tol=1e-3)
            spent = time.process_time() - started
            share = max(0.0, 1 - result.hvps * product / spent)
            rows.append([f"{d:.0e}", k, result.hvps, f"{result.hvps / k:.1f}", spent, f"{share:.0%}"])
            columns.append((result.hvps, spent))
        name, *slopes = exponents(f"{d:.0e}", grown, zip(*columns, strict=True), 0)
        rows.append([name, "", slopes[0], "", slopes[1], ""])
    return table(rows, ["d", "k", "products", "products for each", "CPU s", "beside the products"])


def of_processes(processes: Sequence[int] = (1, 2)) -> str:
    """With processes that divide the examples: CPU seconds of each."""
    rows: list[list[object]] = []
    for d in (1e5, 1e6, 1e7):
        for world in processes:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--world", str(world), "--folder", folder, "--weights", f"{d}"]
                environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
                begun = [
                    subprocess.Popen(
                        [*command, "--rank", str(rank)], env=environment, stdout=subprocess.PIPE, text=True
                    )
                    for rank in range(world)
                ]
                answers = [json.loads(p.communicate()[0].splitlines()[-1]) for p in begun]
            worst = [max(a[i] for a in answers) for i in range(3)]
            rows.append([f"{d:.0e}", world, *(1e3 * s for s in worst), f"{worst[2] / worst[1]:.0%}"])
    return table(rows, ["d", "processes", "gradient: ms", "product: ms", "all-reduce: ms", "all-reduce / product"])


def process(rank: int, world: int, folder: str, d: float) -> None:
    """One of them: CPU seconds of a gradient, a product and an all-reduce of d numbers."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(0)
    x, y = examples(512)
    problem = Problem(mlp(d), LOSS, [(x[rank::world], y[rank::world])], check=False, distributed=True)
    v, vector = torch.ones(problem.dimension), torch.ones(problem.dimension)

    def counted(run: Callable[[], object]) -> float:
        run()
        taken = []
        for _ in range(4):
            started = time.process_time()
            run()
            taken.append(time.process_time() - started)
        return statistics.median(taken)

    runs = [problem.gradient, lambda: problem.hvp(v), lambda: torch.distributed.all_reduce(vector)]
    print(json.dumps([counted(run) for run in runs]))
    torch.distributed.destroy_process_group()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"d": None, "examples": of_examples, "points": of_points, "k": of_eigenvalues, "processes": of_processes}
    parser.add_argument("--tables", nargs="+", default=list(tables), choices=list(tables))
    parser.add_argument("--largest", type=float, default=3.1e7, help="d; 1e8 takes 8 GB")
    for name in ("world", "rank"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.world:
        return process(options.rank, options.world, options.folder, options.weights)
    torch.set_num_threads(1)
    print(machine())
    for name in options.tables:
        make = tables[name] or (lambda: of_weights(options.largest))
        print(f"\n## {name}\n\n{make()}", flush=True)
    return None


if __name__ == "__main__":
    main()
