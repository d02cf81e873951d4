"""A point of a surface against a bare forward: at the same batch size, and against the best of ten bare arms.

Bars: 1.05x both. Networks: digits MLP, MLP 784-1000-1000-10 and ResNet-20. A bare arm is forward and cross-entropy over
all examples under inference_mode, the sum fetched at the end; ours makes the accuracy too, as does the arm "bare with
accuracy". Arms are interleaved; ratios are medians over rounds of CPU time (wall time on a GPU), as the machine may
be shared.

    python benchmarks/surface.py [--networks digits-mlp mlp-1000 resnet20] [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from timing import interleaved, machine, ratio, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
from sklearn.datasets import load_digits
from torch import nn

from landscape import Problem
from landscape.surfaces.directions.directions import directions
from landscape.surfaces.grid.choice import choose
from landscape.surfaces.grid.evaluation import Choice, GridEvaluation
from trainers.models import build_model

LOSS = nn.CrossEntropyLoss()
SIZES = (64, 128, 256, 512, None)
POINTS = {"digits-mlp": 40, "mlp-1000": 4, "resnet20": 1}
"""Points a timing: each takes a few tenths of a second."""


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


NETWORKS = {"digits-mlp": digits_mlp, "mlp-1000": mlp_1000, "resnet20": resnet20}


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


def measure(name: str, rounds: int) -> list[object]:
    torch.manual_seed(0)
    model, x, y = NETWORKS[name]()
    model.eval()
    points = POINTS[name]
    problem = Problem(model, LOSS, list(zip(x.split(128), y.split(128), strict=True)))
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
    arguments = parser.parse_args()
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


if __name__ == "__main__":
    main()
