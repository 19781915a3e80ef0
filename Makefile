# `make quickstart` and `make test` need Python 3.11 or newer with its venv
# module, and GNU make 3.82 or newer. They create .venv and install what they
# use.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
KERAS_BACKEND ?= tensorflow
BACKENDS ?= tensorflow jax torch
QUICKSTART ?=
PYTEST ?=
# Each loads two frameworks, so they are bound by memory before cores.
WORKERS ?= 2
KILLS ?= 10

# It asks for a release of flair that recent Pythons lack, and does without.
TEXTATTACK := textattack==0.3.11 OpenHowNet==2.0

VENV := .venv
VENV_PYTHON := $(VENV)/bin/python
PIP ?= $(VENV_PYTHON) -m pip

.PHONY: help
help:
	@echo 'make quickstart   fine-tune a real model twice, fit against UEGR'
	@echo '                  KERAS_BACKEND=tensorflow|jax|torch  the backend'
	@echo '                  QUICKSTART="--quick --seed 1"       its options'
	@echo 'make test         the test suite, once per backend'
	@echo '                  BACKENDS="tensorflow jax torch"     which ones'
	@echo '                  PYTEST="-k dropout"                 its options'
	@echo '                  WORKERS=2                           at a time'
	@echo 'make test-fast    without the tests marked slow: under 10 minutes'
	@echo 'make survival     kill training ten times, write docs/survival.md'
	@echo '                  BACKENDS="tensorflow jax torch"     which ones'
	@echo '                  KILLS=10                            how often'
	@echo 'make support-table  what works, from the results of make test'
	@echo 'make lint         check style and format'
	@echo 'make format       repair style and format'

# The stem lists the extras to install. The stamp makes the next run quick.
$(VENV)/installed-%: pyproject.toml
	test -x $(VENV_PYTHON) || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --editable '.[$*]'
	$(if $(filter dev,$*),$(PIP) install --quiet --no-deps $(TEXTATTACK))
	touch $@

.PHONY: quickstart
quickstart: $(VENV)/installed-examples,$(KERAS_BACKEND)
	KERAS_BACKEND=$(KERAS_BACKEND) $(VENV_PYTHON) \
		examples/quickstart.py $(QUICKSTART)

# Backends don't share a process, and a failing one doesn't hide the others.
.PHONY: test
test: $(VENV)/installed-dev
	@mkdir -p test-logs
	@failures=0
	for backend in $(BACKENDS); do
		echo "Testing on $$backend"
		KERAS_BACKEND=$$backend $(VENV_PYTHON) -m pytest \
			--numprocesses=$(WORKERS) --dist=worksteal \
			--junitxml=test-logs/$$backend.xml $(PYTEST) 2>&1 \
			| tee test-logs/$$backend.log || failures=$$((failures + 1))
	done
	echo
	for backend in $(BACKENDS); do
		closing=$$(grep -E '(passed|failed|error|no tests ran).* in ' \
			test-logs/$$backend.log | tail -n 1 | tr -d '=' | xargs)
		printf '%-12s%s\n' "$$backend:" "$${closing:-did not finish}"
	done
	exit $$failures

.PHONY: test-fast
test-fast:
	$(MAKE) test PYTEST="-m 'not slow' $(PYTEST)"

# From the results that `make test` left, of all backends.
.PHONY: support-table
support-table: $(VENV)/installed-dev
	$(VENV_PYTHON) -m tests.conformance.support_table \
		$(BACKENDS:%=test-logs/%.xml)

# Each backend rewrites its own section.
.PHONY: survival
survival: $(VENV)/installed-dev
	@failures=0
	for backend in $(BACKENDS); do
		KERAS_BACKEND=$$backend $(VENV_PYTHON) -m tests.survival_log \
			--kills $(KILLS) || failures=$$((failures + 1))
	done
	exit $$failures

.PHONY: lint
lint: $(VENV)/installed-dev
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .

.PHONY: format
format: $(VENV)/installed-dev
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

.PHONY: clean
clean:
	rm -rf $(VENV) test-logs quickstart-output benchmark-output
