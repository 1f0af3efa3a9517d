# The whole set-up is here: every target makes what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PROMPT ?= a flat icon of a penguin

.PHONY: demo test test-gpu bench check clean

demo: $(VENV)/.server ## draw a picture with the shipped model: no torch, no GPU, no download of weights
	@$(BIN)/triptych demo "$(PROMPT)"

test: $(VENV)/.test $(VENV)/perf_analyzer/perf_analyzer ## everything, on the real Triton
	$(BIN)/python -m pytest

test-gpu: $(VENV)/.test ## what only a GPU can show: the demo models on it, compared with the processor
	$(BIN)/python -m pytest -s tests/gpu

bench: $(VENV)/.bench ## the ratios of this machine, beside what else would serve; WEIGHTS=FOLDER adds diffusers and Optimum
	$(BIN)/triptych bench $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(BUILD)

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

# NVIDIA's, with the libraries that it needs; where it cannot be had, tests that drive it are skipped.
$(VENV)/perf_analyzer/perf_analyzer: tests/get_perf_analyzer.py | $(VENV)/.test
	@mkdir -p $(@D)
	-@$(BIN)/python $< $(@D)
	@test ! -e $@ || touch $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/.server
