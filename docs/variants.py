"""Methods at other hyperparameters than their defaults, as Markdown: `python -m docs.variants --out DIR`.

For the documentation: what separates a default, the length of the run, the batch size and the method itself where a
method is not flatter than SGD. Digits with 20% label noise and a fully connected network with BatchNorm (seconds a
run), or --images: the ResNet-8 on Fashion-MNIST of `matched-loss --preset middle` (half a minute a run and core).
Ratios to SGD with the same batch size and length are geometric means, paired by seed. They are formed once more with
shorter runs of SGD that end at the same training loss (interpolated between their lengths in the logarithms of both):
most methods stop at a higher loss than SGD, which changes sharpness by itself. What is done is reused.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from docs.method_table import difference, interval, ratio, table
from figures.drawing import bands
from figures.paper import matched_loss
from figures.paper.matched_loss import at_equal_loss, shorter
from figures.study import recipes
from figures.study.study import Study
from figures.study.tasks import Computation, Training
from landscape import statistics
from landscape.progress import shown

RADII = (0.05, 0.2)


@dataclass(frozen=True)
class Variant:
    """A method with hyperparameters, in a run with settings."""

    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """Name and what differs from the defaults."""
        named = [f"{k} {v:g}" for k, v in self.arguments.items()]
        named += [f"batches of {self.settings['batch_size']}"] if "batch_size" in self.settings else []
        return f"{bands.label(self.method)}{', ' if named else ''}{', '.join(named)}"


LARGE = {"batch_size": 512, "lr": 0.2}
DIGITS = [
    *(Variant("sam", a) for a in ({}, {"rho": 0.2})),
    *(Variant("amp", a) for a in ({}, {"radius": 0.1}, {"radius": 0.02})),
    *(Variant("looksam", a) for a in ({}, {"alpha": 0.2}, {"alpha": 0.0})),
    *(Variant("saf", a) for a in ({}, {"strength": 1.0})),
    *(Variant("mesa", a) for a in ({}, {"horizon": 0.5}, {"horizon": 1.5}, {"horizon": 4.0})),
    *(Variant("msam", a) for a in ({}, {"rho": 0.05}, {"rho": 1.0}, {"rho": 3.0})),
    *(Variant("k-sam", a) for a in ({}, {"k": 32})),
    *(Variant("esam", a) for a in ({}, {"gamma": 1.0}, {"beta": 1.0})),
    *(Variant("random-perturbation", a) for a in ({}, {"sigma": 0.1})),
    *(Variant(m) for m in ("subset-sam", "sam-on")),
    *(Variant(m, {}, LARGE) for m in ("sam", "looksam")),
]
IMAGES = [
    Variant("looksam", {"alpha": 0.2}),
    Variant("looksam", {"alpha": 0.0}),
    Variant("saf", {"lag": 1}),
    Variant("msam", {"rho": 1.0}),
    Variant("random-perturbation", {"sigma": 0.05}),
]


def training(study: Study, variant: Variant, seed: int, images: bool) -> Training:
    """The run of a variant."""
    if images:
        return matched_loss.fashion(study, variant.method, seed, arguments=variant.arguments, **variant.settings)
    settings = {"model": "mlp:hidden=64x64,batch_norm=true", "label_noise": 0.2, **variant.settings}
    settings["keep_every"] = settings["epochs"]
    return recipes.features(study, variant.method, seed, arguments=variant.arguments, **settings)


def runs_of_sgd(study: Study, settings: dict[str, Any], seed: int, images: bool) -> list[Computation]:
    """Flatness at the end of SGD's runs up to this length."""
    run = training(study, Variant("sgd", {}, settings), seed, images)
    return [computation(study, t, images) for t in shorter(run)]


def computation(study: Study, run: Training, images: bool) -> Computation:
    """Flatness at the end."""
    if images:
        return matched_loss.computation(study, run)
    end = {"epochs": [run.settings["epochs"]], "level": 0.0, "radii": list(RADII), "samples": 1437, "test": None}
    return Computation("figures.study.computations:at_loss", (run,), end)


def rows(study: Study, variants: list[Variant], seeds: list[int], images: bool) -> Iterator[list[str]]:
    """One row a variant."""

    def results(variant: Variant) -> dict[str, np.ndarray]:
        each = [study.result(computation(study, training(study, variant, s, images), images)) for s in seeds]
        return {key: np.stack([r[key] for r in each]) for key in each[0]}

    for variant in variants:
        one, sgd = results(variant), results(Variant("sgd", {}, variant.settings))
        ended = [[study.result(c) for c in runs_of_sgd(study, variant.settings, s, images)] for s in seeds]
        losses, sharp, curved = (
            np.array([[r[key][0].flat[0] for r in row] for row in ended])
            for key in ("loss", "sam_sharpness", "eigenvalue")
        )

        def beside(values: np.ndarray, wanted: np.ndarray = one["loss"][:, 0], losses: np.ndarray = losses) -> Any:
            return np.array([at_equal_loss(*x) for x in zip(losses, values, wanted, strict=True)])

        sharpness = one["sam_sharpness"][:, 0], sgd["sam_sharpness"][:, 0]
        share = (one["first_order"][:, 0, 0] / sharpness[0][:, 0]).mean()
        yield [
            variant.text,
            f"{training(study, variant, seeds[0], images).settings['epochs']}",
            f"{one['loss'][:, 0].mean():.3f} ({sgd['loss'][:, 0].mean():.3f})",
            interval(statistics.mean(100 * one["test_accuracy"]), 1),
            difference(100 * one["test_accuracy"], 100 * sgd["test_accuracy"]),
            ratio(sharpness[0][:, 0], sharpness[1][:, 0]),
            ratio(sharpness[0][:, -1], sharpness[1][:, -1]),
            f"{share:.2f}",
            ratio(one["eigenvalue"][:, 0], sgd["eigenvalue"][:, 0]),
            ratio(sharpness[0][:, 0], beside(sharp)),
            ratio(one["eigenvalue"][:, 0], beside(curved)),
        ]


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="directory of the study, as of `landscape figures --out`")
    parser.add_argument("--images", action="store_true", help="Fashion-MNIST instead of digits")
    parser.add_argument("--epochs", type=int, nargs="+", default=[15, 60], help="lengths of the runs on digits")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    preset = "middle" if options.images else "quick"
    study = Study(f"{options.out}/study", preset, workers=options.workers, data_dir=options.data_dir)
    seeds = list(range(options.seeds))
    variants = IMAGES
    if not options.images:
        variants = [Variant(v.method, v.arguments, {**v.settings, "epochs": e}) for e in options.epochs for v in DIGITS]
    needed = [*variants, *(Variant("sgd", {}, v.settings) for v in variants)]
    tasks = [computation(study, training(study, v, s, options.images), options.images) for v in needed for s in seeds]
    tasks += [c for v in variants for s in seeds for c in runs_of_sgd(study, v.settings, s, options.images)]
    with shown():
        study.run(tasks)
    header = ["", "epochs", "training loss (SGD's)", "test accuracy (%)", "minus SGD's", "S(0.05) / SGD's"]
    header += [
        "S(0.2) / SGD's",
        "0.05 ‖g‖ / S(0.05)",
        "λmax / SGD's",
        "at the same loss: S(0.05) / SGD's",
        "λmax / SGD's",
    ]
    print(table(header, list(rows(study, variants, seeds, options.images))))


if __name__ == "__main__":
    main()
