"""Small networks of transformers and tokenizers in folders, and the same losses in plain float64 autograd."""

import copy
import json
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh

import cli

CODE = """import pathlib
pathlib.Path('pwned').touch()
"""
REASON = "needs transformers, peft and datasets: run with `make test-hf`"
for variable in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("TQDM_DISABLE", "1")

TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 32,
}
GPT2 = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 0, "eos_token_id": 0}
IMAGES = {"image_size": 8, "patch_size": 4, "num_channels": 3, "num_labels": 3}
NETWORKS = {
    "ViTForImageClassification": ("vit", {**TINY, **IMAGES}),
    "BertForSequenceClassification": ("bert", {**TINY, "num_labels": 3}),
    "BertForMaskedLM": ("bert", TINY),
    "GPT2LMHeadModel": ("gpt2", GPT2),
    "LlamaForCausalLM": ("llama", {**TINY, "num_key_value_heads": 1}),
}
CAUSAL = ("GPT2LMHeadModel", "LlamaForCausalLM")
TIED = ("GPT2LMHeadModel", "BertForMaskedLM")
VOCABULARY = 24


def network(architecture, seed=0, **changes):
    """A network with random weights, larger than their initial ones so that the loss has some curvature."""
    transformers = pytest.importorskip("transformers", reason=REASON)
    kind, sizes = NETWORKS[architecture]
    words = {} if kind == "vit" else {"vocab_size": VOCABULARY, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **{**sizes, **words, **changes}, attn_implementation="eager")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = getattr(transformers, architecture)(config).eval()
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(8.0)
            else:
                weight.add_(0.1 * torch.randn(weight.shape))
    return model


def saved(model, folder):
    """The folder that save_pretrained wrote."""
    model.save_pretrained(folder)
    return folder


def batches(architecture, padding=0, examples=6):
    """Two batches with rows of different lengths, each filled up by `padding` tokens more."""
    generator = torch.Generator().manual_seed(1)
    if architecture == "ViTForImageClassification":
        pixels = torch.randn(examples, 3, 8, 8, generator=generator)
        rows = {"pixel_values": pixels, "labels": torch.arange(examples) % 3}
        return [{k: v[:4] for k, v in rows.items()}, {k: v[4:] for k, v in rows.items()}]
    width = 7
    lengths = torch.tensor([7, 3, 5, 2, 6, 4, 7, 3])[:examples]
    ids = torch.randint(1, VOCABULARY, (examples, width), generator=generator)
    mask = (torch.arange(width)[None] < lengths[:, None]).long()
    ids = ids * mask
    if architecture.endswith("SequenceClassification"):
        labels = torch.arange(examples) % 3
    elif architecture in CAUSAL:
        labels = ids.masked_fill(mask == 0, -100)
    else:
        told = (torch.rand(ids.shape, generator=generator) < 0.5) & (mask == 1)
        told[:, 0] = True
        labels = ids.masked_fill(~told, -100)
        ids = ids.masked_fill(told, 3)
    rows = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    fills = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    wide = {k: F.pad(v, (0, padding), value=fills[k]) if v.dim() == 2 else v for k, v in rows.items()}
    return [{k: v[:4] for k, v in wide.items()}, {k: v[4:] for k, v in wide.items()}]


