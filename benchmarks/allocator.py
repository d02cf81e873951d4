"""What the C library's allocator costs, and what keeping freed memory spares, in CPU time.

    python benchmarks/allocator.py [--rounds 5]

Every row runs in a process of its own, since the allocator's state is one of the whole process; both states in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable

from timing import machine, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainers.models import MODELS


def small_convolutions() -> nn.Module:
    """Five convolutions 16-16-32-32-64 with BatchNorm."""
    layers: list[nn.Module] = []
    for before, width, stride in ((3, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 2), (32, 64, 1)):
        layers += [nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def transformer() -> nn.Module:
    """Two blocks of width 128."""
    layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Flatten(), nn.LazyLinear(10))


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "five convolutions, 125 x 3x24x24": (small_convolutions, (125, 3, 24, 24)),
    "ResNet-20, 128 x 3x32x32": (lambda: MODELS["resnet20"](classes=10, input_shape=(3, 32, 32)), (128, 3, 32, 32)),
    "transformer, 32 x 128 x 128": (transformer, (32, 128, 128)),
    "MLP 64-256-256-10, 1,437 x 64": (
        lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)),
        (1437, 64),
    ),
}


def works(model: nn.Module, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """What is timed on one network: a forward pass, a step of training, a Hessian-vector product."""
    x, y = torch.randn(shape), torch.randint(0, 10, shape[:1])
    model(x)
    weights = dict(model.named_parameters())
    direction = [torch.randn_like(p) for p in weights.values()]

    def gradient(graph: bool) -> tuple[torch.Tensor, ...]:
        with sdpa_kernel(SDPBackend.MATH):  # the one that can be differentiated twice
            loss = nn.functional.cross_entropy(functional_call(model, weights, (x,)), y)
            return torch.autograd.grad(loss, tuple(weights.values()), create_graph=graph)

    def forward() -> None:
        with torch.inference_mode():
            model.eval()(x)

    return {
        "forward": forward,
        "gradient": lambda: gradient(False),
        "product": lambda: torch.autograd.grad(gradient(True), tuple(weights.values()), direction),
    }


def child(case: str) -> None:
    """Milliseconds outside of and in the kernel, and the peak of memory, as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, shape = CASES[case]
    content = {}
    for name, work in works(make(), shape).items():
        work(), work()
        spent = []
        for _ in range(8):
            before = resource.getrusage(resource.RUSAGE_SELF)
            work()
            after = resource.getrusage(resource.RUSAGE_SELF)
            spent.append((after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime))
        content[name] = [1e3 * statistics.median(s) for s in zip(*spent, strict=True)]
    content["peak"] = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]
    print(json.dumps(content))


def measured(case: str, state: str) -> dict[str, list[float]]:
    """One run of a case in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", case],
        env={**os.environ, "LANDSCAPE_ALLOCATOR": state, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        return child(options.case)
    print(machine())
    rows: list[list[object]] = []
    for case in CASES:
        runs = {s: [measured(case, s) for _ in range(options.rounds)] for s in ("default", "keep")}
        for work in ("forward", "gradient", "product"):
            sums = {s: [sum(r[work]) for r in some] for s, some in runs.items()}
            kernel = {s: statistics.median(r[work][1] for r in some) for s, some in runs.items()}
            ratios = [k / d for d, k in zip(sums["default"], sums["keep"], strict=True)]
            shown = [f"{statistics.median(sums[s]):.1f} ({kernel[s]:.1f})" for s in sums]
            rows.append([case, work, *shown, statistics.median(ratios)])
        peaks = [f"{max(r['peak'][0] for r in runs[s]):.0f} MB" for s in runs]
        rows.append([case, "peak of memory", *peaks, ""])
    print(table(rows, ["network", "work", "default: ms (kernel)", "kept: ms (kernel)", "kept / default"]))
    return None


if __name__ == "__main__":
    main()
