# Targets create .venv and install what they need; one line a step, details in .setup.log.
PYTHON ?= python3
VENV ?= .venv
# On Linux the newest torch on the registry may be a CUDA build of several GB; a fixed version lets a local
# CPU wheel serve where there is one. Any torch >= 2.10 will do: make TORCH="torch>=2.10".
TORCH ?= torch==2.13.0
EXTRAS ?= data,plot,arrow,bench,test,clang
BIN := $(VENV)/bin
LOG := .setup.log
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: setup demo test test-machines test-slow test-triton test-install sanitize lint bench experiments clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml setup.py $(wildcard csrc/*/*.* csrc/*/*/*.*)
	@echo "setup: virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup: PyTorch ($(TORCH))"
	@$(BIN)/python -m pip install -q "$(TORCH)" "setuptools>=77" wheel >$(LOG) 2>&1 || (tail -n 20 $(LOG); exit 1)
	@echo "setup: nhl-fast and its tools ($(EXTRAS))"
	@$(BIN)/python -m pip install -q --no-build-isolation -e ".[$(EXTRAS)]" >>$(LOG) 2>&1 || (tail -n 40 $(LOG); exit 1)
	@touch $@

demo: setup
	@rm -rf runs/demo
	@$(BIN)/nhl-fast train --data digits --out runs/demo --epochs 40 --no-evaluate
	@$(BIN)/nhl-fast search runs/demo --query 0 60 120 --length 32
	@$(BIN)/nhl-fast evaluate runs/demo

test: setup lint
	@$(BIN)/python -m pytest -m "not slow" -n 2 $(PYTEST)

# The numeric tests as on other processors (tests/machines.py).
test-machines: setup
	@$(BIN)/python tests/machines.py -- -n 2 $(PYTEST)

test-slow: setup
	@$(BIN)/python -m pytest -m slow $(PYTEST)
	@$(BIN)/python -m pytest tests/triton -m slow $(PYTEST)

test-triton: setup
	@$(BIN)/python -m pytest tests/triton -m "not slow" -n 2 $(PYTEST)

test-install: setup
	@$(BIN)/python -m pytest -m slow tests/test_install.py $(PYTEST)

sanitize: setup
	@$(BIN)/python -m pytest -m slow tests/test_native_sanitize.py $(PYTEST)

lint: setup
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .

# Writes to $OUT if it is set, else over bench/results.
bench: setup
	@$(BIN)/python -m bench.step.head --write
	@$(BIN)/python -m bench.search.hamming
	@$(BIN)/python -m bench.search.plot

# All of them; EXPERIMENTS="--quick" for a taste, EXPERIMENTS="centers weighting --write" for some, with their tables.
experiments: setup
	@$(BIN)/python -m bench.experiments $(EXPERIMENTS)

clean:
	rm -rf $(VENV) build dist *.egg-info runs $(LOG)
