"""A point of a surface against a bare forward: at the same batch size, and against the best of ten bare arms.

Bars: 1.05x both. Networks: digits MLP, MLP 784-1000-1000-10, ResNet-20, and five convolutions that nothing was tuned
for. A bare arm is forward and cross-entropy over all examples under inference_mode, the sum fetched at the end; ours
makes the accuracy too, as does the arm "bare with accuracy". Arms are interleaved; ratios are medians over rounds of
CPU time (wall time on a GPU), as the machine may be shared.

A second table has whole surfaces of the five convolutions, checks included: against as many forwards of the best bare
arm, and against a loop as one writes it, in a process that leaves the allocator alone.

    python benchmarks/surface.py [--networks digits-mlp mlp-1000 resnet20 five-convolutions] [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable, Sequence

from timing import interleaved, machine, ratio, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
from allocator import small_convolutions
from sklearn.datasets import load_digits
from torch import nn

from landscape import Problem, surface
from landscape.surfaces.directions.directions import directions
from landscape.surfaces.grid.choice import choose
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation
from trainers.models import build_model

LOSS = nn.CrossEntropyLoss()
SIZES = (64, 128, 256, 512, None)
POINTS = {"digits-mlp": 40, "mlp-1000": 4, "resnet20": 1, "five-convolutions": 12}
"""Points a timing: each takes a few tenths of a second."""
GIVEN = {"five-convolutions": 125}
"""Examples in the batches as given, where not 128."""
WHOLE = ("five-convolutions",)
"""Networks of which whole surfaces are timed, too."""
GRIDS = (11, 21)
LOOPED = 20
"""Points of a loop in a process of its own."""


def digits_mlp() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    data = load_digits()
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    return model, torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)


def mlp_1000() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = nn.Sequential(nn.Linear(784, 1000), nn.ReLU(), nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))
    return model, torch.randn(2000, 784), torch.randint(0, 10, (2000,))


def resnet20() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model = build_model("resnet20", classes=10, input_shape=(3, 32, 32))
    return model, torch.randn(1000, 3, 32, 32), torch.randint(0, 10, (1000,))


def five_convolutions() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    return small_convolutions(), torch.randn(500, 3, 24, 24), torch.randint(0, 10, (500,))


NETWORKS = {
    "digits-mlp": digits_mlp,
    "mlp-1000": mlp_1000,
    "resnet20": resnet20,
    "five-convolutions": five_convolutions,
}


def bare(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    size: int | None,
    channels_last: bool,
    points: int,
    accuracy: bool = False,
) -> Callable[[], float]:
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    batches = list(zip(x.split(size or len(x)), y.split(size or len(x)), strict=True))

    def run() -> float:
        if channels_last:
            model.to(memory_format=torch.channels_last)
        total = 0.0
        with torch.inference_mode():
            for _ in range(points):
                total, hits = torch.zeros(()), torch.zeros((), dtype=torch.int64)
                for a, b in batches:
                    outputs = model(a)
                    total = total + LOSS(outputs, b) * len(b)
                    if accuracy:
                        hits = hits + (outputs.argmax(dim=1) == b).sum()
        if channels_last:
            model.to(memory_format=torch.contiguous_format)
        return float(total) / len(x)

    return run


def ours(problem: Problem, choice: Choice, points: int) -> Callable[[], torch.Tensor]:
    plane = directions("gaussian", problem)
    evaluation = GridEvaluation({"": problem}, plane.center, plane.vectors, choice)
    grid = [(0.01, 0.001 * i) for i in range(points)]

    def run() -> torch.Tensor:
        with evaluation.opened():
            return evaluation(grid).cpu()

    return run


def batches(name: str, x: torch.Tensor, y: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    size = GIVEN.get(name, 128)
    return list(zip(x.split(size), y.split(size), strict=True))


def whole(name: str, rounds: int) -> list[list[object]]:
    """Surfaces from the Problem on: each point's share of them against bare forwards."""
    torch.manual_seed(0)
    model, x, y = NETWORKS[name]()
    model.eval()
    problem = Problem(model, LOSS, batches(name, x, y))
    formats = (False, True) if x.dim() == 4 else (False,)
    arms: dict[str, Callable[[], object]] = {
        label(size, last): bare(model, x, y, size, last, POINTS[name]) for size in SIZES for last in formats
    }
    first = interleaved(arms, 3, time.process_time)
    best = min(arms, key=lambda k: statistics.median(first[k]))
    size, last = next((s, f) for s in SIZES for f in formats if label(s, f) == best)
    arms = {"bare": bare(model, x, y, size, last, GRIDS[0] ** 2)} | {
        f"{g}": lambda g=g: surface(problem, grid=g, radius=0.1) for g in GRIDS
    }
    seconds = interleaved(arms, rounds, time.process_time)
    loops = [loop_apart(name) for _ in range(rounds)]
    rows: list[list[object]] = []
    for g in GRIDS:
        with problem.counting() as cost:
            beside = beside_the_points(problem, g)
        ours = [s / g**2 for s in seconds[f"{g}"]]
        rows.append(
            [
                name,
                g**2,
                f"{cost['forward'] - g**2:.0f}",
                beside,
                best,
                1e3 * statistics.median(ours),
                statistics.median(a / b * GRIDS[0] ** 2 for a, b in zip(ours, seconds["bare"], strict=True)),
                statistics.median(ours) / statistics.median(loops),
            ]
        )
    return rows


