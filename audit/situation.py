"""A situation: a network, an objective, batches; what is drawn of it is plain data, built twice: once for each side."""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from audit.aims import AIMS, PLAIN, UNFIT, Aim, Outputs
from audit.aims.aim import Batch, Fields
from audit.networks import KINDS, Network
from audit.networks.network import FORMS
from audit.reference import Reference

DTYPES = {"float64": torch.float64, "float32": torch.float32}
DIVISIONS = ("one", "unequal", "singles", "by class", "permuted", "ignored")


@dataclass(frozen=True)
class Choice:
    """What was drawn; every field can be made simpler by itself."""

    seed: int
    network: str
    aim: str
    examples: int
    division: str = "one"
    dtype: str = "float64"
    policy: str = "frozen"
    form: str = "tuple"
    wrap: str = "none"
    part: bool = False
    cast: bool = True
    training: bool = False
    loader: bool = False
    check: bool = True
    chunk: int | None = None
    operations: tuple[str, ...] = ()

    def simpler(self) -> Iterator[Choice]:
        """Choices with one thing less in them."""
        if len(self.operations) > 1:
            yield from (dataclasses.replace(self, operations=(o,)) for o in self.operations)
        plain = Choice(self.seed, self.network, self.aim, self.examples)
        for field in dataclasses.fields(Choice)[4:-1]:
            if getattr(self, field.name) != getattr(plain, field.name):
                yield dataclasses.replace(self, **{field.name: getattr(plain, field.name)})
        if self.division not in ("one", "unequal"):
            yield dataclasses.replace(self, division="unequal")
        for n in (2, self.examples // 2, self.examples - 1):
            if 1 < n < self.examples:
                yield dataclasses.replace(self, examples=n)


def drawn(seed: int, operations: tuple[str, ...], many: int) -> Choice:
    """The choice of a seed."""
    r = random.Random(seed)
    kinds = sorted(KINDS)
    name = r.choice(kinds)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = KINDS[name]()
    offered = {**AIMS[network.outputs], **network.aims}
    aims = sorted(a for a in offered if network.form is None or a not in PLAIN)
    if network.aims and r.random() < 0.5:
        aims = sorted(network.aims)
    if network.outputs == "classes" and r.random() < 0.05:
        aims = sorted(UNFIT)
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.model.modules())
    return Choice(
        seed=seed,
        network=name,
        aim=r.choice(aims),
        examples=r.randint(4, 12),
        division=r.choice(DIVISIONS),
        dtype="float32" if network.mixed else r.choices(["float64", "float32"], [2, 1])[0],
        policy=r.choice(["frozen", "batch", "recalibrate"]) if norms else "frozen",
        form=r.choice(sorted(FORMS)),
        wrap=r.choices(["none", "parallel", "compiled"], [8, 1, 1])[0],
        part=r.random() < 0.2,
        cast=r.random() < 0.7,
        training=r.random() < 0.4,
        loader=r.random() < 0.3,
        check=r.random() < 0.8,
        chunk=r.choice([None, 1, 3, 100]),
        operations=tuple(r.sample(operations, min(many, len(operations)))),
    )


