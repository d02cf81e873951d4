"""Images as the processor of a folder prepares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainers.hugging_face.library import library, local
from trainers.hugging_face.tokens import chosen_folder

FILES = ("preprocessor_config.json", "processor_config.json")


def pixels(name: str, chosen: str | None, folders: Sequence[Path], images: Sequence[Any]) -> list[Any]:
    """An array (channels, height, width) an image.

    Raises:
        InputError: no folder has a processor, or it cannot take the images.
    """
    folder = chosen_folder(name, chosen, folders, FILES, "an image processor")
    transformers = library("transformers", name)
    with local(f"{folder}: transformers cannot prepare the images of {name} with its processor"):
        processor = transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        made = processor([image.convert("RGB") for image in images], return_tensors="np")
    return list(made["pixel_values"])
