"""Byte-level byte-pair encoding: the tokens of a text, by Hugging Face's tokenizers, imported on use."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.problem.objective import IGNORED

PADDING, BORDER = 0, 1
"""Token that fills a row up; token before, between and behind the parts of a text."""
SPECIAL = ("<pad>", "<border>")


def tokenizer(texts: Iterable[str], vocabulary: int, what: str, *, whole: Sequence[str] = ()) -> Any:
    """A tokenizer that is trained on the texts: the same for the same texts in the same version of the library.

    Args:
        texts: to be trained on.
        vocabulary: tokens at most; 256 bytes are always among them.
        what: needs it, for the message.
        whole: words that are one token each, never divided.

    Raises:
        InputError: the library is not installed.

    Source: Sennrich, Haddow, Birch 2016, arXiv 1508.07909; of bytes as in GPT-2 (Radford 2019).
    """
    try:
        library: Any = importlib.import_module("tokenizers")
    except ImportError as error:
        raise InputError(f"{what} needs tokenizers: pip install 'loss-landscape-toolkit[text]'") from error
    made = library.Tokenizer(library.models.BPE())
    made.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL, *whole],
        initial_alphabet=sorted(library.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def rows(made: Any, texts: Sequence[tuple[str, ...]], longest: int) -> list[list[int]]:
    """Tokens of each text, cut off at `longest`; a text is a tuple of its parts, with a border around each."""
    parts = iter(made.encode_batch([part for text in texts for part in text]))
    lines = []
    for text in texts:
        line = [BORDER]
        for _ in text:
            line += [*next(parts).ids, BORDER]
        lines.append(line[:longest])
    return lines


def filled(lines: Sequence[Sequence[int]], length: int, fill: int = PADDING) -> Tensor:
    """Rows of equal length, cut off or filled up: (n, length) int64."""
    made = torch.full((len(lines), length), fill, dtype=torch.int64)
    for row, line in zip(made, lines, strict=True):
        row[: len(line)] = torch.tensor(line[:length], dtype=torch.int64)
    return made


def next_tokens(lines: Sequence[Sequence[int]], length: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a causal language model, (n, length) each: the target of a place is the token after it.

    Targets behind the end of a text are -100, which losses ignore.
    """
    return filled([line[:-1] for line in lines], length), filled([line[1:] for line in lines], length, IGNORED)
