"""Steps of every training method beside the same steps written out by hand: weights, running statistics, to rounding.

Networks with and without BatchNorm, with a head that the loss never sees; every base optimizer beneath; weight decay in
the optimizer or in the loss, m-groups, warm-up; through `Task` as a trainer does or through `MethodOptimizer`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from audit.handwritten.methods import AFTER, BEFORE, METHODS, HandStep, Memory
from audit.handwritten.network import Base, Handwritten, Layers, Tree, module, plus, times
from audit.verdict import REFUSED, WRONG, Verdict
from landscape.problem.batches import Batch
from landscape.random import stream
from trainers import METHODS as REGISTERED
from trainers import MethodOptimizer
from trainers.loop.settings import BASES
from trainers.method.method import Context, Task
from trainers.optimizers.lion import Lion
from trainers.optimizers.muon import Muon

SLACK = 1e-9
CLASSES, STEPS_AN_EPOCH = 3, 2
# No bias in front of BatchNorm: its gradient is 0 to rounding, and Adam's and ESAM's quotients of it are nobody's.
NETWORKS: dict[str, Layers] = {
    "linear": [("linear", 4, CLASSES)],
    "mlp": [("linear", 4, 5), ("tanh",), ("linear", 5, CLASSES)],
    "relu": [("linear", 4, 6), ("relu",), ("linear", 6, CLASSES)],
    "batch norm": [("linear", 4, 5, False), ("batch norm", 5), ("tanh",), ("linear", 5, CLASSES)],
    "layer norm": [("linear", 4, 5), ("layer norm", 5), ("tanh",), ("linear", 5, CLASSES)],
    "images": [
        ("convolution", 1, 2, 2, 1, 0, 1, 1, False),
        ("batch norm of images", 2),
        ("tanh",),
        ("flatten",),
        ("linear", 8, CLASSES),
    ],
    "spare head": [("linear", 4, 5), ("relu",), ("linear", 5, CLASSES), ("spare", 5, 2)],
}


def audit(seed: int) -> Verdict:
    """Draw by seed and compare."""
    return again(choice(seed))


def choice(seed: int) -> dict[str, Any]:
    """What is drawn by seed."""
    r = np.random.default_rng([41, seed])
    method = str(r.choice(sorted(METHODS)))
    hyper = _hyper(method, r)
    networks = [n for n in NETWORKS if _fits(method, n)]
    door = "task"
    if not REGISTERED[method](**hyper).needs_batch and r.random() < 0.4:
        door = "optimizer"
    base = method if method in BASES else str(r.choice(["sgd", *BASES]))
    momentum = float(r.choice([0.5, 0.9])) if method == "msam" else float(r.choice([0.0, 0.5, 0.9]))
    return {
        "seed": seed,
        "method": method,
        "hyper": hyper,
        "network": str(r.choice(networks)),
        "base": base,
        "momentum": momentum,
        "nesterov": bool(r.random() < 0.3 and momentum > 0),
        "decay": float(r.choice([0.0, 0.01, 0.1])),
        "inside": float(r.choice([0.0, 0.0, 0.1])) if door == "task" else 0.0,
        "batch": int(r.choice([8, 9, 12])),
        "m": int(r.choice([4, 6])) if door == "task" and method not in ("saf", "mesa") and r.random() < 0.2 else None,
        "door": door,
        "steps": int(r.integers(1, 9)),
        "warmup": int(r.choice([0, 2])) if method != "gnp" or hyper["penalty_warmup"] == "none" else 2,
        "falling": bool(r.random() < 0.6),
    }


def again(kept: dict[str, Any]) -> Verdict:
    """Compare what was drawn before."""
    verdict = Verdict(kept["seed"], kept["method"], choice=kept)
    layers = NETWORKS[kept["network"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(kept["seed"])
        model = module(layers)
    data = _data(kept)
    try:
        by_hand = _by_hand(kept, model, data)
    except Exception as error:  # the audit's own fault
        verdict.wrong(f"the audit failed: {type(error).__name__}: {error}")
        return verdict
    norms = kept["network"] in ("batch norm", "images")
    with verdict.watching("the method"):
        steps = {"task": _through_task, "optimizer": _through_optimizer}[kept["door"]](kept, model, data)
        for number, (ours, seen) in enumerate(zip(by_hand, steps, strict=True)):
            for name, right in ours.items():
                verdict.same(f"{name} after step {number + 1}", seen[name], right, SLACK)
            if verdict.outcome == WRONG:
                break
    if verdict.outcome == REFUSED and not (norms and "one example through BatchNorm" in verdict.texts[0]):
        verdict.wrong(f"refused: {verdict.texts[0]}")
    return verdict


def simpler(kept: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Choices with one thing less in them."""
    changes: list[dict[str, Any]] = [{"m": None}, {"inside": 0.0}, {"decay": 0.0}, {"nesterov": False}]
    changes += [{"falling": False}, {"door": "task"}]
    if kept["method"] not in ("msam", *BASES):
        changes += [{"momentum": 0.0, "nesterov": False}, {"base": "sgd"}]
    changes += [{"network": n} for n in ("linear", "mlp") if _fits(kept["method"], n)]
    changes += [{"steps": n} for n in range(1, kept["steps"])]
    return (kept | change for change in changes if kept | change != kept)


