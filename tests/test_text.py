"""Docstrings as data: what is read, what is masked, how it is divided, how it becomes tokens, what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from text_cases import write_packages

from landscape.errors import InputError
from trainers.data import docstrings as data
from trainers.datasets import load_data
from trainers.text import packages, parts, tokens
from trainers.text.packages import Docstring, masked

ROOT = Path(__file__).parent.parent


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Packages of a few docstrings; nothing of an earlier test is remembered."""
    data._kept.cache_clear()
    write_packages(tmp_path / "site", monkeypatch)
    yield tmp_path
    data._kept.cache_clear()


def test_docstrings_are_read_from_the_source_without_importing_it(written):
    texts = list(packages.docstrings())
    mine = [t.text for t in texts if t.label == list(packages.PINNED).index("scipy")]
    assert sorted(mine) == [
        "A local class with enough words in it, <package>-four.",
        "Module <package>: uses <package> arrays and <package> alike.",
        "Returns the sum of two arrays of numbers, number four.",
        "The private part of it holds some more words: <package> 3.",
        "The same words in every one of the packages, twice.",
        "Waits for the four slow things of <package>.linalg, then goes on.",
    ]
    torch_texts = [t.text for t in texts if t.label == list(packages.PINNED).index("torch")]
    assert len(torch_texts) == 5  # the directories of its compilers begin with an underscore
    assert not any("must not be read" in t.text or "template" in t.text for t in texts)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("PyTorch, torch.nn and TorchScript", "<package>, <package>.nn and <package>"),
        ("np.ndarray of NumPy's numpy_dtype", "<package>.ndarray of <package>'s <package>"),
        ("scikit-learn, sklearn.svm, SciKit", "<package>, <package>.svm, <package>"),
        ("plt.plot by pyplot, mpl_toolkits", "<package>.plot by <package>, <package>"),
        ("sp.special, scipy_sparse", "<package>.special, <package>"),
        ("a simple example of an nplike spline", "a simple example of an nplike spline"),
        ("two\n    lines  and\ttabs", "two lines and tabs"),
    ],
)
def test_names_of_packages_are_masked_and_nothing_else(text, hidden):
    assert masked(text) == hidden


def test_a_text_is_cut_off_after_two_hundred_words():
    assert masked("word " * 300) == " ".join(["word"] * 200)


def texts(*pairs):
    return [Docstring(text, label) for text, label in pairs]


def test_the_same_words_are_kept_once_and_not_at_all_under_two_labels():
    train, test = parts.divided(
        texts(("A b c d e f.", 0), ("a b c d e f (1)", 0), ("x y z u v w", 1), ("X y z u v w", 2), ("p q r s t u", 2))
    )
    assert {(t.words, t.label) for t in train + test} == {(tuple("abcdef"), 0), (tuple("pqrstu"), 2)}


def test_no_test_text_is_nearly_one_for_training():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(2000)]
    rows = [list(rng.choice(words, 40)) for _ in range(200)]
    # Beside each its copy with two other words: of 36 runs of five words at most 10 change.
    copies = [[*row[:3], "other", *row[4:35], "words", *row[36:]] for row in rows]
    train, test = parts.divided(texts(*((" ".join(row), 0) for row in rows + copies)))
    assert len(train) > 250
    assert 0 < len(test) < 60  # a fifth would be 80: those whose copy is for training are left out
    chosen = {t.text for t in test}
    for row, copy in zip(rows, copies, strict=True):
        both = {" ".join(row), " ".join(copy)}
        assert len(both & chosen) in (0, 2)
    again = parts.divided(texts(*((" ".join(row), 0) for row in copies + rows)))
    assert again == (train, test)


def test_a_share_of_runs_is_of_this_text():
    seen = set(parts.runs(tuple("abcdefgh")))
    assert parts.shared(tuple("abcdefghij"), seen) == pytest.approx(4 / 6)
    assert parts.shared(("a", "b"), seen) == 0
    assert parts.shared(("a", "b"), set(parts.runs(("a", "b")))) == 1


def test_rows_are_cut_off_and_filled_up_and_targets_are_the_next_tokens():
    lines = [[1, 5, 6, 1], [1, 7, 8, 9, 10, 11, 1], [1, 4]]
    assert tokens.filled(lines, 5).tolist() == [[1, 5, 6, 1, 0], [1, 7, 8, 9, 10], [1, 4, 0, 0, 0]]
    x, y = tokens.next_tokens(lines, 4)
    assert x.tolist() == [[1, 5, 6, 0], [1, 7, 8, 9], [1, 0, 0, 0]]
    assert y.tolist() == [[5, 6, 1, -100], [7, 8, 9, 10], [4, -100, -100, -100]]


def test_tokens_keep_every_byte_and_a_pair_has_three_borders():
    pytest.importorskip("tokenizers")
    corpus = ["the cat sat on the mat", "the dog sat", "<package>.array of the cat"] * 3
    made = tokens.tokenizer(corpus, 280, "test", whole=["<package>"])
    line, pair = tokens.rows(made, [("naïve <package> ☃\n",), ("the cat", "the dog")], 99)
    assert made.decode(line[1:-1], skip_special_tokens=False) == "naïve <package> ☃\n"
    assert line.count(2) == 1  # the mask is one token
    assert (line[0], line[-1]) == (tokens.BORDER, tokens.BORDER)
    assert [i for i, token in enumerate(pair) if token == tokens.BORDER][1] == pair.index(1, 1)
    assert pair.count(tokens.BORDER) == 3
    assert tokens.rows(made, [("the cat",)], 2) == [line[:1] + pair[1:2]]
    assert tokens.tokenizer(corpus, 280, "test", whole=["<package>"]).to_str() == made.to_str()


