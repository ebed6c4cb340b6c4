# Mirror: `make run` starts everything on this machine, `make test` tests everything. Both set up .venv first.

# The first interpreter that is new enough; PYTHON=… names another one.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin
# Wheels take 0.9 GB with the development tools, PostgreSQL and its data another 0.2.
SPACE_MB := 1500
# Tests wait for servers and browsers half of their time: one more than the cores of a small machine.
PYTEST_WORKERS ?= 3
# Made by webui/frontend, when it has brought everything in.
FRONTEND := webui/frontend/node_modules/.complete
# The tests that have to reach all of the engine, and how much of its branches (percent).
ENGINE_TESTS := tests/engine $(wildcard tests/audio/test_tts_*.py) \
	tests/stream/test_hold.py tests/stream/test_orchestrator.py tests/stream/test_relay.py tests/stream/test_voice.py
ENGINE_COVERAGE := 95

.DEFAULT_GOAL := help
.PHONY: help run test coverage check fmt lock openapi fuzz-api bench bench-engine bench-judge bench-relay bench-calls bench-agent-leg bench-pool bench-replay bench-pregate bench-api bench-delivery bench-recorder bench-console soak screenshots frontend clean preflight

help:
	@echo "make run          start Mirror with a demo tenant, agent and call (PORT=… for another port; Ctrl-C stops it)"
	@echo "                  MODEL=local judges with a small model on this machine (fetches 1.1 GB once)"
	@echo "make test         run all tests (on their own PostgreSQL and Valkey)"
	@echo "make coverage     run the engine's tests; fails when they reach less than $(ENGINE_COVERAGE) % of its branches"
	@echo "make check        lint, types, import contracts, migrations, templates"
	@echo "make frontend     fetch what the console's pages load that is not ours (run and test do it too)"
	@echo "make fmt          format the code"
	@echo "make lock         write requirements/*.txt from pyproject.toml"
	@echo "make openapi      write docs/openapi.json, the API's contract as reviews see it"
	@echo "make fuzz-api     send the API many thousand requests, right and wrong ones (EXAMPLES=… for each operation)"
	@echo "make bench        every benchmark in turn, in a short form (DATA=folder of labelled calls for those that need it)"
	@echo "make bench-engine CPU per judged turn, with and without the LLM client; 1,000 reviews at once"
	@echo "make bench-judge  both ways of scoring with a real model: OPENAI_*, else the local one (DATA=folder of labelled calls)"
	@echo "make bench-relay  CPU per relayed round trip against a bare relay and a pipecat agent, under Daphne and uvicorn"
	@echo "make bench-calls  calls that one core carries without underruns (CALLS=…)"
	@echo "make bench-agent-leg CPU of the WebSocket clients that could carry the agent's leg"
	@echo "make bench-pool   a quiet tenant's judge beside a noisy tenant; CPU of 1,000 judgements at once"
	@echo "make bench-replay time to replay 200 calls, against one question after the other"
	@echo "make bench-pregate turns skipped against bad turns missed, on labelled calls (DATA=their folder)"
	@echo "make bench-api    the API's lists, filters and search over 1,000,000 turns of 20 tenants (TURNS=… for fewer)"
	@echo "make bench-delivery what is heard of bad turns in each delivery mode, on labelled calls (DATA=their folder), and its price"
	@echo "make bench-recorder events a second that are acknowledged on disk, and what becomes of them"
	@echo "make bench-console the console's pages over 1,000,000 turns (TURNS=… for fewer), and 200 running calls on its live page"
	@echo "make soak         break everything around running calls, full size; writes docs/reliability.md (FAULTS=… for some)"
	@echo "make screenshots  write pictures of every page of the console to build/screenshots"
	@echo "make clean        remove .venv, what was fetched, and caches; the data in .mirror stays"

# Without the front-end's files the console has no charts, and says so; that is no reason not to run.
run: $(VENV)/.run $(if $(filter local,$(MODEL)),$(VENV)/.local-llm)
	@$(MAKE) --no-print-directory frontend || true
	@MIRROR_ENV=development exec $(BIN)/python manage.py demo $(if $(MODEL),--model $(MODEL))

