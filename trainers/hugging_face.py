"""Networks of Hugging Face's transformers from a folder's configuration: no download, none of the folder's code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from landscape.errors import InputError, unknown

TASKS = {
    "image-classification": ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    "text-classification": ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    "causal-lm": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "masked-lm": ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    "features": ("AutoModel", "MODEL_MAPPING_NAMES"),
}
"""What a network is for -> the class of transformers that makes it, and its table of architectures."""


def network(folder: str | Path, arguments: Mapping[str, Any]) -> nn.Module:
    """The network that `config.json` in the folder describes, with random weights.

    Args:
        folder: that `save_pretrained` wrote.
        arguments: `task`, one of TASKS, where the configuration's own architecture is not what is wanted; others go to
            `from_config`.

    Raises:
        InputError: no such folder or configuration, transformers is not installed, an unknown task, an architecture
            that is code of the folder.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise InputError(f"--model hf:{folder}: a folder with a config.json is needed, as save_pretrained writes it")
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"--model hf:{folder} needs transformers: pip install 'loss-landscape-toolkit[hf]'") from error
    arguments = dict(arguments)
    task = arguments.pop("task", None)
    try:
        with _offline():
            local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
            config = transformers.AutoConfig.from_pretrained(folder, **local)
            auto = getattr(transformers, TASKS[_task(config) if task is None else _known(task)][0])
            return auto.from_config(config, trust_remote_code=False, **arguments)
    except InputError:
        raise
    except Exception as error:  # whatever a library of that size raises on a configuration
        why = " ".join(str(error).split())[:300]
        raise InputError(
            f"--model hf:{folder}: transformers cannot make the network of its config.json: {why}"
        ) from error


def _known(task: Any) -> str:
    if task not in TASKS:
        raise unknown("task", str(task), TASKS)
    return task


def _task(config: Any) -> str:
    """The task in whose table the configuration's architecture stands for its type."""
    from transformers.models.auto import modeling_auto

    wanted = (config.architectures or [None])[0]
    for task, (_, table) in TASKS.items():
        names = getattr(modeling_auto, table).get(config.model_type)
        if wanted is not None and wanted in ((names,) if isinstance(names, str) else names or ()):
            return task
    raise InputError(
        f"--model hf: the configuration's architecture is {wanted}, none of {', '.join(TASKS)}: say which, "
        "--model-arg task=NAME, or give --model module:callable"
    )


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """The hub's client refuses to connect within."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
