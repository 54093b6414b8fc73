# Everything that a fresh machine with Python 3.11 or newer needs: each target below makes .venv
# when there is none. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all check bench clean

help:
	@echo "make demo      train a network on handwritten digits and predict with it"
	@echo "make test      the fast tests"
	@echo "make test-all  all tests"
	@echo "make check     format, lint, types and the floors of the house"
	@echo "make bench     the measurements in benchmarks/"
	@echo "make clean     remove .venv and what tools left; runs/ and results/ stay"

# The stamp is touched last, so that an installation that was cut off is done again.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "skipway needs Python 3.11 or newer; $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo missing)." \
	    "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,test]'
	@touch $@

demo: RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: $(STAMP)
	$(BIN)/skipway train digits --out $(RUN)
	# PLACEHOLDER: predict with $(RUN) on an image that it contains, then name $(RUN)/report.html

test: $(STAMP)
	$(BIN)/python -m pytest -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

bench: $(STAMP)
	@for script in benchmarks/*.py; do \
	  test -e "$$script" || { echo "benchmarks/ holds no script" >&2; exit 1; }; \
	  echo "$$script"; $(BIN)/python "$$script" || exit 1; \
	done

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -exec rm -rf {} +
