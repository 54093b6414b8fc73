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
	$(BIN)/skipway predict $(RUN) docs/digit-7.png --top 3
	@echo "The report: $(RUN)/report.html"

# Two processes of one thread each: the tests are many and small.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

# CIFAR10 names a folder with train/CLASS/*.png and test/, IMAGENETTE and ANTS ones with train/ and
# val/, WEIGHTS a checkpoint of CIFAR-10's ResNet-20 with option A; what is not named is not run.
AT := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
bench: $(STAMP)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/probes_overhead.py
	$(BIN)/python benchmarks/kills.py
	$(BIN)/python benchmarks/restarts.py
	$(BIN)/python benchmarks/fashion_mnist_resnet20.py --out runs/fashion-mnist-resnet20-$(AT)
ifdef CIFAR10
	$(BIN)/python benchmarks/train_speed.py --data "$(CIFAR10)"
	$(BIN)/python benchmarks/cifar10_resnet20.py --data "$(CIFAR10)" --out runs/cifar10-resnet20-$(AT)
	$(BIN)/python benchmarks/doctor.py --data "$(CIFAR10)"
ifdef WEIGHTS
	$(BIN)/python benchmarks/imported_weights.py --weights "$(WEIGHTS)" --data "$(CIFAR10)"
endif
endif
ifdef IMAGENETTE
	$(BIN)/python benchmarks/imagenette.py --data "$(IMAGENETTE)" --epochs 5 --out runs/imagenette-5-$(AT)
	$(BIN)/python benchmarks/imagenette.py --data "$(IMAGENETTE)" --epochs 20 --out runs/imagenette-20-$(AT)
endif
ifdef ANTS
	$(BIN)/python benchmarks/folder_and_zip.py --data "$(ANTS)"
ifdef IMAGENETTE
	$(BIN)/python benchmarks/finetune.py --data "$(ANTS)" --weights runs/imagenette-20-$(AT) --size 160 --out runs/finetune-$(AT)
endif
endif
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -exec rm -rf {} +
