# Everything a person needs is one word away; each target sets itself up in .venv on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
export OMP_NUM_THREADS ?= 1
# A test run starts many processes; without bytecode on disk each of them compiles everything again.
unexport PYTHONDONTWRITEBYTECODE
# Two at once for each core keep the cores busy; each further test process would load torch once more.
TESTS_AT_ONCE ?= $(shell echo $$((2 * $$(getconf _NPROCESSORS_ONLN))))
SLOW_TESTS_AT_ONCE ?= $(shell echo $$((1 + $$(getconf _NPROCESSORS_ONLN))))

.PHONY: help demo test check docs slow mutants bench quality chaos soak clean

help:
	@echo "make demo    a small real run: three workers, pictures, a report (about 5 minutes after the set-up)"
	@echo "make test    all tests but the slow ones"
	@echo "make check   formatting, lint, types, import contracts, make docs, and make test"
	@echo "make docs    the documentation as a site in build/site, strict"
	@echo "make slow    the tests that take minutes"
	@echo "make mutants realistic bugs, put into copies of the code one by one, each of which a test must see (about 5 minutes)"
	@echo "make bench   the benchmarks, one after the other, with nothing else running (about 20 minutes)"
	@echo "make quality the pictures' quality for the bytes sent (hours; stop it and start it again as you like)"
	@echo "make chaos   every fault of the table, done to real workers (about half an hour)"
	@echo "make soak    an hour with a random fault a minute, and a run without any to compare"
	@echo "make clean   take away what the others made (the virtual environment and $(RUN))"

# torch and torchvision come together, so that their versions fit.
$(VENV)/ready: setup.cfg pyproject.toml
	@echo "== setting up $(VENV): torch, torchvision, redis and the rest (a few minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,test,docs]'
	@touch $@

demo: $(VENV)/ready
	@echo "== three workers, each with some of the digits only, train on this machine; pictures in $(RUN)"
	rm -rf $(RUN)
	$(BIN)/python -m launch local config/experiments/demo.yaml --out $(RUN)
	@echo "== look at $(RUN)/report.html; the last samples are $(RUN)/$$(cd $(RUN) && ls fakes-*.png | tail -n 1)"

test: $(VENV)/ready
	@echo "== all tests but the slow ones (real redis-server included)"
	$(BIN)/python -m pytest -q --numprocesses $(TESTS_AT_ONCE) --maxprocesses 12 --dist worksteal

check: $(VENV)/ready
	@echo "== formatting and lint"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@echo "== types"
	$(BIN)/mypy
	@echo "== import contracts"
	$(BIN)/lint-imports
	$(MAKE) docs
	$(MAKE) test

# Not --quiet: with that no warning is counted, and strict lets every dead link pass.
docs: $(VENV)/ready
	@echo "== the documentation, strict: a link to what is not there fails"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "== look at build/site/index.html"

slow: $(VENV)/ready
	@echo "== the tests that take minutes"
	$(BIN)/python -m pytest -q -m slow --timeout 1800 --numprocesses $(SLOW_TESTS_AT_ONCE) --maxprocesses 6 --dist worksteal

mutants: $(VENV)/ready
	@echo "== the table of tests/mutants: each bug in a copy of the code, with the tests that must fail"
	$(BIN)/python -m tests.mutants

# All of them, also after one that missed a bar; thin_wire needs root, and says so.
bench: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable '.[demo,test,docs,bench]'
	@missed=""; for name in exchange overhead thin_wire scaling rules secure; do \
		echo "== benchmark $$name"; $(BIN)/python tests/bench/$$name.py || missed="$$missed $$name"; \
	done; test -z "$$missed" || { echo "== not kept:$$missed"; exit 1; }

quality: $(VENV)/ready
	@echo "== quality for the bytes sent, on MNIST; DEGAN_TEST_DATA names the folder that holds MNIST/raw"
	$(BIN)/python tests/bench/quality.py --budget-s 3600

chaos: $(VENV)/ready
	@echo "== 17 faults, done to real workers over real Redis servers; the table also as runs/chaos/chaos.json"
	$(BIN)/python -m tests.chaos

soak: $(VENV)/ready
	@echo "== an hour with a random fault a minute; runs/soak/soak.json and soak.svg"
	$(BIN)/python -m tests.chaos.soak --minutes 60 --workers 4 --seed 7

clean:
	rm -rf $(VENV) $(RUN) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
