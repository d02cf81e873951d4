"""A second of arithmetic that shows whether this machine differentiates twice, rightly and repeatably.

Small networks with known answers: a least-squares problem whose Hessian is a formula; a convolution and an attention
whose products are held against finite differences of the gradient. Nothing of a user is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscape.ball.vectors import dot, norm
from landscape.errors import InputError, is_out_of_memory
from landscape.problem.problem import Problem
from landscape.random import normal, stream, undisturbed

_REPEATS = 3
_STEP = 1e-5
_ROUNDING = 1e-10
"""What float64 may lose in these networks: measured 1e-16 to 1e-15."""
_OF_DIFFERENCES = 1e-6
"""Central differences with that step are off by 1e-10 to 1e-9."""


@dataclass(frozen=True)
class MachineCheck:
    """One question to the machine.

    Attributes:
        name: what was tried.
        ok: whether the answer was right.
        text: by how much it was off, or what went wrong.
    """

    name: str
    ok: bool
    text: str


def self_test(device: torch.device) -> list[MachineCheck]:
    """Products with a known Hessian, second derivatives of convolution and attention, repeatability.

    Cost: less than a second on a CPU.
    """
    checks: dict[str, Callable[[torch.device], MachineCheck]] = {
        "products": _closed_form,
        "convolution": lambda d: _differences("convolution", _convolution(), (6, 2, 6, 6), d),
        "attention": lambda d: _differences("attention", _attention(), (6, 5, 8), d),
        "repeatability": _repeatable,
    }
    with undisturbed():
        return [_tried(name, check, device) for name, check in checks.items()]


def _tried(name: str, check: Callable[[torch.device], MachineCheck], device: torch.device) -> MachineCheck:
    """The answer; a failure inside torch is one too, and lack of memory is none."""
    try:
        return check(device)
    except (RuntimeError, NotImplementedError, InputError) as error:
        if is_out_of_memory(error):
            raise
        return MachineCheck(name, False, str(error).splitlines()[0])


def _closed_form(device: torch.device) -> MachineCheck:
    """L(W) = mean (W x - y)^2 over n examples and c outputs has the Hessian 2 / (n c) I_c (x) X^T X."""
    x, y, v = (_drawn(shape, device) for shape in ((40, 5), (40, 3), (15,)))
    problem = _problem(nn.Linear(5, 3, bias=False), nn.functional.mse_loss, [(x[:24], y[:24]), (x[24:], y[24:])])
    expected = 2 / (40 * 3) * (v.reshape(3, 5) @ (x.T @ x)).reshape(-1)
    off = _relative(problem.hvp(v), expected)
    return MachineCheck("products", off < _ROUNDING, f"Hessian-vector products are off by {off:.1e} from the formula")


def _differences(name: str, model: nn.Module, shape: tuple[int, ...], device: torch.device) -> MachineCheck:
    """H v against (g(w + h v) - g(w - h v)) / 2h for |v| = 1, and u'Hv against v'Hu."""
    batch = (_drawn(shape, device), torch.arange(shape[0], device=device) % 3)
    problem = _problem(model, nn.functional.cross_entropy, [batch])
    u, v = (d / norm(d) for d in (_drawn((problem.dimension,), device, name=n) for n in "uv"))
    ahead, behind = (problem.gradient(problem.weights + h * v) for h in (_STEP, -_STEP))
    product = problem.hvp(v)
    off = _relative(product, (ahead - behind) / (2 * _STEP))
    uneven = float((dot(u, product) - dot(v, problem.hvp(u))).abs() / norm(product))
    text = f"second derivatives are off by {off:.1e} from differences, asymmetric by {uneven:.1e}"
    return MachineCheck(name, off < _OF_DIFFERENCES and uneven < _ROUNDING, text)


def _repeatable(device: torch.device) -> MachineCheck:
    """Loss, gradient and product in float32, bit for bit."""
    x = _drawn((64, 2, 6, 6), device).float()
    problem = _problem(_convolution(), nn.functional.cross_entropy, [(x, torch.arange(64, device=device) % 3)])
    v = _drawn((problem.dimension,), device).float()
    first, *others = [(problem.loss(), problem.gradient(), problem.hvp(v)) for _ in range(_REPEATS)]
    names = ("loss", "gradient", "Hessian-vector product")
    differing = [n for i, n in enumerate(names) if not all(torch.equal(first[i], o[i]) for o in others)]
    text = f"the {' and the '.join(differing)} differ" if differing else "loss, gradient and product are the same bits"
    return MachineCheck("repeatability", not differing, f"{text} in {_REPEATS} runs")


def _problem(model: nn.Module, loss: Callable[..., Tensor], batches: list[tuple[Tensor, Tensor]]) -> Problem:
    """The problem with weights from a named stream, so that every machine asks the same."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(_drawn(tuple(p.shape), p.device, name=name) / math.sqrt(p.shape[-1] if p.ndim > 1 else 4))
    return Problem(model.to(batches[0][0]).eval(), loss, batches)


def _convolution() -> nn.Module:
    head = (nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *head)


def _attention() -> nn.Module:
    block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(40, 3))


def _drawn(shape: tuple[int, ...], device: torch.device, *, name: str = "x") -> Tensor:
    generator = stream(0, f"self-test {name} {shape}")
    return normal(torch.empty(math.prod(shape), dtype=torch.float64), generator).reshape(shape).to(device)


def _relative(a: Tensor, b: Tensor) -> float:
    return float(norm(a - b) / norm(b))
