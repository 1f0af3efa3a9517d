# The whole set-up is here: every target makes what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PROMPT ?= a flat icon of a penguin

.PHONY: demo test check clean

demo: $(VENV)/.server ## draw a picture with the shipped model: no torch, no GPU, no download of weights
	@$(BIN)/triptych demo "$(PROMPT)"

test: $(VENV)/.test ## everything, on the real Triton
	$(BIN)/python -m pytest

check: $(VENV)/.test ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy client export model_repository/triptych_serving docker/healthcheck.py docker/requirements.py

clean:
	rm -rf $(VENV) out build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[server]'
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[test]'
	@touch $@ $(VENV)/.server
