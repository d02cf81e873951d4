"""Slow references of all methods, written from the formulas on one flat float64 vector: no code of ours but the draws.

A reference is a generator: it is sent the `At` of a step and answers with the gradient, the weights at which BatchNorm
statistics move and, where something follows the optimizer's step, a function of the weights.
"""

from __future__ import annotations

import math

import torch
from oracle_network import EXAMPLES, LR, SEED, STEPS, examples

from landscape.random import stream

ORACLES = {}


def oracle(name, **options):
    """Register the reference of method `name` with these options (one method may have several)."""

    def mark(formula):
        variant = sum(known == name for known, _, _ in ORACLES.values())
        ORACLES[f"{name}-{variant}"] = (name, options, formula)
        return formula

    return mark


def unit(g):
    return g / g.norm()


def uniform(name, t):
    return torch.rand((), generator=stream(SEED, f"{name}:{t}")).item()


@oracle("sgd")
@oracle("adam")
@oracle("adamw")
@oracle("lion")
@oracle("muon")
def plain(net, o):
    at = yield
    while True:
        at = yield net.gradient(at.w, at.x, at.y), at.w


@oracle("sam", rho=0.3)
def sam(net, o):
    at = yield
    while True:
        e = o["rho"] * unit(net.gradient(at.w, at.x, at.y))
        at = yield net.gradient(at.w + e, at.x, at.y), at.w


@oracle("asam", rho=0.4, eta=0.01)
@oracle("asam", rho=0.4, eta=0.0, normalize="all")
@oracle("asam", rho=0.4, eta=0.05, normalize="unperturbed-biases")
def asam(net, o):
    weights, biases = (net.of(*[n for n in net.names if k in n]) for k in ("weight", "bias"))
    at = yield
    while True:
        big = at.w.abs() + o["eta"]
        T = {"weights": weights * big + biases, "all": big, "unperturbed-biases": weights * big}[
            o.get("normalize", "weights")
        ]
        g = net.gradient(at.w, at.x, at.y)
        at = yield net.gradient(at.w + o["rho"] * T * T * g / (T * g).norm(), at.x, at.y), at.w


@oracle("esam", rho=0.3, beta=0.6, gamma=0.5)
@oracle("esam", rho=0.003, beta=0.01, gamma=0.3)
def esam(net, o):
    at = yield
    while True:
        draws = torch.rand(len(net.names), generator=stream(SEED, f"esam:{at.t}"))
        chosen = [n for n, u in zip(net.names, draws, strict=True) if u < o["beta"]]
        mask = net.of(*(chosen or [net.names[int(draws.argmin())]]))
        e = o["rho"] / o["beta"] * unit(mask * net.gradient(at.w, at.x, at.y))
        rise = net.losses(at.w + e, at.x, at.y) - net.losses(at.w, at.x, at.y)
        top = rise.argsort(descending=True)[: max(1, int(o["gamma"] * len(rise)))]
        at = yield net.gradient(at.w + e, at.x[top], at.y[top]), at.w


@oracle("looksam", rho=0.3, k=2, alpha=0.7)
def looksam(net, o):
    at, g_v = (yield), None
    while True:
        g = net.gradient(at.w, at.x, at.y)
        if at.t % o["k"] == 0:
            g2 = net.gradient(at.w + o["rho"] * unit(g), at.x, at.y)
            g_v = g2 - (g2 @ unit(g)) * unit(g)
            assert abs(g_v @ g) < 1e-12 * g.norm() * g_v.norm() + 1e-15
            at = yield g2, at.w
        else:
            at = yield g + o["alpha"] * g.norm() * unit(g_v), at.w


