"""Networks of transformers from a folder's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.errors import InputError, unknown
from landscape.random import undisturbed
from trainers.hugging_face.library import library, local

TASKS = {
    "image-classification": ("AutoModelForImageClassification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES"),
    "text-classification": ("AutoModelForSequenceClassification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
    "causal-lm": ("AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "masked-lm": ("AutoModelForMaskedLM", "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    "features": ("AutoModel", "MODEL_MAPPING_NAMES"),
}
"""What a network is for -> the class of transformers that makes it, and its table of architectures."""


@dataclass(frozen=True)
class Folder:
    """A folder that `save_pretrained` wrote, as what builds a network.

    Attributes:
        path: of the folder.
        arguments: `task`, one of TASKS, where the configuration's own architecture is not what is wanted; others go to
            `from_config`.
    """

    path: Path
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> nn.Module:
        """The network that `config.json` in the folder describes, with random weights.

        Raises:
            InputError: no such folder or configuration, transformers is not installed, an unknown task, an
                architecture that is code of the folder.
        """
        if not (self.path / "config.json").is_file():
            raise InputError(
                f"--model hf:{self.path}: a folder with a config.json is needed, as save_pretrained writes it"
            )
        transformers = library("transformers", f"--model hf:{self.path}")
        arguments = dict(self.arguments)
        task = arguments.pop("task", None)
        if task is not None and task not in TASKS:
            raise unknown("task", str(task), TASKS)
        with local(f"--model hf:{self.path}: transformers cannot make the network of its config.json"), undisturbed():
            torch.manual_seed(0)  # what a file lacks is the same every time
            config = transformers.AutoConfig.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
            auto = getattr(transformers, TASKS[task or self._task(config)][0])
            return auto.from_config(config, trust_remote_code=False, **arguments)

    def _task(self, config: Any) -> str:
        wanted = (config.architectures or [None])[0]
        task = None if wanted is None else task_of(wanted, config.model_type)
        if task is None:
            raise InputError(
                f"--model hf:{self.path}: the configuration's architecture is {wanted}, none of {', '.join(TASKS)}: "
                "say which, --model-arg task=NAME, or give --model module:callable"
            )
        return task


def task_of(architecture: str, model_type: str) -> str | None:
    """The task in whose table of transformers the class stands for this type of network; None where in none."""
    from transformers.models.auto import modeling_auto

    for task, (_, table) in TASKS.items():
        names = getattr(modeling_auto, table).get(model_type)
        if architecture in ((names,) if isinstance(names, str) else names or ()):
            return task
    return None
