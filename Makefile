# One command works on a fresh machine: every target that needs it makes .venv first (Python 3.11 or later, Linux or macOS).
#
# Torch: on Linux the default package index brings the CUDA build (several GB). For the CPU build say
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
# Processes that `make test` uses.
WORKERS ?= 2
# SLOW=1 runs the slow tests too.
SLOW ?=
OUT ?= out/demo
# Overlays and options for `make up` and `make down`: COMPOSE="-f docker-compose.yml -f infra/compose.gpu.yml"
COMPOSE ?=
MODEL_OUT ?= infra/demo-model

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PROTOS := $(sort $(wildcard proto/moedge/v1/*.proto))
TORCH := $(shell sed -n 's/^\(torch==.*\)$$/\1/p' constraints.txt)

# Each test process gets one thread: torch would take every core for each of them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile $(if $(SLOW),--slow)

.PHONY: help install demo demo-model test check format lint types imports proto proto-check buf unit up down e2e faults clean

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  PYTHON=python3.12      the Python to make .venv with"
	@echo "  TORCH_INDEX=URL        where to get torch; the CPU build is at"
	@echo "                         https://download.pytorch.org/whl/cpu"
	@echo "  WORKERS=4 SLOW=1       for make test"
	@echo "  COMPOSE='-f docker-compose.yml -f infra/compose.secure.yml'"
	@echo "                         overlays for make up and make down"

install: $(STAMP) ## Make .venv with everything in it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, $(PYTHON) is `$(PYTHON) --version`; say make PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "no virtual environment: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet -c constraints.txt --index-url $(TORCH_INDEX) '$(TORCH)')
	$(BIN)/pip install --quiet -c constraints.txt -e '.[worker,report,otel,dev]'
	@touch $(STAMP)

demo: $(STAMP) ## Replay a drifting load three times: out/demo/report.html
	$(BIN)/moedge demo --out $(OUT)

# Larger malloc thresholds spare the training a page fault for every activation it allocates.
demo-model: $(STAMP) ## Train the shipped model again (25 to 40 minutes on 2 cores)
	MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=200000000 \
		$(BIN)/python infra/demo-model/train.py --out $(MODEL_OUT) --log $(MODEL_OUT)/train.log
	$(BIN)/python infra/demo-model/check.py $(MODEL_OUT) --items 1500 --json $(MODEL_OUT)/check.json

test: $(STAMP) ## Every test that this machine can run; says what it skipped
	$(PYTEST) -rs $(if $(JUNIT),--junitxml=$(JUNIT))

check: format lint types imports proto-check buf unit ## Formatting, lint, types, layers, protos, unit tests

format: $(STAMP) ## Formatting is as ruff has it (make fix changes it)
	$(BIN)/ruff format --check --quiet .

lint: $(STAMP) ## Ruff
	$(BIN)/ruff check --quiet .

types: $(STAMP) ## mypy --strict
	$(BIN)/mypy --config-file pyproject.toml services loadgen tests

imports: $(STAMP) ## Layers point one way
	$(BIN)/lint-imports

buf: $(STAMP) ## Lint the protos
	$(BIN)/buf lint

unit: $(STAMP) ## The fast tests
	$(PYTEST) -q tests/unit

# The engine and the simulator as machine code, made of a copy of the sources. Nothing takes it unless PYTHONPATH says so, so what serves and
# what is edited are always the sources: PYTHONPATH=build/compiled .venv/bin/moedge simulate ... A newer source makes it anew, and moedge
# refuses a copy of other sources.
COMPILED := build/compiled
OFFLOAD := services/core/offload
HOT := $(addprefix $(OFFLOAD)/,waits.py ledger.py wait_board.py engine.py estimator.py estimates.py table.py candidates.py given.py) \
	$(addprefix $(OFFLOAD)/predictors/,__init__.py output_length.py prompt_length.py quality.py step_time.py) \
	$(OFFLOAD)/policies/onto.py $(addprefix loadgen/simulator/,simulation.py edge.py timeline.py)

.PHONY: compiled unit-compiled
compiled: $(COMPILED)/.made ## Compile engine and simulator, for long simulations

$(COMPILED)/.made: $(STAMP) pyproject.toml $(shell find services loadgen -name '*.py')
	@command -v cc >/dev/null || { echo "a C compiler is needed: on Debian, apt-get install gcc; without, simulations run all the same" >&2; exit 1; }
	@rm -rf $(COMPILED) && mkdir -p $(COMPILED) && cp -R services loadgen proto pyproject.toml $(COMPILED)
	cd $(COMPILED) && $(CURDIR)/$(BIN)/python -m mypyc $(HOT) >mypyc.log 2>&1 || { tail -20 mypyc.log >&2; exit 1; }
	@touch $@

unit-compiled: compiled ## The tests of engine and simulator, on the compiled code
	$(PYTEST) -q -o pythonpath='$(COMPILED) .' -k 'not source_of_chance' tests/unit/test_offload*.py tests/unit/test_simulator*.py tests/contract/test_offload_policies.py

.PHONY: fix
fix: $(STAMP) ## Let ruff format and mend what it can
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

# generate the modules of all protos into the directory $(1)
define generate
PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(1) --grpc_python_out=$(1) --mypy_out=quiet:$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)
endef

proto: $(STAMP) ## Generate proto/moedge/v1/*_pb2*.py from the protos
	$(call generate,proto)

proto-check: $(STAMP) ## The generated modules are those of the protos
	@rm -rf build/proto-check && mkdir -p build/proto-check
	@$(call generate,build/proto-check)
	@for made in build/proto-check/moedge/v1/*; do \
		cmp "$$made" "proto/moedge/v1/$$(basename $$made)" || { echo "generated code is out of date: make proto" >&2; exit 1; }; \
	done
	@for kept in proto/moedge/v1/*_pb2*; do \
		test -e "build/proto-check/moedge/v1/$$(basename $$kept)" || { echo "$$kept belongs to no proto: remove it" >&2; exit 1; }; \
	done

# What `make up` needs, said in one line where it is missing.
define engine
@command -v docker >/dev/null || { echo "docker is not installed: the stack in containers needs a Docker engine with docker compose" >&2; exit 1; }
@docker compose version >/dev/null 2>&1 || { echo "docker compose is missing: install the Compose plugin of Docker" >&2; exit 1; }
@docker info >/dev/null 2>&1 || { echo "no Docker engine answers: start it, or join its group (docker info says more)" >&2; exit 1; }
endef

up: ## Build the images and bring the whole stack up in containers
	$(engine)
	docker compose $(COMPOSE) up --build --wait --wait-timeout 300 --quiet-pull
	@echo "broker at $$(docker compose port broker 50051), try: moedge status --target $$(docker compose port broker 50051)"

down: ## Remove the containers, networks and volumes of the stack
	$(engine)
	docker compose $(COMPOSE) --profile '*' down --volumes --remove-orphans

e2e: $(STAMP) ## Drive and break the stack of make up (15 minutes)
	$(BIN)/pytest -m e2e --e2e -rs tests/e2e $(if $(JUNIT),--junitxml=$(JUNIT))

faults: $(STAMP) ## The same faults at full counts and durations (an hour)
	$(BIN)/pytest -m e2e --e2e --faults full -rs tests/e2e/test_faults.py tests/e2e/test_update_faults.py

clean: ## Remove the environment and everything made
	rm -rf $(VENV) build out .mypy_cache .ruff_cache .import_linter_cache .hypothesis
