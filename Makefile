# Each target makes .venv and installs what it needs by itself; only Python (3.11 or newer) and make must be there.
PYTHON ?= python3
PY = .venv/bin/python
TESTS ?= tests
ARGS ?=

.PHONY: demo demo-full test lint bench install doctor clean

demo:            ## set up, then train on the small set that ships here, generate, and measure the sync; minutes
	@$(PYTHON) tools/install.py
	@$(PY) tools/demo.py $(ARGS)

demo-full:       ## the same on more faces and sounds and with goals; on a GPU where there is one
	@$(PYTHON) tools/install.py
	@$(PY) tools/demo.py --full $(ARGS)

test:            ## set up and run the tests
	@$(PYTHON) tools/install.py --dev
	@$(PY) -m pytest -n auto --dist loadscope $(TESTS) $(ARGS)

lint:            ## style, types, import layers
	@$(PYTHON) tools/install.py --dev
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports

bench:           ## benchmarks that need no GPU
	@$(PYTHON) tools/install.py --dev
	@$(PY) -m benchmarks $(ARGS)

install:         ## only set up
	@$(PYTHON) tools/install.py --dev

doctor:          ## examine this machine and say what to do; installs nothing
	@$(if $(wildcard $(PY)),$(PY),$(PYTHON)) tools/doctor.py $(ARGS)

clean:           ## remove what demo and the tests leave behind
	rm -rf demo-run .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
