# make demo | test | lint | gpu | clean. Everything is set up in .venv on first use.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h')

.PHONY: demo test lint gpu clean

demo: $(VENV)/installed
	$(BIN)/irnext demo -o demo

test: $(VENV)/installed
	$(BIN)/python -m pytest

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# On a machine with an NVIDIA GPU and its own PyTorch: nothing is downloaded.
gpu:
	@$(PYTHON) -c "import torch, sys; torch.cuda.is_available() or sys.exit('make gpu: PyTorch sees no CUDA device')"
	$(PYTHON) setup.py build_ext --inplace
	$(PYTHON) -m irnext info
	$(PYTHON) -m pytest -m gpu

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache irnext/*.so demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet $(TORCH) numpy
	touch $@

$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@
