"""Networks that return their loss, or whose loss is part of them: language models, PINN, VAE, contrast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit.aims.aim import CLASSES, Aim, Fields, by_size, classes, numbers, together
from audit.networks.network import Network, as_dict, features
from audit.networks.shapes import Output

IGNORED = -100


class Language(nn.Module):
    """Embedding, one causal mixing, a class for every place; returns its loss where labels are there."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], packing: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(CLASSES, 3), nn.Linear(3, CLASSES)
        self.loss, self.packing = loss, packing

    def forward(self, ids: Tensor, labels: Tensor) -> Any:
        logits = self.out(torch.tanh(self.embedding(ids).cumsum(1)))
        return self.packing(self.loss(logits, labels), logits)


def _flat(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), weight, ignore_index=IGNORED)


def _shifted(logits: Tensor, labels: Tensor) -> Tensor:
    return _flat(logits[:, :-1], labels[:, 1:])


def _pooled(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.mean(1), labels[:, 0])


def _weighted(logits: Tensor, labels: Tensor) -> Tensor:
    return _flat(logits, labels, torch.tensor([1.0, 4.0, 0.3]).to(logits))


def _labels(holes: bool) -> Callable[[int, Fields], Tensor]:
    def target(n: int, fields: Fields) -> Tensor:
        labels = fields["ids"].clone()
        if holes:
            stop = torch.randint(2, 5, (n, 1))  # at least the first two places of each count
            labels = labels.masked_fill(torch.arange(4) >= stop, IGNORED)
        return labels

    return target


def _own(loss: Callable[[Tensor, Tensor], Tensor], packing: Callable[..., Any], exact: bool, holes: bool) -> Network:
    def read(outputs: Any) -> Tensor:
        if isinstance(outputs, dict):
            return outputs["loss"]
        return outputs[0] if isinstance(outputs, tuple) else outputs

    value = together(read) if exact else by_size(lambda outputs, target: read(outputs))
    return Network(
        Language(loss, packing),
        lambda n: {"ids": torch.randint(CLASSES, (n, 4))},
        outputs="special",
        call=lambda model, fields, target: model(fields["ids"], target),
        form=as_dict,
        aims={
            "own loss": lambda outputs: Aim(
                {"loss": None}, value, _labels(holes), ignored=IGNORED if exact and holes else None
            )
        },
    )


def own_labels() -> Network:
    return _own(_flat, lambda loss, logits: Output(loss=loss, logits=logits), True, True)


def own_shifted() -> Network:
    return _own(_shifted, lambda loss, logits: (loss, logits), True, True)


def own_examples() -> Network:
    return _own(_pooled, lambda loss, logits: {"loss": loss, "logits": logits}, True, False)


def own_full_labels() -> Network:
    """No label is ignored: all denominators but one agree."""
    return _own(_shifted, lambda loss, logits: loss, True, False)


def own_class_weights() -> Network:
    return _own(_weighted, lambda loss, logits: Output(loss=loss, logits=logits), False, True)


class Physics(nn.Module):
    """The residual of u'' = sin(3 x) + u, from derivatives with respect to the input."""

    def __init__(self, graph: bool) -> None:
        super().__init__()
        self.net, self.graph = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)), graph

    def forward(self, x: Tensor) -> Tensor:
        if not self.graph:
            return self.residual(x)
        with torch.enable_grad():
            return self.residual(x)

    def residual(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        u = self.net(x)
        first = torch.autograd.grad(u.sum(), x, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), x, create_graph=True)[0]
        return second - u - torch.sin(3 * x)


def _square(outputs: Tensor, target: Tensor) -> Tensor:
    return outputs.square().mean()


def _physics(graph: bool) -> Network:
    aims = {"residual": lambda outputs: Aim({"loss": _square}, by_size(_square), numbers(1))}
    return Network(
        Physics(graph),
        features(1),
        outputs="values",
        aims=aims,
        refusable=not graph,
    )


def pinn() -> Network:
    return _physics(True)


def pinn_without_graph() -> Network:
    """Does not ask for a graph of its own: fails without one, and may be refused."""
    return _physics(False)


class Variational(nn.Module):
    """Takes its noise with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4), nn.Linear(2, 3)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


def _bound(outputs: tuple[Tensor, Tensor, Tensor], x: Tensor) -> Tensor:
    image, mean, log_variance = outputs
    return F.mse_loss(image, x) - 0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()


def vae() -> Network:
    return Network(
        Variational(),
        lambda n: {"x": torch.randn(n, 3), "noise": torch.randn(n, 2)},
        outputs="special",
        aims={"evidence bound": lambda outputs: Aim({"loss": _bound}, by_size(_bound), lambda n, fields: fields["x"])},
    )


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(a), self.net(b)


def _contrast(outputs: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    first, second = (F.normalize(z, dim=1) for z in outputs)
    return F.cross_entropy(first @ second.t() / 0.5, torch.arange(len(first)))


def contrastive() -> Network:
    return Network(
        Siamese(),
        lambda n: {"a": torch.randn(n, 3), "b": torch.randn(n, 3)},
        outputs="special",
        aims={"in-batch contrast": lambda outputs: Aim({"loss": _contrast}, by_size(_contrast), classes)},
    )


def policy() -> Network:
    """A policy gradient with advantages in the batch."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, CLASSES))

    def surrogate(outputs: Tensor, target: Tensor) -> Tensor:
        action, advantage = target[:, 0].long(), target[:, 1]
        return -(outputs.log_softmax(1).gather(1, action.unsqueeze(1)).squeeze(1) * advantage).mean()

    def target(n: int, fields: Fields) -> Tensor:
        return torch.stack([classes(n, fields).to(torch.float32), torch.randn(n)], 1)

    return Network(
        net, features(3), aims={"policy gradient": lambda outputs: Aim({"loss": surrogate}, by_size(surrogate), target)}
    )


KINDS = {
    f.__name__: f
    for f in (
        *(own_labels, own_shifted, own_examples, own_full_labels, own_class_weights),
        *(pinn, pinn_without_graph, vae, contrastive, policy),
    )
}
