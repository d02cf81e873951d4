"""What methods keep between steps: outputs of SAF, average of MESA, masks of SSAM."""

from __future__ import annotations

import types

import pytest
import torch
from method_cases import Run, TrainingSet, context, flat
from oracle_network import EXAMPLES, examples
from torch import nn

from landscape.problem.batches import as_batch
from trainers import METHODS, Context, Task
from trainers.method.trajectory import divergence
from trainers.methods.ssam import fisher_diagonal


def probabilities(model, rows, tau):
    x, _ = examples()
    return torch.softmax(model(x[rows]).detach() / tau, 1)


@pytest.mark.parametrize("lag", [1, 2, 3])
def test_saf_reads_the_outputs_of_the_same_example_of_lag_epochs_ago(lag):
    """Two batches an epoch, shuffled anew: what is read is what the network said of this very example then."""
    run, seen = Run("saf", norm="layer", lag=lag, start=0.0, tau=2.0, store="full"), {}
    generator = torch.Generator().manual_seed(0)
    for epoch in range(6):
        order = torch.randperm(16, generator=generator)
        for part in order.split(8):
            values, _, known = run.method._read(run.state, part, epoch)
            assert known.tolist() == [epoch >= lag] * 8
            if epoch >= lag:
                expected = torch.stack([seen[i, epoch - lag] for i in part.tolist()])
                torch.testing.assert_close(values.exp(), expected, rtol=1e-10, atol=1e-12)
            for i, p in zip(part.tolist(), probabilities(run.model, part, 2.0), strict=True):
                seen[i, epoch] = p
            run.step(rows=part, where=context(run.t, epoch=epoch, progress=epoch / 6))


def test_saf_ignores_entries_of_another_epoch():
    """An example that was left out of the last epoch (drop_last) has no term, instead of a stale one."""
    run, plain = Run("saf", norm="layer", lag=1, start=0.0), Run("sgd", norm="layer")
    run.step(rows=range(8), where=context(0, epoch=0))
    run.step(rows=range(8, 16), where=context(1, epoch=1))
    _, _, known = run.method._read(run.state, torch.arange(16), 2)
    assert known.tolist() == [False] * 8 + [True] * 8
    plain.model.load_state_dict(run.model.state_dict())
    gradient = run.step(rows=range(8), where=context(2, epoch=2))
    torch.testing.assert_close(gradient, plain.step(rows=range(8)), rtol=1e-12, atol=1e-14)


def test_saf_in_half_precision_is_saf_to_half_precision():
    runs = [Run("saf", norm="layer", lag=1, start=0.0, store=store) for store in ("half", "full")]
    assert runs[0].state["log_probabilities"].dtype == torch.float16
    for t in range(4):
        gradients = [run.step(rows=range(8), where=context(t, epoch=t)) for run in runs]
    # float16 keeps 11 bits of each log-probability
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=2e-3 * gradients[1].norm().item())
    assert not torch.equal(*gradients)


