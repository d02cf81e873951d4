"""A compiled Hessian-vector product on a CPU: what it takes, what compiling costs, and after how many products it pays.

    python benchmarks/compiled.py [--cases MLP transformer] [--rounds 7]

Arms: a double backward by hand that builds its graph again, the library's product over a graph that is kept, and the
same product traced as a whole, loss to second derivative, and compiled by torch.compile: reverse over reverse (the
gradient of <gradient, v>, traced by make_fx) and forward over reverse (jvp of grad). Every case runs in a process of
its own, with an empty cache of compiled kernels and then again with the full one. Seconds are of CPU time, the
compilers' processes included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from timing import interleaved, machine, ratio, table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
from allocator import CASES
from gpu_parts.products import by_hand, compiled
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import Problem
from landscape.curvature.products.hessian_graph import HessianGraph

LOSS = nn.CrossEntropyLoss()
LANCZOS = (12, 25)
"""Products that the largest eigenvalues take."""


def forward_over_reverse(model: nn.Module, x: Tensor, y: Tensor, v: list[Tensor]) -> Callable[[], object]:
    """The jvp of the gradient, compiled."""
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    direction = dict(zip(weights, v, strict=True))

    def loss(w: dict[str, Tensor]) -> Tensor:
        return LOSS(functional_call(model, w, (x,)), y)

    run = torch.compile(lambda w, d: jvp(grad(loss), (w,), (d,))[1], fullgraph=True)

    def product() -> object:
        with sdpa_kernel(SDPBackend.MATH):
            return list(run(weights, direction).values())

    product()
    return product


COMPILERS: dict[str, Callable[..., Callable[[], Any]]] = {
    "reverse over reverse": lambda *a: compiled(*a, compiler="inductor"),
    "forward over reverse": forward_over_reverse,
}


def child(case: str, rounds: int) -> None:
    """Seconds of compiling and of products, as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, shape = CASES[case]
    model, x, y = make(), torch.randn(shape), torch.randint(0, 10, shape[:1])
    model(x)
    model.eval()
    parameters = list(model.parameters())
    v = [torch.randn_like(p) for p in parameters]
    problem = Problem(model, LOSS, [(x, y)], check=False)
    flat, graph = problem.parameters.flatten(v), HessianGraph(problem)
    arms: dict[str, Callable[[], Any]] = {
        "by hand": by_hand(lambda: LOSS(model(x), y), parameters, v),
        "kept": lambda: graph.product(flat),
    }
    expected, compiling, errors = graph.product(flat).double(), {}, {}
    for name, make_arm in COMPILERS.items():
        started = _cpu_seconds()
        try:
            arms[name] = make_arm(model, x, y, v)
        except Exception as error:  # a compiler's failure is a result
            compiling[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
            continue
        compiling[name] = _cpu_seconds() - started
        made = problem.parameters.flatten(arms[name]()).double()
        errors[name] = float((made - expected).norm() / expected.norm())
    seconds = interleaved(arms, rounds, time.process_time)
    print(json.dumps({"compiling": compiling, "errors": errors, "seconds": seconds}))


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def measured(case: str, rounds: int, cache: str) -> dict[str, Any]:
    """One run of a case in a new process."""
    settings = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--case", case, "--rounds", str(rounds)],
        env={**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def rows(case: str, rounds: int) -> list[list[object]]:
    """A row for each way of compiling."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = measured(case, rounds, cache), measured(case, rounds, cache)
    seconds = cold["seconds"]
    hand, kept = (statistics.median(seconds[arm]) for arm in ("by hand", "kept"))
    made: list[list[object]] = []
    for name in COMPILERS:
        row: list[object] = [case, name, 1e3 * hand, ratio(seconds, "kept", "by hand")]
        if name not in seconds:
            made.append([*row, cold["compiling"][name]])
            continue
        taken = statistics.median(seconds[name])
        pays = [
            f"{compiling[name] / (kept - taken):,.0f}" if taken < kept else "never"
            for compiling in (cold["compiling"], warm["compiling"])
        ]
        made.append(
            [
                *row,
                ratio(seconds, name, "by hand"),
                taken / kept,
                *(run["compiling"][name] for run in (cold, warm)),
                *pays,
                f"{cold['errors'][name]:.0e}",
            ]
        )
    return made


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=["five", "transformer", "MLP"], help="how their names begin")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        return child(options.case, options.rounds)
    print(machine())
    print(f"Lanczos takes {LANCZOS[0]} to {LANCZOS[1]} products.")
    header = ["network", "compiled", "by hand: ms", "kept / by hand", "compiled / by hand", "compiled / kept"]
    header += ["compiling: s", "from the cache: s", "pays after products", "from the cache", "relative difference"]
    names = [case for case in CASES if case.startswith(tuple(options.cases))]
    print(table([row for case in names for row in rows(case, options.rounds)], header))
    return None


if __name__ == "__main__":
    main()
