"""The digits that ship with scikit-learn: real scans, no download."""

from __future__ import annotations

import functools

import numpy as np
import torch

from landscape.registry import register
from trainers.data import Arrays, Source

TEST_SHARE = 0.2
SPLIT_SEED = 0


@register("digits")
def digits(source: Source) -> Arrays:
    """1,797 gray 8x8 scans of handwritten digits, shipped with scikit-learn; 1,437 for training, 360 for testing.

    The split is stratified and always the same, whatever the seed. Every writer may occur in both parts.
    Source: Alpaydin and Kaynak 1998, UCI Machine Learning Repository.
    """
    x_train, x_test, y_train, y_test = (torch.from_numpy(part.copy()) for part in _split())
    return Arrays(x_train, y_train, x_test, y_test, classes=10)


@functools.cache
def _split() -> list[np.ndarray]:
    """Read and divided once per process: the text file takes as long as an epoch."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    x = np.asarray(bunch.images, dtype=np.float32)[:, None] / 16  # gray values 0 to 16
    y = np.asarray(bunch.target, dtype=np.int64)
    return train_test_split(x, y, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=y)
