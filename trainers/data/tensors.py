"""Anybody's tensors in a file of torch.save: ``pt:FILE``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from landscape import checkpoint
from landscape.checkpoint.states import require_numbers
from landscape.errors import InputError
from landscape.registry import register
from landscape.results.result import as_numpy
from trainers.data import Arrays, Source
from trainers.data.forms import Form, file_of, require_parts


@register("pt", file="FILE", options="forms.Form")
def pt(source: Source, **options: Any) -> Arrays:
    """pt:FILE, tensors of torch.save: a dict with those of npz:FILE, or a pair (examples, labels), for training then.

    Images are (n, channels, height, width), uint8 or floating; channels last where the shape leaves no doubt. Nothing
    in the file is executed: datasets, whose classes are code, are refused.
    """
    path, form = file_of(source), Form(**options)
    content = _content(path)
    if isinstance(content, list | tuple) and len(content) == 2:
        content = {form.x_train: content[0], form.y_train: content[1]}
    if not isinstance(content, Mapping):
        raise InputError(
            f"{path} holds {type(content).__name__}: a dict of tensors or a pair (examples, labels) is needed, "
            "torch.save({'x_train': x, 'y_train': y}, path)"
        )
    require_parts(path, form, content, ", ".join(map(str, content)))
    held = {key: _array(path, key, content[key]) for key in form.names if key in content}
    return form.arrays(path, held, first=True)


def _content(path: Path) -> Any:
    try:
        return checkpoint.contents(path)
    except InputError as error:
        raise InputError(
            f"{error}; data are tensors in a dict, torch.save({{'x_train': x, 'y_train': y}}, path)"
        ) from None


def _array(path: Path, key: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        require_numbers(path, key, value)
    return as_numpy(value)
