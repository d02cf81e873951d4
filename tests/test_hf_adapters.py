"""Adapters of peft alone and merged into the weights below them, beside float64 autograd written out."""

import json
import math
import shutil

import pytest
import torch
from hf_cases import REASON, Reference, batches, close, failed, network, rounding, run, saved
from torch import nn

import landscape
from landscape.errors import InputError
from landscape.random import stream
from trainers import METHODS, Context, Task

pytest.importorskip("transformers", reason=REASON)
peft = pytest.importorskip("peft", reason=REASON)
pytestmark = [pytest.mark.hf, pytest.mark.filterwarnings("ignore::UserWarning:peft")]
GPT, BERT = "GPT2LMHeadModel", "BertForSequenceClassification"
TARGETS = {GPT: ["c_attn", "c_fc"], BERT: ["query", "value"]}


def lora(architecture, **changes):
    task = "SEQ_CLS" if architecture == BERT else "CAUSAL_LM"
    fan = architecture == GPT
    options = {"r": 2, "lora_alpha": 8, "target_modules": TARGETS[architecture], "task_type": task}
    return peft.LoraConfig(**{**options, "fan_in_fan_out": fan, **changes})


KINDS = {
    "lora": (GPT, lambda: lora(GPT)),
    "lora with a trained head": (BERT, lambda: lora(BERT, bias="lora_only")),
    "rank-stabilized": (GPT, lambda: lora(GPT, use_rslora=True)),
    "dora": (BERT, lambda: lora(BERT, use_dora=True)),
    "embeddings": (BERT, lambda: lora(BERT, target_modules=["word_embeddings", "query"])),
    "the tied head": (GPT, lambda: lora(GPT, target_modules=["lm_head"], fan_in_fan_out=False)),
    "ia3": (
        BERT,
        lambda: peft.IA3Config(
            task_type="SEQ_CLS", target_modules=["key", "output.dense"], feedforward_modules=["output.dense"]
        ),
    ),
    "loha": (BERT, lambda: peft.LoHaConfig(r=2, target_modules=["query"])),
    "lokr": (BERT, lambda: peft.LoKrConfig(r=2, target_modules=["query"])),
    "oft": (BERT, lambda: peft.OFTConfig(oft_block_size=4, target_modules=["query"])),
    "vera": (BERT, lambda: peft.VeraConfig(r=2, target_modules=["query"])),
}


def trained(kind, tmp_path):
    """A base and its adapter in folders, the adapted network in memory, its architecture."""
    architecture, make = KINDS[kind]
    base = saved(network(architecture), tmp_path / "base")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = peft.get_peft_model(network(architecture), make())
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "adapter")
    return base, tmp_path / "adapter", model.eval(), architecture