def test_without_tokenizers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"docstrings needs tokenizers: pip install 'loss-landscape-toolkit\[text\]'"):
        tokens.tokenizer(["a"], 300, "docstrings")


def test_a_set_is_made_once_then_read_and_made_again_where_the_file_is_damaged(written, monkeypatch):
    pytest.importorskip("tokenizers")
    first = load_data("docstrings", data_dir=written, length=8)
    (file,) = (written / "docstrings").iterdir()
    monkeypatch.setattr(data, "docstrings", None)  # a second reading of the sources would fail
    data._kept.cache_clear()
    again = load_data("docstrings", data_dir=written, length=8)
    assert torch.equal(first.x_train, again.x_train)
    monkeypatch.undo()
    write_packages(written / "others", monkeypatch)
    whole = file.read_bytes()
    with np.load(file) as held:
        changed = {**held, "labels": held["labels"][::-1]}
    for damaged in (b"", whole[:200], "changed"):
        data._kept.cache_clear()
        if damaged == "changed":
            np.savez(file, **changed)
        else:
            file.write_bytes(damaged)
        once = load_data("docstrings", data_dir=written, length=8)
        assert torch.equal(first.y_train, once.y_train)
        assert file.read_bytes() == whole


def test_a_folder_that_cannot_be_written_keeps_nothing(written):
    pytest.importorskip("tokenizers")
    (written / "file").write_text("no folder")
    assert load_data("docstrings", data_dir=written / "file", length=8).size("train")


def test_a_model_of_language_sees_the_texts_of_the_classifier(written):
    pytest.importorskip("tokenizers")
    classes, language = (load_data(name, data_dir=written, length=8) for name in ("docstrings", "docstrings-lm"))
    assert classes.kind == ("tokens", "class")
    assert language.kind == ("tokens", "next tokens")
    assert (classes.classes, language.classes, classes.vocabulary) == (5, 2048, 2048)
    assert torch.equal(language.x_train[:, 1:], torch.where(language.y_train < 0, 0, language.y_train)[:, :-1])
    full = (classes.x_train != 0).all(1)
    assert torch.equal(classes.x_train[full], language.x_train[full])
    with pytest.raises(InputError, match="test=99: there are"):
        load_data("docstrings", data_dir=written, test=99)
    with pytest.raises(InputError, match="length=257: from 2 to 256"):
        load_data("docstrings", data_dir=written, length=257)
    with pytest.raises(InputError, match="has tokens, which are not normalized"):
        load_data("docstrings", data_dir=written, normalization="none")


def test_other_versions_are_another_set_which_a_checkpoint_names(written, monkeypatch):
    pytest.importorskip("tokenizers")
    options = {"data_dir": written, "length": 8}
    pinned = load_data("docstrings", **options)
    assert pinned.arguments["versions"] == " ".join(f"{p}=={v}" for p, v in packages.PINNED.items())
    write_packages(written / "newer", monkeypatch, {"scipy": "9.9", "torch": packages.PINNED["torch"] + "+cu130"})
    with pytest.raises(InputError, match=r"scipy 9\.9 is installed, these texts need .* versions=installed"):
        load_data("docstrings", **options)
    newer = load_data("docstrings", versions="installed", **options)
    assert "scipy==9.9" in newer.arguments["versions"]
    assert load_data(newer.name, data_dir=written, **newer.arguments).sha256 == newer.sha256
    with pytest.raises(InputError, match=r"scipy 9\.9 is installed, these texts need 1"):
        load_data(pinned.name, data_dir=written, **pinned.arguments)
    with pytest.raises(InputError, match="other texts or tokens than those of SHA-256 abc"):
        load_data("docstrings", **options, versions="installed", sha256="abc")
    with pytest.raises(InputError, match="pinned, installed, or PACKAGE==VERSION"):
        load_data("docstrings", **options, versions="scipy==1")


def test_a_package_that_is_not_installed_is_named(written, monkeypatch):
    def version(name):
        if name == "matplotlib":
            raise PackageNotFoundError
        return packages.PINNED[name]

    monkeypatch.setattr(packages, "version", version)
    with pytest.raises(InputError, match="docstrings: matplotlib is not installed: pip install matplotlib"):
        load_data("docstrings", data_dir=written)


def test_pinned_versions_are_those_of_the_constraints():
    held = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert {package: held[package] for package in packages.PINNED} == packages.PINNED


@pytest.fixture(scope="module")
def real():
    """The set of what is installed here."""
    if packages.installed_versions() != packages.PINNED:
        pytest.skip("other versions than the pinned ones are installed: another set")
    try:
        return load_data("docstrings")
    except InputError as error:
        if " needs tokenizers: " in str(error):
            pytest.skip(str(error))
        raise


def test_the_pinned_packages_give_one_set(real):
    assert (real.size("train"), real.size("test")) == (14337, 2694)
    assert torch.bincount(real.y_train).tolist() == [2649, 1413, 2214, 3086, 4975]
    assert real.arguments["sha256"] == "4ccd9c41edfcee72711fbfb30bffcc128393b4f4c3151415fd7ba75f717b1b1a"


def test_reading_them_imports_none_of_them():
    code = (
        "import sys; from trainers.text.packages import _files, _held, installed_versions; installed_versions();"
        "n = sum(1 for m in ('sklearn', 'matplotlib') for f in _files(m)[:30] for _ in _held(f));"
        "sys.exit(n < 20 or any(m in sys.modules for m in ('numpy', 'scipy', 'torch', 'sklearn', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0
