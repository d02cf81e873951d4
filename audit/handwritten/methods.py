"""One step of every training method by its formula (papers and authors' code), without the project's seam.

A method is a function (step, h, memory) -> gradient; what it does after the optimizer's step is in `AFTER`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from audit.handwritten.network import Base, Handwritten, Tree, across, ascent, dot, norm, plus, times

Hyper = dict[str, Any]
Memory = dict[str, Any]


@dataclass
class HandStep:
    """What a method sees of a step.

    Attributes:
        net: the network; its p are the weights.
        base: the base optimizer.
        x: inputs, (n, ...).
        y: classes, (n,).
        index: place of each example in the training set, (n,).
        context: where training stands.
        stream: name -> generator, as the project documents it.
        training: (inputs, classes) of the training set.
        group: which m-group.
    """

    net: Handwritten
    base: Base
    x: Tensor
    y: Tensor
    index: Tensor
    context: Any
    stream: Callable[[str], torch.Generator]
    training: tuple[Tensor, Tensor]
    group: int = 0

    @property
    def p(self) -> Tree:
        return self.net.p

    def gradient(self, p: Tree | None = None, rows: Tensor | None = None, **options: Any) -> Tree:
        return self.all(p, rows, **options)[0]

    def all(self, p: Tree | None = None, rows: Tensor | None = None, **options: Any) -> tuple[Tree, Tensor, Tensor]:
        chosen = slice(None) if rows is None else rows
        return self.net.gradient(self.p if p is None else p, self.x[chosen], self.y[chosen], **options)

    def draw(self, name: str) -> torch.Generator:
        return self.stream(f"{name}:{self.context.step}")


def plain(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    return step.gradient(moves=True)


def sam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    return step.gradient(plus(step.p, ascent(step.gradient(moves=True), h["rho"])))


def asam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    scale = {n: w.abs() + h["eta"] for n, w in step.p.items()}
    for n, w in step.p.items():
        if h["normalize"] == "weights" and "weight" not in n:
            scale[n] = torch.ones_like(w)
        if h["normalize"] == "unperturbed-biases" and "bias" in n:
            scale[n] = torch.zeros_like(w)
    return step.gradient(plus(step.p, ascent(step.gradient(moves=True), h["rho"], scale)))


def esam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    draws = torch.rand(len(step.p), generator=step.draw("esam"))
    chosen = [n for n, d in zip(step.p, draws, strict=True) if d < h["beta"]]
    chosen = chosen or [list(step.p)[int(draws.argmin())]]
    gradient, before, _ = step.all(moves=True, only=chosen)
    there = plus(step.p, ascent(gradient, h["rho"] / h["beta"]))
    k = max(1, math.floor(h["gamma"] * len(step.y) + 1e-9))
    rows = (step.all(there)[1] - before).topk(k).indices
    return step.gradient(there, None if k == len(step.y) else rows)


def looksam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    gradient = step.gradient(moves=True)
    if memory.get("age", h["k"]) >= h["k"]:
        second = step.gradient(plus(step.p, ascent(gradient, h["rho"])))
        memory["direction"], memory["age"] = across(second, gradient), 1
        return second
    memory["age"] += 1
    length = norm(memory["direction"])
    return plus(gradient, memory["direction"], h["alpha"] * norm(gradient) / length if length > 0 else 0.0)


def gsam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    c, low = step.context, h["rho"] / 2 if h["rho_min"] is None else h["rho_min"]
    rho = h["rho"]
    if c.lr_max > c.lr_min:
        rho = low + (rho - low) * (c.lr - c.lr_min) / (c.lr_max - c.lr_min)
        rho = min(max(rho, low), h["rho"])
    first = step.gradient(moves=True)
    second = step.gradient(plus(step.p, ascent(first, rho)))
    if h["descend"] == "clean":
        return plus(first, across(second, first), h["alpha"])
    return plus(second, across(first, second), -h["alpha"])


def friendly(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    gradient, mean = step.gradient(moves=True), memory.get("mean")
    direction = gradient if mean is None else plus(gradient, mean, -h["sigma"])
    memory["mean"] = gradient if mean is None else plus(times(mean, h["lmbda"]), gradient, 1 - h["lmbda"])
    return step.gradient(plus(step.p, ascent(direction, h["rho"])))


def mixed(step: HandStep, first: Tree, rho: float, alpha: float, normalized: bool) -> Tree:
    """(1 - alpha) g1 + alpha g2."""
    second = step.gradient(plus(step.p, ascent(first, rho)))
    if alpha == 1:
        return second
    return plus(times(ascent(first, 1.0) if normalized else first, 1 - alpha), second, alpha)


def gnp(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    gradient, c = step.gradient(moves=True), step.context
    if h["penalty_warmup"] == "zero" and c.warming:
        return gradient
    rho = h["rho"] * (c.warmed if h["penalty_warmup"] == "r" else 1)
    alpha = h["alpha"] * (c.warmed if h["penalty_warmup"] == "lambda" else 1)
    return mixed(step, gradient, rho, alpha, h["normalized"])


def probability(schedule: str, q: float, t: float) -> float:
    """Of a SAM step at the share t of the run (table of the authors' code)."""
    if schedule == "piecewise1":
        return 0.0 if t <= q else 1.0
    if schedule == "piecewise2":
        return 1.0 if t <= q else 0.0
    if schedule == "piecewise3":
        return q if t <= 0.5 else 1 - q
    if schedule == "linear1":
        return 2 * q * t if q <= 0.5 else (2 * q - 1) + 2 * (1 - q) * t
    if schedule == "linear2":
        return q + (1 - 2 * q) * t
    return q if schedule == "constant" else q + (1 - 2 * q) * (1 - math.cos(math.pi * t)) / 2


def rst(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    """RST, and G-RST where there is an alpha (None: 1 / mean p)."""
    gradient, c = step.gradient(moves=True), step.context
    chance = 0.0 if c.warming else probability(h["p_schedule"], h["p"], c.progress)
    if float(torch.rand((), generator=step.draw("rst"))) >= chance:
        return gradient
    mean = {"piecewise1": 1 - h["p"], "constant": h["p"], "piecewise2": h["p"], "linear1": h["p"]}
    alpha = h.get("alpha", 1.0)
    if alpha is None:
        alpha = 1 / (mean.get(h["p_schedule"], 0.5) or 1)
    return mixed(step, gradient, h["rho"], alpha, h.get("normalized", False))


def k_sam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    n = len(step.y)
    k = min(max(1, n // 3) if h["k"] is None else h["k"], n)
    rows = step.all(moves=True)[1].topk(k).indices
    return step.gradient(plus(step.p, ascent(step.gradient(rows=rows), h["rho"])), rows)


def subset_sam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    n = len(step.y)
    k = max(1, round(h["s"] * n))
    name = f"subset-sam:{step.group}" if step.group else "subset-sam"
    rows = None if k == n else torch.randperm(n, generator=step.draw(name))[:k]
    first = step.gradient(rows=rows, moves=rows is None)
    return step.gradient(plus(step.p, ascent(first, h["rho"])), moves=rows is not None)


def amp(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    def clipped(g: Tree) -> Tree:
        return times(g, min(1.0, h["inner_clip"] / float(norm(g))))

    gradient, delta = step.gradient(moves=True), {n: torch.zeros_like(w) for n, w in step.p.items()}
    for _ in range(h["inner_steps"]):
        delta = plus(delta, clipped(gradient), h["inner_lr"])
        delta = {n: d * min(1.0, h["radius"] / max(float(d.norm()), 1e-300)) for n, d in delta.items()}
        gradient = step.gradient(plus(step.p, delta))
    return clipped(gradient)


def msam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    return step.gradient(plus(step.p, ascent(step.base.first, -h["rho"])), moves=True)


def random_perturbation(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    mixing = h["alpha"] < 1
    first = step.gradient(moves=True) if mixing else {}
    generator = step.draw("random-perturbation")
    noise = {n: h["sigma"] * torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in step.p.items()}
    for n, w in step.p.items():
        if h["scaling"] == "layerwise":
            noise[n] = noise[n] * w.norm()
        elif h["scaling"] == "elementwise" or (h["scaling"] == "filterwise" and w.dim() == 1):
            noise[n] = noise[n] * w.abs()
        elif h["scaling"] == "filterwise":
            noise[n] = noise[n] * w.flatten(1).norm(dim=1).view(-1, *[1] * (w.dim() - 1))
    second = step.gradient(plus(step.p, noise), moves=not mixing)
    return plus(times(first, 1 - h["alpha"]), second, h["alpha"]) if mixing else second


def sam_on(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    norms = [n for n in step.p if "norm" in step.net.layers[int(n.split(".")[0])][0]]
    return step.gradient(plus(step.p, ascent(step.gradient(moves=True, only=norms), h["rho"])))


def wsam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    first, factor = step.gradient(moves=True), h["gamma"] / (1 - h["gamma"])
    if not h["decoupled"]:
        return mixed(step, first, h["rho"], factor, False)
    second = step.gradient(plus(step.p, ascent(first, h["rho"])))
    memory["sharpness"] = plus(second, first, -1)
    return first


def wsam_after(step: HandStep, h: Hyper, memory: Memory) -> None:
    if h["decoupled"]:
        factor = step.context.lr * h["gamma"] / (1 - h["gamma"])
        step.net.p = plus(step.p, memory["sharpness"], -factor)


def ssam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    """With the mask of `ssam_mask`."""
    gradient = step.gradient(moves=True)
    memory["gradient"] = gradient
    epsilon = ascent(gradient, h["rho"])
    kept = split(memory["mask"], step.p)
    return step.gradient(plus(step.p, {n: e * kept[n] for n, e in epsilon.items()}))


def ssam_mask(step: HandStep, h: Hyper, memory: Memory) -> None:
    """Before a step: the first mask, and that of a new epoch by the Fisher information."""
    d = sum(w.numel() for w in step.p.values())
    active = d - math.ceil(d * h["sparsity"])
    new = "mask" not in memory
    if h["mask"] == "fisher" and (new or refreshes(step, h, memory)):
        x, y = step.training
        chosen = torch.randperm(len(y), generator=step.draw("ssam"))[: h["samples"]]
        total = torch.zeros(d, dtype=torch.float64)
        for i in chosen:
            one = x[i : i + 1], y[i : i + 1]
            slopes = step.net.gradient(step.p, *one, running=step.net.running, decayed=False)[0]
            total += flat(slopes, step.p).square()
        memory["mask"], memory["epoch"] = top(total, active), step.context.epoch
    elif new:
        memory["mask"] = top(torch.rand(d, generator=step.stream("ssam")), active)
        memory["epoch"] = step.context.epoch


def ssam_after(step: HandStep, h: Hyper, memory: Memory) -> None:
    """A dynamic mask drops the smallest gradients of the active entries and grows as many at random."""
    if h["mask"] != "dynamic" or not refreshes(step, h, memory):
        return
    mask = memory["mask"]
    active = int(mask.sum())
    share = h["drop"] * (1 + math.cos(math.pi * step.context.progress)) / 2
    exchanged = min(int(active * share), len(mask) - active)
    size = flat(memory["gradient"], step.p).abs()
    size[~mask] = -1
    draws = torch.rand(len(mask), generator=step.draw("ssam"))
    draws[mask] = -1
    memory["mask"], memory["epoch"] = top(size, active - exchanged) | top(draws, exchanged), step.context.epoch


def refreshes(step: HandStep, h: Hyper, memory: Memory) -> bool:
    return step.context.epoch % h["every"] == 0 and step.context.epoch != memory["epoch"]


def top(scores: Tensor, count: int) -> Tensor:
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.argsort(descending=True)[:count]] = True
    return mask


def flat(g: Tree, p: Tree) -> Tensor:
    return torch.cat([g.get(n, torch.zeros_like(w)).reshape(-1) for n, w in p.items()])


def split(vector: Tensor, p: Tree) -> Tree:
    pieces = vector.split([w.numel() for w in p.values()])
    return {n: piece.view_as(w) for (n, w), piece in zip(p.items(), pieces, strict=True)}


def started(step: HandStep, h: Hyper) -> bool:
    return bool(step.context.epoch >= 5 if h["recipe"] == "paper" else step.context.progress >= h["start"])


def saf(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    """The store: (epoch, example) -> log-probabilities at temperature tau, or the largest of them and their classes."""
    store, epoch, term = memory.setdefault("store", {}), step.context.epoch, None
    if started(step, h) and epoch >= h["lag"]:
        past = [store.get((epoch - h["lag"], int(i))) for i in step.index]

        def term(logits: Tensor) -> Tensor:
            now = torch.log_softmax(logits / h["tau"], 1)
            each = [_divergence(row, old) for row, old in zip(now, past, strict=True)]
            return h["strength"] * h["tau"] ** 2 * torch.stack(each)

    gradient, _, logits = step.all(moves=True, term=term)
    for i, row in zip(step.index, torch.log_softmax(logits / h["tau"], 1), strict=True):
        kept, classes = row.topk(len(row) if h["top"] is None else h["top"])
        rounded = kept.to(torch.float16 if h["store"] == "half" else torch.float64).double()
        store[epoch, int(i)] = rounded, classes
    return gradient


def _divergence(now: Tensor, past: tuple[Tensor, Tensor] | None) -> Tensor:
    """KL(past || now) over the stored classes, all others being one event; 0 where nothing is stored."""
    if past is None:
        return 0 * now.sum()
    values, classes = past
    total = (values.exp() * (values - now[classes])).sum()
    if len(classes) < len(now):
        rest = float(1 - values.exp().sum())
        others = [i for i in range(len(now)) if i not in classes.tolist()]
        if rest > 0:
            total = total + rest * (math.log(rest) - now[others].exp().sum().log())
    return total


def mesa(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    if not started(step, h):
        return step.gradient(moves=True)
    weights, running = memory["average"]
    past = torch.log_softmax(step.net.logits(weights, step.x, running=running) / h["tau"], 1)

    def term(logits: Tensor) -> Tensor:
        now = torch.log_softmax(logits / h["tau"], 1)
        return h["strength"] * h["tau"] ** 2 * (past.exp() * (past - now)).sum(1)

    return step.gradient(moves=True, term=term)


def mesa_before(step: HandStep, h: Hyper, memory: Memory) -> None:
    memory.setdefault("average", (dict(step.p), dict(step.net.running)))


def mesa_after(step: HandStep, h: Hyper, memory: Memory) -> None:
    c = step.context
    decay = 0.9995 if h["recipe"] == "paper" else h["decay"]
    if h["decay"] is None and h["recipe"] != "paper":
        horizon = (h["horizon"] or 4.0) * c.steps_per_epoch
        if h["horizon"] is None and c.total_steps > 1:
            horizon = min(horizon, c.total_steps * 4 / 90)
        decay = 1 - 1 / max(2.0, horizon)
    weights, running = memory["average"]
    now = (step.p, step.net.running)
    memory["average"] = tuple(
        {n: decay * old[n] + (1 - decay) * new[n] for n in old}
        for old, new in zip((weights, running), now, strict=True)
    )


def vasso(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    gradient = step.gradient(moves=True)
    mean = memory.get("mean", gradient)
    memory["mean"] = plus(times(mean, 1 - h["theta"]), gradient, h["theta"])
    return step.gradient(plus(step.p, ascent(memory["mean"], h["rho"])))


def functional(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    """The term makes <slope, logits> of the loss, the slope of cross-entropy being softmax minus label."""
    gradient, _, logits = step.all(moves=True)
    slope = torch.softmax(logits, 1) - F.one_hot(step.y, logits.shape[1])

    def term(moved: Tensor) -> Tensor:
        return (slope * moved).sum(1) - F.cross_entropy(moved, step.y, reduction="none")

    return step.gradient(plus(step.p, ascent(gradient, h["rho"])), term=term)


def eigen(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    gradient = step.gradient(moves=True)
    if memory.get("age", h["every"]) >= h["every"]:
        generator = step.draw("eigen-sam")
        v = {n: torch.randn(g.shape, generator=generator, dtype=g.dtype) for n, g in gradient.items()}
        v = memory.get("vector", v)
        for _ in range(h["power_steps"]):
            v = plus(step.gradient(plus(step.p, ascent(v, 0.01))), gradient, -1)
        memory["vector"], memory["age"] = ascent(v, 1.0), 0
    memory["age"] += 1
    v, unit = ascent(memory["vector"], 1.0), ascent(gradient, 1.0)
    turn = times(across(v, gradient), h["alpha"] * dot(gradient, v).sign())
    return step.gradient(plus(step.p, plus(unit, turn), h["rho"]))


def le_sam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    gradient, t = step.gradient(moves=True), step.context.progress
    share = 1.0 if t >= h["rise"] else t / h["rise"]
    if t > h["fall"]:
        share = (1 + math.cos(math.pi * (t - h["fall"]) / (1 - h["fall"]))) / 2
    rho = min(h["sigma"] * share / max(float(norm(gradient)), 1e-300), h["rho_max"])
    return step.gradient(plus(step.p, ascent(gradient, rho)))


def xsam(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    path, gradient = Tree(), step.gradient(moves=True)
    for _ in range(h["steps"]):
        path = plus(path, ascent(gradient, 1 / h["steps"]))
        gradient = step.gradient(plus(step.p, path, h["rho"]))
    first, second = ascent(path, 1.0), ascent(gradient, 1.0)
    theta = torch.arccos(dot(first, second).clamp(-1, 1))

    def direction(alpha: float) -> Tree:
        if theta.sin() <= 1e-8:
            return times(plus(first, second), 0.5)
        shares = ((1 - alpha) * theta).sin() / theta.sin(), (alpha * theta).sin() / theta.sin()
        return plus(times(first, shares[0]), second, shares[1])

    if h["alpha"] is None and memory.get("epoch") != step.context.epoch:
        tried = [i * h["alpha_step"] for i in range(int(h["alpha_max"] / h["alpha_step"] + 1e-9) + 1)]
        heights = [step.all(plus(step.p, direction(a), h["rho_max"]))[1].mean() for a in tried]
        best = torch.tensor(tried[int(torch.stack(heights).argmax())], dtype=torch.float64)
        memory["alpha"], memory["epoch"] = {"alpha": best}, step.context.epoch
    alpha = float(memory["alpha"]["alpha"]) if h["alpha"] is None else h["alpha"]
    return times(direction(alpha), norm(gradient))


def flat_lora(step: HandStep, h: Hyper, memory: Memory) -> Tree:
    generator, noise = step.draw("flat-lora"), Tree()
    sigma = h["rho"] * (1 - math.cos(math.pi * step.context.progress)) / 2
    for n, w in step.p.items():
        if w.dim() > 1:
            rows = w.flatten(1).norm(dim=1) / w[0].numel() ** 0.5
            z = torch.randn(w.shape, generator=generator, dtype=w.dtype)
            noise[n] = sigma * z * rows.view(-1, *[1] * (w.dim() - 1))
    return step.gradient(plus(step.p, noise), moves=True)


METHODS: dict[str, Callable[[HandStep, Hyper, Memory], Tree]] = {
    **dict.fromkeys(("sgd", "adam", "adamw", "lion", "muon"), plain),
    "sam": sam,
    "asam": asam,
    "esam": esam,
    "looksam": looksam,
    "gsam": gsam,
    "saf": saf,
    "mesa": mesa,
    "rst": rst,
    "g-rst": rst,
    "gnp": gnp,
    "k-sam": k_sam,
    "ssam": ssam,
    "amp": amp,
    "subset-sam": subset_sam,
    "friendly-sam": friendly,
    "msam": msam,
    "random-perturbation": random_perturbation,
    "sam-on": sam_on,
    "wsam": wsam,
    "vasso": vasso,
    "functional-sam": functional,
    "eigen-sam": eigen,
    "le-sam": le_sam,
    "xsam": xsam,
    "flat-lora": flat_lora,
}
BEFORE = {"ssam": ssam_mask, "mesa": mesa_before}
AFTER = {"wsam": wsam_after, "ssam": ssam_after, "mesa": mesa_after}