# -- what is drawn -----------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """A training set, and the examples of every step."""

    x: Tensor
    y: Tensor
    order: list[Tensor]

    @property
    def examples(self) -> int:
        return len(self.y)

    @property
    def classes(self) -> int:
        return CLASSES

    def batch(self, indices: Tensor) -> Batch:
        return Batch((self.x[indices],), {}, self.y[indices], len(indices))


def _data(kept: dict[str, Any]) -> Data:
    generator, n = torch.Generator().manual_seed(kept["seed"] + 1), kept["batch"] * STEPS_AN_EPOCH
    shape = (1, 3, 3) if kept["network"] == "images" else (4,)
    x = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    y = torch.randint(CLASSES, (n,), generator=generator)
    epochs = -(-kept["steps"] // STEPS_AN_EPOCH)
    order = [part for _ in range(epochs) for part in torch.randperm(n, generator=generator).split(kept["batch"])]
    return Data(x, y, order[: kept["steps"]])


def _contexts(kept: dict[str, Any], data: Data) -> list[Context]:
    """A learning rate that falls or stays, warmed up from its first part on."""
    rates = [0.1 * (1 - 0.1 * t) if kept["falling"] else 0.1 for t in range(kept["steps"])]
    warmup, total = kept["warmup"], kept["steps"] + 1
    return [
        Context(
            epoch=t // STEPS_AN_EPOCH,
            step=t,
            total_steps=total,
            steps_per_epoch=STEPS_AN_EPOCH,
            batch_size=kept["batch"] if kept["door"] == "task" else None,
            progress=t / total,
            lr=rate,
            lr_min=0.02,
            lr_max=rates[0],
            warming=t < warmup,
            warmed=min(1.0, (t + 1) / warmup) if warmup else 1.0,
            warmup_steps=warmup if kept["door"] == "task" else None,
            seed=kept["seed"],
            training_set=data if kept["door"] == "task" else None,
        )
        for t, rate in enumerate(rates)
    ]


def _hyper(method: str, r: np.random.Generator) -> dict[str, Any]:
    """Random hyper-parameters of a method."""

    def one(*values: Any) -> Any:
        return values[r.integers(len(values))]

    def real(low: float, high: float) -> float:
        return float(r.uniform(low, high))

    schedules = ("constant", "piecewise1", "piecewise2", "piecewise3", "linear1", "linear2", "trigonometric")
    trajectory: dict[str, Any] = {"strength": real(0.1, 1), "tau": real(1, 5)}
    late = {"recipe": "paper"} if r.random() < 0.2 else {"recipe": "scaled", "start": one(0.0, 0.3)}
    random = {"p": one(0.0, 1.0, real(0, 1)), "p_schedule": one(*schedules)}
    masks = {"mask": "fisher", "samples": one(3, 6)} if r.random() < 0.5 else {"mask": "dynamic", "drop": real(0, 1)}
    averages = {"decay": real(0.1, 0.99)} if r.random() < 0.5 else {"horizon": one(None, real(0.5, 4))}
    if late["recipe"] == "paper":
        averages = {}
    arguments: dict[str, dict[str, Any]] = {
        "asam": {"eta": one(0.0, 0.01, 0.3), "normalize": one("weights", "all", "unperturbed-biases")},
        "esam": {"beta": real(0.2, 1), "gamma": one(0.5, 0.75, 1.0)},
        "looksam": {"k": one(1, 2, 3), "alpha": real(0, 1)},
        "gsam": {"alpha": one(0.0, real(0, 1)), "rho_min": one(None, 0.0), "descend": one("perturbed", "clean")},
        "saf": {**trajectory, **late, "lag": one(1, 2), "store": one("half", "full"), "top": one(None, 2)},
        "mesa": {**trajectory, **late, **averages},
        "rst": random,
        "g-rst": {**random, "alpha": one(None, 1.0, real(0, 2)), "normalized": one(True, False)},
        "gnp": {
            "alpha": one(1.0, real(0, 2)),
            "normalized": one(True, False),
            "penalty_warmup": one("none", "none", "lambda", "r", "zero"),
        },
        "k-sam": {"k": one(None, 2, 4)},
        "ssam": {"sparsity": real(0.1, 0.9), "every": one(1, 2), **masks},
        "amp": {
            "radius": real(0.01, 0.5),
            "inner_lr": real(0.1, 2),
            "inner_steps": one(1, 2),
            "inner_clip": one(50, 0.3),
        },
        "subset-sam": {"s": one(0.5, 0.75, 1.0)},
        "friendly-sam": {"sigma": real(0, 1), "lmbda": real(0, 0.95)},
        "random-perturbation": {
            "sigma": real(0.01, 0.3),
            "alpha": one(1.0, real(0, 1)),
            "scaling": one("filterwise", "elementwise", "layerwise", "identity"),
        },
        "wsam": {"gamma": real(0.1, 0.95), "decoupled": one(True, False)},
        "vasso": {"theta": one(1.0, real(0.1, 1))},
        "eigen-sam": {"alpha": real(0, 1), "every": one(1, 2, 3), "power_steps": one(1, 2, 5)},
        "le-sam": {"sigma": real(0, 1), "rho_max": real(0.05, 1), "rise": one(0.0, 0.3), "fall": one(0.5, 1.0)},
        "xsam": {
            "rho_max": real(0.1, 1),
            "steps": one(1, 2),
            "alpha": one(None, None, real(0, 2)),
            "alpha_max": one(1.0, 2.0),
            "alpha_step": one(0.25, 0.5),
        },
    }
    radius = {"rho": real(0.01, 0.5)}
    if method in (*BASES, "saf", "mesa", "amp", "random-perturbation", "le-sam"):
        radius = {}
    return {**radius, **arguments.get(method, {})}


def _fits(method: str, network: str) -> bool:
    """SAM-ON needs norms; among entries without a gradient SSAM's choice is nobody's to say."""
    if method == "sam-on":
        return network in ("batch norm", "layer norm", "images")
    return method != "ssam" or network not in ("relu", "spare head")


# -- the three ways of a step ------------------------------------------------------------------------------------------


def _optimizer(kept: dict[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    kinds: dict[str, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    kinds |= {"lion": Lion, "muon": Muon}
    options = {"weight_decay": kept["decay"], "lr": 0.1}
    if kept["base"] == "muon":
        matrices = [p for p in model.parameters() if p.dim() > 1][:-1]
        others = [p for p in model.parameters() if all(p is not m for m in matrices)]
        groups = [{"params": matrices, "orthogonal": True}, {"params": others, "orthogonal": False}]
        return Muon([g for g in groups if g["params"]], **options)
    if kept["base"] == "sgd":
        options |= {"momentum": kept["momentum"], "nesterov": kept["nesterov"]}
    optimizer: torch.optim.Optimizer = kinds[kept["base"]](model.parameters(), **options)
    return optimizer


def _seen(model: nn.Module) -> Tree:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {n: t.detach().clone() for n, t in tensors if t.is_floating_point()}


def _through_task(kept: dict[str, Any], model: nn.Module, data: Data) -> Iterator[Tree]:
    base, method = _optimizer(kept, model), REGISTERED[kept["method"]](**kept["hyper"])
    decay = [kept["inside"] * ("weight" in n) for n, _ in model.named_parameters()]
    criterion = nn.CrossEntropyLoss(reduction="none")
    task = Task(model, criterion, optimizer=base, decay=decay, group_size=kept["m"])
    state = None
    for context, index in zip(_contexts(kept, data), data.order, strict=True):
        if state is None:
            state = method.init(task, context)
        for group in base.param_groups:
            group["lr"] = context.lr
        step = task.step((data.x[index], data.y[index]), context, indices=index)
        method.gradient(step, state)
        base.step()
        method.after_step(step, state)
        yield _seen(model)


def _through_optimizer(kept: dict[str, Any], model: nn.Module, data: Data) -> Iterator[Tree]:
    contexts = _contexts(kept, data)
    base, method = _optimizer(kept, model), REGISTERED[kept["method"]](**kept["hyper"])
    options: dict[str, Any] = {"steps_per_epoch": STEPS_AN_EPOCH, "lr_min": contexts[0].lr_min, "seed": kept["seed"]}
    options |= {"warmup": kept["warmup"], "total_steps": contexts[0].total_steps}
    optimizer = MethodOptimizer(base, method, model, **options)
    for context, index in zip(contexts, data.order, strict=True):
        for group in base.param_groups:
            group["lr"] = context.lr

        def closure(rows: Tensor = index) -> Tensor:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.x[rows]), data.y[rows])
            loss.backward()
            return loss

        optimizer.step(closure)
        yield _seen(model)


def _by_hand(kept: dict[str, Any], model: nn.Module, data: Data) -> list[Tree]:
    """Weights and running statistics after every step."""
    net = Handwritten(NETWORKS[kept["network"]], model, (kept["inside"], "weight"))
    options = {"weight_decay": kept["decay"], "momentum": kept["momentum"], "nesterov": kept["nesterov"]}
    base, memory, after = Base(kept["base"], options), Memory(), []
    name, h = kept["method"], REGISTERED[kept["method"]](**kept["hyper"]).arguments
    for context, index in zip(_contexts(kept, data), data.order, strict=True):
        streams = functools.partial(stream, kept["seed"])
        step = HandStep(net, base, data.x[index], data.y[index], index, context, streams, (data.x, data.y))
        if name in BEFORE:
            BEFORE[name](step, h, memory)
        gradient, memory = _grouped(kept, step, h, memory)
        net.p = base.step(net.p, gradient, context.lr)
        if name in AFTER:
            AFTER[name](step, h, memory)
        after.append({**net.p, **net.running})
    return after


def _grouped(kept: dict[str, Any], step: HandStep, h: dict[str, Any], memory: Memory) -> tuple[Tree, Memory]:
    """The mean over m-groups, each from the same memory and statistics, of gradient, memory and statistics."""
    function, net, n = METHODS[kept["method"]], step.net, len(step.y)
    if kept["m"] is None:
        return function(step, h, memory), memory
    start, gradient, running, ends = net.running, Tree(), Tree(), []
    for number, rows in enumerate(torch.arange(n).split(kept["m"])):
        group, one, net.running = copy.copy(step), dict(memory), dict(start)
        group.x, group.y, group.index, group.group = step.x[rows], step.y[rows], step.index[rows], number
        share = len(rows) / n
        gradient = plus(gradient, function(group, h, one), share)
        running = plus(running, net.running, share)
        ends.append((share, one))
    net.running = running
    merged = dict(ends[-1][1])
    for key, value in merged.items():
        if isinstance(value, dict) and key != "store":
            merged[key] = functools.reduce(plus, (times(end[key], share) for share, end in ends))
    return gradient, merged
