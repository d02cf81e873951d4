"""A data set that `datasets` saved to disk, and which of its columns are what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from landscape.errors import InputError, unknown
from landscape.problem.batches import TARGET_KEYS
from trainers.hugging_face.library import library, local

TEXTS = ("text", "sentence")
"""Names of the column of text, where there are several of strings."""


def open_dataset(name: str, folder: Path, split: str, chosen: str | None) -> Any:
    """The `datasets.Dataset` of a split.

    Args:
        name: of the data, for messages.
        folder: that `save_to_disk` wrote.
        split: "train" or "test".
        chosen: the split's name in the folder, where it is another.

    Raises:
        InputError: no such folder or split, `datasets` is not installed.
    """
    if not folder.is_dir():
        raise InputError(f"{name}: a folder is needed that datasets' save_to_disk wrote")
    datasets = library("datasets", name)
    with local(f"{name} is not a data set that datasets can load"):
        held = datasets.load_from_disk(str(folder))
    if not isinstance(held, datasets.DatasetDict):
        if chosen or split != "train":
            raise InputError(f"{name} is one data set, without splits: leave --split and --data-arg split out")
        return held
    wanted = chosen or split
    if wanted not in held:
        raise InputError(f"{name} has no split {wanted!r}, it has {', '.join(held)}: say which, --data-arg split=NAME")
    return held[wanted]


def image_columns(rows: Any) -> list[str]:
    """The columns of images."""
    return [name for name, feature in rows.features.items() if type(feature).__name__ == "Image"]


def text_columns(name: str, rows: Any, chosen: str | None) -> list[str]:
    """The column of text, or the two of a pair.

    Raises:
        InputError: no such column, or several that it could be.
    """
    strings = [c for c, f in rows.features.items() if getattr(f, "dtype", None) in ("string", "large_string")]
    if chosen is not None:
        wanted = chosen.split("+")
        for column in wanted:
            if column not in strings:
                raise unknown("column of text", column, strings)
        if len(wanted) > 2:
            raise InputError(f"--data-arg text={chosen}: one column or a pair of them is needed")
        return wanted
    usual = [c for c in TEXTS if c in strings]
    if len(strings) != 1 and not usual:
        raise InputError(
            f"{name}: its columns of text are {', '.join(strings) or 'none'}, of {', '.join(rows.column_names)}: say "
            "which, --data-arg text=COLUMN, or text=COLUMN+COLUMN for pairs"
        )
    return strings if len(strings) == 1 else usual[:1]


def label_column(rows: Any, chosen: str | None) -> str | None:
    """The column of labels; None where there is none.

    Raises:
        InputError: no such column.
    """
    if chosen is not None and chosen not in rows.column_names:
        raise unknown("column of labels", chosen, rows.column_names)
    return chosen or next((c for c in TARGET_KEYS if c in rows.column_names), None)
