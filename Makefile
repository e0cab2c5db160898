# Everything a developer does here. `make help` lists it; every target sets up what it needs by itself.
SHELL := /bin/bash
# Without compiled files every start of `sky` would compile its sources again.
unexport PYTHONDONTWRITEBYTECODE

PY := .venv/bin/python
PYTEST := $(PY) -m pytest -q
UNIT := not integration and not slow and not perf
# Two workers, a file's tests on one of them: files share servers among their tests.
SPREAD := -n 2 --dist loadfile
MODULES := $(wildcard libs/*/src services/*/src)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-slow lint format bench golden lock wheels catalog clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with every member and tool in it (does nothing when it is current)
	@scripts/setup

demo: setup ## run a real two-node training job on this machine, from launch to teardown
	@PATH="$(CURDIR)/.venv/bin:$$PATH" scripts/demo $(ARGS)

test: test-unit test-slow ## run every test: the unit tier first, then what starts processes

test-unit: setup ## run the unit tier only (a minute at most)
	$(PYTEST) $(SPREAD) -m "$(UNIT)" $(ARGS)

test-slow: setup ## run only the tests that start processes or take their time
	$(PYTEST) $(SPREAD) -m "(integration or slow) and not perf" $(ARGS)

lint: setup ## ruff, mypy, the import contracts and the lock file's agreement with the members
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy $(MODULES) scripts
	.venv/bin/lint-imports --no-cache
	$(PY) scripts/check_lock.py

format: setup ## rewrite the sources the way `make lint` wants them
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: setup ## measure the bars of tests/perf and print them
	$(PY) tests/perf/run.py $(ARGS)

golden: setup ## rewrite the golden files; read the diff before you commit it
	$(PY) scripts/golden.py $(ARGS)

lock: setup ## compile requirements/dev.lock from the members' pyproject.toml
	$(PY) scripts/lock.py $(ARGS)

wheels: setup ## build every distribution into dist/
	$(PY) scripts/wheels.py $(ARGS)

catalog: setup ## rebuild the bundled catalog: SOURCE=folder of CSV files (docs/catalog.md), or ARGS="--export DIR"
	$(PY) -m skyloom_optimizer.catalog.build $(if $(SOURCE),--source "$(SOURCE)") $(ARGS)

clean: ## remove what was built: .venv, dist, caches
	rm -rf .venv dist build .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find libs services tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
