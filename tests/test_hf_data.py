"""Data sets of Hugging Face saved to disk, and plain text, as what a network takes."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hf_cases import (
    CODE,
    REASON,
    Reference,
    batches,
    close,
    failed,
    network,
    rounding,
    run,
    saved,
    sentences,
    tokenizer,
)

import landscape
from landscape.errors import InputError

transformers = pytest.importorskip("transformers", reason=REASON)
datasets = pytest.importorskip("datasets", reason=REASON)
pytestmark = pytest.mark.hf

BERT, MASKED, GPT, VIT = (
    "BertForSequenceClassification",
    "BertForMaskedLM",
    "GPT2LMHeadModel",
    "ViTForImageClassification",
)


def made(tmp_path, architecture, kind=None):
    """A folder with a network and a tokenizer."""
    folder = saved(network(architecture), tmp_path / "net")
    return folder, tokenizer(folder, kind or ("gpt" if architecture == GPT else "bert"))


def on_disk(rows, folder, **splits):
    held = (
        datasets.Dataset.from_dict(rows)
        if rows
        else datasets.DatasetDict({name: datasets.Dataset.from_dict(value) for name, value in splits.items()})
    )
    held.save_to_disk(str(folder))
    return folder


def problem_of(folder, data, **options):
    return landscape.problem_from(folder, model=f"hf:{folder}", data=data, dtype="float64", device="cpu", **options)


def padded(tokens, fill):
    width = max(map(len, tokens))
    return torch.tensor([list(t) + [fill] * (width - len(t)) for t in tokens])


def encoded(tokens, labels, length=None):
    tokens = [t[:length] if length else t for t in tokens]
    mask = padded([[1] * len(t) for t in tokens], 0)
    labels = padded(labels, -100) if isinstance(labels[0], list) else torch.tensor(labels)
    return [{"input_ids": padded(tokens, 0), "attention_mask": mask, "labels": labels}]


def test_a_classifier(tmp_path, capsys):
    folder, words = made(tmp_path, BERT)
    rows = sentences()
    data = on_disk(None, tmp_path / "data", train=rows, test=sentences(5), other=sentences(4))
    right = Reference(network(BERT), encoded([words(t)["input_ids"] for t in rows["text"]], rows["label"]))
    (seen,) = run(
        capsys, *["analyze", folder, "--model", f"hf:{folder}", "--data", f"hf:{data}", "--dtype", "float64"],
        *["--grid", 0, "-k", 1, "--measure", "hessian_top_eigenvalues:tol=1e-8", "--device", "cpu"],
    )["checkpoints"]  # fmt: skip
    close(seen["loss"], right.loss())
    assert seen["samples"] == 12
    logits = right.model(**{k: v for k, v in right.data[0].items() if k != "labels"}).logits
    assert seen["accuracy"] == pytest.approx(float((logits.argmax(1) == right.data[0]["labels"]).double().mean()))
    close(seen["measures"]["hessian_top_eigenvalues"]["values"], right.largest(1), rtol=1e-6)
    assert problem_of(folder, f"hf:{data}", split="test").examples == 5
    assert problem_of(folder, f"hf:{data}", data_arguments={"split": "other"}).examples == 4


def test_the_size_of_batches_changes_nothing(tmp_path):
    folder, _ = made(tmp_path, GPT)
    data = on_disk(sentences(), tmp_path / "data")
    whole = problem_of(folder, f"hf:{data}")
    for size in (1, 5):
        parts = problem_of(folder, f"hf:{data}", batch_size=size)
        assert len(parts.batches) > len(whole.batches) == 1
        close(parts.loss(), whole.loss(), rtol=rounding(GPT))
        left = rounding(GPT) * float(whole.gradient().abs().max())
        close(parts.gradient(), whole.gradient(), atol=left)


def test_a_causal_language_model(tmp_path):
    """A row of one token predicts nothing and is left out; long rows are cut off."""
    folder, words = made(tmp_path, GPT)
    rows = sentences()
    data = on_disk(rows, tmp_path / "data")
    tokens = [words(t)["input_ids"] for t in rows["text"]]
    assert min(map(len, tokens)) == 1
    for length in (None, 4):
        long = [t[:length] for t in tokens if len(t) > 1]
        arguments = {} if length is None else {"length": length}
        problem = problem_of(folder, f"hf:{data}", data_arguments=arguments)
        close(problem.loss(), Reference(network(GPT), encoded(long, long)).loss(), rtol=rounding(GPT))
        assert problem.examples == len(long)
        assert problem.weight == sum(len(t) - 1 for t in long)


def test_plain_text_for_a_causal_language_model(tmp_path, capsys):
    folder, words = made(tmp_path, GPT)
    text = " ".join(sentences(40)["text"])
    (tmp_path / "a text.txt").write_text(text)
    tokens = words(text)["input_ids"]
    for length in (None, 8):
        size = length or 32  # what the network takes
        blocks = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        blocks = [b for b in blocks if len(b) > 1]
        right = Reference(network(GPT), encoded(blocks, blocks)).loss()
        arguments = ["--data-arg", f"length={length}"] if length else []
        (seen,) = run(
            capsys, *["analyze", folder, "--model", f"hf:{folder}", "--data", f"text:{tmp_path / 'a text.txt'}"],
            *["--dtype", "float64", "--grid", 0, "--measure", "sam_sharpness", "--device", "cpu", *arguments],
        )["checkpoints"]  # fmt: skip
        close(seen["loss"], right, rtol=rounding(GPT))
        assert seen["samples"] == len(blocks)


def test_a_masked_language_model(tmp_path):
    """The same tokens are masked at every call of one seed, about as many as were asked for, never special ones."""
    folder, words = made(tmp_path, MASKED)
    data = on_disk(sentences(40), tmp_path / "data")
    first, again, other = (problem_of(folder, f"hf:{data}", seed=s) for s in (0, 0, 1))
    assert float(first.loss()) == float(again.loss()) != float(other.loss())
    (batch,) = first.batches
    labels, ids = batch.target, batch.kwargs["input_ids"]
    told = labels != -100
    assert not (labels[told] == words.cls_token_id).any()
    assert not (labels[told] == words.sep_token_id).any()
    close(first.loss(), Reference(network(MASKED), [{**batch.kwargs, "labels": labels}]).loss())
    everything = problem_of(folder, f"hf:{data}", data_arguments={"mask": 1.0})
    (batch,) = everything.batches
    labels, ids = batch.target, batch.kwargs["input_ids"]
    told = labels != -100
    special = torch.isin(ids, torch.tensor([words.cls_token_id, words.sep_token_id])) | (
        batch.kwargs["attention_mask"] == 0
    )
    count = int(told.sum())
    assert count >= int((~special).sum())
    masked = int((ids[told] == words.mask_token_id).sum())
    assert abs(masked / count - 0.8) < 4 * (0.8 * 0.2 / count) ** 0.5 + 0.1 / 24
    text = tmp_path / "a.txt"
    text.write_text(" ".join(sentences(40)["text"]))
    problem = problem_of(folder, f"text:{text}", data_arguments={"length": 10})
    (batch,) = problem.batches
    ends = torch.isin(batch.kwargs["input_ids"][:, 0], torch.tensor([words.cls_token_id]))
    assert bool(ends.all())


def test_pairs_of_texts(tmp_path):
    folder, words = made(tmp_path, BERT)
    rows = sentences()
    pairs = {"first": rows["text"], "second": rows["text"][::-1], "y": rows["label"]}
    data = on_disk(pairs, tmp_path / "data")
    made_ = words(pairs["first"], pairs["second"])
    batch = encoded(made_["input_ids"], rows["label"])[0]
    if "token_type_ids" in made_:
        batch["token_type_ids"] = padded(made_["token_type_ids"], 0)
    problem = problem_of(folder, f"hf:{data}", data_arguments={"text": "first+second"})
    close(problem.loss(), Reference(network(BERT), [batch]).loss())


def test_tokens_that_are_there_already(tmp_path):
    folder = saved(network(GPT), tmp_path / "net")
    data = batches(GPT)
    ids = [row[mask == 1].tolist() for b in data for row, mask in zip(b["input_ids"], b["attention_mask"], strict=True)]
    right = Reference(network(GPT), data).loss()
    for rows in ({"input_ids": ids}, {"input_ids": ids, "labels": ids}, {"input_ids": ids, "label": [0] * len(ids)}):
        path = on_disk(rows, tmp_path / f"data-{len(rows)}-{'labels' in rows}")
        close(problem_of(folder, f"hf:{path}").loss(), right, rtol=rounding(GPT))


def test_images(tmp_path):
    pil = pytest.importorskip("PIL.Image")
    folder = saved(network(VIT), tmp_path / "net")
    processor = (
        transformers.ViTImageProcessorPil
        if hasattr(transformers, "ViTImageProcessorPil")
        else transformers.ViTImageProcessor
    )
    processor(size={"height": 8, "width": 8}).save_pretrained(folder)
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (16, 12, 3), dtype=np.uint8) for _ in range(5)]
    images = [pil.fromarray(a) for a in arrays]
    held = datasets.Dataset.from_dict(
        {"image": images, "label": [0, 1, 2, 0, 1]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(3)}),
    )
    held.save_to_disk(str(tmp_path / "data"))
    small = np.stack([np.asarray(i.resize((8, 8), pil.Resampling.BILINEAR)) for i in images])
    pixels = torch.from_numpy((small / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)
    right = Reference(network(VIT), [{"pixel_values": pixels, "labels": torch.tensor([0, 1, 2, 0, 1])}])
    close(problem_of(folder, f"hf:{tmp_path / 'data'}").loss(), right.loss(), rtol=1e-6)  # pixels in float32


def test_features_and_a_loss_of_ones_own(tmp_path):
    folder, words = made(tmp_path, BERT)
    rows = sentences()
    data = on_disk(rows, tmp_path / "data")

    def loss(outputs, targets):
        return (outputs.last_hidden_state[:, 0].pow(2).mean(1) - targets).pow(2).mean()

    problem = landscape.problem_from(
        folder,
        model=f"hf:{folder}",
        model_arguments={"task": "features"},
        data=f"hf:{data}",
        loss=loss,
        dtype="float64",
        device="cpu",
        allow_extra=["classifier.*"],
    )
    batch = encoded([words(t)["input_ids"] for t in rows["text"]], rows["label"])[0]
    labels = batch.pop("labels")
    base = network(BERT).bert.double()
    right = loss(base(**batch), labels)
    close(problem.loss(), right.detach())


def test_what_is_wrong_is_said(tmp_path, capsys):
    folder, _ = made(tmp_path, BERT)
    bare = saved(network(GPT), tmp_path / "bare")
    data = on_disk(None, tmp_path / "data", train=sentences(), validation=sentences(3))
    several = on_disk({"a": ["x"], "b": ["y"], "label": [0]}, tmp_path / "several")
    unlabelled = on_disk({"text": ["x", "y"]}, tmp_path / "unlabelled")
    text = tmp_path / "a.txt"
    text.write_text("the cat sat")
    binary = tmp_path / "b.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    cases = [
        (folder, f"hf:{tmp_path / 'none'}", [], "a folder is needed that datasets' save_to_disk wrote"),
        (folder, f"hf:{folder}", [], "is not a data set that datasets can load"),
        (folder, f"hf:{data}", ["--split", "test"], "has no split 'test', it has train, validation"),
        (folder, f"hf:{several}", ["--split", "test"], "is one data set, without splits"),
        (folder, f"hf:{several}", [], "its columns of text are a, b"),
        (folder, f"hf:{several}", ["--data-arg", "text=c"], "unknown column of text 'c'"),
        (folder, f"hf:{data}", ["--data-arg", "label=lable"], "unknown column of labels 'lable'"),
        (folder, f"hf:{unlabelled}", [], "text-classification needs labels"),
        (folder, f"text:{text}", [], "a text alone has no labels"),
        (bare, f"text:{text}", [], "needs a tokenizer"),
        (bare, f"text:{tmp_path / 'none.txt'}", ["--data-arg", f"tokenizer={folder}"], "no such file"),
        (bare, f"text:{binary}", ["--data-arg", f"tokenizer={folder}"], "is not text in UTF-8"),
        (bare, f"text:{text}", ["--split", "test"], "is one text, without a split"),
        (bare, f"text:{text}", ["--data-arg", "lenght=3"], "unknown option of --data-arg 'lenght'"),
        (bare, f"text:{text}", ["--data-arg", "length=many"], "a value of type int is needed"),
        (bare, f"text:{text}", ["--data-arg", "length=1"], "at least 2 tokens"),
        (bare, f"text:{text}", ["--data-arg", "mask=0"], "a value of type float|a share of the tokens"),
    ]
    for net, source, options, needed in cases:
        said = failed(capsys, "analyze", net, "--model", f"hf:{net}", "--data", source, *options)
        assert any(part in said for part in needed.split("|")), (source, options, said)


def test_code_of_a_tokenizers_folder_is_refused(tmp_path, monkeypatch):
    folder, _ = made(tmp_path, GPT)
    monkeypatch.chdir(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": [None, "evil.Mine"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(CODE)
    text = tmp_path / "a.txt"
    text.write_text("the cat sat on the mat")
    with contextlib.suppress(InputError):  # or the class of the library that tokenizer.json holds
        problem_of(folder, f"text:{text}")
    assert not (tmp_path / "pwned").exists()
