"""Trainings that FSDP2 and one process make alike: called in the workers of torchrun and in the tests themselves."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from landscape.errors import InputError
from trainers import METHODS, MethodOptimizer, Task, train
from trainers.method.batch_norm import synchronize_batch_norm
from trainers.optimizers.lion import Lion

LR, STEPS, EXAMPLES = 0.1, 3, 24
# name -> (method, its options, base optimizer)
TRAININGS = {
    "sgd": ("sgd", {}, "sgd"),
    "adam": ("adam", {}, "adam"),
    "adamw": ("adamw", {}, "adamw"),
    "lion": ("lion", {}, "lion"),
    "muon's gradient": ("muon", {}, "sgd"),
    "sam": ("sam", {"rho": 0.2}, "sgd"),
    "sam with adamw": ("sam", {"rho": 0.2}, "adamw"),
    "asam": ("asam", {}, "sgd"),
    "asam everywhere": ("asam", {"normalize": "all", "eta": 0.0}, "sgd"),
    "asam without biases": ("asam", {"normalize": "unperturbed-biases"}, "sgd"),
    "gsam": ("gsam", {"rho": 0.2, "alpha": 0.4}, "sgd"),
    "gsam clean": ("gsam", {"rho": 0.2, "alpha": 0.4, "descend": "clean"}, "sgd"),
    "gnp": ("gnp", {}, "sgd"),
    "gnp normalized": ("gnp", {"normalized": True}, "sgd"),
    "looksam": ("looksam", {"k": 2}, "sgd"),
    "wsam": ("wsam", {"rho": 0.2}, "sgd"),
    "wsam coupled": ("wsam", {"rho": 0.2, "decoupled": False}, "sgd"),
    "friendly-sam": ("friendly-sam", {}, "sgd"),
    "vasso": ("vasso", {"theta": 0.4}, "sgd"),
    "msam": ("msam", {}, "sgd"),
    "msam with adamw": ("msam", {}, "adamw"),
    "rst": ("rst", {"p_schedule": "constant"}, "sgd"),
    "g-rst": ("g-rst", {"p_schedule": "constant", "normalized": True}, "sgd"),
    "le-sam": ("le-sam", {}, "sgd"),
    "sam-on": ("sam-on", {}, "sgd"),
    "amp": ("amp", {"radius": 0.1, "inner_steps": 2, "inner_clip": 0.3}, "sgd"),
    "eigen-sam": ("eigen-sam", {"every": 2, "power_steps": 2}, "sgd"),
    "random-perturbation": ("random-perturbation", {"alpha": 0.5, "sigma": 0.1}, "sgd"),
    "random-perturbation by layers": ("random-perturbation", {"scaling": "layerwise"}, "sgd"),
}
ONE_EACH = list({method: name for name, (method, *_) in reversed(TRAININGS.items())}.values())
BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=LR, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "lion": lambda p: Lion(p, lr=0.01),
}
RESUMED = ("sam with adamw", "looksam", "friendly-sam")
# Ways in which a pass may leave gathered parameters behind, or gradients be summed.
VARIANTS = (
    *("gathered", "evaluated", "interrupted", "accumulated", "groups", "clipped", "scaled"),
    *("replicas", "one replica", "columns", "frozen", "unused", "batch norm"),
)
FOUR = ("two by two", "nodes")  # replicas of two shards each; parameters that stay gathered within pairs


class RootMeanSquare(nn.Module):
    """A normalization that is known by what it does."""

    def __init__(self, size):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return self.gain * x / x.square().mean(-1, keepdim=True).sqrt()


class Network(nn.Module):
    """Tied weights, rows that no number of processes divides, and parameters of one entry."""

    def __init__(self, seed=3, dtype=torch.float64):
        super().__init__()
        self.skips = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.scale = nn.Parameter(torch.ones(1))
            self.embedding = nn.Embedding(11, 6)
            self.body = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Tanh(), RootMeanSquare(7))
            self.turned = nn.ConvTranspose1d(7, 6, 1)
            self.head = nn.Linear(6, 11)
        self.head.weight = self.embedding.weight
        self.to(dtype)

    def forward(self, tokens):
        if self.skips:
            return self.head(self.embedding(tokens))
        turned = self.turned(self.body(self.embedding(tokens)).unsqueeze(2)).squeeze(2)
        return self.head(turned * self.scale)


def sharded(model, variant=None, **options):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    world = torch.distributed.get_world_size()
    shape = {"replicas": (world, 1), "one replica": (1, world), "two by two": (2, world // 2)}.get(variant, (world,))
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
    if variant == "gathered":
        options["reshard_after_forward"] = False
    if variant == "nodes":
        options["reshard_after_forward"] = 2
    if variant == "columns":  # 6 of them, which 2 and 3 processes divide
        options["shard_placement_fn"] = lambda p: Shard(1) if p.dim() == 2 and p.shape[1] == 6 else None
    fully_shard(model.body, mesh=mesh, **options)
    fully_shard(model, mesh=mesh, **options)
    if variant == "gathered":
        model.set_reshard_after_backward(False)
    return model


def batch(step, rank=None):
    """Two micro-batches of (tokens, targets): whole, or the share of a process."""
    generator = torch.Generator().manual_seed(step)
    tokens, targets = torch.randint(11, (2, 2, EXAMPLES // 2), generator=generator)
    if rank is not None:
        world = torch.distributed.get_world_size()
        tokens, targets = tokens.chunk(world, 1)[rank], targets.chunk(world, 1)[rank]
    return list(zip(tokens, targets, strict=True))


def joined(parts):
    return [tuple(torch.cat(column) for column in zip(*parts, strict=True))]


def closure_of(optimizer, model, parts, rank, variant):
    """One backward pass a part; between them FSDP2 need not sum."""
    scaler = optimizer.task.scaler

    def closure():
        optimizer.zero_grad()
        total = 0.0
        for i, (tokens, targets) in enumerate(parts):
            if rank is not None and len(parts) > 1:
                last = i == len(parts) - 1
                model.set_requires_gradient_sync(last)
                model.set_is_last_backward(last)
            loss = F.cross_entropy(model(tokens).double(), targets) / len(parts)
            (loss if scaler is None else scaler.scale(loss)).backward()
            total = total + loss.detach()
        if variant == "scaled" and scaler.get_scale() == 2.0**10:
            model.scale.grad.fill_(torch.inf)  # one process has this entry, and all must skip the step
        if variant == "evaluated":
            with torch.no_grad():
                model(tokens)
        return total

    return closure


def take(optimizer, model, step, rank, variant):
    """One step of training."""
    parts = batch(step, rank)
    if variant == "groups":
        for i, part in enumerate(parts):
            optimizer.gradient(closure_of(optimizer, model, [part], rank, variant), share=0.5, add=i > 0)
        optimizer.step()
        return
    closure = closure_of(optimizer, model, parts if variant == "accumulated" else joined(parts), rank, variant)
    if variant == "clipped":
        optimizer.gradient(closure)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
    elif variant == "scaled":
        taken, scaler = optimizer.steps, optimizer.task.scaler
        while optimizer.steps == taken:
            optimizer.gradient(closure)
            scaler.step(optimizer)
            scaler.update()
    elif variant == "interrupted":
        interrupted(optimizer, model, closure)
        optimizer.step(closure)
    else:
        optimizer.step(closure)
    if variant == "evaluated":
        with torch.no_grad():
            model(parts[0][0])


def interrupted(optimizer, model, closure):
    """A step that ends with an error in its second pass."""
    passes = []

    def hook(*_):
        passes.append(None)
        if len(passes) == 2:
            raise FloatingPointError

    handle = model.head.register_forward_pre_hook(hook)
    with contextlib.suppress(FloatingPointError):
        optimizer.step(closure)
    handle.remove()
    assert len(passes) == 2


def trained(training, rank=None, variant=None, seed=3, steps=STEPS):
    """Model and optimizer after some steps; with a rank on its share of the batch and of the parameters."""
    name, options, base = TRAININGS[training]
    model = Network(seed)
    if variant == "batch norm":
        model.body.append(nn.BatchNorm1d(7, dtype=torch.float64))
        model = model if rank is None else synchronize_batch_norm(model)
    if rank is not None:
        sharded(model, variant)
    inner = BASES[base](model.parameters())
    if variant == "evaluated":
        with torch.no_grad():
            model(batch(0, rank)[0][0])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if variant == "scaled" else None
    optimizer = MethodOptimizer(inner, METHODS[name](**options), model, scaler=scaler, total_steps=6)
    model.skips = variant == "unused"
    for step in range(steps):
        if variant == "frozen" and step == 1:
            model.body[0].weight.requires_grad_(False)
        take(optimizer, model, step, rank, variant)
    return model, optimizer


def whole(model):
    """Its parameters, gathered, and buffers by name."""
    if hasattr(model, "reshard"):
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()
    named = {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    return {n: p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for n, p in named.items()}


def by_hand(model, base, rank=None, *, adaptive=False, rho=0.2):
    """SAM's steps (ASAM's, in the ball of |w|) from whole gradients, each process moving its own shards."""
    own = list(model.parameters())

    def gradient(step):
        for p in own:
            p.grad = None
        tokens, targets = joined(batch(step, rank))[0]
        F.cross_entropy(model(tokens).double(), targets).backward()
        return [p.grad.full_tensor() if rank is not None else p.grad.clone() for p in own]

    for step in range(STEPS):
        g, w = gradient(step), list(whole(model).values())
        t = [x.abs() if adaptive else torch.ones_like(x) for x in w]
        length = sum(((a * b).double() ** 2).sum() for a, b in zip(g, t, strict=True)).sqrt()
        moved = [x + rho * s * s * a / length for x, s, a in zip(w, t, g, strict=True)]
        write(own, moved)
        gradient(step)
        write(own, w)
        base.step()
    return whole(model)


def write(own, values):
    from torch.distributed.tensor import DTensor, distribute_tensor

    with torch.no_grad():
        for p, value in zip(own, values, strict=True):
            value = value.to(p.dtype)
            p.copy_(distribute_tensor(value, p.device_mesh, p.placements) if isinstance(p, DTensor) else value)


def in_half_precision(rank):
    """SAM with bfloat16 passes, by the optimizer and by hand; SGD's weights beside them."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy, results = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32), []
    for name, options in (("sam", {"rho": 0.2}), (None, {}), ("sgd", {})):
        model = sharded(Network(dtype=torch.float32), mp_policy=policy)
        base = BASES["sgd"](model.parameters())
        if name is None:
            results.append(by_hand(model, base, rank))
            continue
        optimizer = MethodOptimizer(base, METHODS[name](**options), model)
        for step in range(STEPS):
            take(optimizer, model, step, rank, None)
        results.append(whole(model))
    return results