class Reference:
    """L over all batches written out: the mean over the labels that count, in float64, by eager attention.

    Args:
        model: of transformers; copied.
        data: batches with labels.
        names: of the parameters that make up w; default all that are trainable, each shared one once.
    """

    def __init__(self, model, data, names=None):
        self.model = copy.deepcopy(model).double().eval()
        base = getattr(self.model, "get_base_model", lambda: self.model)()
        if hasattr(base, "set_attn_implementation"):  # releases before 4.52 settle it when they build
            base.set_attn_implementation("eager")
        architecture = type(getattr(model, "get_base_model", lambda: model)()).__name__
        self.causal, self.data = architecture in CAUSAL, data
        self.named = {n: p for n, p in self.model.named_parameters() if p.requires_grad and (not names or n in names)}
        self.weights = torch.cat([p.detach().reshape(-1) for p in self.named.values()])

    def __call__(self):
        """L, in the graph of the weights."""
        total, count = 0.0, 0
        for batch in self.data:
            inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch.items() if k != "labels"}
            logits, labels = self.model(**inputs).logits, batch["labels"]
            if self.causal:
                logits, labels = logits[:, :-1], labels[:, 1:]
            total = total + F.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=-100, reduction="sum"
            )
            count += int((labels != -100).sum())
        return total / count

    def loss(self, w=None):
        """L at w, or at the model's weights."""
        self._write(self.weights if w is None else w)
        with torch.no_grad():
            value = float(self())
        self._write(self.weights)
        return value

    def _write(self, w):
        pieces = w.split([p.numel() for p in self.named.values()])
        with torch.no_grad():
            for parameter, piece in zip(self.named.values(), pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))

    def gradient(self):
        """Gradient of L at the model's weights."""
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(self(), list(self.named.values()))])

    def hvp(self, v):
        """Hessian times v at the model's weights."""
        weights = list(self.named.values())
        first = torch.autograd.grad(self(), weights, create_graph=True)
        dot = sum((g * p.view_as(g)).sum() for g, p in zip(first, v.split([w.numel() for w in weights]), strict=True))
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(dot, weights)])

    def largest(self, k=1):
        """The k largest eigenvalues of the Hessian by ARPACK."""
        d = len(self.weights)
        product = LinearOperator(
            (d, d), matvec=lambda v: self.hvp(torch.from_numpy(v.reshape(-1))).numpy(), dtype=float
        )
        start = np.random.default_rng(0).standard_normal(d)
        return sorted(eigsh(product, k=k, which="LA", tol=1e-10, v0=start)[0].tolist(), reverse=True)

    def sam_sharpness(self, rho=0.05):
        """L(w + rho g / ||g||) - L(w)."""
        g = self.gradient()
        return self.loss(self.weights + rho * g / g.norm()) - self.loss()


def close(value, right, rtol=1e-8, atol=1e-12):
    """Whether a number, a list or a tensor is what it should be."""
    value, right = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (value, right))
    torch.testing.assert_close(value, right, rtol=rtol, atol=atol)


def rounding(architecture):
    """What is left of float64: transformers computes some losses, and Llama's norms, in float32."""
    return 1e-6 if architecture in (*CAUSAL, "ViTForImageClassification") else 1e-8


def run(capsys, *arguments):
    """What a command prints as JSON."""
    capsys.readouterr()
    status = cli.run([str(a) for a in arguments] + ["--json", "--quiet"])
    said = capsys.readouterr()
    assert status == 0, said.err
    return json.loads(said.out)


def failed(capsys, *arguments):
    """The last line on stderr of a command that refuses its input."""
    assert cli.run([str(a) for a in arguments]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


TEXT = "the cat sat on the mat and the dog ran to the house while birds sang in a tree near old stone walls"
WORDS = f"{TEXT} rain fell slowly over green fields".split()


def tokenizer(folder, kind="bert"):
    """A word-level tokenizer in the folder: for BERT with its special tokens, for GPT-2 without any but the end's."""
    tokenizers = pytest.importorskip("tokenizers", reason=REASON)
    transformers = pytest.importorskip("transformers", reason=REASON)
    special = ["[PAD]", "[UNK]", "[CLS]", "[MASK]", "[SEP]"] if kind == "bert" else ["<|end|>"]
    names = [*special, *dict.fromkeys(WORDS)][:VOCABULARY]
    unknown = special[1] if kind == "bert" else special[0]
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({n: i for i, n in enumerate(names)}, unk_token=unknown))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    roles = {"unk_token": unknown}
    if kind == "bert":
        made.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 4)]
        )
        roles |= {"pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]", "sep_token": "[SEP]"}
    else:
        roles |= {"eos_token": "<|end|>"}
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **roles)
    whole.save_pretrained(folder)
    return whole


def sentences(count=12):
    """Sentences of 1 to 9 words with a class each."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=1 + i % 9)) for i in range(count)]
    return {"text": texts, "label": [i % 3 for i in range(count)]}
