"""Networks that take or return something else than one tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit.aims.aim import CLASSES, Aim, Fields, by_size, classes, numbers
from audit.networks.network import Network, as_dict, as_keywords, features


class Heads(nn.Module):
    """Two heads, returned as `packing(first, second)`."""

    def __init__(self, packing: Any) -> None:
        super().__init__()
        self.inner, self.first, self.second = nn.Linear(3, 3), nn.Linear(3, CLASSES), nn.Linear(3, CLASSES)
        self.packing = packing

    def forward(self, x: Tensor) -> Any:
        x = torch.tanh(self.inner(x))
        return self.packing(self.first(x), self.second(x))


@dataclass
class TwoHeads:
    first: Tensor
    second: Tensor


class Output(dict):
    """Like a Hugging Face output: a dict with attributes, `loss` missing where no labels came."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def _parts(outputs: Any) -> tuple[Tensor, Tensor]:
    if isinstance(outputs, Mapping):
        first, second = outputs.values()
        return first, second
    return outputs if isinstance(outputs, tuple) else (outputs.first, outputs.second)


def _both(outputs: Any, target: Tensor) -> Tensor:
    first, second = _parts(outputs)
    return F.cross_entropy(first, target) + 0.4 * F.cross_entropy(second, target)


def _distance(outputs: Any, target: Tensor) -> Tensor:
    first, second = _parts(outputs)
    return F.gaussian_nll_loss(first, target, F.softplus(second) + 0.1)


_STRUCTURED = {
    "two heads": lambda outputs: Aim({"loss": _both}, by_size(_both), classes),
    "gaussian of two outputs": lambda outputs: Aim({"loss": _distance}, by_size(_distance), numbers(CLASSES)),
    "torch's loss of two outputs": lambda outputs: Aim(
        {"loss": nn.CrossEntropyLoss()}, by_size(_both), classes, refused="must"
    ),
}


def _heads(packing: Any) -> Network:
    return Network(Heads(packing), features(3), outputs="special", aims=_STRUCTURED)


def outputs_tuple() -> Network:
    return _heads(lambda a, b: (a, b))


def outputs_dict() -> Network:
    return _heads(lambda a, b: {"out": a, "aux": b})


def outputs_dataclass() -> Network:
    return _heads(TwoHeads)


def outputs_logits() -> Network:
    model = Heads(lambda a, b: Output(logits=a, hidden=b))
    return Network(model, features(3), pick=lambda outputs: outputs.logits)


@dataclass
class Prediction:
    logits: Tensor
    hidden: Tensor | None = None


def outputs_logits_dataclass() -> Network:
    return Network(Heads(Prediction), features(3), pick=lambda outputs: outputs.logits)


class Item(NamedTuple):
    x: Tensor
    y: Tensor


def batch_named_tuple() -> Network:
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, CLASSES))
    return Network(model, features(3), form=lambda fields, target: Item(fields["x"], target))


class OfDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 3), nn.Linear(3, CLASSES)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return self.out(torch.sin(self.inner(batch["x"]) * batch["scale"]))


def _of_dict(form: Any) -> Network:
    return Network(
        OfDict(),
        lambda n: {"x": torch.randn(n, 3), "scale": torch.rand(n, 1)},
        call=lambda model, fields, target: model(fields),
        form=form,
    )


def batch_dict() -> Network:
    return _of_dict(as_dict)


def batch_dict_and_target() -> Network:
    return _of_dict(as_keywords)


