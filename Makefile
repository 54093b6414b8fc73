# Everything that a fresh machine with Python 3.11 or newer needs: each target below makes .venv
# when there is none. Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed
TRAINS := $(VENV)/trains
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
$(TRAINS): PARTS := train
$(STAMP): PARTS := train,test
$(TRAINS) $(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "skipway needs Python 3.11 or newer; $(PYTHON) is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo missing)." \
	    "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(PARTS)]'
	@touch $(TRAINS) $@

demo: RUN := runs/demo-$(shell date +%Y%m%d-%H%M%S)
demo: $(TRAINS)
	$(BIN)/skipway train digits --out $(RUN)
	$(BIN)/skipway predict $(RUN) docs/digit-7.png --top 3
	@echo "The report: $(RUN)/report.html"

# Two processes of one thread each: the tests are many and small. A file's tests stay together while
# both have work, for what they share is then made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(STAMP)
	$(PYTEST) -m "not slow"

test-all: $(STAMP)
	$(PYTEST)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

# CIFAR10 names a folder with train/CLASS/*.png and test/, IMAGENETTE and ANTS ones with train/ and
# val/, WEIGHTS a checkpoint of CIFAR-10's ResNet-20 with option A, TIMM a checkout of timm, RUN a run
# on Imagenette to fine-tune from, CELLS and NUCLEI COCO folders with boxes and masks, STREET one with
# images and masks of classes; what is not named is not run.
bench: $(STAMP)
	-$(BIN)/skipway bench $(if $(CIFAR10),--data "$(CIFAR10)") $(if $(IMAGENETTE),--photos "$(IMAGENETTE)") \
	  $(if $(TIMM),--timm "$(TIMM)") $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(if $(ANTS),--few "$(ANTS)") \
	  $(if $(RUN),--run "$(RUN)") $(if $(CELLS),--boxes "$(CELLS)") $(if $(NUCLEI),--masks "$(NUCLEI)") \
	  $(if $(STREET),--pixels "$(STREET)")
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -exec rm -rf {} +
