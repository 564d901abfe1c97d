# Everything a person needs: `make run`, `make test`. Only Python 3.11 or newer and make have to be there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := $(VENV)/.runs
READY := $(VENV)/.installed
PEERS := .venv-peers/.installed

.PHONY: run help test test-gpu demo lint bench arena ablation diagram schema configuration pictures thorough prove mutants fuzz endurance soak simulate pythons clean

run: $(RUNS) ## your ladder on this machine, or the demo ladder: monitor, endpoint; `make` alone does it, too
	@$(BIN)/scaler run

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

test: $(READY) ## all tests, three files at a time, as half of them wait more than they compute; then the soak alone
	$(BIN)/python -m pytest -n 3 --dist loadfile --ignore tests/soak
	$(BIN)/python -m pytest tests/soak

test-gpu: $(READY) ## what is read of a real NVIDIA GPU, and a ladder on it: skipped where there is none
	$(BIN)/python -m pytest -s tests/gpu

demo: $(RUNS) ## two minutes: a step down under real memory pressure, and the climb back
	@$(BIN)/scaler demo-models
	@$(BIN)/scaler demo

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) $(PEERS) ## speed as ratios and counts, beside peers
	$(BIN)/python -m tests.bench $(ONLY)

thorough: $(READY) ## the invariants again, with thousands of steps
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest tests/decision

prove: $(READY) ## every reachable state of small ladders, with every invariant: a minute or two (docs/proof.md)
	$(BIN)/python -m tests.exhaustive $(ONLY)

mutants: $(READY) ## plant faults in the decision and see that a test catches each: an hour (docs/proof.md)
	$(BIN)/python -m tests.exhaustive.mutants $(ONLY)

fuzz: $(READY) ## requests and configurations that nobody meant, a hundred times as many as the tests: an hour or two
	FUZZ=1200 $(BIN)/python -m pytest tests/end_to_end/test_fuzzed_endpoint.py tests/test_fuzzed_settings.py

endurance: $(READY) ## 200 switches and 100 killed models under 16 streams
	ENDURANCE=full $(BIN)/python -m pytest -s tests/end_to_end/test_endurance.py

soak: $(READY) ## a real ladder under kills, hangs, a full disk and more: an hour, or SECONDS=... (docs/soak.md)
	$(BIN)/python -m tests.soak --seconds $(or $(SECONDS),3600) $(if $(SEED),--seed $(SEED))

simulate: $(READY) ## simulated days of the whole process, 10,000 or DAYS=...: an hour or two (docs/simulation.md)
	$(BIN)/python -m tests.simulation --days $(or $(DAYS),10000)

diagram: $(READY) ## write docs/diagram.md anew
	$(BIN)/scaler diagram --format markdown --output docs/diagram.md

schema: $(READY) ## write the JSON schemas of config/ anew
	$(BIN)/scaler config schema > config/scaler.schema.json
	$(BIN)/scaler config schema --of tier > config/tier.schema.json

configuration: $(READY) ## write docs/configuration.md anew
	$(BIN)/python -m tests.docs.configuration

pictures: $(READY) ## make the pictures of the pages anew: two minutes, with little else running
	@$(BIN)/scaler demo-models
	$(BIN)/python -m tests.docs.picture
	$(BIN)/python -m tests.pictures # the page's need a Chromium (docs/page.md)

pythons: $(READY) ## the wheel on every Python that is here, with each extra: downloads, minutes a Python (docs/install.md)
	$(BIN)/python -m tests.pythons $(addprefix --python ,$(PYTHONS))

arena: $(READY) ## score the decisions, where the arena lies beside this checkout
	$(BIN)/python ../shared/arena/arena.py ../shared/arena/traces/*.csv.gz --synthetic --command $(BIN)/scaler control

ablation: $(READY) ## the same with each mechanism switched off in turn: a quarter of an hour
	$(BIN)/python -m tests.bench.ablation

$(RUNS): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scaler needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "installing what scaler needs into $(VENV), this once: about 300 MB, a minute or so"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --editable '.[llama,server,demo,tui]'
	@touch $@

$(READY): $(RUNS)
	@echo "installing what the tests need beside it, this once: about 900 MB, a minute or a few"
	@$(BIN)/python -m pip install --quiet --editable '.[llama,server,demo,tui,dev]'
	@touch $@

$(PEERS):
	@echo "installing LiteLLM's proxy, a peer, into .venv-peers, this once; it takes a minute or two"
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install --quiet 'litellm[proxy]'
	@touch $@

clean: ## what make has installed and built here
	rm -rf $(VENV) .venv-peers build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