def resumed(training, rank, folder, by_shards):
    """Three steps, a checkpoint, another model that takes it up, three more; weights by name."""
    import torch.distributed.checkpoint as checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, optimizer = trained(training, rank, steps=3)
    fresh, again = trained(training, rank, seed=8, steps=0)
    mine = Path(folder, f"{training}-{by_shards}-{rank}.pt")
    if by_shards:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, mine)
        kept = torch.load(mine, weights_only=True)
        fresh.load_state_dict(kept["model"])
        again.load_state_dict(kept["optimizer"])
    else:
        weights, state = get_state_dict(model, optimizer.base)
        checkpoint.save({"model": weights, "base": state}, checkpoint_id=Path(folder, training))
        torch.save(optimizer.state_dict()["method"], mine)
        weights, state = get_state_dict(fresh, again.base)
        kept = {"model": weights, "base": state}
        checkpoint.load(kept, checkpoint_id=Path(folder, training))
        set_state_dict(fresh, again.base, model_state_dict=kept["model"], optim_state_dict=kept["base"])
        again.load_state_dict({**again.base.state_dict(), "method": torch.load(mine, weights_only=True)})
    for step in range(3, 6):
        take(again, fresh, step, rank, None)
    return whole(fresh)


def refused(rank):
    """name -> what is said of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    from trainers.optimizers.muon import Muon

    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    said = {}

    def attempt(name, make):
        try:
            said[name] = f"accepted: {make()}"
        except InputError as error:
            said[name] = str(error)

    def optimizer(model, method="sam", base=BASES["sgd"], **options):
        return MethodOptimizer(base(model.parameters()), METHODS[method](), model, total_steps=6, **options)

    def in_part():
        model = Network()
        fully_shard(model.body, mesh=mesh)
        return optimizer(model)

    def by_tensor():
        def split(_, module, mesh):
            for name, p in module.named_parameters(recurse=False):
                module.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(0)])))

        return optimizer(distribute_module(nn.Linear(6, 4), mesh, split))

    def class_of_fsdp1():
        class FullyShardedDataParallel(nn.Sequential):
            """Its name; the class itself needs an accelerator."""

        return optimizer(FullyShardedDataParallel(nn.Linear(2, 2)))

    def step(gradients_before=0, sync=True, last=True, clears=True, taken=0):
        model = sharded(Network())
        made = optimizer(model)
        (tokens, targets), *_ = batch(0, rank)

        def loss():
            return F.cross_entropy(model(tokens), targets)

        def closure():
            if clears:
                made.zero_grad()
            value = loss()
            value.backward()
            return value

        for _ in range(taken):
            clears = True
            made.step(closure)
            clears = False
        if gradients_before:
            model.set_requires_gradient_sync(gradients_before == 2)
            loss().backward()
        model.set_requires_gradient_sync(sync)
        model.set_is_last_backward(last)
        made.step(closure)

    for method in ("esam", "functional-sam", "k-sam", "mesa", "saf", "ssam", "subset-sam", "xsam", "flat-lora"):
        attempt(method, lambda method=method: optimizer(sharded(Network()), method))
    attempt("one each", lambda: optimizer(sharded(Network()), synchronized=False))
    attempt("muon", lambda: optimizer(sharded(Network()), base=lambda p: Muon(p)))
    attempt("task", lambda: Task(sharded(Network()), nn.CrossEntropyLoss()))
    attempt("in part", in_part)
    attempt("tensor parallel", by_tensor)
    attempt("fsdp1", class_of_fsdp1)
    attempt("not summed after", lambda: step(sync=False))
    attempt("not summed before", lambda: step(gradients_before=1))
    attempt("not last", lambda: step(last=False))
    attempt("not cleared", lambda: step(gradients_before=2, clears=False))
    bare = sharded(Network())
    attempt("not cleared later", lambda: step(taken=1, gradients_before=2))
    attempt("train", lambda: train("sam", model=sharded(Network()), data="digits", epochs=1))
    attempt("bare state", lambda: optimizer(bare).load_state_dict(BASES["sgd"](bare.parameters()).state_dict()))
    model = sharded(Network())
    with torch.no_grad():
        model(batch(0, rank)[0][0])
    attempt("too late", lambda: optimizer(model))
    return said


def main(folder):
    """A worker: what above is made by so many processes, saved by the first."""
    from landscape.processes import process_group, world

    with process_group() as rank:
        variants = FOUR if world() == 4 else VARIANTS
        results = {variant: whole(trained("sam", rank, variant)[0]) for variant in variants}
        if world() < 4:
            trainings = TRAININGS if world() == 2 else ONE_EACH
            results |= {name: whole(trained(name, rank)[0]) for name in trainings}
        if world() == 2:
            results["half precision"] = in_half_precision(rank)
            results["said"] = refused(rank)
            for training in RESUMED:
                for by_shards in (True, False):
                    results[f"{training} resumed {by_shards}"] = resumed(training, rank, folder, by_shards)
        if rank == 0:
            torch.save(results, Path(folder, "results.pt"))
    os._exit(0)  # the meshes keep gloo's threads, which the interpreter's end does not always survive


if __name__ == "__main__":
    main(sys.argv[1])
