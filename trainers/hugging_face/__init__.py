"""Folders that Hugging Face's libraries write: networks, adapters, tokenizers, data sets.

Nothing is downloaded and no code of a folder is run; transformers, peft and datasets are imported on use.
"""

from trainers.hugging_face.adapters import adapter_folder
from trainers.hugging_face.examples import HubExamples
from trainers.hugging_face.networks import Folder

__all__ = ["Folder", "HubExamples", "adapter_folder"]
