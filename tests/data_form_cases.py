"""Small data sets in every form of file."""

import h5py
import numpy as np
import torch
from PIL import Image


def features():
    """60 and 20 examples of 4 features in 3 classes."""
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.normal(2, 3, (n, 4)) for part, n in (("train", 60), ("test", 20))}
    return arrays | {f"y_{part}": rng.integers(3, size=n) for part, n in (("train", 60), ("test", 20))}


def write_npz(path, **arrays):
    """At the very path: numpy would add a suffix."""
    with open(path, "wb") as stream:
        np.savez(stream, **(arrays or features()))


def write_hdf5(path, *, packed=None, **arrays):
    """A dataset a name; "a.b" is array b of group a."""
    with h5py.File(path, "w") as file:
        for name, values in (arrays or features()).items():
            file.create_dataset(name, data=values, **(packed or {}))


def write_pt(path, **arrays):
    """A dict of tensors."""
    torch.save({k: torch.as_tensor(v) for k, v in (arrays or features()).items()}, path)


def write_images(folder, *, count=6, mode="RGB", sizes=((7, 5),), parts=("train", "val"), classes=("ant", "bee")):
    """Random pictures, PART/CLASS/N.png; returns part -> [(pixels, class)] in the order of their paths."""
    rng, held = np.random.default_rng(0), {}
    for part in parts:
        for label, name in enumerate(classes):
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                width, height = sizes[i % len(sizes)]
                shape = (height, width, 3) if mode == "RGB" else (height, width)
                pixels = rng.integers(0, 256, shape).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
                held.setdefault(part, []).append((pixels, label))
    return held


def write_glue(folder, *, count=(60, 20)):
    """Sentences in the form of SST-2."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for part, n in zip(("train", "dev"), count, strict=True):
        rows = [
            (" ".join(rng.choice(["good", "bad", "film", "plot", "dull"], 6)), int(rng.integers(2))) for _ in range(n)
        ]
        lines = ["sentence\tlabel", *(f"{text} {part} {i}\t{label}" for i, (text, label) in enumerate(rows))]
        (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")


WRITE = {"npz": write_npz, "hdf5": write_hdf5, "pt": write_pt, "images": write_images, "glue": write_glue}
"""Name of a data set -> writes a small file of it."""
