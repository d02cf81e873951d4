"""Checkpoints: this toolkit's format, and the weights in files of any other origin.

Everything is read as data (`torch.load(weights_only=True)`, safetensors): a file never runs code and never names code
to import. Which of a file's tensors are the network's is decided by the network that they must fit.
"""

from landscape.checkpoint.adapters import is_adapter
from landscape.checkpoint.contents import contents, lacks_checksum
from landscape.checkpoint.format import FORMAT, REQUIRED, VERSION, is_ours, read, write
from landscape.checkpoint.loading import Selection, UnfitWeights, load_weights

__all__ = [
    "FORMAT",
    "REQUIRED",
    "VERSION",
    "Selection",
    "UnfitWeights",
    "contents",
    "is_adapter",
    "is_ours",
    "lacks_checksum",
    "load_weights",
    "read",
    "write",
]