def test_the_top_classes_bound_the_divergence_from_below():
    generator = torch.Generator().manual_seed(1)
    past, logits = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    logp = torch.log_softmax(past / 2, 1)
    full = divergence(logp, logits, 2.0)
    reference = nn.functional.kl_div(torch.log_softmax(logits / 2, 1), logp, reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(full, reference, rtol=1e-10, atol=1e-12)
    bounds = [divergence(*logp.topk(k, dim=1)[:1], logits, 2.0, logp.topk(k, dim=1).indices) for k in (1, 3, 6)]
    assert torch.all(bounds[0] <= bounds[1] + 1e-12)
    assert torch.all(bounds[1] <= bounds[2] + 1e-12)
    torch.testing.assert_close(bounds[2], full, rtol=1e-10, atol=1e-12)


def test_a_certain_past_gives_no_nan():
    past = torch.tensor([[0.0, -1e4, -1e4]], dtype=torch.float16)
    logits = torch.tensor([[30.0, -30.0, 0.0]], dtype=torch.float64, requires_grad=True)
    value = divergence(past, logits, 1.0).sum() + divergence(past[:, :1], logits, 1.0, torch.tensor([[0]])).sum()
    assert torch.isfinite(value)
    assert torch.isfinite(torch.autograd.grad(value, logits)[0]).all()


def test_saf_does_not_come_back_to_outputs_that_were_not_finite():
    run = Run("saf", norm="layer", lag=1, start=0.0)
    logits = torch.randn(3, 3, dtype=torch.float64)
    logits[1, 0] = torch.inf
    run.method._write(run.state, torch.arange(3), logits, 0)
    values, _, known = run.method._read(run.state, torch.arange(3), 1)
    assert known.tolist() == [True, False, True]
    assert torch.isfinite(values).all()
    assert torch.isfinite(run.step(rows=range(3), where=context(1, epoch=1))).all()


def test_saf_says_the_size_of_its_store():
    run = Run("saf", lag=3, store="half")
    text = run.method.announcement(run.task, context(0))
    stored = sum(t.numel() * t.element_size() for t in run.state.values())
    assert text == f"saf stores 3 outputs of {EXAMPLES} examples for 3 epochs: {stored:,} bytes on cpu"

    class Large(TrainingSet):
        examples, classes = 1_281_167, 1000

    large = Context(training_set=Large())
    assert "7.2 GiB" in run.method.announcement(run.task, large)  # 3 x 1,281,167 x (1000 x 2 + 4) bytes
    assert f"{3 * 1_281_167 * (1000 * 2 + 4) / 2**30:,.1f} GiB" in run.method.announcement(run.task, large)
    assert "64 outputs" in METHODS["saf"](top=64).announcement(run.task, large)


def test_saf_in_groups_stores_every_group():
    run = Run("saf", norm="layer", lag=1, start=0.0, group_size=3)
    run.step(rows=range(8), where=context(0, epoch=0))
    assert (run.state["epoch_written"][0] == 0).tolist() == [True] * 8 + [False] * (EXAMPLES - 8)


def test_start_is_a_share_of_the_run_or_the_papers_epoch():
    for name in ("saf", "mesa"):
        options = {"lag": 1} if name == "saf" else {}
        for recipe, before, after in (
            ("scaled", {"epoch": 9, "progress": 0.29}, {"epoch": 9, "progress": 0.3}),
            ("paper", {"epoch": 4, "progress": 0.9}, {"epoch": 5, "progress": 0.1}),
        ):
            found = []
            for where in (before, after):
                run, plain = Run(name, norm="layer", recipe=recipe, **options), Run("sgd", norm="layer")
                run.step(rows=range(8), where=context(0, epoch=where["epoch"] - 1, progress=0.0))
                plain.model.load_state_dict(run.model.state_dict())
                gradient = run.step(rows=range(8), where=context(1, **where))
                found.append(torch.allclose(gradient, plain.step(rows=range(8)), rtol=1e-9, atol=1e-12))
            assert found == [True, False], (name, recipe)


def test_mesa_horizon_scales_with_the_run():
    for options, expected in (
        ({}, 1 - 1 / (4 * 50)),  # an average over 4 of 100 epochs
        ({"total": 1000}, 1 - 9 / 400),  # over 4/90 of 20 epochs
        ({"horizon": 2.0}, 1 - 1 / 100),
        ({"recipe": "paper"}, 0.9995),
        ({"decay": 0.9998}, 0.9998),
        ({"recipe": "paper", "decay": 0.9}, 0.9),
    ):
        total = options.pop("total", 5000)
        run = Run("mesa", **options)
        start, where = flat(run.model), Context(steps_per_epoch=50, total_steps=total)
        run.step(where=where)
        average = torch.cat([run.state["average"][n].reshape(-1) for n, _ in run.model.named_parameters()])
        torch.testing.assert_close(average, expected * start + (1 - expected) * flat(run.model), rtol=1e-10, atol=1e-13)
        assert f"decay {expected:.6g}" in run.method.announcement(run.task, where)


# -- SSAM ----------------------------------------------------------------------------------------------------------


def test_ssam_refreshes_every_so_many_epochs():
    for mask in ("fisher", "dynamic"):
        run, changes = Run("ssam", mask=mask, every=2), []
        for t in range(12):
            before = run.state["mask"].clone()
            run.step()
            if not torch.equal(before, run.state["mask"]):
                changes.append(t // 2)
        assert changes, mask
        assert set(changes) <= {2, 4}, mask


def test_the_fisher_mask_leaves_statistics_and_modes_alone():
    run = Run("ssam")
    buffers = {n: b.clone() for n, b in run.model.named_buffers()}
    run.model.train()
    run.model[1].eval()
    run.method.init(run.task, context(0))
    assert run.model.training
    assert not run.model[1].training
    torch.testing.assert_close(dict(run.model.named_buffers()), buffers, rtol=0, atol=0)


def test_dynamic_masks_keep_their_size_and_exchange_less_and_less():
    run, exchanged = Run("ssam", mask="dynamic", sparsity=0.4, drop=1.0), []
    for t in range(0, 20, 2):
        before = run.state["mask"].clone()
        run.step(where=context(t, steps=20))
        assert run.state["mask"].sum() == before.sum()
        exchanged.append(int((before & ~run.state["mask"]).sum()))
    assert exchanged[0] == 0
    assert exchanged[1] > exchanged[-1] >= 0
    assert exchanged[1:] == sorted(exchanged[1:], reverse=True)


class WithLoss(nn.Module):
    """A model that returns its own loss, as Hugging Face's do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x, labels):
        logits = self.layer(x)
        return types.SimpleNamespace(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def test_the_fisher_information_of_a_model_that_returns_its_loss():
    torch.manual_seed(0)
    model, x, labels = WithLoss(), torch.randn(5, 4, dtype=torch.float64), torch.arange(5) % 3
    found = fisher_diagonal(Task(model, None), as_batch({"x": x, "labels": labels}, keep_target=True))
    plain = Task(model.layer, nn.CrossEntropyLoss(reduction="none"))
    torch.testing.assert_close(found, fisher_diagonal(plain, as_batch((x, labels))))
