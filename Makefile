# Each target sets up .venv first where it is missing, and installs only when pyproject.toml changed.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready-$(shell cksum < pyproject.toml | cut -d' ' -f1)
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: practice test test-slow check

practice: $(READY)
	@test -d runs/scheme/test || { rm -rf runs/scheme; practice scheme runs/scheme; }
	practice run --config configs/practice.toml --out runs/practice

test: $(READY)
	pytest -n 2 --dist loadscope

test-slow: $(READY)
	pytest -m slow

check: $(READY)
	ruff format --check .
	ruff check .
	mypy

$(READY): pyproject.toml
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2; }
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@rm -f $(VENV)/ready-*
	@touch $(READY)
