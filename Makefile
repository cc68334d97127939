# make demo: a real leak, diagnosed.   make test: every check.   make coverage: the unit tests and the code that they run.
# make attack: kills and signals at bad times.   make fuzz: damaged input for every reader.   CONTRIBUTING.md has more.
# Each command first installs what it needs, once.
BIN := .venv/bin
DURATION ?= 30s
PLAN ?= full
FUZZ ?= 20000
TESTS ?= tests/unit

.PHONY: demo test coverage lint setup setup-test mutants calibrate bench-tracer bench-snapshot bench-watch bench-verdicts readme docs attack fuzz clean

demo: setup
	@$(BIN)/memforensics demo --duration $(DURATION)

test: setup-test lint
	@. .make/env && $(BIN)/python -m pytest -q -n 3 --dist loadfile tests/unit tests/live $(PYTEST_ARGS)

coverage: setup-test
	@. .make/env && $(BIN)/python -m pytest -q -n 3 --dist loadfile --cov --cov-report=term:skip-covered --cov-report=xml $(TESTS) $(PYTEST_ARGS)

lint: setup-test
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

setup:
	@scripts/setup.sh

setup-test:
	@scripts/setup.sh test

mutants: setup-test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --group mutants
	@$(BIN)/python scripts/mutants.py $(MODULES)

calibrate: setup
	@$(BIN)/python benchmarks/calibrate.py --markdown docs/calibration.md

bench-tracer: setup
	@$(BIN)/python benchmarks/tracer.py --plan $(PLAN) --json .make/tracer.json $(BENCH)

bench-snapshot: setup
	@$(BIN)/python benchmarks/snapshot.py

bench-watch: setup
	@$(BIN)/python benchmarks/watch.py $(WATCH_ARGS)

bench-verdicts: setup
	@$(BIN)/python benchmarks/verdicts.py $(VERDICTS_ARGS)

readme: setup
	@$(BIN)/python scripts/readme_session.py

fuzz: setup-test
	@nice -n 19 $(BIN)/python tests/fuzz/run.py $(FUZZ) $(FUZZ_ARGS)

attack: setup-test
	@. .make/env && $(BIN)/python tests/attack/run.py $(ATTACK)

docs: setup-test
	@$(BIN)/python scripts/gen_docs.py

clean:
	rm -rf .venv .make build dist *.egg-info
