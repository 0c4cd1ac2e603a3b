# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Needs Python 3.11 or newer, and git. SERVE=1 leaves the demo's server up.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
NATIVE := CMakeLists.txt $(wildcard src/native/*.cpp src/native/*/*.cpp src/native/*/*.hpp)
REPORT ?= demo-report

# Benchmarks: ARGS=--quick. bench-speculation: QUICKMATCH_BENCH_DATA is a folder with workloads/ and pretrain/.
.PHONY: demo test test-slow check bench-engine bench-speculation bench-gpu format setup clean

demo: $(STAMP)
	$(BIN)/python -m examples.credit_cards.demo --out $(REPORT) $(if $(SERVE),--serve)

test: $(STAMP)
	$(BIN)/python -m pytest -q

test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m slow

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-engine: $(STAMP)
	$(BIN)/python -m benchmarks.engine $(ARGS)

bench-speculation: $(STAMP)
	$(BIN)/python -m benchmarks.speculation $(ARGS)

# An environment that is there is taken as it is: VENV=… names one whose torch was built with CUDA.
bench-gpu: $(if $(wildcard $(BIN)/python),,$(STAMP))
	$(BIN)/python -m benchmarks.gpu $(ARGS)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(STAMP)

# torch comes first: by itself, another package would pull a build with gigabytes of CUDA.
$(STAMP): pyproject.toml $(NATIVE)
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"Python {v[0]}.{v[1]} is too old; set PYTHON to 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo-report build dist
