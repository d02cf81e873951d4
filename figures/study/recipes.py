"""Trainings that several figures share, so that each is run once.

Sizes were chosen by cost (a figure has four minutes on two cores), rates and radii are the methods' own defaults or the
papers'; nothing here was chosen by its outcome.
"""

from __future__ import annotations

from typing import Any

from figures.study.study import Study
from figures.study.tasks import Training
from trainers.data import data_directory
from trainers.data.idx import available
from trainers.loop.settings import BASES, DEFAULT_LR

SEEDS = 5
KEPT = ("sgd", "sam", "saf", "mesa")
"""Methods whose sharpness is followed through training: every figure takes the runs that keep their epochs."""


def images(
    study: Study, method: str, seed: int, *, arguments: dict[str, Any] | None = None, **changes: Any
) -> Training:
    """A convolutional network on images: small-cnn on digits (quick), WRN-28-10 on CIFAR-10 (paper).

    Rate 0.05 with SGD, 0.001 with Adam (paper: 0.1, 0.001), cosine schedule, batches of 128.
    """
    quick = {"data": "digits", "model": "small-cnn", "epochs": 20, "lr": 0.05}
    paper = {"data": "cifar10", "model": "wrn-28-10", "epochs": 50, "lr": 0.1}
    settings = {"base": "sgd", "batch_size": 128, "save_every": 10, **study.choose(quick, paper), **changes}
    if method in KEPT and settings["base"] == "sgd" and "budget_passes" not in changes:
        settings |= {"keep_every": study.choose(2, 5)}
    if "adam" in (method, settings["base"]):
        settings |= {"base": "adam", "lr": changes.get("lr", 0.001)}
    return study.training(method, seed, arguments=arguments, **settings)


def photographs(study: Study, method: str, seed: int, **changes: Any) -> Training:
    """A small ResNet on a part of Fashion-MNIST (quick) where its files are at hand; else what `images` takes.

    Quick figures must be made on a machine without any file: the picture then shows digits, and says so.
    """
    if study.choose(False, True) or study.preset.epochs is not None or not available("fashion-mnist", study.data_dir):
        return images(study, method, seed, **changes)
    quick = {"data": "fashion-mnist:train=2000,test=2000", "model": "resnet:depth=8,width=8,stride=2"}
    return images(study, method, seed, **{**quick, "epochs": 10, "batch_size": 64, **changes})


def lacking(study: Study) -> str:
    """What to say where `photographs` has to take digits for want of files; empty where it has not."""
    if study.choose(False, True) or study.preset.epochs is not None or available("fashion-mnist", study.data_dir):
        return ""
    where = data_directory(study.data_dir)
    return (
        f"Fashion-MNIST is not in {where}: asam-fig7 and asam-table1 show digits instead (`landscape data fetch "
        "fashion-mnist` gets its four files; --data-dir or LANDSCAPE_DATA says where they are)"
    )


def features(
    study: Study, method: str, seed: int, *, arguments: dict[str, Any] | None = None, **changes: Any
) -> Training:
    """The cheapest network that generalizes: a fully connected one on digits (quick), ResNet-18 on CIFAR-10 (paper)."""
    quick = {"data": "digits", "model": "mlp:hidden=64x64", "epochs": 20, "lr": 0.05, "batch_size": 64}
    paper = {"data": "cifar10", "model": "resnet18", "epochs": 200, "lr": 0.1, "batch_size": 128}
    settings = {"base": "sgd", "save_every": 10, **study.choose(quick, paper), **changes}
    if method in BASES and method != "sgd":
        settings |= {"base": method, "lr": changes.get("lr", DEFAULT_LR[method])}
    return study.training(method, seed, arguments=arguments, **settings)


def describe(*trainings: Training) -> dict[str, Any]:
    """What a caption says of trainings: the settings that they share."""
    first = trainings[0].settings
    return {k: v for k, v in first.items() if all(t.settings.get(k) == v for t in trainings) and k != "save_every"}
