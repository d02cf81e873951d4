"""`benchmarks/gpu.py`: bounded, resumable, and run end to end on this CPU before it meets a GPU."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    return gpu


@pytest.fixture
def session(gpu, tmp_path):
    def make(seconds=60.0, again=()):
        end = time.monotonic() + seconds
        return gpu.Session(tmp_path / "gpu.json", gpu.FULL, torch.device("cpu"), end, list(again))

    return make


def recorded(tmp_path):
    return json.loads((tmp_path / "gpu.json").read_text())


def test_what_is_measured_is_on_disk_and_not_measured_again(gpu, session, tmp_path):
    calls = []

    def work(value):
        return gpu.Work("b/one", 1.0, lambda limit: calls.append(limit) or {"rows": [[value]]})

    session().do(work(1))
    assert recorded(tmp_path)["items"]["b/one"]["rows"] == [[1]]
    session().do(work(2))
    session(again=["a/*"]).do(work(2))
    assert len(calls) == 1
    session(again=["b/*"]).do(work(3))
    assert recorded(tmp_path)["items"]["b/one"]["rows"] == [[3]]
    content = recorded(tmp_path)
    content["items"]["b/one"]["machine"] = "another"
    del content["checksum"]
    (tmp_path / "gpu.json").write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="no checksum"):
        session().do(work(4))
    assert recorded(tmp_path)["items"]["b/one"]["rows"] == [[4]]


def test_what_does_not_fit_is_skipped_and_said(gpu, session, tmp_path):
    session(seconds=5).do(gpu.Work("b/long", 30.0, lambda limit: pytest.fail("it was run")))
    assert recorded(tmp_path)["left"]["b/long"].startswith("needs about 30 s, ")
    session(seconds=60).do(gpu.Work("b/long", 30.0, lambda limit: {"rows": []}))
    assert recorded(tmp_path)["left"] == {}


def test_work_that_keeps_its_files_is_begun_where_no_call_is_long_enough(gpu, session, tmp_path):
    begun = []

    def work(seconds, done=lambda: False):
        return gpu.Work("c/run", seconds, lambda limit: begun.append(limit) or {}, done)

    session(seconds=60).do(work(3600.0))
    assert len(begun) == 1
    late = session(seconds=60)
    late.end -= 30
    late.do(work(45.0))  # fits the next call
    assert len(begun) == 1
    assert "c/run" in recorded(tmp_path)["left"]
    late.content["items"]["c/run"] = {"error": "stopped"}
    late.do(work(45.0, lambda: True))
    assert "c/run" not in late.content["items"]


def test_a_failure_is_recorded_and_tried_again(gpu, session, tmp_path):
    def fails(limit):
        raise RuntimeError("CUDA error: no kernel\nmore")

    session().do(gpu.Work("b/bad", 1.0, fails))
    entry = recorded(tmp_path)["items"]["b/bad"]
    assert entry["error"] == "RuntimeError: CUDA error: no kernel"
    assert "in fails" in entry["traceback"]
    session().do(gpu.Work("b/bad", 1.0, lambda limit: {"rows": [[1]]}))
    assert "error" not in recorded(tmp_path)["items"]["b/bad"]


def test_an_item_is_stopped_when_its_time_is_over(gpu, session, tmp_path):
    def hangs(limit):
        try:
            time.sleep(30)
        except Exception:
            pytest.fail("the end of the time is no error of the item's")

    start = time.monotonic()
    session(seconds=0.5).do(gpu.Work("b/hangs", 0.1, hangs))
    assert time.monotonic() - start < 10
    assert recorded(tmp_path)["items"]["b/hangs"]["error"].startswith("stopped after ")


def test_tables_take_their_place_in_a_page(gpu, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"# Performance\n\n{gpu.page.BEGIN}\nold\n{gpu.page.END}\n\nafter\n")
    content = {
        "items": {
            "a/tests": {"machine": "m", "sizes": "full", "summary": "== 3 passed, 1 failed ==", "failed": ["FAILED x"]},
            "b/surface": {"machine": "m", "sizes": "full", "header": ["arm"], "rows": [["ours"], [None]]},
            "b/llama": {"machine": "m", "sizes": "full", "error": "OutOfMemoryError: CUDA out of memory"},
            "c/speed": {"machine": "m", "sizes": "full", "images_per_second": 40960.4},
            "c/studies": {"machine": "m", "sizes": "full", "header": ["method"], "rows": [["sam"]]},
            "c/figures": {"machine": "m", "sizes": "full", "drawn": {"rst-table": 2}, "failed": {"saf-fig4": "why"}},
        },
        "left": {"b/gpt2": "needs about 45 s, 3 s were left"},
    }
    for _ in range(2):
        gpu.page.put(page, gpu.page.text(content))
    text = page.read_text()
    assert text.startswith("# Performance\n\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "3 passed, 1 failed.\n* FAILED x\n" in text
    assert "| arm |\n| --- |\n| ours |\n| - |" in text
    assert "Not measured: OutOfMemoryError: CUDA out of memory" in text
    assert "Not measured: needs about 45 s, 3 s were left." in text
    assert "SGD on this machine: 40,960 images/s.\n\n| method |\n| --- |\n| sam |\n" in text
    assert "complete so far: rst-table (seeds: 2).\n\n* saf-fig4 was not drawn: why\n" in text
    assert text.count("Not measured.") == len(gpu.ITEMS) - 3


def test_the_page_of_the_documentation_is_what_the_benchmark_writes(gpu):
    text = (ROOT / "docs" / "performance.md").read_text()
    body = text.partition(gpu.page.BEGIN)[2].partition(gpu.page.END)[0]
    for item in gpu.ITEMS.values():
        assert gpu.page.head(item) in body


def test_a_door_for_machines_without_an_environment(tmp_path):
    """`make gpu` takes a Python that sees a CUDA device, and says what is missing where none does."""
    if torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    command = ["make", "gpu", f"PYTHON={sys.executable}", f"OUT={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"no torch that sees a CUDA device in: .venv/bin/python {sys.executable}" in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def studies(gpu, tmp_path):
    def make(folder="work", sizes=gpu.TINY):
        return gpu.Studies(tmp_path / folder, tmp_path / "studies.tar.gz", sizes, torch.device("cpu"), str(tmp_path))

    return make


def test_the_studies_begin_with_what_tells_most(gpu, studies):
    from figures import FIGURES
    from figures.study.tasks import Computation, needed

    of = studies(sizes=gpu.FULL)
    first = [piece.training for piece in of.pieces[:5]]
    assert [t.method for t in first] == ["sgd", "sam", "asam", "saf", "k-sam"]
    assert {t.settings["seed"] for t in first} == {0}
    assert {(t.settings["data"], t.settings["model"]) for t in first} == {("fashion-mnist", "resnet18")}
    seeds = [piece.training.settings["seed"] for piece in of.pieces if piece.training]
    assert seeds == sorted(seeds)
    assert max(seeds) == 4
    names = [task.name for piece in of.pieces for task in piece.tasks]
    assert len(names) == len(set(names))
    plans = [task for name in of.sizes.figures for task in FIGURES[name]().plan(of.whole)]
    assert {t.name for t in (*plans, *(t for c in plans for t in needed(c)))} <= set(names)
    assert first[-1].name in {t.name for t in FIGURES["ksam-tradeoff"]().plan(of.whole)}
    for piece in of.pieces:  # nothing waits for the weights of another piece
        for task in piece.tasks[1:]:
            assert isinstance(task, Computation)
            assert task.trainings == (piece.tasks[0],)


def test_fashion_mnist_is_asked_for(gpu, studies, session, tmp_path):
    gpu.train_studies(session(), studies(sizes=gpu.FULL))
    assert "Fashion-MNIST is not in " in recorded(tmp_path)["left"]["c/studies"]


def test_numbers_travel_without_weights(studies):
    here, there = studies("here"), studies("there")
    piece, other = here.pieces[:2]
    here.do(piece)
    here.whole.run(other.tasks[:1])  # its training alone: what is to be computed on it needs the weights
    here.pack()
    there.unpack()
    assert there.done(piece)
    assert not there.whole.done(other.tasks[0])
    assert not list(there.folder.rglob("*.pt"))
    assert there.rows() == here.rows()
    assert [row[:3] for row in there.rows()] == [["digits", "sgd", 1]]


def test_a_training_whose_weights_are_elsewhere_is_trained_anew(studies):
    here, there = studies("here"), studies("there")
    piece = here.pieces[0]
    here.do(piece)
    here.pack()
    there.unpack()
    lost = there.whole.path(piece.tasks[1])
    lost.unlink()
    assert not there.done(piece)
    before = there.expected(piece, {})
    there.do(piece)
    assert there.done(piece)
    kept = here.whole.result(piece.tasks[1])
    assert kept
    for name, values in there.whole.result(piece.tasks[1]).items():
        assert (values == kept[name]).all()
    assert there.expected(piece, {}) < before
    assert there.expected(there.pieces[1], {"epoch_seconds": 50.0}) > 200  # two epochs of SAM


def test_figures_take_the_seeds_that_are_complete(gpu, studies, monkeypatch):
    import dataclasses

    from figures import FIGURES

    of = studies(sizes=dataclasses.replace(gpu.TINY, seeds=2, figures=("rst-table", "saf-fig4")))
    for seeds in (1, 2):
        study = of.study(seeds)
        study.run(list(FIGURES["rst-table"]().plan(study)))
        assert of.figures() == {"drawn": {"rst-table": seeds}, "failed": {}}
        verdicts = json.loads((of.folder / "figures" / "rst-table-verdict.json").read_text())
        assert verdicts["facts"]["seeds"] == seeds
        assert {claim["verdict"] for claim in verdicts["claims"]} == {"undecided"}
    monkeypatch.setattr(FIGURES["rst-table"], "judge", lambda self, numbers: 1 / 0)
    (of.folder / "figures" / "rst-table-verdict.json").unlink()
    assert of.figures()["failed"] == {"rst-table": "ZeroDivisionError: division by zero"}


def test_language_models_have_the_shapes_that_they_are_named_after(gpu):
    from language import GPT, Llama

    with torch.device("meta"):
        sizes = [sum(p.numel() for p in model.parameters()) for model in (GPT(), Llama())]
    assert sizes == [124_439_808, 1_235_814_400]  # GPT-2 small, Llama 3.2 1B


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_token_sees_none_that_comes_later(gpu, name):
    from language import GPT, Llama

    torch.manual_seed(0)
    model = GPT(**gpu.TINY.gpt) if name == "gpt2" else Llama(**gpu.TINY.llama)
    ids = torch.randint(0, 17, (1, 6))
    other = ids.clone()
    other[0, 4] = (ids[0, 4] + 1) % 17
    before, after = model.logits(ids), model.logits(other)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:], atol=1e-4)
    swapped = ids[:, [1, 0, *range(2, 6)]]
    assert not torch.allclose(model.logits(swapped)[:, 5], before[:, 5], atol=1e-6)  # positions count


@pytest.mark.slow
def test_the_figures_of_the_preset_gpu_are_made(gpu, tmp_path):
    from figures.study.figure import make
    from figures.study.study import Study

    study = Study(tmp_path / "study", "gpu-smoke", seeds=1, data_dir=str(tmp_path))
    make(gpu.FULL.figures, study, tmp_path)
    assert {p.stem for p in tmp_path.glob("*.png")} == set(gpu.FULL.figures)


@pytest.mark.slow
def test_everything_runs_at_tiny_sizes(gpu, tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny", "--minutes", "9", "--out", tmp_path]
    command += ["--work", tmp_path / "work"]
    run = {"capture_output": True, "text": True, "check": False, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    done = subprocess.run(command, **run)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    items = recorded(tmp_path)["items"]
    assert set(items) >= {"a/tests", *(f"b/{name}" for name in gpu.ITEMS)}
    for name, item in gpu.ITEMS.items():
        rows = items[f"b/{name}"]["rows"]
        assert rows, name
        assert all(len(row) == len(item.header) for row in rows), name
    for name in ("products", "products of an MLP", "products of a ViT"):
        assert all(float(row[6]) < 1e-5 for row in items[f"b/{name}"]["rows"]), name  # the compiled product is ours
    assert all(float(e) < 1e-3 for row in items["b/accuracy"]["rows"] for e in row[1:])
    assert len(items["c/studies"]["rows"]) > 5
    assert items["c/figures"]["drawn"] == dict.fromkeys(gpu.TINY.figures, 1)
    assert items["c/figures"]["failed"] == {}
    assert items["c/speed"]["images_per_second"] > 0
    assert "Not measured" not in (tmp_path / "gpu.md").read_text()
    again = subprocess.run(command, **run)
    assert again.stdout.count(": measured before") == len(items) - 2  # table and figures of the studies are made anew
