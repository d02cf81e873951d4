"""Texts in two parts, for training and for testing, without near-duplicates across them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from landscape.results import digest
from trainers.text.packages import Docstring

TEST_OF = 5
"""One of so many is for testing."""
RUN, RUNS = 5, 128
"""Words of a run; runs of a text that are compared with those of others, from its beginning."""


def divided(texts: Iterable[Docstring]) -> tuple[list[Docstring], list[Docstring]]:
    """Training and test texts, in an order that a hash of their words decides.

    Of texts with the same words one is kept, and none where their labels differ. The hash puts a fifth into the test
    part; what is there is left out where more than half of its runs of five words occur in a training text, so that
    boilerplate and copies with another name in them cannot be recalled.
    """
    by_words: dict[tuple[str, ...], set[Docstring]] = {}
    for text in texts:
        by_words.setdefault(text.words, set()).add(text)
    kept = {words: same for words, same in by_words.items() if len({t.label for t in same}) == 1}
    order = sorted((digest.of_parts([" ".join(words)]), words) for words in kept)
    chosen = [(key, min(kept[words], key=lambda t: t.text)) for key, words in order]
    test = [t for key, t in chosen if int(key[-8:], 16) % TEST_OF == 0]
    train = [t for key, t in chosen if int(key[-8:], 16) % TEST_OF]
    seen = {run for t in train for run in runs(t.words)}
    return train, [t for t in test if shared(t.words, seen) <= 0.5]


def runs(words: tuple[str, ...]) -> list[int]:
    """Checksums of the runs of five words; of a shorter text one, of all its words."""
    starts = range(min(max(1, len(words) - RUN + 1), RUNS))
    return [zlib.crc32(" ".join(words[i : i + RUN]).encode()) for i in starts]


def shared(words: tuple[str, ...], seen: set[int]) -> float:
    """Share of a text's runs that are among those `seen`."""
    own = runs(words)
    return sum(run in seen for run in own) / len(own)
