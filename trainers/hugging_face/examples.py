"""Examples for a network of transformers: a data set that `save_to_disk` wrote (``hf:FOLDER``), a text (``text:FILE``).

What an example is follows from what the network is for: a causal language model predicts each token from those before
it, a masked one the tokens that were masked, a classifier the label. Examples are padded to the longest of the sample;
padding is masked and its labels do not count.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import InputError, unknown
from landscape.problem.batches import TARGET_KEYS
from landscape.problem.objective import IGNORED
from landscape.random import stream
from trainers.hugging_face.columns import image_columns, label_column, open_dataset, text_columns
from trainers.hugging_face.networks import TASKS, task_of
from trainers.hugging_face.tokens import Tokenizer, mask_tokens

PREFIXES = ("hf:", "text:")
BATCH_TOKENS = 4096
"""Tokens of a batch, unless a number of examples is asked for."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the examples are made with: --data-arg KEY=VALUE.

    Attributes:
        tokenizer: its folder; default the checkpoint's, or that of --model hf:FOLDER.
        length: tokens of an example at most; 128, or what the network takes.
        text: the column of text; two joined by + are a pair; default the only one, or one called text or sentence.
        label: the column of labels; default one called labels, label, targets, target or y.
        split: of the data set, where it is not called as --split says.
        task: what the network is for, where its class does not say it.
        mask: share of the tokens that a masked language model predicts.
    """

    tokenizer: str | None = None
    length: int | None = None
    text: str | None = None
    label: str | None = None
    split: str | None = None
    task: str | None = None
    mask: float = 0.15

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Options:
        """The options of a mapping.

        Raises:
            InputError: one that does not exist, or of another type.
        """
        known = {name: str(f.type).removesuffix(" | None") for name, f in cls.__dataclass_fields__.items()}
        kinds: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (float, int)}
        for name, value in arguments.items():
            if name not in known:
                raise unknown("option of --data-arg", name, known)
            if not isinstance(value, kinds[known[name]]) or isinstance(value, bool):
                raise InputError(f"--data-arg {name}={value!r}: a value of type {known[name]} is needed")
        options = cls(**arguments)
        if options.length is not None and options.length < 2:
            raise InputError(f"--data-arg length={options.length}: at least 2 tokens are needed")
        if not 0 < options.mask <= 1:
            raise InputError(f"--data-arg mask={options.mask}: a share of the tokens is needed, over 0 and up to 1")
        if options.task is not None and options.task not in TASKS:
            raise unknown("task", options.task, TASKS)
        return options


@dataclass(frozen=True)
class HubExamples:
    """Where examples are, and what they are made with.

    Attributes:
        kind: "hf" or "text".
        path: of the data set's folder or the text's file.
        options: see `Options`.
    """

    kind: str
    path: Path
    options: Options = field(default_factory=Options)

    @classmethod
    def named(cls, text: str, arguments: Mapping[str, Any]) -> HubExamples:
        """The examples that ``hf:FOLDER`` or ``text:FILE`` names."""
        kind, _, path = text.partition(":")
        return cls(kind, Path(path).expanduser(), Options.of(arguments))

    @property
    def name(self) -> str:
        """As the command line writes it."""
        return f"--data {self.kind}:{self.path}"

    def task(self, network: nn.Module) -> str:
        """What the network is for: by its class, unless the options say it.

        Raises:
            InputError: neither says it.
        """
        base = _without_adapter(network)
        model_type = getattr(getattr(base, "config", None), "model_type", None)
        if self.options.task is None and model_type is None:
            raise InputError(
                f"{self.name}: the network is none of transformers: say what it is for, --data-arg task=NAME"
            )
        task = self.options.task or task_of(type(base).__name__, str(model_type))
        if task is None:
            raise InputError(
                f"{self.name}: what {type(base).__name__} is for is not known: say it, --data-arg task=NAME, one of "
                f"{', '.join(TASKS)}"
            )
        return task

    def loss(self, network: nn.Module) -> str:
        """The loss where nobody says one: the network's own; cross-entropy, which is the same, of single labels."""
        config = getattr(_without_adapter(network), "config", None)
        single = getattr(config, "problem_type", None) in (None, "single_label_classification")
        classes = self.task(network).endswith("classification") and getattr(config, "num_labels", 0) > 1
        return "cross-entropy" if classes and single else "own"

    def batches(
        self,
        network: nn.Module,
        folders: Sequence[Path],
        *,
        split: str,
        samples: int,
        batch_size: int | None,
        seed: int,
    ) -> list[dict[str, Tensor]]:
        """The batches of a fixed sample, as the network takes them.

        Args:
            network: what they are for.
            folders: where a tokenizer may lie, the first one first.
            split: "train" or "test".
            samples: examples at most, drawn without replacement by the seed.
            batch_size: examples of a batch; default so many that they hold 4,096 tokens.
            seed: of the draw, and of what is masked.

        Raises:
            InputError: no such file, column, split or tokenizer; no example; a library is not installed.
        """
        maker = Maker(self, _without_adapter(network), self.task(network), folders, seed)
        rows = maker.of_text(split, samples) if self.kind == "text" else maker.of_dataset(split, samples)
        if not rows:
            raise InputError(f"{self.name} holds no example from which the network could predict anything")
        return list(_padded(rows, batch_size, maker.padding()))


