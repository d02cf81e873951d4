"""A folder's tokenizer, its texts as tokens, and the masks of a masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape.errors import InputError
from landscape.problem.objective import IGNORED
from trainers.hugging_face.library import library, local

FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")
LENGTH = 128
REPLACED, SHUFFLED = 0.8, 0.1
"""Of the tokens to be predicted: what share is masked, and what share another token (Devlin et al. 2018, A.1)."""


def chosen_folder(name: str, chosen: str | None, folders: Sequence[Path], files: Sequence[str], what: str) -> Path:
    """The folder that was chosen, else the first that has one of the files.

    Raises:
        InputError: there is none.
    """
    held = [Path(chosen).expanduser()] if chosen else list(folders)
    for folder in held:
        if any((folder / file).is_file() for file in files):
            return folder
    where = " or ".join(map(str, held)) or "a folder"
    raise InputError(f"{name} needs {what}: {where} has no {files[0]}; say where it is, --data-arg tokenizer=FOLDER")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of transformers.

    Attributes:
        tokenizer: itself.
        length: tokens of an example at most.
        name: of the data, for messages.
    """

    tokenizer: Any
    length: int
    name: str

    @classmethod
    def of(
        cls, name: str, chosen: str | None, folders: Sequence[Path], length: int | None, network: nn.Module
    ) -> Tokenizer:
        """The tokenizer of a folder.

        Raises:
            InputError: there is none, or one that is code of the folder or no fast one.
        """
        folder = chosen_folder(name, chosen, folders, FILES, "a tokenizer")
        transformers = library("transformers", name)
        with local(f"{folder}: transformers cannot load its tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, use_fast=True
            )
        if not tokenizer.is_fast:
            raise InputError(f"{folder}: its tokenizer has no tokenizer.json, which is needed: save it as a fast one")
        places = getattr(getattr(network, "config", None), "max_position_embeddings", None)
        most = min(tokenizer.model_max_length, places if isinstance(places, int) else LENGTH)
        return cls(tokenizer, length or min(LENGTH, most), name)

    def rows(self, texts: Sequence[Sequence[str]]) -> list[dict[str, list[int]]]:
        """Each text, or pair of texts, as tokens, cut off where it is too long."""
        return self._tokens(*map(list, texts))

    def blocks(self, text: str) -> list[dict[str, list[int]]]:
        """One text as blocks of tokens, the last one shorter."""
        return self._tokens([text], return_overflowing_tokens=True)

    def _tokens(self, *texts: list[str], **options: Any) -> list[dict[str, list[int]]]:
        with local(f"{self.name}: its tokenizer failed"):
            made = self.tokenizer(
                *texts,
                truncation=True,
                max_length=self.length,
                padding=False,
                return_special_tokens_mask=True,
                **options,
            )
        names = [n for n in (*self.tokenizer.model_input_names, "special_tokens_mask") if n in made]
        return [dict(zip(names, values, strict=True)) for values in zip(*(made[n] for n in names), strict=True)]


def mask_tokens(
    rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, share: float, generator: torch.Generator
) -> list[dict[str, Any]]:
    """Rows with tokens masked and labels for them, those of the others being ignored.

    Every token that is not special is to be predicted with probability `share`; of those 80% are the mask, 10% any
    token, 10% themselves.

    Raises:
        InputError: the tokenizer has no mask.
    """
    mask, size = tokenizer.tokenizer.mask_token_id, len(tokenizer.tokenizer)
    if mask is None:
        raise InputError(f"{tokenizer.name}: the tokenizer has no mask token, which a masked language model needs")
    made = []
    for row in rows:
        ids, special = torch.tensor(row["input_ids"]), torch.tensor(row["special_tokens_mask"]).bool()
        draw, fate = torch.rand((2, len(ids)), generator=generator)
        other = torch.randint(size, (len(ids),), generator=generator)
        told = (draw < share) & ~special
        labels = ids.where(told, torch.tensor(IGNORED))
        ids = torch.where(told & (fate < REPLACED), mask, ids)
        ids = torch.where(told & (fate >= REPLACED) & (fate < REPLACED + SHUFFLED), other, ids)
        made.append({**row, "input_ids": ids.tolist(), "labels": labels.tolist()})
    return made
