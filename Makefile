PYTHON ?= python3
VENV := .venv
RUN := runs/first
BIN := $(VENV)/bin
OLDEST := 3, 11
VERSION := import sys; v = sys.version_info; print("%d.%d" % v[:2] if v >= ($(OLDEST)) else "old")
CHECK := import sys; v = sys.version_info; v < ($(OLDEST)) and sys.exit("mla_lm needs Python 3.11 \
or newer and $(PYTHON) is %d.%d: name another one, as make PYTHON=python3.12 train" % v[:2])
THERE := $(shell $(BIN)/python -c '$(VERSION)' 2>/dev/null)
MADE := $(shell sed -n 's/^version.* = \([0-9]*\.[0-9]*\).*/\1/p' $(VENV)/pyvenv.cfg 2>/dev/null)
ASKED := $(if $(filter file,$(origin PYTHON)),,$(shell $(PYTHON) -c '$(VERSION)' 2>/dev/null))

.PHONY: train test test-all test-gpu lint
# A .venv whose Python is too old, gone, or another than the one that is asked for is made anew.
ifneq ($(THERE),$(or $(ASKED),$(MADE),$(filter-out old,$(THERE)),none))
.PHONY: $(BIN)/python $(VENV)/.train $(VENV)/.dev
endif

train: $(VENV)/.train
	$(BIN)/python train.py experiment=five_minutes run_dir=$(RUN) resume=auto
	$(BIN)/python eval.py ckpt=$(RUN)
	$(BIN)/python -m mla_lm generate ckpt=$(RUN) prompt="def "
	@echo
	@echo "Your model is in $(RUN). Next:"
	@echo "  $(BIN)/python -m mla_lm generate ckpt=$(RUN)        # prompts of your own"
	@echo "  $(BIN)/python train.py experiment=five_minutes data=text data.path=my.txt"
	@echo "  $(BIN)/python train.py experiment=five_minutes model/attention=gqa   # compare val/bpb"

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow and not gpu"

test-all: $(VENV)/.dev
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c '$(CHECK)'
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.train
