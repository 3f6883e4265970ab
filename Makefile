# Everything from a bare clone. `make help` lists the targets.
PYTHON_BIN := .venv/bin/python
SHELL := /bin/bash
.PHONY: help setup libero demo test test-slow check doctor audit wheel
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: ## .venv with everything (fast when nothing changed)
	@bash scripts/setup.sh

libero: ## setup, and LIBERO's assets: 360 MB
	@bash scripts/setup.sh libero

demo: setup ## the whole loop on a CPU: demonstrations, SFT cold start, GRPO, evaluation
	@$(PYTHON_BIN) scripts/demo.py

# Two at a time, a file each: most of a recipe's start-up is waiting. Threads of two engines would only trample on each
# other, hence one each.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON_BIN) -m pytest -n 2 --dist loadfile --durations=15

test: setup ## every test but the long ones; none needs a GPU
	@$(PYTEST) -m "not long" $(ARGS)

test-slow: setup ## the long ones: series of faults, soaks, sweeps of LIBERO
	@$(PYTEST) -m long $(ARGS)

check: setup ## format, lint, spelling, types, import order
	@$(PYTHON_BIN) -m ruff format --check .
	@$(PYTHON_BIN) -m ruff check .
	@$(PYTHON_BIN) -m codespell_lib .
	@$(PYTHON_BIN) -m pyright
	@$(PYTHON_BIN) -m pytest -q tests/unit/test_layers.py

doctor: setup ## what of the stack works on this machine, and what to do where it does not
	@$(PYTHON_BIN) scripts/doctor.py

audit: setup ## outputs/audit.md: known vulnerabilities and licences of what is installed
	@$(PYTHON_BIN) scripts/audit.py

wheel: setup ## build dist/rlvla-*.whl
	@$(PYTHON_BIN) -m hatchling build -t wheel