@dataclass(frozen=True)
class Maker:
    """Examples of one source for one network."""

    source: HubExamples
    network: nn.Module
    task: str
    folders: Sequence[Path]
    seed: int

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        options = self.source.options
        return Tokenizer.of(self.source.name, options.tokenizer, self.folders, options.length, self.network)

    def padding(self) -> int:
        """The token that examples are filled up with: masked, but some classifiers look where it begins."""
        config = getattr(self.network, "config", None)
        token = getattr(config, "pad_token_id", None)
        return token if isinstance(token, int) and token >= 0 else 0

    def of_text(self, split: str, samples: int) -> list[Row]:
        """Blocks of the text."""
        if split != "train" and self.source.options.split is None:
            raise InputError(f"{self.source.name} is one text, without a split {split!r}: leave --split out")
        if self.task not in ("causal-lm", "masked-lm"):
            raise InputError(
                f"{self.source.name}: a text alone has no labels, which {self.task} needs: give --data hf:FOLDER"
            )
        tokenizer = self.tokenizer
        rows = self._told(tokenizer.blocks(_read_text(self.source)), tokenizer)
        return [rows[i] for i in _drawn(len(rows), samples, self.seed, split)]

    def of_dataset(self, split: str, samples: int) -> list[Row]:
        """Rows of the data set."""
        options = self.source.options
        rows = open_dataset(self.source.name, self.source.path, split, options.split)
        rows = rows.select(_drawn(len(rows), samples, self.seed, split))
        accepted = [n for n in inspect.signature(self.network.forward).parameters if n not in TARGET_KEYS]
        main = getattr(self.network, "main_input_name", "input_ids")
        if main in rows.column_names:
            made = _zipped({name: rows[name] for name in accepted if name in rows.column_names})
        elif images := image_columns(rows):
            from trainers.hugging_face.images import pixels

            made = _zipped({main: pixels(self.source.name, options.tokenizer, self.folders, rows[images[0]])})
        else:
            tokenizer = self.tokenizer
            made = tokenizer.rows([rows[c] for c in text_columns(self.source.name, rows, options.text)])
            made = [{k: v for k, v in row.items() if k in (*accepted, "special_tokens_mask")} for row in made]
            if self.task.endswith("lm"):
                return self._told(made, tokenizer)
            made = [_without(row) for row in made]
        return self._labelled(made, rows)

    def _labelled(self, made: list[Row], rows: Any) -> list[Row]:
        """With the labels of the data set, which a language model has only where they are called so."""
        label = label_column(rows, self.source.options.label)
        if self.task.endswith("lm") and label != "labels" and not self.source.options.label:
            label = None
        if label is not None:
            return [{**row, "labels": y} for row, y in zip(made, rows[label], strict=True)]
        if self.task == "causal-lm":
            return [{**row, "labels": row["input_ids"]} for row in made]
        if self.task != "features":
            raise InputError(
                f"{self.source.name}: {self.task} needs labels: its columns are {', '.join(rows.column_names)}; say "
                "which, --data-arg label=COLUMN"
            )
        return made

    def _told(self, rows: list[Row], tokenizer: Tokenizer) -> list[Row]:
        """With labels for a language model; rows without a token to predict are left out."""
        if self.task == "causal-lm":
            long = [row for row in rows if len(row["input_ids"]) > 1]
            return [{**_without(row), "labels": row["input_ids"]} for row in long]
        masked = mask_tokens(rows, tokenizer, self.source.options.mask, stream(self.seed, "masked tokens"))
        return [_without(row) for row in masked if any(y != IGNORED for y in row["labels"])]


def _without(row: Row) -> Row:
    return {k: v for k, v in row.items() if k != "special_tokens_mask"}


def _without_adapter(network: nn.Module) -> nn.Module:
    """The network of transformers below an adapter of peft, whose forward takes anything."""
    return getattr(network, "get_base_model", lambda: network)()


def _zipped(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _drawn(count: int, samples: int, seed: int, split: str) -> list[int]:
    """Positions of the sample among all, in order."""
    if samples >= count:
        return list(range(count))
    order = torch.randperm(count, generator=stream(seed, f"samples of {split}"))
    return order[:samples].sort().values.tolist()


def _read_text(source: HubExamples) -> str:
    from landscape.archive import require_regular

    try:
        require_regular(source.path)
        return source.path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{source.name}: no such file: write text:FILE with a file of plain text") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source.name} is not text in UTF-8 (byte {error.start}): convert it first") from None
    except OSError as error:
        raise InputError(f"{source.name} cannot be read: {error.strerror}") from None


def _padded(rows: Sequence[Row], batch_size: int | None, padding: int) -> Iterator[dict[str, Tensor]]:
    """Batches of the rows, every one filled up to the longest."""
    fills = {"input_ids": padding, "labels": IGNORED, "attention_mask": 0}
    if "input_ids" in rows[0] and "attention_mask" not in rows[0]:
        rows = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    whole = {name: _filled([row[name] for row in rows], fills.get(name, 0)) for name in rows[0]}
    width = whole["input_ids"].shape[1] if "input_ids" in whole else BATCH_TOKENS // 64
    size = batch_size or max(1, BATCH_TOKENS // width)
    for start in range(0, len(rows), size):
        yield {name: tensor[start : start + size] for name, tensor in whole.items()}


def _filled(values: Sequence[Any], fill: int) -> Tensor:
    arrays = [np.asarray(v) for v in values]
    if len({a.shape for a in arrays}) > 1:
        width = max(len(a) for a in arrays)
        arrays = [np.concatenate([a, np.full((width - len(a), *a.shape[1:]), fill, a.dtype)]) for a in arrays]
    return torch.from_numpy(np.stack(arrays))
