"""Five networks that nobody here trained, measured beside PyHessian, curvlinops with ARPACK and hessian-eigenthings.

ResNet-20/32/44/56 of github akamaster/pytorch_resnet_cifar10 and the ResNet-20 of github amirgholami/PyHessian, on the
first images of CIFAR-10's training set as they lie in `--cifar10`: lambda_1..5, trace, SAM sharpness and a surface.
Values are held against float64 references that share no code with `landscape`; times are CPU time (wall-clock too in
the records), arms in turn within a round, and compared by medians of ratios within the rounds.

    python benchmarks/public.py --weights FOLDER --cifar10 FILE.npz [--peers FOLDER] [--write docs/trust.md]

Every number is written to `--out` at once, and what lies there is not measured again: a killed run goes on, `--again`
measures anew (the references, which take longest, stay). Peers that are missing are skipped with a message, see
`benchmarks/peers.py`. FILE.npz holds uint8 images and labels x_train, y_train.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timing import machine  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import numpy as np
import peers
import public_page
import public_truth
import torch
from peers import LOSS, Case, K, Outcome

import landscape
from landscape.surfaces.directions.directions import directions

RHO = 0.05
DIRECTIONS = "filter"
ROOT = Path(__file__).resolve().parent.parent
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True)
class Network:
    """Where a network's weights lie, and what nobody can read from the file."""

    file: str
    model: str
    moments: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET
    rename: tuple[str, ...] = ("linear=fc",)


NETWORKS = {
    "ResNet-20": Network("resnet20-12fca82f.th", "resnet20:shortcut=pad-centered"),
    "ResNet-32": Network("resnet32-d509ac18.th", "resnet:depth=32,shortcut=pad-centered"),
    "ResNet-44": Network("resnet44-014dd654.th", "resnet:depth=44,shortcut=pad-centered"),
    "ResNet-56": Network("resnet56-4bfd9763.th", "resnet56:shortcut=pad-centered"),
    "PyHessian's ResNet-20": Network("pyhessian-resnet20.pkl", "resnet20", CIFAR10, ()),
}
SHALLOW = ("ResNet-20", "PyHessian's ResNet-20")
DEAR = {"PyHessian, tol 1e-4", "hessian-eigenthings, defaults", "hessian-eigenthings, Hutch++ 99"}
"""Arms that only shallow networks on few images are asked for: they would take longer than all others together."""


def load(name: str, images: int, options: argparse.Namespace) -> Case:
    """The network by the toolkit's reader, its images normalized as in its training."""
    network, arrays = NETWORKS[name], np.load(options.cifar10)
    mean, std = (torch.tensor(m)[:, None, None] for m in network.moments)
    x = (torch.tensor(arrays["x_train"][:images]).permute(0, 3, 1, 2).float() / 255 - mean) / std
    y = torch.tensor(arrays["y_train"][:images]).long()
    problem = landscape.problem_from(
        options.weights / network.file,
        model=network.model,
        model_arguments={"classes": 10, "input_shape": (3, 32, 32)},
        data=lambda: [(x, y)],
        rename=network.rename,
        device="cpu",
    )
    return Case(name, problem.model, x, y, batch_size=128 if images % 128 == 0 else None)


# -- arms: quantity -> (name, work) -----------------------------------------------------------------------------------


def problem(case: Case) -> landscape.Problem:
    """Ours, made anew with all of its checks in every run: nothing is kept from another measurement."""
    return landscape.Problem(case.model, LOSS, case.batches())


def product_arms(case: Case, grid: int, seed: int) -> Iterator[peers.Arm]:
    """The unit of cost: a double backward by hand that rebuilds its graph."""
    v = [torch.randn_like(p) for p in case.parameters]

    def by_hand() -> Outcome:
        for x, y in case.batches():
            gradient = torch.autograd.grad(LOSS(case.model(x), y), case.parameters, create_graph=True)
            torch.autograd.grad(gradient, case.parameters, v)
        return Outcome(np.zeros(0), 1)

    yield "by hand", by_hand


def eigenvalue_arms(case: Case, grid: int, seed: int) -> Iterator[peers.Arm]:
    """The five largest eigenvalues."""

    def ours() -> Outcome:
        result = landscape.top_eigenvalues(problem(case), k=K, seed=seed)
        worst = float((result.error_bounds / np.abs(result.values)).max())
        says = f"bounds up to {worst:.1e}" if result.converged else f"not converged, bounds up to {worst:.1e}"
        return Outcome(result.values, result.hvps, says, result.error_bounds.tolist())

    yield "ours, defaults", ours
    yield from peers.eigenvalue_arms(case, seed)


def trace_arms(case: Case, grid: int, seed: int) -> Iterator[peers.Arm]:
    """The trace."""

    def ours() -> Outcome:
        result = landscape.trace(problem(case), seed=seed)
        says = "exact" if result.exact else f"standard error {result.stderr:.2g}"
        return Outcome(np.array([result.value]), result.hvps, says)

    yield "ours, defaults", ours
    yield from peers.trace_arms(case, seed)


def sam_arms(case: Case, grid: int, seed: int) -> Iterator[peers.Arm]:
    """SAM sharpness; no peer has it: the passes that it cannot do without are."""

    def bare() -> Outcome:
        for x, y in case.batches():
            torch.autograd.grad(LOSS(case.model(x), y), case.parameters)
        return _forward(case)

    yield "ours", lambda: Outcome(np.array([landscape.sam_sharpness(problem(case), rho=RHO).value]), 0)
    yield "bare passes", bare