def problem_of(folder, base, architecture, **options):
    return landscape.problem_from(
        folder,
        model=f"hf:{base}",
        data=lambda: batches(architecture),
        loss="own",
        dtype="float64",
        device="cpu",
        **options,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_alone_and_merged(kind, tmp_path):
    base, folder, model, architecture = trained(kind, tmp_path)
    right = Reference(model, batches(architecture))
    alone = problem_of(folder, base, architecture)
    assert alone.parameters.names == tuple(n for n, p in model.named_parameters() if p.requires_grad)
    close(alone.loss(), right.loss(), rtol=1e-6)  # peft merges and trains in the float32 of the files
    true = right.gradient()
    close(alone.gradient(), true, rtol=1e-6, atol=1e-6 * float(true.abs().max()))
    merged = problem_of(folder, base, architecture, adapter="merged")
    close(merged.loss(), alone.loss(), rtol=rounding(architecture))
    whole = network(architecture)
    tied = architecture == GPT and kind == "the tied head"
    assert merged.dimension == sum(p.numel() for p in whole.parameters()) + (24 * 8 if tied else 0)
    assert not any("lora" in n or "base_layer" in n for n in merged.parameters.names)


def test_the_merged_weights_are_those_of_the_formula(tmp_path):
    """W + (alpha / r) B A; GPT-2's Conv1D holds the transpose."""
    base, folder, model, architecture = trained("lora", tmp_path)
    merged = problem_of(folder, base, architecture, adapter="merged")
    held, plain = dict(merged.model.named_parameters()), dict(network(architecture).named_parameters())
    lora_ = {n.removeprefix("base_model.model."): p.double() for n, p in model.named_parameters() if "lora_" in n}
    for name, weight in plain.items():
        module = name.removesuffix(".weight")
        right = weight.double()
        if f"{module}.lora_A.default.weight" in lora_:
            a, b = (lora_[f"{module}.lora_{x}.default.weight"] for x in "AB")
            right = right + 4 * (b @ a).T
        close(held[name], right, rtol=1e-6)


def test_one_command_shows_both(tmp_path, capsys, monkeypatch):
    base, folder, model, architecture = trained("lora", tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "its_lora_data.py").write_text(
        f"from hf_cases import batches as made\n\ndef batches():\n    return made({architecture!r})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    common = ["--model", f"hf:{base}", "--data", "its_lora_data:batches", "--loss", "own", "--dtype", "float64"]
    measures = ["--measure", "sam_sharpness", "--measure", "hessian_top_eigenvalues:tol=1e-8", "-k", 1, "--grid", 3]
    both = run(capsys, "analyze", folder, *common, *measures, "--device", "cpu")["checkpoints"]
    assert [c["label"] for c in both] == ["adapter (adapter alone)", "adapter (merged weights)"]
    alone = Reference(model, batches(architecture))
    whole = Reference(problem_of(folder, base, architecture, adapter="merged").model, batches(architecture))
    for seen, right in zip(both, (alone, whole), strict=True):
        assert seen["parameters"] == len(right.weights)
        close(seen["loss"], right.loss(), rtol=1e-6)
        measured = seen["measures"]
        close(measured["hessian_top_eigenvalues"]["values"], right.largest(1), rtol=1e-5)
        close(measured["sam_sharpness"]["value"], right.sam_sharpness(), rtol=1e-4)
    sharp = [c["measures"]["hessian_top_eigenvalues"]["values"][0] for c in both]
    assert sharp[0] != pytest.approx(sharp[1], rel=0.1)
    text = (tmp_path / "analysis" / "report.html").read_text()
    assert "adapter (adapter alone)" in text
    assert "adapter (merged weights)" in text
    (one,) = run(capsys, "analyze", folder, *common, *measures, "--adapter", "merged", "--out", "one")["checkpoints"]
    assert one["label"] == "adapter (merged weights)"
    close(one["loss"], both[1]["loss"])
    run(capsys, "surface", folder, *common, "--grid", 3, "--adapter", "merged", "--out", "surface")
    seen = run(capsys, "invariance", folder, *common[:-2], "--transforms", 2, "--steps", 1, "--out", "invariance")
    assert seen["outputs"]["max_relative_change"] < 1e-9


def test_the_base_by_a_callable(tmp_path):
    _, folder, model, architecture = trained("lora", tmp_path)
    for make in (lambda: network(architecture), network(architecture)):
        problem = landscape.problem_from(
            folder, model=make, data=lambda: batches(architecture), loss="own", dtype="float64", device="cpu"
        )
        close(problem.loss(), Reference(model, batches(architecture)).loss(), rtol=1e-6)


def test_what_is_missing_is_said(tmp_path, capsys):
    base, folder, _, architecture = trained("lora", tmp_path)
    said = failed(capsys, "analyze", folder)
    assert "is an adapter: say which network it was trained over, --model hf:FOLDER" in said
    said = failed(capsys, "analyze", folder, "--model", "mlp:hidden=4", "--data", "digits")
    assert "--model names a network without weights" in said
    other = saved(network(BERT), tmp_path / "other")
    said = failed(capsys, "analyze", folder, "--model", f"hf:{other}", "--data", "hf_cases:batches")
    assert "peft cannot put this adapter into the network of --model" in said
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "adapter_model.safetensors", alone)
    said = failed(capsys, "analyze", alone, "--model", f"hf:{base}", "--data", "hf_cases:batches")
    assert "no adapter_config.json lies beside it" in said
    with pytest.raises(InputError, match="holds no adapter of peft"):
        problem_of(base, base, architecture, adapter="merged")
    with pytest.raises(InputError, match="alone or merged"):
        problem_of(folder, base, architecture, adapter="both")


def test_a_deeper_rank_in_the_configuration_is_refused(tmp_path):
    base, folder, _, architecture = trained("lora", tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 3}))
    with pytest.raises(InputError, match="peft cannot put this adapter"):
        problem_of(folder, base, architecture)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["c_attn"]}))
    with pytest.raises(InputError, match=r"does not fit the network.*no place for"):
        problem_of(folder, base, architecture)
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": [*TARGETS[GPT], "c_proj"]}))
    with pytest.raises(InputError, match=r"does not fit the network.*lacks"):
        problem_of(folder, base, architecture)


