# make sweep: the main job, on real images, from nothing.   make test: everything CI runs.
# The virtual environment is made on the first call and again when the requirements change.

VENV := .venv
BIN := $(VENV)/bin
# One thread a process, and one process more than cores: many tests wait for servers and workers.
# In the order of the folders, so that the long files of tests/e2e are not the last ones.
# The hundreds of processes that tests start read bytecode, also where the caller's environment
# says that none is to be written.
CORES := $(shell getconf _NPROCESSORS_ONLN)
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
  $(BIN)/python -m pytest -n $$(($(CORES) + 1)) --dist loadgroup --no-loadscope-reorder
# It takes almost half as much time again.
COVERAGE := --cov --cov-report=term
# pip compiles what it has installed on one core; a few files are for another Python.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
  -c constraints.txt
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

.PHONY: sweep test pytest coverage test-full check docs notebook clean
.DELETE_ON_ERROR:

sweep: $(VENV)/.installed
	@$(BIN)/carft-sweep run sweeps/kl_weight.yaml

test: check docs pytest

pytest: $(VENV)/.installed-dev
	$(PYTEST)

coverage: $(VENV)/.installed-dev
	$(PYTEST) $(COVERAGE)

test-full: check docs
	$(PYTEST) $(COVERAGE) -m ""

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The outputs stored in docs/notebooks/example.ipynb, made anew.
notebook: $(VENV)/.installed-dev
	$(BIN)/python -m tests.docs.notebook

clean:
	rm -rf $(VENV) dist site .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache \
	  .import_linter_cache .hypothesis

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV): once, a few minutes."
	@$(INSTALL) -e .
	@$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing into $(VENV) with what development needs: once, a few minutes."
	@$(INSTALL) -e ".[cluster,dev,docs,build]"
	@$(COMPILE)
	@touch $@ $(VENV)/.installed

# PYTHON=... names the interpreter.
$(VENV)/bin/python:
	@set -e; for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  $$python -c 'import ensurepip, venv' 2>/dev/null || { lacks=$$python; continue; }; \
	  $$python -m venv $(VENV) || { rm -rf $(VENV); exit 1; }; exit 0; \
	done; \
	if [ -n "$$lacks" ]; then \
	  echo "$$lacks has no venv module; on Debian and Ubuntu: apt install python3-venv" >&2; \
	else \
	  echo "carft-sweep needs Python 3.11 or newer; name one with make PYTHON=/path/to/python" >&2; \
	fi; exit 1
