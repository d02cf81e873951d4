"""Recurrent networks, attention with padding, embeddings, batches whose first dimension is time."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from audit.networks.network import CLASSES, Fields, Network, padded, tokens


class Recurrent(nn.Module):
    def __init__(self, cell: Callable[..., nn.RNNBase], **options: bool) -> None:
        super().__init__()
        self.cell = cell(2, 2, batch_first=True, **options)
        self.out = nn.Linear(4 if options.get("bidirectional") else 2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0].mean(1))


def _recurrent(cell: Callable[..., nn.RNNBase], **options: bool) -> Network:
    return Network(Recurrent(cell, **options), lambda n: {"x": torch.randn(n, 4, 2)})


def lstm() -> Network:
    return _recurrent(nn.LSTM)


def gru() -> Network:
    return _recurrent(nn.GRU)


def rnn() -> Network:
    return _recurrent(nn.RNN, bidirectional=True)


class Encoder(nn.Module):
    """nn.TransformerEncoder over padded sequences, whose padded places reach the outputs."""

    def __init__(self, average: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(3, 1, 2, dropout=0.1, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.out, self.average = nn.Linear(3, CLASSES), average

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.encoder(x, src_key_padding_mask=mask)
        if self.average:
            keep = (~mask).to(x.dtype).unsqueeze(2)
            return self.out((x * keep).sum(1) / keep.sum(1))
        return self.out(x.mean(1))


def transformer() -> Network:
    return Network(Encoder(True), padded(3, 4), ragged="mask", part="encoder*")


def transformer_mean() -> Network:
    """The mean takes padded places in: zeros in torch's fast path, something else in the graph."""
    return Network(Encoder(False), padded(3, 4))


class Attention(nn.Module):
    """Attention of your own through torch's fused function."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal, self.inputs, self.out = causal, nn.Linear(2, 6), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (z.unsqueeze(1) for z in self.inputs(x).chunk(3, -1))
        if self.causal:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=~mask[:, None, None, :])
        keep = (~mask).to(x.dtype).unsqueeze(2)
        return self.out((mixed.squeeze(1) * keep).sum(1) / keep.sum(1))


def attention_causal() -> Network:
    return Network(Attention(True), padded(2, 4), ragged="mask")


def attention_padded() -> Network:
    return Network(Attention(False), padded(2, 4), ragged="mask")


class MultiHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(2, 2, batch_first=True), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]
        return self.out(x[:, 0])


def multi_head() -> Network:
    return Network(MultiHead(), padded(2, 4), ragged="mask")


class Bag(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embedding, self.out = layer, nn.Linear(2, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.tanh(self.embedding(ids))
        return self.out(x.mean(1) if x.dim() == 3 else x)


def embedding_bag() -> Network:
    return Network(Bag(nn.EmbeddingBag(6, 2, mode="mean")), tokens(6, 3), second=False, curved=False)


def embedding_bag_sparse() -> Network:
    return Network(Bag(nn.EmbeddingBag(6, 2, mode="sum", sparse=True)), tokens(6, 3), second=False, curved=False)


def embedding_sparse() -> Network:
    return Network(Bag(nn.Embedding(6, 2, sparse=True)), tokens(6, 3))


def embedding_padding() -> Network:
    return Network(Bag(nn.Embedding(6, 2, padding_idx=0, scale_grad_by_freq=False)), tokens(6, 3))


class TokenClasses(nn.Module):
    """A class for every place; embedding and output share their matrix. Returns (n, 6, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(CLASSES, 3), nn.Linear(3, 3)
        self.out = nn.Linear(3, CLASSES, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(F.silu(self.inner(self.embedding(ids).cumsum(1)))).transpose(1, 2)


def token_classes() -> Network:
    return Network(TokenClasses(), tokens(CLASSES, 4), outputs="places")


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRU(2, 2), nn.Linear(2, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cell(x)[0].mean(0))


def time_first() -> Network:
    def form(fields: Fields, target: Tensor) -> object:
        return fields["x"].transpose(0, 1).contiguous(), target

    return Network(
        TimeFirst(),
        lambda n: {"x": torch.randn(n, 5, 2)},
        call=lambda model, fields, target: model(fields["x"].transpose(0, 1)),
        form=form,
        sliceable=False,
    )


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.RNN(2, 2), nn.Linear(2, CLASSES)

    def forward(self, x: PackedSequence) -> Tensor:
        return self.out(pad_packed_sequence(self.cell(x)[0], batch_first=True)[0].sum(1))


def _pack(fields: Fields) -> PackedSequence:
    lengths = (~fields["mask"]).sum(1)
    return pack_padded_sequence(fields["x"], lengths, batch_first=True, enforce_sorted=False)


def packed() -> Network:
    return Network(
        Packed(),
        padded(2, 4),
        call=lambda model, fields, target: model(_pack(fields)),
        form=lambda fields, target: (_pack(fields), target),
        sliceable=False,
    )


KINDS = {
    f.__name__: f
    for f in (
        *(lstm, gru, rnn, transformer, transformer_mean, attention_causal, attention_padded, multi_head),
        *(embedding_bag, embedding_bag_sparse, embedding_sparse, embedding_padding, token_classes),
        *(time_first, packed),
    )
}
