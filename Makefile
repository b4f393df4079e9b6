# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/pytest -q
# the one computes, the other waits most of the time
UNIT := $(PYTEST) -n 2 --dist worksteal tests/simulation tests/unit
CONFORMANCE := $(PYTEST) -n 3 --dist worksteal tests/conformance

.DEFAULT_GOAL := help

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(BIN)/.installed ## SaturnMQ and all that its tests need, in .venv

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"SaturnMQ needs Python 3.11 or newer, this is {sys.version}"'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/pip install --quiet --constraint constraints.txt --editable . --group dev
	$(BIN)/python -m compileall -q src
	@touch $@

demo: install ## start Local mode, send and receive 1,000 messages with the official Python client
	@$(BIN)/python scripts/demo.py

check: install ## format, lint, types, imports, the Dockerfile, unit and property tests, short simulation, smoke: minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint examples/Dockerfile
	$(UNIT)
	$(if $(filter test,$(MAKECMDGOALS)),,$(PYTEST) -m smoke tests/conformance)

test: install ## everything but what starts Apache: the tests of `check` and the official clients
	$(if $(filter check,$(MAKECMDGOALS)),,$(UNIT))
	$(CONFORMANCE)

simulate: install ## a broker on a disk that loses power, fails and forgets: SEED=… ROUNDS=…, FAULT=all
	$(BIN)/python tests/simulation/simulate.py $(if $(SEED),--seed $(SEED)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(FAULT),--fault "$(FAULT)")

model: install ## consumers of a server that comes and goes, and what they are told, judged: SEED=… STEPS=…, FAULT=all
	$(BIN)/python tests/simulation/model.py $(if $(SEED),--seed $(SEED)) $(if $(STEPS),--steps $(STEPS)) $(if $(FAULT),--fault "$(FAULT)")

long: install ## full disks, 100,000 queues and other tests that take minutes or need root
	$(PYTEST) tests/long

soak: install ## sends, kill -9 and retention in a loop, for MINUTES=30
	$(BIN)/python tests/long/soak.py --minutes $(or $(MINUTES),30)

drill: install ## three Proxies over two Brokers under load, one fault after another, for MINUTES=20; SEED=… is one order again
	$(BIN)/python tests/long/drill.py --minutes $(or $(MINUTES),20) $(if $(SEED),--seed $(SEED))

oracle: install ## the same clients against Apache, and whatever else starts its processes
	$(PYTEST) tests/oracle
	SATURNMQ_CONFORMANCE_SERVER=apache $(PYTEST) tests/conformance  # one at a time: Apache takes 2 GB

bench: install ## figures beside Apache, in turn on this machine
	$(BIN)/python bench/run.py

bench-store: install ## the store through its own API, beside what the machine can do; 30 GB of disk
	$(BIN)/python bench/store.py

bench-timers: install ## how exactly delayed messages come, beside Apache; PENDING=10000000 for the memory of what waits
	$(BIN)/python bench/timers.py $(if $(PENDING),--pending $(PENDING))

bench-abuse: install ## what floods, bombs and 20,000 idle connections cost the server, and a good client beside them
	$(BIN)/python bench/abuse.py

bench-proxies: install ## CPU of a Proxy with 1, 2 and 4 workers beside Apache's over the same broker; memory of idle clients
	$(BIN)/python bench/proxies.py

bench-polls: install ## what 50,000 consumers cost that wait for a message, and how soon one is woken
	$(BIN)/python bench/polls.py

rewrite: install ## compile the protos and record golden files anew; read their diff
	$(BIN)/python scripts/compile_protos.py
	SATURNMQ_REWRITE=1 $(PYTEST) tests/conformance/test_start.py -k imported
	SATURNMQ_REWRITE=1 $(PYTEST) tests/unit/daemons/test_request_codes.py tests/unit/daemons/test_mqadmin_page.py
	$(BIN)/ruff format --quiet .

.PHONY: help install demo check test simulate model long soak drill oracle bench bench-store bench-timers bench-polls bench-abuse bench-proxies rewrite