class Loader:
    """An iterable that is read again, as a DataLoader."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


@dataclass
class Situation:
    """A choice, built.

    Attributes:
        choice: what was drawn.
        network: the network, in the choice's dtype.
        aim: what is minimized, for landscape.
        items: the batches as a loader gives them.
        arguments: of Problem, beside model and batches.
        reference: L by its definition.
    """

    choice: Choice
    network: Network
    aim: Aim
    items: Any
    arguments: dict[str, Any]
    reference: Reference

    @property
    def model(self) -> nn.Module:
        """The model as the user gives it."""
        if self.choice.wrap == "parallel":
            return nn.DataParallel(self.network.model)
        if self.choice.wrap == "compiled":
            compiled = torch.compile(self.network.model, backend="eager")
            assert isinstance(compiled, nn.Module)
            return compiled
        return self.network.model


def situation(choice: Choice) -> Situation:
    """Build both sides of a choice."""
    dtype = DTYPES[choice.dtype]
    network, aim, batches = _built(choice, dtype)
    names, pattern = _names(choice, network)
    form = network.form or FORMS["dict" if choice.form == "keywords" and aim.plain else choice.form]
    loose = network.loose and choice.cast
    items = [form(b.fields, b.target) for b in (batches if loose else [_typed(b, dtype) for b in batches])]
    other, other_aim, same = _built(choice, torch.float64)
    reference = Reference(other, other_aim, [_typed(b, torch.float64) for b in same], names, choice.policy)
    arguments = {**aim.arguments, "batch_norm": choice.policy, "parameters": pattern, "check": choice.check}
    if aim.objective is not None:
        arguments["objective"] = _objective(aim)
    network.model.train(choice.training)
    return Situation(choice, network, aim, Loader(items) if choice.loader else items, arguments, reference)


def _built(choice: Choice, dtype: torch.dtype) -> tuple[Network, Aim, list[Batch]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(choice.seed)
        network = KINDS[choice.network]()
        if not (network.mixed and dtype == torch.float32):
            network.model.to(dtype)
        network.model.eval()
        torch.manual_seed(choice.seed + 1)
        n = choice.examples
        fields = network.draw(n)
        if type(network.model).forward is nn.Sequential.forward and network.form is None:
            fields = {"input": fields["x"]}  # by the name of its argument
        shape: tuple[int, ...] = ()
        if network.outputs != "special":
            some = _typed(Batch(network.draw(3), None), dtype)
            outputs = network.call(network.model, some.fields, None)
            shape = tuple((network.pick(outputs) if network.pick else outputs).shape[1:])
        aim = {**AIMS[network.outputs], **UNFIT, **network.aims}[choice.aim](Outputs(dtype, shape, network.pick))
        target = aim.target(n, fields)
        batches = []
        for i, rows in enumerate(_rows(choice, target)):
            part = target[rows]
            if choice.division == "ignored" and aim.ignored is not None and i == 1:
                part = torch.full_like(part, aim.ignored)
            batches.append(Batch(_cut(network, {k: v[rows] for k, v in fields.items()}), part))
    return network, aim, batches


def _rows(choice: Choice, target: Tensor) -> list[Tensor]:
    n = choice.examples
    order = torch.randperm(n) if choice.division == "permuted" else torch.arange(n)
    if choice.division == "by class":
        order = target.double().view(n, -1).sum(1).argsort(stable=True)
    if choice.division == "one":
        return [order]
    if choice.division == "singles":
        return list(order.split(1))
    if choice.division == "permuted":
        return list(order.split(3))
    cuts = sorted({int(c) for c in torch.randint(1, n, (3,))})
    return [order[a:b] for a, b in itertools.pairwise([0, *cuts, n])]


def _cut(network: Network, fields: Fields) -> Fields:
    """Sequences no longer than the longest of their batch."""
    if network.ragged is None:
        return fields
    length = int((~fields[network.ragged]).sum(1).max())
    return {k: v[:, :length] for k, v in fields.items()}


def _typed(batch: Batch, dtype: torch.dtype) -> Batch:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return Batch({k: cast(v) for k, v in batch.fields.items()}, cast(batch.target))


def _names(choice: Choice, network: Network) -> tuple[list[str], str | None]:
    named = [n for n, p in network.model.named_parameters() if p.requires_grad]
    if not choice.part:
        return named, None
    pattern = network.part or named[choice.seed % len(named)]
    return [n for n in named if fnmatch.fnmatchcase(n, pattern) or n.startswith(pattern + ".")], pattern


def _objective(aim: Aim) -> Any:
    def objective(model: nn.Module, item: Any) -> Any:
        if isinstance(item, dict):
            target = item["labels"]
            outputs = model(**{k: v for k, v in item.items() if k != "labels"})
        else:
            target = item[-1]
            outputs = model(*item[0]) if isinstance(item[0], tuple) else model(*item[:-1])
        assert aim.objective is not None
        return aim.objective(outputs, target)

    return objective
