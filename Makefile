# Two commands do everything: `make demo` and `make test`. Both make what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Tests that run side by side: most of them wait for processes.
JOBS ?= 3

.PHONY: demo test check bench clean

demo: $(VENV)/.ready
	$(BIN)/python demo_watcher.py --demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

# Everything that CI checks besides the tests.
check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/house.py

bench: $(VENV)/.ready-dev
	$(BIN)/python -m bench.throughput
	$(BIN)/python -m bench.detection
	$(BIN)/python -m bench.idle

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
