.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RTX_STAMP := $(VENV)/.rtx
EXTRAS_STAMP := $(VENV)/.extras
# On all cores, up to four: each process takes up to 2 GB. The tests of a file share what they build.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile
# The extras whose packages requirements.txt pins, and those of requirements-extras.txt.
PINNED := keras classic custom lab dev
PINNED_EXTRAS := torch routes modelopt
UV ?= uv
# The Python of the GPU tests: a machine with a GPU may bring its own CUDA packages.
GPU_PYTHON ?= $(BIN)/python
# The first Python here that the project supports; python3 where there is none, and the set-up then says so.
PYTHON ?= $(shell for name in python3.12 python3.11 python3.13 python3 python; do \
	"$$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1 \
	&& { echo "$$name"; exit; }; done; echo python3)

.PHONY: help demo test test-extras test-gpu faults mutants rtx extras lab lint notebooks bench pins clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## Convert two networks and show both answers side by side (ARGS="--images DIR" for your pictures)
	@$(BIN)/workbench demo $(ARGS)

test: $(STAMP) ## Run the tests; with TensorRT-RTX (make rtx), and in CI, also fail below 90 % coverage
	@[ -e $(RTX_STAMP) ] || echo "no TensorRT-RTX (make rtx): the tests that build engines are skipped, coverage is not judged"
	$(BIN)/python -m pytest $(PARALLEL) $(if $(CI)$(wildcard $(RTX_STAMP)),--cov) --durations=10 $(ARGS)

test-extras: $(EXTRAS_STAMP) $(RTX_STAMP) ## Run the matrix of networks and exporters (installs PyTorch, ncnn, TVM, Model Optimizer and TensorRT-RTX)
	$(BIN)/python -m pytest $(PARALLEL) --durations=10 tests/extras tests/faults/test_torch_files.py $(ARGS)

faults: $(STAMP) ## Try every generated hostile and damaged file (make test tries a part of them)
	WORKBENCH_FAULTS=long $(BIN)/python -m pytest $(PARALLEL) --durations=10 tests/faults $(ARGS)

mutants: $(EXTRAS_STAMP) $(RTX_STAMP) ## Plant known bugs one at a time and see that the tests find them (ARGS="--sample 20")
	$(BIN)/python scripts/mutants.py $(ARGS)

extras: $(EXTRAS_STAMP) ## Also install PyTorch, ncnn and TVM, for the PyTorch cells of notebook 04

rtx: $(RTX_STAMP) ## Also install TensorRT-RTX, which builds engines without a GPU (under NVIDIA's own licence)

test-gpu: $(if $(filter $(BIN)/python,$(GPU_PYTHON)),$(STAMP)) ## Run the tests that need an NVIDIA GPU and record them (GPU_PYTHON=python3 for another environment)
	@$(GPU_PYTHON) scripts/record_gpu_run.py $(ARGS)

lab: $(STAMP) ## Open the notebooks in JupyterLab, on this machine only
	$(BIN)/jupyter lab --ip=127.0.0.1 $$([ "$$(id -u)" != 0 ] || echo --allow-root) notebooks/00_start_here.ipynb

lint: $(STAMP) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(STAMP) ## Run every notebook and compare its marked outputs
	WORKBENCH_RESNET50_WEIGHTS=random $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
		--nbval-sanitize-with=notebooks/nbval_sanitize.cfg --durations=5 notebooks/*.ipynb

bench: $(STAMP) ## Run every benchmark
	@for script in benchmarks/[!_]*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

pins: ## Resolve requirements.txt again after a change in pyproject.toml (needs uv; ARGS=--upgrade for newer versions)
	$(UV) pip compile pyproject.toml --universal --python-version 3.11 $(PINNED:%=--extra %) \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements.txt $(ARGS)
	$(UV) pip compile pyproject.toml --universal --python-version 3.11 --extra rtx --constraint requirements.txt \
		--no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file requirements-rtx.txt $(ARGS)
	$(UV) pip compile pyproject.toml --universal --python-version 3.11 $(PINNED_EXTRAS:%=--extra %) \
		--constraint requirements.txt --no-header --no-annotate --no-emit-index-url --no-emit-find-links $(ARGS) \
		| grep -vE '^(nvidia-(cu|nc|nv)|cuda-|triton)' > requirements-extras.txt

clean: ## Remove the environment and all caches
	rm -rf $(VENV) build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.txt pyproject.toml
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo "no Python was found (looked for $(PYTHON)); install Python 3.11, 3.12 or 3.13" >&2; exit 1; }
	@"$(PYTHON)" scripts/setup_environment.py $(VENV)

# The second call adds what this build of PyTorch needs: gigabytes for its CUDA builds, nothing for those for the CPU.
$(EXTRAS_STAMP): $(STAMP) requirements-extras.txt
	@$(BIN)/python -m pip install --quiet --no-deps --disable-pip-version-check -r requirements-extras.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' requirements-extras.txt)
	@touch $@

$(RTX_STAMP): $(STAMP) requirements-rtx.txt
	@$(BIN)/python -m pip install --quiet --no-deps --disable-pip-version-check -r requirements-rtx.txt
	@touch $@
