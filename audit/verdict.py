"""What came of a draw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

RIGHT, REFUSED, WRONG = "right", "refused", "wrong"
_REMEDIES = (
    *("give", "needed", "needs", "use", "set ", "call", "take", "pass", "choose", "restrict", "check", "reshape"),
    *("instead", "replace", "put ", "let ", "make", "larger", "smaller", "must be", "wrap", "load", "run "),
)


@dataclass
class Verdict:
    """Of one draw.

    Attributes:
        seed: of the draw.
        kind: the row of the table.
        outcome: "right", "refused" (one line that says what to do, where that may be) or "wrong".
        texts: what was wrong, or the refusal.
        choice: what was drawn, as plain data.
    """

    seed: int
    kind: str
    outcome: str = RIGHT
    texts: list[str] = field(default_factory=list)
    choice: dict[str, object] = field(default_factory=dict)

    def wrong(self, text: str) -> None:
        """Add what is wrong."""
        if self.outcome != WRONG:
            self.outcome, self.texts = WRONG, []
        self.texts.append(text)

    def refused(self, text: str) -> None:
        """Keep what the refusal said."""
        if self.outcome == RIGHT:
            self.outcome = REFUSED
            self.texts.append(text)

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return dataclasses.asdict(self)


def line_fault(text: str) -> str | None:
    """What is wrong with the text of a refusal; None where it is one line that says what to do."""
    if "\n" in text or not text.strip():
        return "the refusal is not one line"
    if len(text) > 500:
        return f"the refusal has {len(text)} characters"
    if "the loss failed on batch" in text:  # what a user's function raised is for its author to read
        return None
    if not any(word in text for word in _REMEDIES):
        return "the refusal names no remedy"
    return None
