"""Trainings that several figures share, so that each is run once.

Sizes were chosen by cost (a figure has four minutes on two cores), rates and radii are the methods' own defaults or the
papers'; nothing here was chosen by its outcome.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from figures.study.study import Study
from figures.study.tasks import Training
from trainers.data import data_directory
from trainers.data.idx import available
from trainers.loop.settings import BASES, DEFAULT_LR
from trainers.names import FILE_PREFIXES

SEEDS = 5
GPU = {"model": "resnet18", "batch_size": 512, "lr": 0.2, "precision": "bfloat16", "augment": True}
"""On a GPU: batches that fill it; Goyal et al. 2017 (arXiv 1706.02677): rate 0.1 for 256 examples, after a warm-up."""
KEPT = ("sgd", "sam", "saf", "mesa")
"""Methods whose sharpness is followed through training: every figure takes the runs that keep their epochs."""


def images(
    study: Study, method: str, seed: int, *, arguments: dict[str, Any] | None = None, **changes: Any
) -> Training:
    """A convolutional network on images, cosine schedule.

    quick: small-cnn on digits; gpu: ResNet-18 on all of Fashion-MNIST, 30 epochs; paper: WRN-28-10 on CIFAR-10. Rate
    0.05 with SGD, 0.001 with Adam (gpu: 0.2, paper: 0.1), batches of 128 (gpu: 512).
    """
    quick = {"data": "digits", "model": "small-cnn", "epochs": 20, "lr": 0.05}
    gpu = {"data": "fashion-mnist", "epochs": 30, "warmup": 200, **GPU}
    paper = {"data": "cifar10", "model": "wrn-28-10", "epochs": 50, "lr": 0.1}
    settings = {"base": "sgd", "batch_size": 128, "save_every": 10, **study.choose(quick, paper, gpu=gpu), **changes}
    if study.preset.settings == "gpu" and study.preset.epochs is not None:
        settings |= {"data": "digits", "model": "small-cnn"}
    if method in KEPT and settings["base"] == "sgd" and "budget_passes" not in changes:
        settings |= {"keep_every": study.epochs(study.choose(2, 5, gpu=5))}
    if "adam" in (method, settings["base"]):
        settings |= {"base": "adam", "lr": changes.get("lr", 0.001)}
    return study.training(method, seed, arguments=arguments, **settings)


def photographs(study: Study, method: str, seed: int, **changes: Any) -> Training:
    """Photographs where they are at hand, else what `images` takes.

    quick: a small ResNet on a part of Fashion-MNIST; gpu: ResNet-18 on the CIFAR-10 images of `photograph_file`, 60
    epochs. Quick figures must be made on a machine without any file: the picture then shows digits, and says so.
    """
    if study.preset.epochs is not None or study.preset.settings == "paper":
        return images(study, method, seed, **changes)
    if study.preset.settings == "gpu":
        file = photograph_file(study)
        found = {"data": f"npz:{file}", "epochs": 60, "warmup": 100} if file.is_file() else {}
        return images(study, method, seed, **{**found, **changes})
    if not available("fashion-mnist", study.data_dir):
        return images(study, method, seed, **changes)
    quick = {"data": "fashion-mnist:train=2000,test=2000", "model": "resnet:depth=8,width=8,stride=2"}
    return images(study, method, seed, **{**quick, "epochs": 10, "batch_size": 64, **changes})


def photograph_file(study: Study) -> Path:
    """Where the preset gpu looks for CIFAR-10 images, any number: arrays x_train, y_train, x_test, y_test."""
    return (data_directory(study.data_dir) / "cifar10.npz").absolute()


def lacking(study: Study) -> str:
    """What to say where `photographs` has to take others for want of files; empty where it has not."""
    if study.preset.epochs is not None or study.preset.settings == "paper":
        return ""
    if study.preset.settings == "gpu":
        file = photograph_file(study)
        return "" if file.is_file() else f"{file} is not there: asam-fig7 and asam-table1 show Fashion-MNIST instead"
    if available("fashion-mnist", study.data_dir):
        return ""
    where = data_directory(study.data_dir)
    return (
        f"Fashion-MNIST is not in {where}: asam-fig7 and asam-table1 show digits instead (`landscape data fetch "
        "fashion-mnist` gets its four files; --data-dir or LANDSCAPE_DATA says where they are)"
    )


def timed(training: Training) -> dict[str, Any]:
    """The settings of a training that decide what a step of it costs."""
    names = ("data", "model", "batch_size", "precision", "augment")
    return {k: training.settings[k] for k in names if k in training.settings}


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
    shared = {k: v for k, v in first.items() if all(t.settings.get(k) == v for t in trainings) and k != "save_every"}
    if shared.get("data", "").startswith(FILE_PREFIXES):
        shared["data"] = Path(shared["data"]).name  # where it lay says nothing
    return shared
