# `make demo` and `make test` do everything from a fresh clone: Python >= 3.11 and make are enough.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
INSTALLED_DEV = $(VENV)/.installed-dev
# Not compiled at once: Python compiles, and keeps, what it imports, which is a fifth of the modules.
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check docs audit clean

demo: $(INSTALLED)
	$(BIN)/diffmining demo

# A process more than cores, for many tests wait for servers, and 4 at most: each has a Prefect server,
# an S3 server and models of its own.
test: check
	$(BIN)/pytest --no-loadscope-reorder \
		--numprocesses $$($(BIN)/python -c 'import os; print(min(4, os.cpu_count() + 1))')

check: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pages of docs/reference, from the help of the commands and the docstrings of the code.
docs: $(INSTALLED_DEV)
	$(BIN)/python docs/reference/generate.py

# Known vulnerabilities of the pinned versions. Strict: one that could not be looked up fails it too.
audit: $(INSTALLED_DEV)
	$(BIN)/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

clean:
	rm -rf $(VENV) demo build *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e .
	touch $@

$(INSTALLED_DEV): $(BIN)/python pyproject.toml constraints.txt
	$(INSTALL) -e '.[dev]'
	# Only for the public tables of ChestX-ray8 that it carries: without what it needs to run.
	$(INSTALL) --no-deps torchxrayvision
	touch $(INSTALLED) $@