@oracle("gsam", rho=0.3, rho_min=0.1, alpha=0.4)
@oracle("gsam", rho=0.3, alpha=0.4)
@oracle("gsam", rho=0.3, alpha=0.4, descend="clean")
def gsam(net, o):
    at = yield
    while True:
        low = o.get("rho_min", o["rho"] / 2)
        rho = low + (o["rho"] - low) * (at.lr - 0.05) / (LR - 0.05)
        g = net.gradient(at.w, at.x, at.y)
        g2 = net.gradient(at.w + rho * unit(g), at.x, at.y)
        if o.get("descend") == "clean":
            at = yield g + o["alpha"] * (g2 - (g2 @ unit(g)) * unit(g)), at.w
        else:
            at = yield g2 - o["alpha"] * (g - (g @ unit(g2)) * unit(g2)), at.w


@oracle("gnp", rho=0.2, alpha=0.8)
@oracle("gnp", rho=0.2, alpha=1.7, normalized=True)
def gnp(net, o):
    at = yield
    while True:
        g = net.gradient(at.w, at.x, at.y)
        g2 = net.gradient(at.w + o["rho"] * unit(g), at.x, at.y)
        at = yield (1 - o["alpha"]) * (unit(g) if o.get("normalized") else g) + o["alpha"] * g2, at.w


@oracle("rst", rho=0.3, p=0.6, p_schedule="constant")
@oracle("rst", rho=0.3, p=0.3, p_schedule="linear2")
@oracle("rst", rho=0.3, p=1 / STEPS, p_schedule="piecewise1")
@oracle("rst", rho=0.3, p=1 / STEPS, p_schedule="piecewise2")
def rst(net, o):
    at = yield
    schedules = {
        "constant": lambda t: 0.6,
        "linear2": lambda t: 0.3 + (1 - 0.6) * t / STEPS,
        "piecewise1": lambda t: float(t > 1),
        "piecewise2": lambda t: float(t <= 1),
    }
    while True:
        p = schedules[o["p_schedule"]](at.t)
        g = net.gradient(at.w, at.x, at.y)
        if uniform("rst", at.t) < p:
            g = net.gradient(at.w + o["rho"] * unit(g), at.x, at.y)
        at = yield g, at.w


@oracle("g-rst", rho=0.3, p=0.6, p_schedule="constant")
@oracle("g-rst", rho=0.3, p=0.6, p_schedule="constant", alpha=0.5, normalized=True)
def g_rst(net, o):
    alpha = o.get("alpha", 1 / 0.6)
    at = yield
    while True:
        g = net.gradient(at.w, at.x, at.y)
        if uniform("rst", at.t) < 0.6:
            g2 = net.gradient(at.w + o["rho"] * unit(g), at.x, at.y)
            g = (1 - alpha) * (unit(g) if o.get("normalized") else g) + alpha * g2
        at = yield g, at.w