PYTEST := MIRROR_ENV=development $(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist worksteal
MEASURED := $(PYTEST) $(ENGINE_TESTS) --cov --cov-report=term-missing --cov-fail-under=$(ENGINE_COVERAGE)

# Two runs: only the engine's own tests count for its coverage, and nothing else is slowed down by measuring it. Both
# run even if the first fails. With PYTEST_ARGS it is one run, of what they say.
test: $(VENV)/.dev $(FRONTEND)
ifeq ($(strip $(PYTEST_ARGS)),)
	@status=0; $(MEASURED) || status=1; $(PYTEST) $(ENGINE_TESTS:%=--ignore=%) || status=1; exit $$status
else
	@$(PYTEST) $(PYTEST_ARGS)
endif

coverage: $(VENV)/.dev
	@$(MEASURED)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	MIRROR_ENV=development $(BIN)/python manage.py check --fail-level WARNING
	MIRROR_ENV=production MIRROR_PUBLIC_URL=https://mirror.example.com $(BIN)/python manage.py check --deploy --fail-level WARNING
	@# It asks a database for its history when one runs, and warns when none does; the check itself needs none.
	MIRROR_ENV=development PYTHONWARNINGS=ignore::RuntimeWarning $(BIN)/python manage.py makemigrations --check --dry-run
	MIRROR_ENV=development $(BIN)/python manage.py check_templates

fmt: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	@MIRROR_ENV=development $(BIN)/python -m benchmarks $(if $(DATA),--data "$(DATA)")

bench-engine: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.bench_engine

bench-judge: $(VENV)/.dev $(if $(OPENAI_API_KEY),,$(VENV)/.local-llm)
	@$(BIN)/python -m benchmarks.bench_judge $(if $(DATA),--data $(DATA))

bench-relay: $(VENV)/.dev
	@MIRROR_ENV=development $(BIN)/python -m benchmarks.bench_relay

bench-calls: $(VENV)/.dev
	@MIRROR_ENV=development $(BIN)/python -m benchmarks.bench_calls $(if $(CALLS),--calls $(CALLS))

bench-agent-leg: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.bench_agent_leg

bench-pool: $(VENV)/.dev
	@MIRROR_ENV=development $(BIN)/python -m benchmarks.bench_pool

bench-replay: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.bench_replay

bench-pregate: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.bench_pregate --data "$(DATA)"

bench-api: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.bench_api $(if $(TURNS),--turns $(TURNS))

bench-delivery: $(VENV)/.dev
	@MIRROR_ENV=development $(BIN)/python -m benchmarks.bench_delivery $(if $(DATA),--data "$(DATA)")

bench-recorder: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.bench_recorder

bench-console: $(VENV)/.dev
	@$(BIN)/python -m benchmarks.bench_console $(if $(TURNS),--turns $(TURNS))

# Only a run of all faults writes the table.
soak: $(VENV)/.dev
	@MIRROR_ENV=development $(BIN)/python -m benchmarks.soak $(if $(FAULTS),$(FAULTS),--write docs/reliability.md)

screenshots: $(VENV)/.dev $(FRONTEND)
	@MIRROR_ENV=development $(BIN)/python -m tests.webui.screenshots

# --no-emit-index-url: lock files name no registry, so they work with any mirror of one.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock" pyproject.toml
lock: $(VENV)/.dev
	$(LOCK) --extra server --extra demo --extra uvicorn -o requirements/run.txt
	$(LOCK) --extra server --extra demo --extra uvicorn --group dev -o requirements/dev.txt
	$(LOCK) --extra local-llm --constraints requirements/run.txt -o requirements/local-llm.txt
	$(subst pyproject.toml,,$(LOCK)) --group pyproject.toml:frontend -o requirements/frontend.txt

openapi: $(VENV)/.dev
	@MIRROR_ENV=development $(BIN)/python manage.py openapi >docs/openapi.json.new
	@mv docs/openapi.json.new docs/openapi.json

fuzz-api: $(VENV)/.dev
	@FUZZ_EXAMPLES=$(or $(EXAMPLES),100) FUZZ_BOUNDS=all $(PYTEST) -n 1 tests/e2e/test_api_schema.py

clean:
	rm -rf $(VENV) webui/frontend/node_modules webui/static/webui/vendor .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# -- set-up: a stamp file per set of requirements, so that a second run is quick ------------------------------------

$(VENV)/.run: requirements/run.txt | $(VENV)/bin/python
	@echo "Installing what Mirror needs into $(VENV) (once; a few minutes)"
	@$(call install,requirements/run.txt)
	@touch $@

$(VENV)/.dev: requirements/dev.txt | $(VENV)/bin/python
	@echo "Installing what Mirror and its tests need into $(VENV) (once; a few minutes)"
	@$(call install,requirements/dev.txt)
	@touch $@ $(VENV)/.run

$(VENV)/.local-llm: requirements/local-llm.txt | $(VENV)/bin/python
	@echo "Installing the local model's server into $(VENV) (once)"
	@$(call install,requirements/local-llm.txt)
	@touch $@

frontend: $(FRONTEND)

$(FRONTEND): webui/frontend/package.json webui/frontend/package-lock.json webui/frontend/__main__.py | $(VENV)/bin/python
	@echo "Fetching what the console's pages load (once)"
	@$(BIN)/python -m webui.frontend

$(VENV)/bin/python: | preflight
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment (see above)."; exit 1; }

preflight:
	@test -x $(VENV)/bin/python || sh scripts/preflight "$(PYTHON)" $(SPACE_MB)

# pip's own words stay in a file; a person gets the line that says what to do.
define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(1) 2>$(VENV)/install.log \
	|| { tail -n 15 $(VENV)/install.log; \
	if grep -qi 'no space left' $(VENV)/install.log; then \
		echo "make: the disk is full; free $(SPACE_MB) MB and start again."; \
	elif grep -Eqi "gcc|cc1|compiler|Python\.h|Microsoft Visual" $(VENV)/install.log; then \
		echo "make: a package has to be compiled and the compiler or Python's headers are missing; install them (Debian: apt-get install build-essential python3-dev) and start again."; \
	elif grep -Eqi 'connection|resolve|timed out|ProxyError|Could not find a version' $(VENV)/install.log; then \
		echo "make: packages could not be fetched; check the network or pip's index settings and start again."; \
	else echo "make: installing failed; all of it is in $(VENV)/install.log."; fi; exit 1; }
endef