class Constants(nn.Module):
    """Constants beside tensors in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor, power: int = 1, mask: Tensor | None = None) -> Tensor:
        return self.out(torch.tanh(x) ** power)


def batch_constants() -> Network:
    return Network(
        Constants(),
        features(3),
        call=lambda model, fields, target: model(fields["x"], 2),
        form=lambda fields, target: {**fields, "power": 2, "mask": None, "labels": target},
    )


class Graphs:
    """Graphs joined into one, as graph libraries make them: nodes, edges, the graph of every node, targets."""

    def __init__(self, nodes: Tensor, edges: Tensor, graph: Tensor, y: Any, count: int) -> None:
        self.x, self.edge_index, self.batch, self.y, self.num_graphs = nodes, edges, graph, y, count

    def to(self, device: Any) -> Graphs:
        y = self.y.to(device) if isinstance(self.y, Tensor) else self.y
        return Graphs(self.x.to(device), self.edge_index.to(device), self.batch.to(device), y, self.num_graphs)


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message, self.out = nn.Linear(2, 3), nn.Linear(3, CLASSES)

    def forward(self, data: Graphs) -> Tensor:
        sender, receiver = data.edge_index
        x = torch.tanh(self.message(data.x))
        x = x + torch.zeros_like(x).index_add(0, receiver, x[sender])
        return self.out(x.new_zeros(data.num_graphs, x.shape[1]).index_add(0, data.batch, x))


def _joined(fields: Fields, target: Any) -> Graphs:
    x = fields["x"]
    n, nodes = x.shape[:2]
    start = (torch.arange(n) * nodes).view(-1, 1, 1)
    ring = torch.stack([torch.arange(nodes), (torch.arange(nodes) + 1) % nodes])
    edges = (start + ring).transpose(0, 1).reshape(2, -1)
    return Graphs(x.flatten(0, 1), edges, torch.arange(n).repeat_interleave(nodes), target, n)


def graph() -> Network:
    return Network(
        GraphNet(),
        lambda n: {"x": torch.randn(n, 3, 2)},
        call=lambda model, fields, target: model(_joined(fields, target)),
        form=_joined,
        sliceable=False,
        loose=False,
    )


class Adjacent(nn.Module):
    """A graph whose nodes are the examples, with a dense matrix of as many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(2, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return adjacency @ self.out(torch.relu(adjacency @ self.inner(x)))


def _ring(x: Tensor) -> Tensor:
    eye = torch.eye(len(x), dtype=x.dtype)
    return (eye + eye.roll(1, 0)) / 2


def adjacency() -> Network:
    return Network(
        Adjacent(),
        features(2),
        call=lambda model, fields, target: model(fields["x"], _ring(fields["x"])),
        form=lambda fields, target: (fields["x"], _ring(fields["x"]), target),
        sliceable=False,
    )


class Rotated(nn.Module):
    """A constant matrix in every batch, which has as many rows as some batches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, CLASSES)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) @ rotation


def _rotation(x: Tensor) -> Tensor:
    return (torch.arange(9, dtype=x.dtype).view(3, 3) * 4) % 7 / 4 - 0.5  # exact in every dtype


def constant_matrix() -> Network:
    return Network(
        Rotated(),
        features(3),
        call=lambda model, fields, target: model(fields["x"], _rotation(fields["x"])),
        form=lambda fields, target: (fields["x"], _rotation(fields["x"]), target),
        sliceable=False,
    )


class Detector(nn.Module):
    """Takes a list of images of several sizes, returns a list of dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.boxes = nn.Linear(2, 3), nn.Linear(3, 2)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return [{"boxes": self.boxes(torch.tanh(self.inner(i)).mean(0))} for i in images]


def _images(fields: Fields) -> list[Tensor]:
    return [x[: 1 + i % 3] for i, x in enumerate(fields["x"])]


def _boxes(target: Tensor) -> list[dict[str, Tensor]]:
    return [{"boxes": t[: 1 + i % 2]} for i, t in enumerate(target)]


def _box_loss(outputs: list[dict[str, Tensor]], targets: list[dict[str, Tensor]]) -> Tensor:
    each = [(o["boxes"] - t["boxes"].mean(0)).square().mean() for o, t in zip(outputs, targets, strict=True)]
    return torch.stack(each).mean()


def detection() -> Network:
    return Network(
        Detector(),
        lambda n: {"x": torch.randn(n, 3, 2)},
        outputs="special",
        call=lambda model, fields, target: model(_images(fields)),
        form=lambda fields, target: (_images(fields), _boxes(target)),
        aims={
            "boxes": lambda outputs: Aim(
                {"loss": _box_loss}, by_size(lambda o, t: _box_loss(o, _boxes(t))), lambda n, f: torch.randn(n, 2, 2)
            )
        },
        sliceable=False,
    )


def _split(target: Tensor) -> tuple[Tensor, Tensor]:
    return target[:, 0].long(), target[:, 1:]


def _classes_and_numbers(outputs: tuple[Tensor, Tensor], targets: Any) -> Tensor:
    classes_of, numbers_of = targets.values() if isinstance(targets, dict) else targets
    return F.cross_entropy(outputs[0], classes_of) + F.huber_loss(outputs[1], numbers_of)


def _several_targets(form: Any) -> Network:
    def target(n: int, fields: Fields) -> Tensor:
        return torch.cat([classes(n, fields).unsqueeze(1).float(), torch.randn(n, CLASSES)], 1)

    return Network(
        Heads(lambda a, b: (a, b)),
        features(3),
        outputs="special",
        form=form,
        aims={
            "two targets": lambda outputs: Aim(
                {"loss": _classes_and_numbers}, by_size(lambda o, t: _classes_and_numbers(o, _split(t))), target
            )
        },
    )


def targets_tuple() -> Network:
    return _several_targets(lambda fields, target: (fields["x"], _split(target)))


def targets_dict() -> Network:
    return _several_targets(lambda fields, target: (fields["x"], dict(zip("yz", _split(target), strict=True))))


KINDS = {
    f.__name__: f
    for f in (
        *(outputs_tuple, outputs_dict, outputs_dataclass, outputs_logits, outputs_logits_dataclass),
        *(batch_named_tuple, batch_dict, batch_dict_and_target, batch_constants, graph, detection),
        *(targets_tuple, targets_dict, adjacency, constant_matrix),
    )
}
