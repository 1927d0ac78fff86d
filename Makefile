# make help lists the targets.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
BENCHMARKS := $(filter-out __init__ common table photos photo_classifier known_noise,$(basename $(notdir $(wildcard benchmarks/*.py))))

.PHONY: help setup demo test test-fast check schemas bench bench-table clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## build .venv under the constraints file

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another with make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@echo "building $(VENV): about 3 GB of packages, some minutes; once"
	@$(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(PY) -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps brisque
	@# For programs that never import the package, such as plain diffusers and accelerate's command.
	@site=$$($(PY) -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') && \
	  cp ambient_omni/torchvision_hook.py $$site/_torchvision_hook.py && \
	  echo 'import _torchvision_hook; _torchvision_hook.install()' > $$site/_torchvision_hook.pth
	@touch $@

demo: $(STAMP) ## the whole road on bundled real images; QUICK=1 for three minutes and poor samples
	$(VENV)/bin/ambient-omni demo $(if $(QUICK),--quick)

test: $(STAMP) ## run all tests
	$(PY) -m pytest

test-fast: $(STAMP) ## run the tests that take less than ten seconds each
	$(PY) -m pytest -m 'not slow'

check: $(STAMP) ## lint, format, types, import direction
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

schemas: $(STAMP) ## write the frozen contracts and the data dictionary anew
	$(PY) -m schemas freeze
	$(PY) -m schemas dictionary

bench: $(addprefix bench-,$(BENCHMARKS)) bench-table ## run all benchmarks, and write docs/benchmarks.md; bench-NAME runs one

bench-table: $(STAMP)
	$(PY) -m benchmarks.table

bench-%: $(STAMP)
	$(PY) -m benchmarks.$*

clean: ## remove the demo's results; the environment stays
	rm -rf demo demo-quick
