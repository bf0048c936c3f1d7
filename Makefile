# make demo | make test | make check: nothing else is needed on a machine with Python 3.11.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test check wheel-check format install

# The stamp is newer than what decides the installation: a second `make` starts at once.
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/alignkd demo $(ARGS)

# one thread each: the workers fill the cores, and more threads than cores cost a third of the time
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests/api/typed_script.py
	$(BIN)/lint-imports

# builds the wheel, installs it beside foreign packages, runs the demo from it
wheel-check: install
	.ci/wheel_check

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
