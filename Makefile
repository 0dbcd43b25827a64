# make run    a first result: installs llmsim into .venv and simulates a shipped scenario
# make test   everything CI runs
# make help   the rest

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
# Stamps carry a checksum of all that the wheel is made from: a file that was added, removed or
# changed means a new stamp, whatever its date.
STATE := $(shell find pyproject.toml hatch_build.py llmsim kernels profiles scenarios traces \
	-type f -not -name '*.pyc' | LC_ALL=C sort | xargs cksum | cksum | cut -d ' ' -f 1)
INSTALLED := $(VENV)/.llmsim-$(STATE)
WITH_TOOLS := $(VENV)/.llmsim-$(STATE)-tools
WITH_TORCH := $(VENV)/.llmsim-$(STATE)-torch
CHECKS := "ruff check ." "ruff format --check ." "mypy" "lint-imports"

# A tests' process that finds another llmsim than the installed one fails (tests/conftest.py).
export LLMSIM_TESTS_WANT := installed

.DEFAULT_GOAL := help
.PHONY: run test quick bench dev clean help

run: $(INSTALLED) ## install llmsim (compiled where there is a C compiler), run the quickstart
	$(BIN)/llmsim run scenarios/quickstart.yaml

test: $(WITH_TORCH) ## style, types, imports, all tests; what CI runs
	@$(call run_checks,)

quick: $(WITH_TOOLS) ## the same with fewer examples and cases, without slow tests and torch; under three minutes once installed
	@export LLMSIM_TESTS_SHARE=0.1; $(call run_checks,-m "not slow and not torch")

bench: $(WITH_TOOLS) ## how fast the engine is on this machine
	$(BIN)/python tests/benchmarks/run.py

dev: $(BIN)/python ## editable install, pure Python: what you edit is what runs
	@rm -f $(VENV)/.llmsim-*
	$(PIP) --editable '.[dev]'
	@echo "Activate with: . $(BIN)/activate"

clean: ## remove the environment, caches and builds (runs/ stays)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# Every check runs, whatever the ones before it said; pytest comes last, so its line closes.
define run_checks
status=0; \
for check in $(CHECKS); do echo "== $$check"; $(BIN)/$$check || status=1; done; \
echo "== pytest"; $(BIN)/pytest -n 2 --dist worksteal $(1) || status=1; \
exit $$status
endef

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): | $(BIN)/python
	@echo "Installing llmsim$(if $(LLMSIM_PURE),, and compiling its engine; three or four minutes) ..."
	@rm -f $(VENV)/.llmsim-*
	$(PIP) .
	@$(BIN)/llmsim version
	@touch $@

# Print the requirements of an extra, one a line.
define requirements
$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*project["optional-dependencies"]["$(1)"], sep="\n")'
endef

# The installed package stays as it is; only what the extras name is added.
$(WITH_TOOLS): $(INSTALLED)
	$(call requirements,dev) > $(VENV)/dev-requirements.txt
	$(PIP) --requirement $(VENV)/dev-requirements.txt
	@touch $@

# torch is pinned; where pip finds its CPU build (PIP_EXTRA_INDEX_URL), that is the one to take.
$(WITH_TORCH): $(WITH_TOOLS)
	$(call requirements,profile) > $(VENV)/profile-requirements.txt
	$(PIP) --requirement $(VENV)/profile-requirements.txt
	@touch $@
