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

.PHONY: setup demo test wheel test-wheel test-examples docs test-machines test-slow test-triton test-older-triton test-install sanitize lint bench experiments clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml setup.py $(wildcard csrc/*/*.* csrc/*/*/*.* csrc/*/*/*/*.*)
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

# Threads that wait sleep: spinning ones, two a worker, take the cores from each other.
test test-machines test-slow test-triton test-install: export OMP_WAIT_POLICY := passive

test: setup lint
	@$(BIN)/python -m pytest -m "not slow" -n 2 $(PYTEST)

# The numeric tests as on other processors (tests/machines.py).
test-machines: setup
	@$(BIN)/python tests/machines.py -- -n 2 $(PYTEST)

test-slow: setup
	@$(BIN)/python -m pytest -m slow $(PYTEST)
	@$(BIN)/python -m pytest tests/triton -m slow $(PYTEST)
	@$(BIN)/python tests/machines.py "one thread" -- -n 2 $(PYTEST)

test-triton: setup
	@$(BIN)/python -m pytest tests/triton -m "not slow" -n 2 $(PYTEST)

# The kernels compiled for sm_90, without a card, by the Triton of the oldest PyTorch that is served; MATCH takes some.
OLDER_TRITON ?= 3.6.0
MATCH ?= tf32x3
test-older-triton: setup
	@$(BIN)/python -m pip install -q --no-deps --target build/triton-$(OLDER_TRITON) triton==$(OLDER_TRITON)
	@env -u TRITON_INTERPRET PYTHONPATH=build/triton-$(OLDER_TRITON) $(BIN)/python tests/triton/aot.py --arch 90 \
		--match "$(MATCH)"

# A wheel with the C++ library, for every Python >= 3.10 and torch >= 2.10, in dist/; others: see [tool.cibuildwheel].
wheel: setup
	@rm -rf dist
	@NHL_FAST_REQUIRE_NATIVE=1 NHL_FAST_CUDA=0 $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w dist/raw .
	@PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' -w dist dist/raw/*.whl
	@ls dist/*.whl

# That wheel in new environments, one a Python; uv brings the Pythons that are not here.
PYTHONS ?= 3.10 3.11 3.12 3.13
test-wheel: wheel
	@$(BIN)/python -m pip install -q uv
	@for python in $(PYTHONS); do \
		$(BIN)/uv venv -q --clear --python $$python dist/python$$python && \
		$(BIN)/uv pip install -q --python dist/python$$python/bin/python "torch>=2.10" dist/*.whl && \
		env -u CXX PATH=/nonexistent dist/python$$python/bin/python tests/wheel_check.py || exit 1; \
	done

# The examples with all that they use, in an environment of their own, where torchvision has the PyTorch that it was
# built for.
EXAMPLES := $(VENV)-examples
EXAMPLES_TORCH ?= torch torchvision
test-examples: $(EXAMPLES)/.ready
	@NHL_FAST_EXAMPLES=all $(EXAMPLES)/bin/python -m pytest tests/test_examples.py $(PYTEST)

$(EXAMPLES)/.ready: pyproject.toml setup.py $(wildcard csrc/*/*.* csrc/*/*/*.* csrc/*/*/*/*.*)
	@echo "test-examples: virtual environment in $(EXAMPLES)"
	@$(PYTHON) -m venv $(EXAMPLES)
	@$(EXAMPLES)/bin/python -m pip install -q $(EXAMPLES_TORCH) "setuptools>=77" wheel "pytest>=8" "pytest-benchmark>=4" \
		>$(LOG) 2>&1 || (tail -n 20 $(LOG); exit 1)
	@NHL_FAST_CUDA=0 $(EXAMPLES)/bin/python -m pip install -q --no-build-isolation -e ".[examples]" \
		>>$(LOG) 2>&1 || (tail -n 20 $(LOG); exit 1)
	@touch $@

# The documentation as a site, in site/; a warning is an error.
docs: setup
	@$(BIN)/python -m pip install -q -e ".[docs]" --no-build-isolation >>$(LOG) 2>&1 || (tail -n 20 $(LOG); exit 1)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q --strict
	@echo "docs: site/index.html"

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
	rm -rf $(VENV) $(EXAMPLES) build dist *.egg-info runs site $(LOG)
