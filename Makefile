# Needs Python >= 3.11, make and git. Everything else is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CODE := regtrain service worker tests docs benchmarks
.DEFAULT_GOAL := help
.PHONY: help setup demo up test check docs bench bench-gpu results sequences claim faults clean

help: ## what there is to make
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

setup: $(STAMP) ## install everything into .venv; done again only when pyproject.toml or constraints.txt change

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "regtrain needs Python >= 3.11; $$($(PYTHON) --version) was found. Say which one: make setup PYTHON=python3.12"; exit 1; }
	@echo "Installing into $(VENV) (torch is large: the first time takes some minutes) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)
	@echo "Installed."

demo: setup ## start a server and a worker, train article 004 on digits, show its curves and gradients, stop
	@$(BIN)/regtrain demo

up: setup ## start a server and a worker that stay, on http://127.0.0.1:8321
	@$(BIN)/regtrain up

test: setup ## all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

check: setup ## formatting, lint, types, import rules, generated docs
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python docs/reference.py --check
	$(BIN)/python docs/results.py --check
	$(BIN)/python docs/claim.py --check
	$(BIN)/python docs/fault_bench.py --check

docs: setup ## write docs/reference.md from the catalogue
	$(BIN)/python docs/reference.py

bench: setup ## all benchmarks that need no GPU; each writes to benchmarks/results/
	@for name in one_job runs recurrent diagnostics selection folds path series submit; do \
		echo "== $$name"; OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/$$name.py || exit 1; done

bench-gpu: PYTHON_HERE = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
bench-gpu: ## the checks that need a GPU (torch, numpy and pydantic are enough); says so where there is none
	@if $(PYTHON_HERE) -c 'import torch, numpy, pydantic' 2>/dev/null; then PYTHONPATH=. $(PYTHON_HERE) benchmarks/gpu.py; \
		else echo "bench-gpu: $(PYTHON_HERE) has no torch, numpy or pydantic: nothing was measured (make setup installs them)"; fi

results: setup ## train on MNIST, which you bring (REGTRAIN_DATA=folder with mnist/ in it), and write docs/results.md: a quarter of an hour
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/mnist.py
	$(BIN)/python docs/results.py

sequences: setup ## train recurrent nets with plain SGD, a clip, a clip and Ω, and write docs/results.md: at most eight minutes on a quiet core
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/sequences.py
	$(BIN)/python docs/results.py

claim: setup ## train 1,770 deep and recurrent nets and write docs/does-regularization-fix-gradients.md: ten minutes
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python benchmarks/claim.py
	$(BIN)/python docs/claim.py

faults: setup ## break 840 nets in known ways, train 665 sound ones beside them, try remedies, and write docs/fault-bench.md: three quarters of an hour on two cores
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -m benchmarks.faults
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(BIN)/python -m benchmarks.faults.repair
	$(BIN)/python docs/fault_bench.py

clean: ## remove everything that was generated
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