def surface_arms(case: Case, grid: int, seed: int) -> Iterator[peers.Arm]:
    """A surface beside as many bare forward passes in batches of 128."""

    def ours() -> Outcome:
        loss = landscape.surface(problem(case), DIRECTIONS, grid=grid).loss
        return Outcome(loss[np.ix_((0, -1), (0, -1))].reshape(-1), 0)

    def bare() -> Outcome:
        for _ in range(grid**2):
            outcome = _forward(case)
        return outcome

    yield "ours", ours
    yield "bare passes", bare


@torch.inference_mode()
def _forward(case: Case) -> Outcome:
    return Outcome(np.array([sum(float(LOSS(case.model(x), y)) * len(x) for x, y in case.batches()) / len(case.x)]), 0)


QUANTITIES: dict[str, Callable[[Case, int, int], Iterator[peers.Arm]]] = {
    "product": product_arms,
    "eigenvalues": eigenvalue_arms,
    "trace": trace_arms,
    "sam": sam_arms,
    "surface": surface_arms,
}


# -- measuring --------------------------------------------------------------------------------------------------------


class Record:
    """The numbers of one network on so many images, on disk after every run of an arm."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if fresh:
            self.content.pop("runs", None)
        self.runs: dict[str, dict[str, list[dict[str, Any]]]] = self.content.setdefault("runs", {})

    def keep(self, **values: Any) -> None:
        """Add values and write everything."""
        self.content |= values
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.content, indent=1))
        beside.replace(self.path)

    def run(self, quantity: str, arm: str, round_: int, work: Callable[[], Outcome]) -> None:
        """Time the arm, unless its round is there."""
        done = self.runs.setdefault(quantity, {}).setdefault(arm, [])
        if any(r["round"] == round_ for r in done):
            return
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        outcome = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        done.append(
            {
                "round": round_,
                "seconds": wall,
                "cpu": cpu,
                "load": os.getloadavg()[0],
                "values": outcome.values.tolist(),
                "products": outcome.products,
                "says": outcome.says,
                "bounds": outcome.bounds,
            }
        )
        self.keep()
        print(f"  {quantity}, {arm}, round {round_}: {wall:.1f} s, {outcome.products} products", flush=True)


def measure(name: str, images: int, options: argparse.Namespace) -> None:
    """Everything of one network that its record does not hold yet."""
    print(f"{name}, {images} images", flush=True)
    slug = name.lower().replace("'", "").replace(" ", "-")
    record = Record(options.out / f"{slug}-{images}.json", options.again)
    case = load(name, images, options)
    record.keep(network=name, images=images, parameters=sum(p.numel() for p in case.parameters), machine=machine())
    truth = record.content.setdefault("truth", {})
    plane = directions(DIRECTIONS, problem(case)).vectors
    whole = images <= 128 and name in SHALLOW
    vectors = None if whole else lambda: landscape.top_eigenvalues(problem(case), k=K).vectors
    for quantity, value in public_truth.references(case, RHO, plane, vectors, list(truth)):
        truth[quantity] = value
        record.keep()
        print(f"  reference: {quantity}", flush=True)
    for round_ in range(options.rounds):
        for quantity, arms in QUANTITIES.items():
            for arm, work in arms(case, options.grid, round_):
                first = record.runs.get(quantity, {}).get(arm, [])
                too_long = round_ > 0 and first and first[0]["seconds"] > options.repeat
                if not (too_long or (arm in DEAR and not whole)):
                    record.run(quantity, arm, round_, work)


def main() -> None:
    """Measure, print the page, write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = {name: os.environ.get(name) for name in ("LANDSCAPE_WEIGHTS", "LANDSCAPE_CIFAR10")}
    parser.add_argument("--weights", type=Path, default=default["LANDSCAPE_WEIGHTS"], help="$LANDSCAPE_WEIGHTS")
    parser.add_argument("--cifar10", type=Path, default=default["LANDSCAPE_CIFAR10"], help="$LANDSCAPE_CIFAR10")
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--images", type=lambda text: [int(n) for n in text.split(",")], default=[128, 1024])
    parser.add_argument("--grid", type=int, default=21, help="points per axis of the surface, odd")
    parser.add_argument("--rounds", type=int, default=3, help="0: references only")
    parser.add_argument("--repeat", type=float, default=15, help="arms that take more seconds run in one round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path, action="append", default=[], help="folder that holds peers")
    parser.add_argument("--out", type=Path, default=ROOT / "public-out")
    parser.add_argument("--tables", action="store_true", help="measure nothing, make the tables of what is there")
    parser.add_argument("--again", action="store_true", help="measure anew; references stay")
    parser.add_argument("--write", type=Path, help="the page whose section this is, such as docs/trust.md")
    options = parser.parse_args()
    if not options.tables and not (options.weights and options.cifar10):
        print("skipped: --weights and --cifar10 say where the public networks and their images are", file=sys.stderr)
        return
    # After the environment's own packages: a torch among the peers is not taken.
    sys.path.extend(str(folder) for folder in options.peers)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=UserWarning)
    for images in options.images:
        for name in [] if options.tables else options.only:
            measure(name, images, options)
    text = public_page.section(options.out, list(NETWORKS))
    print(text)
    if options.write:
        public_page.write(options.write, text)


if __name__ == "__main__":
    main()
