# make install, make demo, make test: each makes what it needs, in .venv, and does nothing twice.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_FLAGS ?= -n 3 --dist worksteal  # some wait for others: three keep two cores at work

.PHONY: help install demo test trust docs lint clean

help:
	@echo "make install   install fedcondense with Flower into $(VENV)"
	@echo "make demo      a federation on the digits data, with a report in runs/demo"
	@echo "make test      linter, type checker and the whole suite (PYTEST_FLAGS=\"-m 'not slow'\" for the short one)"
	@echo "make trust     hostile files, servers and nodes, kills and full disks: at most ten minutes, and a table"
	@echo "make docs      the documentation as a site in build/site, links checked"
	@echo "make clean     remove $(VENV), caches and builds; runs/ stays"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[flower]'
	@touch $@

# The suite runs Ray, Avalanche and the tools as well.
$(VENV)/.installed-dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	@touch $(VENV)/.installed $@

# One thread: for images this small a second one gains little, and on busy cores it waits for the first.
demo: install
	$(BIN)/fedcondense federate digits --clients 10 --alpha 0.1 --threads 1 --output runs/demo --overwrite

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest $(PYTEST_FLAGS)

# The pages of the repository as a site; a link that leads nowhere fails it. Needs no network but for the install.
docs: install
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

trust: $(VENV)/.installed-dev
	cd experiments && ../$(BIN)/python -m trust && ../$(BIN)/python tables.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
