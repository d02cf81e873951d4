"""Tasks of GLUE as their folders come: columns of every task, what is refused."""

from __future__ import annotations

import pytest

from landscape.errors import InputError
from trainers.data import Source, glue
from trainers.datasets import load_data

pytest.importorskip("tokenizers", reason="tokens of texts: pip install 'loss-landscape-toolkit[text]'")

ROWS = {
    "MRPC": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        ['1\t7\t8\tHe "said" so .\tSo he said .', "0\t9\t9\tOne .\tTwo ."],
        [('He "said" so .', "So he said ."), ("One .", "Two .")],
        [1, 0],
    ),
    "CoLA": ("gj04\t1\t\tThe dog ran.", ["gj04\t0\t*\tDog the ran."], [("The dog ran.",), ("Dog the ran.",)], [1, 0]),
    "QNLI": (
        "index\tquestion\tsentence\tlabel",
        ["0\tWho?\tShe did.\tentailment", "1\tWhy?\tNo\u2028one knows.\tnot_entailment"],
        [("Who?", "She did."), ("Why?", "No\u2028one knows.")],
        [0, 1],
    ),
    "MNLI": (
        "index\tsentence1\tsentence2\tlabel1\tgold_label",
        ["0\tA b.\tC d.\tneutral\tentailment", "1\tE f.\tG h.\tneutral\tneutral"],
        [("A b.", "C d."), ("E f.", "G h.")],
        [0, 1],
    ),
    "QQP": (
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        ["0\t1\t2\tIs it?\tIt is?\t1", "1\t3\t4\tHow?\tWho?\t0"],
        [("Is it?", "It is?"), ("How?", "Who?")],
        [1, 0],
    ),
}


def write(folder, header, lines, dev="dev.tsv"):
    for name in ("train.tsv", dev):
        (folder / name).write_text("\n".join([header, *lines]) + "\r\n", encoding="utf-8", newline="")
    return folder


@pytest.mark.parametrize("task", ROWS)
def test_columns_of_a_task_are_known(task, tmp_path):
    header, lines, texts, labels = ROWS[task]
    write(tmp_path, header, lines, "dev_matched.tsv" if task == "MNLI" else "dev.tsv")
    read = glue._read(tmp_path, glue.TRAIN)
    assert [text for text, _ in read] == texts
    data = load_data(f"glue:{tmp_path}", length=24, vocabulary=300)
    assert data.kind == ("tokens", "class")
    assert data.y_train.tolist() == data.y_test.tolist() == labels
    assert (data.x_train == 1).sum(1).tolist() == [1 + len(text) for text in texts]  # a border around every part
    assert load_data(data.name, **data.arguments).sha256 == data.sha256


def test_some_of_the_examples_are_the_first_of_the_file(tmp_path):
    write(tmp_path, *ROWS["QQP"][:2])
    some, every = load_data(f"glue:{tmp_path}", train=1, length=5), load_data(f"glue:{tmp_path}")
    assert (some.size("train"), every.size("train")) == (1, 2)
    assert some.arguments["sha256"] == every.arguments["sha256"]  # of all of it: another part of it may be analyzed
    with pytest.raises(InputError, match=r"test=3: .* holds 2 test examples"):
        load_data(f"glue:{tmp_path}", test=3)


@pytest.mark.parametrize(
    ("header", "lines", "message"),
    [
        (
            "sentence1\tsentence2\tscore",
            ["a\tb\t3.2"],
            "begins with sentence1, sentence2, score: the columns of a task",
        ),
        ("sentence\tlabel", ["one", "two", "three\t1"], "2 of 3 lines have fewer than 2 fields"),
        ("sentence\tlabel", [], "0 of 0 lines"),
    ],
)
def test_other_files_are_refused_by_what_they_hold(header, lines, message, tmp_path):
    write(tmp_path, header, lines)
    with pytest.raises(InputError, match=message):
        load_data(f"glue:{tmp_path}")


def test_folders_labels_and_hashes_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"lacks train\.tsv: give the folder of one task of GLUE"):
        load_data(f"glue:{tmp_path}")
    write(tmp_path, "sentence\tlabel", ["so it is\t0", "so be it\t1"])
    with pytest.raises(InputError, match="as tokens has SHA-256"):
        load_data(f"glue:{tmp_path}", sha256="abc")
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\nand so on\t2\n")
    with pytest.raises(InputError, match="the label '2' of the development set is none of 0, 1"):
        load_data(f"glue:{tmp_path}")
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\n\xff\xfe\t0\n")
    with pytest.raises(InputError, match=r"is not text in UTF-8 \(byte 15\)"):
        load_data(f"glue:{tmp_path}")
    with pytest.raises(InputError, match="length=1, vocabulary=8192: 2 to 512 tokens"):
        load_data(f"glue:{tmp_path}", length=1)


def test_a_few_broken_lines_are_passed_over(tmp_path):
    lines = [f"number {i} of them\t{i % 2}" for i in range(200)]
    write(tmp_path, "sentence\tlabel", [*lines, "broken"])
    assert load_data(f"glue:{tmp_path}").size("train") == 200


def test_the_name_needs_a_folder():
    with pytest.raises(InputError, match="glue names no folder: write glue:FOLDER"):
        glue.glue(Source("glue", None, 0))
