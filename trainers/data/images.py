"""Anybody's pictures in folders: ``images:FOLDER``, a folder per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.archive import require_regular
from landscape.errors import InputError
from landscape.progress import track
from landscape.registry import register
from trainers.data import Arrays, Source
from trainers.data.forms import file_of, require_count

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".webp", ".tif", ".tiff", ".gif")
LARGEST = 4 << 30
"""Bytes of all decoded pictures: they are held in memory."""

_GRAY = {"1", "L"}
_MODES = {*_GRAY, "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_PARTS = {"train": ("train", "training"), "test": ("test", "val", "valid", "validation")}


@register("images", file="FOLDER")
def images(
    source: Source,
    *,
    size: int | None = None,
    crop: int | None = None,
    channels: int | None = None,
    train: int | None = None,
    test: int | None = None,
) -> Arrays:
    """images:FOLDER, a folder of pictures per class: FOLDER/CLASS, or FOLDER/train/CLASS and FOLDER/val (or test).

    Classes are numbered in the order of their names, as torchvision's ImageFolder does. Pictures have one channel where
    all are gray, else three (transparency is dropped), of 8 bits. They must be of one size, or get one: the shorter
    side is scaled to `size` (bilinear, with antialiasing) and the middle `crop` x `crop` cut out, as torchvision's
    Resize and CenterCrop do.

    Args:
        size: pixels of the shorter side after scaling; default: as they are.
        crop: pixels of the sides of the square in the middle; default `size`.
        channels: 1 or 3; default by the pictures.
        train: training pictures, evenly spaced over all; default all.
        test: test pictures, evenly spaced over all; default all.
    """
    folder = file_of(source, "FOLDER")
    for part, count in (("train", train), ("test", test), ("size", size), ("crop", crop)):
        require_count(part, count)
    folders = _folders(folder)
    names = sorted({path.name for inside in folders.values() for path in _classes(inside)})
    if not names:
        raise InputError(
            f"{folder} holds no folder of pictures: the label of a picture is the folder that it lies in, "
            "FOLDER/CLASS/x.png or FOLDER/train/CLASS/x.png"
        )
    files = {part: _files(inside, names, {"train": train, "test": test}[part]) for part, inside in folders.items()}
    if channels not in (None, 1, 3):
        raise InputError(f"channels={channels}: pictures have 1 or 3")
    modes = {_mode(path) for listed in files.values() for path, _ in listed}
    gray = modes <= _GRAY if channels is None else channels == 1
    held = {part: _stacked(listed, gray, size, crop or size) for part, listed in files.items() if listed}
    shapes = {tuple(x.shape[1:]) for x, _ in held.values()}
    if len(shapes) > 1:
        raise InputError(
            f"{folder}: training and test pictures have {_sizes(shapes)} pixels: --data-arg size=N scales them"
        )
    some = next(iter(held.values()))
    (x_train, y_train), (x_test, y_test) = (held.get(part, (some[0][:0], some[1][:0])) for part in _PARTS)
    return Arrays(x_train, y_train, x_test, y_test, len(names), augment=not gray)


def _folders(folder: Path) -> dict[str, Path]:
    """Part -> its folder; a folder of classes alone is the training set."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: write images:FOLDER, a folder that holds a folder per class")
    named = {part: next((folder / n for n in names if (folder / n).is_dir()), None) for part, names in _PARTS.items()}
    held = {part: inside for part, inside in named.items() if inside is not None and _classes(inside)}
    return held or {"train": folder}


def _classes(folder: Path) -> list[Path]:
    inside = (path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith("."))
    return [path for path in inside if any(_pictures(path))]


def _pictures(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file())


def _files(folder: Path, names: Sequence[str], count: int | None) -> list[tuple[Path, int]]:
    listed = [(path, names.index(inside.name)) for inside in _classes(folder) for path in _pictures(inside)]
    if count is None:
        return listed
    if count > len(listed):
        raise InputError(f"{folder} holds {len(listed)} pictures: {count} were asked for")
    return [listed[i * len(listed) // count] for i in range(count)]


def _mode(path: Path) -> str:
    with _opened(path) as picture:
        if picture.mode not in _MODES:
            raise InputError(f"{path} has more than 8 bits a channel ({picture.mode}): save it with 8")
        return str(picture.mode)


def _opened(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    require_regular(path)
    try:
        return Image.open(path)
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} is not a picture that can be read: {error}") from None


def _stacked(
    files: Sequence[tuple[Path, int]], gray: bool, size: int | None, crop: int | None
) -> tuple[Tensor, Tensor]:
    """uint8 (n, channels, height, width), and labels."""
    pixels: Tensor | None = None
    for i, (path, _) in enumerate(track(files, "pictures")):
        one = torch.from_numpy(_decoded(path, gray, size, crop))
        one = one[None] if gray else one.permute(2, 0, 1)
        if pixels is None:
            if len(files) * one.numel() > LARGEST:
                raise InputError(
                    f"{len(files)} pictures of {tuple(one.shape)} are more than {LARGEST} bytes: take some, --data-arg "
                    "train=N (evenly spaced)"
                )
            pixels = torch.empty((len(files), *one.shape), dtype=torch.uint8)
        if one.shape != pixels.shape[1:]:
            raise InputError(
                f"{path} has {_sizes([tuple(one.shape)])} pixels, {files[0][0]} {_sizes([tuple(pixels.shape[1:])])}: "
                "--data-arg size=N scales all to one size"
            )
        pixels[i] = one
    assert pixels is not None
    return pixels, torch.tensor([label for _, label in files])


def _decoded(path: Path, gray: bool, size: int | None, crop: int | None) -> np.ndarray:
    from PIL import Image

    with _opened(path) as picture:
        try:
            whole = picture.convert("L" if gray else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path} is a damaged picture: {error}") from None
    width, height = whole.size
    if size is not None:
        short = min(width, height)
        # torchvision cuts the longer side's fraction off.
        width, height = (size if side == short else int(size * side / short) for side in (width, height))
        whole = whole.resize((width, height), Image.Resampling.BILINEAR)
    if crop is not None:
        if crop > min(width, height):
            raise InputError(f"{path} has {width}x{height} pixels: crop={crop} does not fit; give size={crop} or more")
        left, top = round((width - crop) / 2), round((height - crop) / 2)
        whole = whole.crop((left, top, left + crop, top + crop))
    return np.array(whole)


def _sizes(shapes: Any) -> str:
    return " and ".join(f"{shape[-1]}x{shape[-2]}" for shape in sorted(shapes))