def test_a_prompt_is_refused(tmp_path):
    base = saved(network(GPT), tmp_path / "base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(network(GPT), config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(InputError, match=r"is a learned prompt \(PROMPT_TUNING\)"):
        problem_of(tmp_path / "prompt", base, GPT)


def test_flat_alone_may_be_sharp_merged():
    """The case that the two numbers are for: B = 0, as every adapter begins, sees none of the curvature along A."""
    torch.manual_seed(0)
    inner = nn.Linear(3, 2, bias=False).double()
    x, y = torch.randn(20, 3).double() * 5, torch.randn(20, 2).double()
    model = peft.get_peft_model(nn.Sequential(inner), peft.LoraConfig(r=1, lora_alpha=0.01, target_modules=["0"]))
    alone = landscape.Problem(model.double(), nn.MSELoss(), [(x, y)])
    merged = landscape.Problem(model.merge_and_unload().requires_grad_(True), nn.MSELoss(), [(x, y)])
    small, large = (float(landscape.top_eigenvalues(p, k=1).values[0]) for p in (alone, merged))
    assert small < 1e-3 * large


@pytest.mark.parametrize("kind", ["lora", "rank-stabilized", "lora with a trained head"])
def test_flat_lora_perturbs_the_weights_below_peft_s_layers(kind):
    """Noise of every merged weight by its rows: the outputs' rows, which GPT-2's transposed weights hold as columns."""
    architecture, make = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = peft.get_peft_model(network(architecture), make()).double().eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.add_(0.2 * torch.randn_like(weight))
    layers = [m for m in model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    before = [layer.base_layer.weight.detach().clone() for layer in layers]
    generator, progress = stream(4, "flat-lora:2"), 0.5
    expected = []
    for layer, base in zip(layers, before, strict=True):
        weights = base + layer.get_delta_weight("default").detach()
        axis = 0 if architecture == GPT else 1  # of the inputs
        rows = weights.norm(dim=axis, keepdim=True) / weights.shape[axis] ** 0.5
        z = torch.randn(base.shape, generator=generator, dtype=torch.float64)
        expected.append(base + 0.3 * (1 - math.cos(progress * math.pi)) / 2 * rows * z)
    seen = []
    handle = model.register_forward_pre_hook(lambda *_: seen.extend(m.base_layer.weight.clone() for m in layers))
    task = Task(model, None)
    METHODS["flat-lora"](rho=0.3).gradient(
        task.step(batches(architecture)[0], Context(step=2, progress=progress, seed=4)), {}
    )
    handle.remove()
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(a, m.base_layer.weight) for a, m in zip(before, layers, strict=True))
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
