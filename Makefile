# make demo: a real leak, diagnosed.   make test: every check.   Both set up what they need, once.
BIN := .venv/bin
DURATION ?= 30s

.PHONY: demo test lint setup calibrate readme docs clean

demo: setup
	@$(BIN)/memforensics demo --duration $(DURATION)

test: setup lint
	@. .make/env && $(BIN)/python -m pytest -q tests/unit tests/live $(PYTEST_ARGS)

lint: setup
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

setup:
	@scripts/setup.sh

calibrate: setup
	@$(BIN)/python benchmarks/calibrate.py

readme: setup
	@$(BIN)/python scripts/readme_session.py

docs: setup
	@$(BIN)/python scripts/gen_docs.py

clean:
	rm -rf .venv .make build dist *.egg-info
