# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: tests and workers run side by side.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
# Byte code is kept even where Python is told not to: pytest rewrites every test, and hundreds of processes are started.
BYTE_CODE := PYTHONDONTWRITEBYTECODE=
# One process more than there are cores: tests of SLURM and of hosts wait most of the time.
TEST_PROCESSES ?= $(shell expr $$(nproc) + 1)
DEMO_DIR ?= m2dprep-demo

# The Python that has the CUDA build of torch, the time for all parts of `make gpu`, and where its results go.
GPU_PYTHON ?= python3
MINUTES ?= 8
OUT ?= benchmarks/results/gpu

.PHONY: help install demo check test lint bench gpu gpu-wheels clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: $(VENV)/.installed  ## .venv with pinned versions

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,demo,viz]"
	touch $@

demo: install  ## every stage on a small synthetic AudioSet-like set, in $(DEMO_DIR)
	$(BIN)/m2dprep demo --output $(DEMO_DIR) $(DEMO_FLAGS)

check: lint  ## lint, types and the quick tests, while you work
	$(ONE_THREAD) $(BYTE_CODE) $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" $(TESTS)

test: lint  ## lint and the whole test suite, in parallel
	$(ONE_THREAD) $(BYTE_CODE) $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal $(TESTS)

lint: install  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install  ## every benchmark of benchmarks/, one after another
	@set -e; for script in $$(ls benchmarks/[!_]*.py | grep -v gpu); do echo "== $$script"; $(BIN)/python $$script; done

gpu:  ## everything that is claimed of a GPU, in MINUTES=8, with GPU_PYTHON=python3; results in OUT
	$(GPU_PYTHON) benchmarks/gpu.py --minutes $(MINUTES) --output $(OUT) $(GPU_FLAGS)

gpu-wheels: install  ## what a GPU machine without a network lacks, into .gpu-wheels
	$(BIN)/python benchmarks/gpu_wheels.py

clean:  ## remove .venv and caches
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache *.egg-info
