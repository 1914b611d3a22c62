# make demo | test | lint | docs | report | reports | gpu-dry | gpu | clean. Everything is set up in .venv on first use.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.map')

.PHONY: demo test lint docs report reports gpu-dry gpu clean

demo: $(VENV)/installed
	$(BIN)/irnext demo -o demo

test: $(VENV)/installed
	$(BIN)/python -m pytest -n auto --dist loadgroup

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The pages of docs/ as a site: build/docs/index.html.
docs: $(VENV)/installed
	$(BIN)/mkdocs build --strict

# Everything in benchmarks/results as one page: build/report/report.html.
report: $(VENV)/installed
	$(BIN)/python -m benchmarks.report -o build/report

# What nvcc and Triton make of every kernel, for three generations of GPUs; needs no GPU.
reports: $(VENV)/installed
	$(BIN)/python -m benchmarks.compile_report

# Every step of `make gpu` that needs no GPU, on tiny shapes.
gpu-dry: $(VENV)/installed
	$(BIN)/python -m benchmarks.gpu --dry

# On a machine with an NVIDIA GPU and its own PyTorch: nothing is downloaded or installed.
gpu:
	$(PYTHON) -m benchmarks.gpu

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache irnext/*.so demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=77' wheel
	$(BIN)/python -m pip install --quiet $(TORCH) numpy
	touch $@

# For development: CUDA kernels, where there is nvcc, for one architecture, and built for the CPU too.
$(VENV)/installed: export TORCH_CUDA_ARCH_LIST ?= 9.0
$(VENV)/installed: export IRNEXT_CUDA_HOST ?= 1
$(VENV)/installed: $(VENV)/torch $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]' $(TORCH)
	touch $@