def beside_the_points(problem: Problem, grid: int) -> float:
    """What a surface spends beside its points, in CPU time of one of them: seen within one run, as arms drift."""
    evaluate, spent, points = GridEvaluation.__call__, 0.0, 0

    def timed(evaluation: GridEvaluation, some: Sequence[Sequence[float]]) -> torch.Tensor:
        nonlocal spent, points
        started = time.process_time()
        values = evaluate(evaluation, some)
        spent, points = spent + time.process_time() - started, points + len(some)
        return values

    with unittest.mock.patch.object(GridEvaluation, "__call__", timed):
        started = time.process_time()
        surface(problem, grid=grid, radius=0.1)
        total = time.process_time() - started
    return total / (spent / points) - grid**2


def loop(name: str) -> float:
    """CPU seconds a point of a loop as one writes it: move the weights, go over the batches as they come, add up."""
    torch.manual_seed(0)
    model, x, y = NETWORKS[name]()
    model.eval()
    given, center = batches(name, x, y), [p.detach().clone() for p in model.parameters()]
    one, two = ([torch.randn_like(p) for p in center] for _ in range(2))

    def point(a: float, b: float) -> tuple[float, float]:
        loss, right = 0.0, 0
        with torch.no_grad():
            for p, w, d, e in zip(model.parameters(), center, one, two, strict=True):
                p.copy_(w + a * d + b * e)
            for inputs, labels in given:
                outputs = model(inputs)
                loss += LOSS(outputs, labels).item() * len(labels)
                right += (outputs.argmax(dim=1) == labels).sum().item()
        return loss / len(x), right / len(x)

    for _ in range(2):
        point(0.0, 0.0)
    started = time.process_time()
    for i in range(LOOPED):
        point(1e-3 * i, 1e-3)
    return (time.process_time() - started) / LOOPED


def loop_apart(name: str) -> float:
    """`loop` in a process whose allocator is as it comes."""
    done = subprocess.run(
        [sys.executable, __file__, "--loop", name],
        env={**os.environ, "LANDSCAPE_ALLOCATOR": "default", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout.splitlines()[-1])


def measure(name: str, rounds: int) -> list[object]:
    torch.manual_seed(0)
    model, x, y = NETWORKS[name]()
    model.eval()
    points = POINTS[name]
    problem = Problem(model, LOSS, batches(name, x, y))
    plane = directions("gaussian", problem)
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    choice = choose({"": problem}, plane.center, plane.vectors, 441)
    choosing = clock() - start
    formats = (False, True) if x.dim() == 4 else (False,)
    arms: dict[str, Callable[[], object]] = {
        label(size, last): bare(model, x, y, size, last, points) for size in SIZES for last in formats
    }
    chosen = label(None if choice.batch_size == len(x) else choice.batch_size, choice.channels_last)
    if chosen not in arms:
        arms[chosen] = bare(model, x, y, choice.batch_size, choice.channels_last, points)
    same_work = "with accuracy"
    arms[same_work] = bare(model, x, y, choice.batch_size or None, choice.channels_last, points, accuracy=True)
    arms["ours"] = ours(problem, choice, points)
    seconds = interleaved(arms, rounds, clock)
    medians = {k: statistics.median(v) / points for k, v in seconds.items()}
    best = min((k for k in arms if k not in ("ours", same_work)), key=medians.__getitem__)
    return [
        name,
        f"{len(x)}",
        chosen,
        best,
        medians["ours"] * 1e3,
        ratio(seconds, "ours", same_work),
        ratio(seconds, "ours", chosen),
        ratio(seconds, "ours", best),
        ratio(seconds, "ours", label(128, False)),
        choosing / medians["ours"],
    ]


def label(size: int | None, channels_last: bool) -> str:
    return f"{size or 'all'}{' channels_last' if channels_last else ''}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--loop", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.loop:
        torch.set_num_threads(1)
        print(loop(arguments.loop))
        return
    rows = [measure(name, arguments.rounds) for name in arguments.networks]
    header = [
        *("network", "examples", "chosen arm", "best bare arm", "ms a point"),
        *(
            "ours / bare with accuracy",
            "ours / bare, same arm",
            "ours / best bare",
            "ours / bare at 128",
            "choice, in points",
        ),
    ]
    print(machine())
    print()
    print(table(rows, header))
    names = [name for name in WHOLE if name in arguments.networks]
    if names:
        header = ["network", "points", "forwards beside them", "CPU time beside them, in points"]
        header += ["best bare arm", "ms a point"]
        header += ["ours / best bare", "ours / loop in a process as it comes"]
        print()
        print(table([row for name in names for row in whole(name, max(arguments.rounds // 2, 3))], header))


if __name__ == "__main__":
    main()
