"""Tasks of GLUE in the folders that its download script makes: ``glue:FOLDER``."""

from __future__ import annotations

from pathlib import Path

import torch

from landscape.archive import require_regular
from landscape.errors import InputError
from landscape.registry import register
from landscape.results import digest
from trainers.data import Arrays, Source
from trainers.data.files import read_file
from trainers.data.forms import require_count
from trainers.text.tokens import filled, rows, tokenizer

TRAIN, TEST = ("train.tsv",), ("dev.tsv", "dev_matched.tsv")
COLUMNS = (
    ("Quality", ("#1 String", "#2 String")),
    ("gold_label", ("sentence1", "sentence2")),
    ("is_duplicate", ("question1", "question2")),
    ("label", ("question", "sentence")),
    ("label", ("sentence1", "sentence2")),
    ("label", ("sentence",)),
)
"""Column of the labels, columns of the text: of MRPC, MNLI, QQP, QNLI, RTE and WNLI, SST-2."""
LONGEST = 512
"""Tokens of a text at most."""
COLA = ["source", "label", "mark", "sentence"]
"""The columns of CoLA, whose files name none."""
BROKEN = 0.01
"""Share of the lines that may lack fields and are passed over: a few of QQP do."""


@register("glue", file="FOLDER")
def glue(
    source: Source,
    *,
    length: int = 64,
    train: int | None = None,
    test: int | None = None,
    vocabulary: int = 8192,
    sha256: str | None = None,
) -> Arrays:
    """glue:FOLDER, a task of GLUE with classes, from its train.tsv and dev.tsv.

    CoLA, SST-2, MRPC, QQP, MNLI (its matched part), QNLI, RTE and WNLI are known by their columns. The development set
    is the test set, for GLUE's own test set has no labels. Classes are in the order of their names; the sentences of a
    pair stand in one row with a border between them. Byte-level byte pairs, trained on the training texts.
    Source: Wang et al. 2018, arXiv 1804.07461.

    Args:
        length: tokens of a text, the first of which begins it; shorter ones are filled up with 0.
        train: training examples, the first of the file; default all.
        test: test examples, likewise; default all.
        vocabulary: tokens at most.
        sha256: of all examples as tokens, as a checkpoint records it; others are refused.
    """
    if not 2 <= length <= LONGEST or vocabulary < 300:
        raise InputError(
            f"length={length}, vocabulary={vocabulary}: 2 to {LONGEST} tokens of a text are needed, and 300 different "
            "ones"
        )
    if not source.file:
        raise InputError("glue names no folder: write glue:FOLDER")
    folder = Path(source.file).expanduser()
    parts = [_read(folder, TRAIN), _read(folder, TEST)]
    made = tokenizer((part for text, _ in parts[0] for part in text), vocabulary, source.name)
    classes = sorted({label for _, label in parts[0]})
    unknown = sorted({label for _, label in parts[1]} - set(classes))
    if unknown:
        raise InputError(f"{folder}: the label {unknown[0]!r} of the development set is none of {', '.join(classes)}")
    lines = [rows(made, [text for text, _ in part], LONGEST) for part in parts]
    labels = [[classes.index(label) for _, label in part] for part in parts]
    found = digest.of_configuration([lines, labels])
    if sha256 not in (None, found):
        raise InputError(
            f"{folder} as tokens has SHA-256 {found}, not {sha256}: the files were changed, or another release of "
            "tokenizers divides words otherwise; restore them, or leave sha256 out"
        )
    arrays = []
    for name, tokens, named, size in zip(("train", "test"), lines, labels, (train, test), strict=True):
        require_count(name, size)
        if size is not None and size > len(named):
            raise InputError(f"{name}={size}: {folder} holds {len(named)} {name} examples")
        arrays += [filled(tokens[:size], length), torch.tensor(named[:size])]
    known = made.get_vocab_size()
    x_train, y_train, x_test, y_test = arrays
    return Arrays(x_train, y_train, x_test, y_test, len(classes), vocabulary=known, settled={"sha256": found})


def _read(folder: Path, names: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """Texts, one or two sentences each, with their labels."""
    path = next((folder / name for name in names if (folder / name).is_file()), folder / names[0])
    if not path.is_file():
        raise InputError(f"{folder} lacks {' or '.join(names)}: give the folder of one task of GLUE, glue:FOLDER/SST-2")
    require_regular(path)
    try:
        lines = read_file(path).decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8 (byte {error.start}): convert it first") from None
    table = [line.split("\t") for line in lines if line]
    header = table[0] if table else []
    if len(header) == len(COLA) and header[1] in ("0", "1"):
        header = COLA
    else:
        table = table[1:]
    named = next(((label, text) for label, text in COLUMNS if {label, *text} <= set(header)), None)
    if named is None:
        raise InputError(
            f"{path} begins with {', '.join(header)[:200] or 'nothing'}: the columns of a task of GLUE with classes "
            "are needed, for example sentence and label"
        )
    whole = [fields for fields in table if len(fields) >= len(header)]
    if not whole or len(whole) < (1 - BROKEN) * len(table):
        raise InputError(
            f"{path}: {len(table) - len(whole)} of {len(table)} lines have fewer than {len(header)} fields"
        )
    label, text = header.index(named[0]), [header.index(name) for name in named[1]]
    return [(tuple(fields[i] for i in text), fields[label]) for fields in whole]
