# make sweep: the main job, on real images, from nothing.   make test: everything CI runs.
# The virtual environment is made on the first call and again when the requirements change.

VENV := .venv
OLDEST := .venv-oldest
BIN := $(VENV)/bin
# One thread a process, and one process more than cores: many tests wait for servers and workers.
# With two more the tests took a fifth longer.
# In the order of the folders, so that the long files of tests/e2e are not the last ones.
# The hundreds of processes that tests start read bytecode, also where the caller's environment
# says that none is to be written.
CORES := $(shell getconf _NPROCESSORS_ONLN)
# What tests write is small, many, and gone afterwards: it stays in memory where there are 4 GiB for it.
IN_MEMORY := $(shell [ "$$(df --output=avail /dev/shm 2>/dev/null | tail -1)" -gt 4194304 ] 2>/dev/null \
  && [ -w /dev/shm ] && echo PYTEST_DEBUG_TEMPROOT=/dev/shm)
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(IN_MEMORY) \
  $(BIN)/python -m pytest -n $$(($(CORES) + 1)) --dist loadgroup --no-loadscope-reorder
# It takes almost half as much time again.
COVERAGE := --cov --cov-report=term
# pip compiles what it has installed on one core; a few files are for another Python.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
COMPILE := $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

# An environment of requirements.lock has these in it.
WITHIN_cluster := run
WITHIN_dev := run cluster

.PHONY: install-run install-cluster install-dev sweep bench test pytest coverage test-full test-oldest \
  check docs reference notebook lock clean
.DELETE_ON_ERROR:

sweep: $(VENV)/.installed-run
	@$(BIN)/carft-sweep run sweeps/kl_weight.yaml

# What steps and starts take beside their floors, against ratios that were measured before: fails
# where one has doubled. Alone, since other work would be measured with it.
bench: $(VENV)/.installed-dev
	OMP_WAIT_POLICY=passive $(BIN)/python -m benchmarks.floor --quick --rounds 3 --suite step --suite start \
	  --compare benchmarks/ratios.json

test: check docs pytest

pytest: $(VENV)/.installed-dev
	$(PYTEST)

coverage: $(VENV)/.installed-dev
	$(PYTEST) $(COVERAGE)

test-full: check docs
	$(PYTEST) $(COVERAGE) -m "" --hypothesis-profile=thorough
	$(MAKE) bench

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# With the oldest versions that pyproject.toml admits and that have wheels for this Python: what leans
# on them most, and sweeps on both engines. Old versions warn of what newer ones have changed, and an
# older numpy rounds the last digit of a mean differently. uv does not see that an editable install
# needs `editables`, which pip reads from what is built.
ON_OLDEST := PATH=$(CURDIR)/$(OLDEST)/bin:$$PATH OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive \
  $(OLDEST)/bin/python -m pytest -W default
DIGITS := test_the_text_is_the_one_that_was_looked_at[comparison.csv]
test-oldest: $(VENV)/.installed-dev
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST) --compile-bytecode --only-binary :all: \
	  --resolution lowest-direct -e ".[cluster]"
	$(BIN)/uv pip install --quiet --python $(OLDEST) --compile-bytecode \
	  editables hypothesis ipython pytest pytest-timeout pytest-xdist
	$(ON_OLDEST) tests/carft_core/models/test_weights.py tests/carft_core/test_requirements.py \
	  tests/sweeps/cli/test_check.py tests/tracking/report \
	  tests/tracking/charts \
	  --deselect "tests/tracking/report/test_terminal.py::$(DIGITS)"
	$(ON_OLDEST) -m slow tests/e2e/test_both_engines.py -k tpe

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The tables of commands and keys in the pages of docs/, made anew.
reference: $(VENV)/.installed-dev
	$(BIN)/python tools/reference.py

# The outputs stored in docs/notebooks/example.ipynb, made anew.
notebook: $(VENV)/.installed-dev
	$(BIN)/python -m tests.docs.notebook

# requirements.lock, made anew after a change of pyproject.toml. OPTIONS=--upgrade: newer versions.
lock: $(VENV)/.installed-dev
	$(BIN)/python tools/lock.py compile $(OPTIONS)

install-run install-cluster install-dev: install-%: $(VENV)/.installed-%

clean:
	rm -rf $(VENV) $(OLDEST) dist site .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache \
	  .import_linter_cache .hypothesis

# What the lock has, by its hashes; then torch, unless one that fits is there, and what its build
# brings; then this project, built by what the lock has.
$(VENV)/.installed-%: pyproject.toml requirements.lock tools/lock.py | $(VENV)/bin/python
	@echo "Installing what $* needs into $(VENV): once, a few minutes."
	@$(BIN)/python tools/lock.py select build-system $* > $(VENV)/requirements.txt
	@echo "  1 of 3: $$(grep -c == $(VENV)/requirements.txt) packages"
	@$(PIP) install --no-compile --no-deps --require-hashes -r $(VENV)/requirements.txt
	@echo "  2 of 3: torch, by far the largest"
	@$(BIN)/python tools/lock.py torch > $(VENV)/torch.txt
	@$(PIP) install --no-compile -r $(VENV)/torch.txt
	@$(PIP) install --no-compile --no-deps --no-build-isolation -e .
	@$(PIP) check
	@echo "  3 of 3: compiling them to bytecode"
	@$(COMPILE)
	@touch $(patsubst %,$(VENV)/.installed-%,$(WITHIN_$*) $*)

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
