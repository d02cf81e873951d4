"""Weights that nobody here trained, with the numbers that others measured; where $LANDSCAPE_WEIGHTS and its images are.

$LANDSCAPE_WEIGHTS holds resnet20-12fca82f.th and others of github akamaster/pytorch_resnet_cifar10 and
pyhessian-resnet20.pkl of github amirgholami/PyHessian; $LANDSCAPE_CIFAR10 is an npz of uint8 images and labels
x_train, y_train, x_official_test and y_official_test.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import landscape
from landscape.errors import CheckpointWarning

WEIGHTS, IMAGES = (os.environ.get(name) for name in ("LANDSCAPE_WEIGHTS", "LANDSCAPE_CIFAR10"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEIGHTS or not IMAGES, reason="needs LANDSCAPE_WEIGHTS and LANDSCAPE_CIFAR10"),
]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def problem_of(file, model, part, count, moments, **options):
    arrays = np.load(IMAGES)
    x = torch.tensor(arrays[f"x_{part}"][:count]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(m)[:, None, None] for m in moments)
    data = [((x - mean) / std, torch.tensor(arrays[f"y_{part}"][:count]).long())]
    shape = {"classes": 10, "input_shape": (3, 32, 32)}
    return landscape.problem_from(
        Path(WEIGHTS) / file, model=model, model_arguments=shape, data=lambda: data, **options
    )


@pytest.mark.parametrize(
    ("file", "model", "moments", "renames", "accuracy"),
    [
        ("resnet20-12fca82f.th", "resnet20:shortcut=pad-centered", IMAGENET, ["linear=fc"], 0.915),
        ("resnet56-4bfd9763.th", "resnet56:shortcut=pad-centered", IMAGENET, ["linear=fc"], 0.926),
        ("pyhessian-resnet20.pkl", "resnet20", CIFAR, [], 0.921),
    ],
)
def test_accuracy_on_a_thousand_test_images(file, model, moments, renames, accuracy):
    problem = problem_of(file, model, "official_test", 1000, moments, rename=renames)
    (batch,) = problem.batches
    right = problem.outputs().argmax(1) == batch.target
    assert right.double().mean().item() == pytest.approx(accuracy, abs=1e-9)


def test_the_other_padding_is_told():
    """The same names and shapes, with the new channels elsewhere: a loss, and eigenvalues, of nothing."""
    with pytest.warns(CheckpointWarning, match=r"L = 3\.56\d* is above 2\.303, .*pad-centered \(half of them before"):
        problem_of("resnet20-12fca82f.th", "resnet20:shortcut=pad", "train", 128, IMAGENET, rename=["linear=fc"])


def test_eigenvalues_and_trace():
    """ARPACK's five largest eigenvalues and the exact trace, to the digits that were stated."""
    file, model = "resnet20-12fca82f.th", "resnet20:shortcut=pad-centered"
    problem = problem_of(file, model, "train", 128, IMAGENET, rename=["linear=fc"])
    top = landscape.top_eigenvalues(problem, k=5)
    np.testing.assert_allclose(top.values, [31.9179, 17.6213, 15.7800, 5.30934, 4.19342], rtol=1e-5)
    assert landscape.trace(problem).value == pytest.approx(90.447, rel=1e-5)
