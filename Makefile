PYTHON ?= python3
VENV := .venv
RUN := runs/first
BIN := $(VENV)/bin

.PHONY: train test test-all test-gpu lint

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
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.train
