# Each target sets up .venv first where it is missing, and installs only when pyproject.toml changed.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready-$(shell cksum < pyproject.toml | cut -d' ' -f1)
# a training in as many processes as share its batches, one thread each
PROCESSES ?= 2
SPREAD = OMP_NUM_THREADS=1 python -m torch.distributed.run --nproc_per_node $(PROCESSES) -m recognizer.cli train
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: practice test test-slow check fonts pretrain

practice: $(READY)
	@test -d runs/scheme/unlabelled || { rm -rf runs/scheme; ! test -d runs/practice || mv runs/practice runs/practice-before; \
		practice scheme runs/scheme --labelled 40 --unlabelled 1000 --test 1000; }
	practice run --config configs/practice.toml --out runs/practice

# the fonts and the run that the default reader comes from: hours on two cores; killed, it goes on where it was
fonts: $(READY)
	python benchmarks/fonts.py runs/fonts

pretrain: fonts
	test -d runs/pretrain-validation || augment synthesize --method render --charset letters+digits --length 3-7 \
		--count 1000 --size 112x32 --seed 9000000 --set 'fonts=["runs/fonts"]' --out runs/pretrain-validation
	@if test -d runs/pretrain; then $(SPREAD) --resume runs/pretrain; \
		else $(SPREAD) --config configs/pretrain.toml --out runs/pretrain; fi

test: $(READY)
	pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 20

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
