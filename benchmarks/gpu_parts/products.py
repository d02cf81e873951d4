"""Hessian-vector products on a device: what they cost, and how exact float32 is there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

from timing import interleaved, ratio  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import landscape
from gpu_parts.measuring import LOSS, Rows, finishing, gigabytes, images, peak, timed
from gpu_parts.sizes import Sizes
from landscape import Problem
from landscape.curvature.products.hessian_graph import HessianGraph


def by_hand(loss: Callable[[], Tensor], parameters: list[Tensor], v: list[Tensor]) -> Callable[[], object]:
    """A double backward that rebuilds its graph; attention by the kernels that have a second derivative."""

    def product() -> object:
        with sdpa_kernel(SDPBackend.MATH):
            gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
        return torch.autograd.grad(gradients, parameters, v)

    return product


def compiled(model: nn.Module, x: Tensor, y: Tensor, v: list[Tensor], compiler: str) -> Callable[[], object]:
    """The same double backward, traced once and compiled as a whole."""
    from torch.fx.experimental.proxy_tensor import make_fx

    names = [name for name, _ in model.named_parameters()]
    weights = [p.detach().clone() for p in model.parameters()]

    def product(w: list[Tensor], v: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
        w = [t.detach().requires_grad_() for t in w]
        with sdpa_kernel(SDPBackend.MATH):
            outputs = functional_call(model, dict(zip(names, w, strict=True)), (x,))
            gradients = torch.autograd.grad(LOSS(outputs, y), w, create_graph=True)
        return list(torch.autograd.grad(gradients, w, v))

    run = torch.compile(make_fx(product)(weights, v, x, y), backend=compiler)
    with torch.no_grad():
        run(weights, v, x, y)

    def replayed() -> object:
        with torch.no_grad():
            return run(weights, v, x, y)

    return replayed


def products(kind: str) -> Callable[[Sizes, torch.device], Rows]:
    """Hessian-vector products against those written by hand and compiled; `kind` names one network of the sizes."""
    return lambda sizes, device: [_products(*sizes.products[kind], sizes, device)]


def _products(
    name: str, network: str, shape: tuple[int, ...], count: int, sizes: Sizes, device: torch.device
) -> list[object]:
    model, x, y = images(network, shape, count, device)
    problem = Problem(model, LOSS, [(x, y)], check=False)
    parameters = list(model.parameters())
    v = [torch.randn_like(p) for p in parameters]
    flat = problem.parameters.flatten(v)
    graph = HessianGraph(problem)
    arms = {
        "by hand": by_hand(lambda: LOSS(model(x), y), parameters, v),
        "rebuilt": lambda: problem.hvp(flat),
        "kept": lambda: graph.product(flat),
    }
    bytes_of = {arm: peak(device, run) for arm, run in arms.items()}
    compiling = "failed"
    try:
        arms["compiled"], seconds = timed(device, lambda: compiled(model, x, y, v, sizes.compiler))
        compiling = f"{seconds:.0f}"
    except Exception as error:  # a compiler's failure is a result, and leaves the other arms
        print(f"  compiling {name}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
    error = math.nan
    if "compiled" in arms:
        expected = graph.product(flat).double()
        made = problem.parameters.flatten(arms["compiled"]())  # type: ignore[arg-type]
        error = float((made.double() - expected).norm() / expected.norm())
    seconds_of = interleaved({arm: finishing(device, run) for arm, run in arms.items()}, sizes.rounds)
    cells = [
        f"{ratio(seconds_of, arm, 'by hand'):.3f}" if arm in arms else "-" for arm in ("rebuilt", "kept", "compiled")
    ]
    memory = [gigabytes(bytes_of[arm]) for arm in ("by hand", "rebuilt")]
    return [name, 1e3 * statistics.median(seconds_of["by hand"]), *cells, compiling, f"{error:.1e}", *memory]


def accuracy(sizes: Sizes, device: torch.device) -> Rows:
    """Relative errors of float32, with convolutions in TF32 as torch does them unasked and without, against float64."""
    model, x, y = images(sizes.network, (3, sizes.side, sizes.side), sizes.exact_images, device)
    v = torch.randn(sum(p.numel() for p in model.parameters()), device=device, dtype=torch.float64)
    truth = _quantities(model.double(), x.double(), y, v)
    model.float()
    rows: Rows = []
    before = torch.backends.cudnn.allow_tf32
    try:
        for name, allowed in (("float32, convolutions in TF32", True), ("float32", False)):
            torch.backends.cudnn.allow_tf32 = allowed
            here = _quantities(model, x, y, v.float())
            errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(here, truth, strict=True)]
            rows.append([name, *(f"{e:.1e}" for e in errors)])
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return rows


def _quantities(model: nn.Module, x: Tensor, y: Tensor, v: Tensor) -> list[Tensor]:
    """Loss, gradient, product, largest eigenvalue."""
    problem = Problem(model, LOSS, [(x, y)])
    loss, gradient = problem.loss_and_gradient()
    top = landscape.top_eigenvalues(problem, k=1, tol=1e-4).values[0]
    return [torch.as_tensor(loss).double(), gradient, problem.hvp(v), torch.tensor(top, device=v.device)]
