"""What a row of a table is called and means; the words of a measure stand in its own file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from landscape import MEASURES
from landscape.formatting import number
from landscape.meaning import Meaning
from landscape.meaning import meaning as measure_meaning

FACTS = {
    "loss": Meaning("Loss", "Mean loss over the sample at the trained weights."),
    "accuracy": Meaning("Accuracy", "Share of the sample that is classified correctly."),
    "test_loss": Meaning("Test loss", "Mean loss over the test set, as the training's log has it."),
    "test_accuracy": Meaning(
        "Test accuracy", "Share of the test set that is classified correctly, as the training's log has it."
    ),
}
"""What is known of a checkpoint besides measures."""


def meaning(name: str, summary: Mapping[str, Any] | None = None) -> Meaning:
    """The words for the measure `name` as it was computed, or for a fact; any other name speaks for itself."""
    if name in MEASURES:
        return measure_meaning(MEASURES.entry(name), summary)
    words = name.replace("_", " ").strip()
    return FACTS.get(name) or Meaning(words[:1].upper() + words[1:], "")


def labelled(key: str, summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary with the label of what was computed, also where the result is of a file without labels."""
    return {"label": meaning(key.split(":")[0], summary).label, **summary}


def said(name: str, summary: Mapping[str, Any], loss: float) -> str:
    """What the value says, else what the measure means."""
    says = getattr(MEASURES[name], "says", None) if name in MEASURES else None
    return (says(summary, loss) if says else "") or meaning(name, summary).general


def title(key: str, summary: Mapping[str, Any], arguments: Mapping[str, Any], *, several: bool = False) -> str:
    """Title of a plot of the result called `key`, with every option that differs from its default."""
    words = meaning(key.split(":")[0], summary)
    label = words.several if several else words.label
    differing = setting(key, summary, arguments, without=("rho",))
    return f"{label}, {differing}" if differing else label


def setting(
    key: str, summary: Mapping[str, Any], arguments: Mapping[str, Any], *, without: Collection[str] = ()
) -> str:
    """How a measure was computed: its radius, and every option that differs from its default.

    Args:
        key: the measure's name, with what follows a colon.
        summary: of the result.
        arguments: of the result.
        without: options that are left out.
    """
    name, rho = key.split(":")[0], summary.get("rho")
    parts = [f"ρ = {number(rho, 3)}"] if "rho" not in without and isinstance(rho, int | float) else []
    defaults = {o.name: o.default for o in MEASURES.entry(name).options} if name in MEASURES else {}
    for option, value in arguments.items():
        if option == "scaling":
            parts += [str(value)] if value != "identity" else []
        elif option == "w":
            parts.append("at other weights")
        elif option not in ("rho", *without) and value != defaults.get(option, value):
            parts.append(_option(option, value))
    return ", ".join(parts)


def _option(name: str, value: Any) -> str:
    words = name.replace("_", " ")
    if isinstance(value, bool):
        return words if value else f"no {words}"
    if name == "subsets":
        return f"{number(value)} subsets"
    return f"{words} = {number(value, 3) if isinstance(value, int | float) else value}"
