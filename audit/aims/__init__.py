"""Objectives, by the outputs that they fit: torch's losses with their options, functions of a user's own."""

from audit.aims import custom, torch_losses
from audit.aims.aim import Aim, Outputs

AIMS = {
    "classes": {**torch_losses.CLASSES_AIMS, **torch_losses.ELEMENTS_AIMS, **custom.CLASSES_AIMS},
    "values": {**torch_losses.ELEMENTS_AIMS, **custom.VALUES_AIMS},
    "places": {**torch_losses.PLACES_AIMS, **custom.PLACES_AIMS},
    "special": {},
}

# What has to be refused.
UNFIT = custom.WRONG
# They read the user's batches themselves: any form but a network's special one.
PLAIN = frozenset(custom.PLAIN_AIMS)

__all__ = ["AIMS", "PLAIN", "UNFIT", "Aim", "Outputs"]
