"""What share of the worst case the measures find, beside a search that shares no code with the project's ascent.

Six networks, trained on the digits for seconds, L over 128 examples; T plain, element-wise, filter-wise and layer-wise;
p = 2 and inf, and Keskar's box; three radii each, from those at which L is nearly linear to those at which the network
names one class for everything. The search: four random starts of 120 normalized gradient steps whose length falls from
the radius to nothing, projected to the ball; for p = inf steps of the sign, and then 40 trials of flipping signs of the
best corner. A ratio is what the measure finds / what the search finds: above 1 where the search has missed more.

A second run goes on where the first was stopped (`--store`).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

from timing import table  # isort: skip  (sets OMP_WAIT_POLICY before torch is loaded)

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import landscape
from landscape.sharpness.sharpness import Sharpness

STARTS, STEPS, TRIALS = 4, 120, 40
EFFORTS = (1, 2)
AIM, SHOWN = 0.95, 0.05
LOSS = nn.CrossEntropyLoss()
BALLS: dict[str, tuple[str, float, tuple[float, float, float]]] = {
    "plain, p=2": ("identity", 2.0, (0.05, 0.2, 1.0)),
    "element-wise, p=2": ("elementwise", 2.0, (0.1, 0.5, 2.0)),
    "filter-wise, p=2": ("filterwise", 2.0, (0.05, 0.2, 1.0)),
    "layer-wise, p=2": ("layerwise", 2.0, (0.01, 0.05, 0.2)),
    "plain, p=inf": ("identity", math.inf, (0.001, 0.005, 0.02)),
    "element-wise, p=inf": ("elementwise", math.inf, (0.01, 0.05, 0.2)),
    "filter-wise, p=inf": ("filterwise", math.inf, (0.001, 0.005, 0.02)),
    "layer-wise, p=inf": ("layerwise", math.inf, (0.0002, 0.001, 0.005)),
    "Keskar's box": ("keskar", math.inf, (0.0005, 0.001, 0.01)),
}


PAGE = """# What share of the worst case is found

`python benchmarks/worst_case.py`.

{words}

{summary}

The passes are those over the examples; the search makes 480 (p = inf: up to 521) forward and backward ones. One ascent
ends in the maximum that the gradient at the weights leads to; more steps do not leave it (60 instead of 20 change the
smallest ratio of the MLP, 0.80, by less than 1e-6), and random starts rarely do in the box. The second ascent starts
where one output is above the others or at random: three outputs and a random point are followed for a fifth of the
steps, and the best goes on, see `landscape.sharpness.starts`.

By hand, on three ReLU networks of three classes and 96 examples (search of 4 x 60 steps), from which it was learned to
try both signs of an output where there are few: one ascent falls below 0.95 in 31 of 81 balls, two in 3, at 0.81, 0.93
(both with a spread of 0.1) and 0.948 (without one). That was before candidates were compared after some steps, which
was learned from six networks of 1, 2, 3 and 10 outputs (138 balls, searches from 6 starts at random and above outputs):
the best one-step point alone fell below 0.95 in 9, down to 0.35, three of them without a spread; now it is 3, at 0.76
to 0.89, with spreads of 0.09 to 0.64.

## Two ascents (restarts={restarts}, the default)

Ratio at each radius; in parentheses the spread of the ascents, (largest - smallest) / largest, where it is above 0.05:
then the row of the measure in a report says so.

{last}

## One ascent (restarts=1)