@oracle("k-sam", rho=0.3, k=3)
@oracle("k-sam", rho=0.3)
def k_sam(net, o):
    at = yield
    while True:
        top = net.losses(at.w, at.x, at.y).argsort(descending=True)[: o.get("k", len(at.y) // 3)]
        x, y = at.x[top], at.y[top]
        e = o["rho"] * unit(net.gradient(at.w, x, y))
        at = yield net.gradient(at.w + e, x, y), at.w


@oracle("subset-sam", rho=0.3, s=0.4)
def subset_sam(net, o):
    at = yield
    while True:
        part = torch.randperm(len(at.y), generator=stream(SEED, f"subset-sam:{at.t}"))[: round(o["s"] * len(at.y))]
        e = o["rho"] * unit(net.gradient(at.w, at.x[part], at.y[part]))
        at = yield net.gradient(at.w + e, at.x, at.y), at.w + e


@oracle("amp", radius=0.05, inner_lr=1.0, inner_steps=1, inner_clip=50.0)
@oracle("amp", radius=0.1, inner_lr=0.7, inner_steps=3, inner_clip=0.3)
def amp(net, o):
    def clipped(g):
        return g * min(1, o["inner_clip"] / g.norm().item())

    at = yield
    while True:
        delta, g = torch.zeros_like(at.w), clipped(net.gradient(at.w, at.x, at.y))
        for _ in range(o["inner_steps"]):
            pieces = (delta + o["inner_lr"] * g).split(net.sizes)
            delta = torch.cat([d * min(1, o["radius"] / d.norm().item()) for d in pieces])
            g = clipped(net.gradient(at.w + delta, at.x, at.y))
        at = yield g, at.w


@oracle("friendly-sam", rho=0.3, sigma=1.0, lmbda=0.6)
@oracle("friendly-sam", rho=0.3, sigma=0.5, lmbda=0.9)
def friendly_sam(net, o):
    at, m = (yield), None
    while True:
        g = net.gradient(at.w, at.x, at.y)
        d = g if m is None else g - o["sigma"] * m
        m = g if m is None else o["lmbda"] * m + (1 - o["lmbda"]) * g
        at = yield net.gradient(at.w + o["rho"] * unit(d), at.x, at.y), at.w


@oracle("vasso", rho=0.3, theta=0.4)
def vasso(net, o):
    at, d = (yield), None
    while True:
        g = net.gradient(at.w, at.x, at.y)
        d = g if d is None else (1 - o["theta"]) * d + o["theta"] * g
        at = yield net.gradient(at.w + o["rho"] * unit(d), at.x, at.y), at.w


@oracle("functional-sam", rho=0.3)
def functional_sam(net, o):
    """The slope of cross-entropy at the logits is softmax minus label; it stays that of w."""
    at = yield
    while True:
        slope = torch.softmax(net.logits(at.w, at.x), 1) - torch.eye(3, dtype=at.w.dtype)[at.y]
        w = (at.w + o["rho"] * unit(net.gradient(at.w, at.x, at.y))).requires_grad_()
        value = (slope * net.logits(w, at.x)).sum() / len(at.y) + net.decay / 2 * (w * w).sum()
        at = yield torch.autograd.grad(value, w)[0], at.w


@oracle("eigen-sam", rho=0.3, alpha=0.5, every=2, power_steps=3)
def eigen_sam(net, o):
    at, v = (yield), None
    while True:
        g = net.gradient(at.w, at.x, at.y)
        if at.t % o["every"] == 0:
            generator = stream(SEED, f"eigen-sam:{at.t}")
            drawn = [torch.randn(s, generator=generator, dtype=torch.float64).reshape(-1) for s in net.shapes]
            v = torch.cat(drawn) if v is None else v
            for _ in range(o["power_steps"]):
                v = net.gradient(at.w + 0.01 * unit(v), at.x, at.y) - g
            v = unit(v)
        across = v - (v @ unit(g)) * unit(g)
        e = o["rho"] * (unit(g) + o["alpha"] * torch.sign(g @ v) * across)
        at = yield net.gradient(at.w + e, at.x, at.y), at.w


@oracle("le-sam", sigma=0.4, rho_max=0.3, rise=0.5, fall=0.6)
@oracle("le-sam", sigma=0.1, rho_max=10.0, rise=0.0, fall=0.1)
def le_sam(net, o):
    at = yield
    while True:
        t, g = at.t / STEPS, net.gradient(at.w, at.x, at.y)
        share = t / o["rise"] if t < o["rise"] else 1.0
        if t > o["fall"]:
            share = 0.5 + 0.5 * math.cos(math.pi * (t - o["fall"]) / (1 - o["fall"]))
        rho = min(o["sigma"] * share / g.norm().item(), o["rho_max"])
        at = yield net.gradient(at.w + rho * unit(g), at.x, at.y), at.w


@oracle("xsam", rho=0.3, rho_max=0.5, alpha_step=0.25)
@oracle("xsam", rho=0.3, rho_max=0.5, steps=2, alpha_max=1.5, alpha_step=0.5)
@oracle("xsam", rho=0.3, alpha=1.4)
def xsam(net, o):
    """One epoch a step, so that alpha is searched for at every step."""
    at, steps = (yield), o.get("steps", 1)
    count = round(o.get("alpha_max", 2.0) / o.get("alpha_step", 0.1)) + 1
    while True:
        e = torch.zeros_like(at.w)
        for _ in range(steps):
            e = e + o["rho"] / steps * unit(net.gradient(at.w + e, at.x, at.y))
        g = net.gradient(at.w + e, at.x, at.y)
        theta = torch.arccos(unit(e) @ unit(g))

        def direction(a, e=e, g=g, theta=theta):
            turned = torch.sin((1 - a) * theta) * unit(e) + torch.sin(a * theta) * unit(g)
            return turned / torch.sin(theta)

        a = o.get("alpha")
        if a is None:
            tried = [i * o["alpha_step"] for i in range(count)]
            rises = [net.losses(at.w + o["rho_max"] * direction(a), at.x, at.y).mean().item() for a in tried]
            a = tried[rises.index(max(rises))]
        at = yield g.norm() * direction(a), at.w


@oracle("flat-lora", rho=0.3)
def flat_lora(net, o):
    """Without adapters: in the two matrices of the network."""
    at = yield
    while True:
        generator, sigma = stream(SEED, f"flat-lora:{at.t}"), o["rho"] * (1 - math.cos(math.pi * at.t / STEPS)) / 2
        noise = []
        for piece, shape in zip(at.w.split(net.sizes), net.shapes, strict=True):
            if len(shape) < 2:
                noise.append(torch.zeros_like(piece))
                continue
            z = torch.randn(shape, generator=generator, dtype=torch.float64)
            noise.append((sigma * z * piece.view(shape).norm(dim=1, keepdim=True) / shape[1] ** 0.5).reshape(-1))
        w = at.w + torch.cat(noise)
        at = yield net.gradient(w, at.x, at.y), w


@oracle("wsam", rho=0.3, gamma=0.7)
@oracle("wsam", rho=0.3, gamma=0.7, decoupled=False)
def wsam(net, o):
    factor = o["gamma"] / (1 - o["gamma"])
    at = yield
    while True:
        g = net.gradient(at.w, at.x, at.y)
        g2 = net.gradient(at.w + o["rho"] * unit(g), at.x, at.y)
        if o.get("decoupled", True):
            at = yield g, at.w, lambda w, lr=at.lr, d=g2 - g: w - lr * factor * d
        else:
            at = yield (1 - factor) * g + factor * g2, at.w


@oracle("msam", rho=0.3)
def msam(net, o):
    at = yield
    while True:
        where = at.w if at.v is None else at.w - o["rho"] * unit(at.v)
        at = yield net.gradient(where, at.x, at.y), where


@oracle("sam-on", rho=0.3)
def sam_on(net, o):
    mask = net.of("1.weight", "1.bias")
    at = yield
    while True:
        e = o["rho"] * unit(mask * net.gradient(at.w, at.x, at.y))
        at = yield net.gradient(at.w + e, at.x, at.y), at.w


@oracle("random-perturbation", sigma=0.1)
@oracle("random-perturbation", sigma=0.1, alpha=0.4, scaling="identity")
def random_perturbation(net, o):
    at = yield
    while True:
        generator = stream(SEED, f"random-perturbation:{at.t}")
        noise = []
        for piece, shape in zip(at.w.split(net.sizes), net.shapes, strict=True):
            z = torch.randn(shape, generator=generator, dtype=torch.float64)
            tensor = piece.view(shape)
            scale = tensor.abs() if tensor.dim() == 1 else tensor.norm(dim=1, keepdim=True)
            noise.append((o["sigma"] * z * (scale if "scaling" not in o else 1)).reshape(-1))
        e, alpha = torch.cat(noise), o.get("alpha", 1.0)
        g = alpha * net.gradient(at.w + e, at.x, at.y)
        if alpha < 1:
            g = g + (1 - alpha) * net.gradient(at.w, at.x, at.y)
        at = yield g, at.w + (e if alpha == 1 else 0)


@oracle("saf", strength=0.3, tau=5.0, lag=1, start=0.0, store="full")
@oracle("saf", strength=0.3, tau=2.0, lag=2, start=0.0, store="full")
@oracle("saf", strength=0.3, tau=2.0, lag=1, start=0.5, store="full", top=2)
def saf(net, o):
    """One epoch a step; the past of an example is looked up by its index in a dictionary."""
    past, tau = {}, o["tau"]
    at = yield
    while True:

        def term(logits, at=at):
            q = torch.softmax(logits / tau, 1)
            total = []
            for i, row in enumerate(at.rows.tolist()):
                p = past.get((row, at.t - o["lag"]))
                if p is None or at.t / STEPS < o["start"]:
                    total.append(0 * q[i].sum())
                    continue
                now = q[i]
                if "top" in o:
                    kept = p.argsort(descending=True)[: o["top"]]
                    p, now = (torch.cat([z[kept], 1 - z[kept].sum(0, keepdim=True)]) for z in (p, now))
                total.append(o["strength"] * tau**2 * (p * (p.log() - now.log())).sum())
            return torch.stack(total)

        for row, q in zip(at.rows.tolist(), torch.softmax(net.logits(at.w, at.x) / tau, 1).detach(), strict=True):
            past[row, at.t] = q
        at = yield net.gradient(at.w, at.x, at.y, term), at.w


@oracle("mesa", strength=0.8, tau=5.0, decay=0.7, start=0.0)
@oracle("mesa", strength=0.8, tau=2.0, horizon=4.0, start=0.4)
def mesa(net, o):
    at = yield
    v, averages, tau = at.w, {n: b.clone() for n, b in net.buffers.items()}, o["tau"]
    beta = o.get("decay", 1 - 1 / 4)
    while True:
        p = torch.softmax(net.logits(v, at.x, False, averages) / tau, 1)

        def term(logits, p=p, on=at.t / STEPS >= o["start"]):
            q = torch.softmax(logits / tau, 1)
            return on * o["strength"] * tau**2 * (p * (p.log() - q.log())).sum(1)

        at = yield net.gradient(at.w, at.x, at.y, term), at.w
        v = beta * v + (1 - beta) * at.w
        for n, b in net.buffers.items():
            averages[n] = beta * averages[n] + (1 - beta) * b if b.is_floating_point() else b.clone()


@oracle("ssam", rho=0.3, sparsity=0.4, samples=5)
def ssam_fisher(net, o):
    """One epoch a step, so that the mask is refreshed at every step."""
    at = yield
    x, y = examples()
    while True:
        fisher = torch.zeros_like(at.w)
        for i in torch.randperm(EXAMPLES, generator=stream(SEED, f"ssam:{at.t}"))[: o["samples"]]:
            w = at.w.clone().requires_grad_()
            loss = -torch.log_softmax(net.logits(w, x[i : i + 1], training=False), 1)[0, y[i]]
            fisher += torch.autograd.grad(loss, w)[0] ** 2
        kept = len(fisher) - math.ceil(o["sparsity"] * len(fisher))
        mask = torch.zeros_like(fisher)
        mask[fisher.argsort(descending=True)[:kept]] = 1
        e = o["rho"] * unit(net.gradient(at.w, at.x, at.y)) * mask
        at = yield net.gradient(at.w + e, at.x, at.y), at.w


@oracle("ssam", rho=0.3, sparsity=0.4, mask="dynamic")
def ssam_dynamic(net, o):
    at = yield
    d = len(at.w)
    kept = d - math.ceil(o["sparsity"] * d)
    scores = torch.rand(d, generator=stream(SEED, "ssam"))
    active = set(scores.argsort(descending=True)[:kept].tolist())
    while True:
        mask = torch.tensor([float(i in active) for i in range(d)])
        g = net.gradient(at.w, at.x, at.y)
        answer = net.gradient(at.w + o["rho"] * unit(g) * mask, at.x, at.y), at.w
        if at.t:  # the first mask serves the first epoch
            exchanged = min(int(kept * 0.5 * (1 + math.cos(math.pi * at.t / STEPS)) / 2), d - kept)
            draws = torch.rand(d, generator=stream(SEED, f"ssam:{at.t}")).tolist()
            dropped = sorted(active, key=lambda i: abs(g[i].item()))[:exchanged]
            grown = sorted(set(range(d)) - active, key=lambda i: -draws[i])[:exchanged]
            active = active - set(dropped) | set(grown)
        at = yield answer