{first}
"""


class Attention(nn.Module):
    """One block of attention over the eight rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.place = nn.Parameter(torch.zeros(8, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.block(self.embed(x[:, 0]) + self.place).mean(dim=1))


def perceptron(activation: Callable[[], nn.Module], *, norm: bool = False) -> nn.Module:
    """64-32-32-10."""
    layers: list[nn.Module] = [nn.Flatten()]
    for a, b in ((64, 32), (32, 32)):
        layers += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def convolutions(*, norm: bool) -> nn.Module:
    """Two convolutions of stride 1 and 2, the mean over the places, one linear layer."""
    layers: list[nn.Module] = []
    for a, b, stride in ((1, 8, 1), (8, 16, 2)):
        layers += [nn.Conv2d(a, b, 3, stride, 1), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP": lambda: perceptron(nn.ReLU),
    "MLP, BatchNorm": lambda: perceptron(nn.ReLU, norm=True),
    "CNN": lambda: convolutions(norm=False),
    "CNN, BatchNorm": lambda: convolutions(norm=True),
    "tanh": lambda: perceptron(nn.Tanh),
    "attention": Attention,
}


def trained(name: str, examples: int = 128, epochs: int = 30) -> tuple[nn.Module, Tensor, Tensor]:
    """A network after some epochs of Adam, in evaluation mode, and the examples of L."""
    digits = load_digits()
    x, y = torch.tensor(digits.images[:, None] / 8 - 1).float(), torch.tensor(digits.target)
    torch.manual_seed(0)
    model = NETWORKS[name]()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(1500).split(64):
            optimizer.zero_grad()
            LOSS(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.eval(), x[:examples], y[:examples]


# -- the search: written from the definitions ------------------------------------------------------------------------


class Search:
    """The largest rise of the loss of a network in a ball, by brute force.

    Args:
        model: in evaluation mode; copied.
        x: inputs.
        y: labels.
        scaling: T.
        p: 2 or inf.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, scaling: str, p: float) -> None:
        self.model, self.x, self.y, self.p = copy.deepcopy(model), x, y, p
        self.tensors = list(self.model.parameters())
        self.center = [t.detach().clone() for t in self.tensors]
        self.scales = [self._scale(t, scaling) for t in self.center]
        self.passes = 0
        self.loss, _ = self.at([torch.zeros_like(t) for t in self.center])

    @staticmethod
    def _scale(t: Tensor, scaling: str) -> Tensor:
        if scaling in ("elementwise", "keskar"):
            return t.abs() + (scaling == "keskar")
        if scaling == "filterwise":
            return t.abs() if t.dim() < 2 else t.flatten(1).norm(dim=1).view(-1, *[1] * (t.dim() - 1)).expand_as(t)
        return torch.full_like(t, float(t.norm()) if scaling == "layerwise" else 1.0)

    @staticmethod
    def _length(u: list[Tensor]) -> float:
        return math.sqrt(sum(float((t.double() ** 2).sum()) for t in u))

    def at(self, u: list[Tensor]) -> tuple[float, list[Tensor]]:
        """L(w + T u) and its gradient in u."""
        self.passes += 1
        with torch.no_grad():
            for t, c, s, v in zip(self.tensors, self.center, self.scales, u, strict=True):
                t.copy_(c + s * v)
        loss = LOSS(self.model(self.x), self.y)
        return float(loss.detach()), [
            g * s for g, s in zip(torch.autograd.grad(loss, self.tensors), self.scales, strict=True)
        ]

    def projected(self, u: list[Tensor], rho: float) -> list[Tensor]:
        """The nearest point of the ball."""
        if self.p == 2:
            shrink = min(1.0, rho / max(self._length(u), 1e-30))
            return [t * shrink for t in u]
        return [t.clamp(-rho, rho) for t in u]

    def best(self, rho: float) -> float:
        """The largest rise that is found at this radius."""
        best, where = -math.inf, [torch.zeros_like(t) for t in self.center]
        for start in range(STARTS):
            torch.manual_seed(start)
            u = self.projected([rho * 2 * torch.randn_like(t).clamp(-1, 1) for t in self.center], rho)
            for step in range(STEPS):
                loss, h = self.at(u)
                if loss > best:
                    best, where = loss, u
                length = rho * (1 - step / STEPS)
                size = max(self._length(h), 1e-30)
                move = [t / size for t in h] if self.p == 2 else [t.sign() for t in h]
                u = self.projected([t + length * m for t, m in zip(u, move, strict=True)], rho)
        return (self.corner(where, rho, best) if self.p != 2 else best) - self.loss

    def corner(self, u: list[Tensor], rho: float, best: float) -> float:
        """The loss at the best corner: the share of the signs against the gradient that is flipped adapts."""
        u, share = [torch.where(t >= 0, rho, -rho) for t in u], 1.0
        loss, h = self.at(u)
        for _ in range(TRIALS):
            against = torch.cat([(-t * g).clamp(min=0).flatten() for t, g in zip(u, h, strict=True)])
            wrong = against[against > 0]
            if not len(wrong):
                break
            least = wrong.sort(descending=True).values[max(math.ceil(share * len(wrong)) - 1, 0)]
            other = [torch.where(-t * g >= least, -t, t) for t, g in zip(u, h, strict=True)]
            there, slope = self.at(other)
            if there > loss:
                u, loss, h, share = other, there, slope, min(1.0, 2 * share)
            else:
                share /= 2
        return max(best, loss)


# -- the study -------------------------------------------------------------------------------------------------------


def measured(problem: landscape.Problem, ball: str, rho: float, restarts: int) -> Sharpness:
    """The project's measure at one radius."""
    scaling, p, _ = BALLS[ball]
    if scaling == "keskar":
        return landscape.keskar_sharpness(problem, rho=rho, restarts=restarts)
    return landscape.worst_case_sharpness(problem, rho=rho, p=p, scaling=scaling, restarts=restarts)


def studied(store: Path, name: str) -> dict[str, dict[str, float]]:
    """Ball and radius -> the rises found in a network; what the store holds already is not computed again."""
    rows: dict[str, dict[str, float]] = json.loads(store.read_text()) if store.exists() else {}
    network = trained(name)
    problem = landscape.Problem(network[0], LOSS, [network[1:]])
    for ball, (scaling, p, radii) in BALLS.items():
        search = Search(*network, scaling, p)
        for rho in radii:
            row = rows.setdefault(f"{ball} | {rho:g}", {})
            if "search" not in row:
                before = search.passes
                row["search"] = search.best(rho)
                row["search passes"] = search.passes - before
            for restarts in EFFORTS:
                if f"restarts={restarts}" not in row:
                    result = measured(problem, ball, rho, restarts)
                    row[f"restarts={restarts}"] = float(result.worst_case[0])
                    row[f"forward, restarts={restarts}"] = result.cost["forward"]
                    row[f"backward, restarts={restarts}"] = result.cost["backward"]
                    if result.restart_spread is not None:
                        row[f"spread, restarts={restarts}"] = float(result.restart_spread[0])
            store.write_text(json.dumps(rows, indent=1))
    return rows


Studies = dict[str, dict[str, dict[str, float]]]


def summary(studies: Studies) -> str:
    """One row an effort: passes, smallest and median ratio, and those that fall short."""
    rows: list[list[object]] = []
    balls = [row for study in studies.values() for row in study.values()]
    for restarts in EFFORTS:
        key = f"restarts={restarts}"
        ratios = [row[key] / row["search"] for row in balls]
        passes = " + ".join(f"{max(row[f'{kind}, {key}'] for row in balls):.0f}" for kind in ("forward", "backward"))
        short = [row for row, ratio in zip(balls, ratios, strict=True) if ratio < AIM]
        shown = "" if restarts == 1 else sum(row[f"spread, {key}"] > SHOWN for row in short)
        counts = (f"{len(short)} of {len(ratios)}", shown)
        rows.append([key, passes, f"{min(ratios):.3f}", f"{statistics.median(ratios):.3f}", *counts])
    header = ["effort", "forward + backward", "smallest", "median", f"below {AIM}", f"of these with a spread > {SHOWN}"]
    return table(rows, header)


def details(studies: Studies, restarts: int) -> str:
    """One row per ball, one column per network: ratios at each radius, with spreads of the restarts above `SHOWN`."""
    rows: list[list[object]] = []
    for ball, (_, _, radii) in BALLS.items():
        cells = []
        for study in studies.values():
            row = [study[f"{ball} | {rho:g}"] for rho in radii]
            ratios = [f"{r[f'restarts={restarts}'] / r['search']:.2f}" for r in row]
            spreads = [r.get(f"spread, restarts={restarts}", 0.0) for r in row]
            cells.append(" ".join(f"{a} ({b:.2f})" if b > SHOWN else a for a, b in zip(ratios, spreads, strict=True)))
        rows.append([ball, " ".join(f"{rho:g}" for rho in radii), *cells])
    return table(rows, ["ball", "radii", *studies])


def page(studies: Studies) -> str:
    """The whole of docs/benchmarks/worst_case.md."""
    first, last = EFFORTS[0], EFFORTS[-1]
    return PAGE.format(
        words=(__doc__ or "").split("\n\n")[1],
        summary=summary(studies),
        first=details(studies, first),
        last=details(studies, last),
        restarts=last,
    )


def main() -> None:
    """Print the page and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--store", type=Path, default=Path("worst-case-out"), help="results, one file per network")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "benchmarks" / "worst_case.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.store.mkdir(parents=True, exist_ok=True)
    names = {name: options.store / f"{name.replace(', ', '-')}.json" for name in NETWORKS}
    text = page({name: studied(store, name) for name, store in names.items()})
    print(text)
    options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
