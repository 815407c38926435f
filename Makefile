# Every command a person needs. `make` alone lists them.
#
#   make mnist ARGS="--epochs 5"    options for the program that the target runs
#   make mnist PYTHON=python3.12    the Python that .venv is made from
#   make test EXTRAS=dev,parity     optional dependencies to install (setup.cfg names them)

PYTHON = python3
VENV   = .venv
EXTRAS = dev
ARGS   =
BIN    = $(VENV)/bin
DEV    = $(VENV)/.with-$(EXTRAS)

.PHONY: help venv mnist penguins serve bench bench-gpu bench-serve test test-gpu test-gpu-shim lint format types wheel-check check clean
.NOTPARALLEL:  # two pips in one environment would break it
.DEFAULT_GOAL := help

help:          ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

mnist: $(VENV)/.with-examples  ## train on handwritten digits (ARGS="--help" lists the options)
	@$(BIN)/python examples/mnist_mlp.py $(ARGS)

penguins: $(VENV)/.with-examples  ## guess penguins' weights from their measures (linear regression)
	@$(BIN)/python examples/penguins.py $(ARGS)

serve: $(VENV)/.with-serve,images runs/mnist/digits.msgpack  ## serve the digits model, trained first if there is none (ARGS="--help": the settings)
	@$(BIN)/python -m tinygrad_ish serve runs/mnist/digits.msgpack $(ARGS)

runs/mnist/digits.msgpack:
	@$(MAKE) --no-print-directory mnist ARGS=

bench: $(VENV)/.with-bench  ## all benchmarks against PyTorch, JAX and others; a quarter of an hour (ARGS="--quick": less)
	@for name in train_step kernels inference startup scaling; do echo; $(BIN)/python -m benchmarks.$$name $(ARGS) || exit; done

bench-gpu: $(VENV)/.with-gpu $(VENV)/.with-bench  ## the GPU against PyTorch and JAX; half an hour (ARGS="--part kernels": a part)
	@$(BIN)/python -m benchmarks.gpu $(ARGS)

bench-serve: $(VENV)/.with-serve $(VENV)/.with-bench $(VENV)/peers/.ready $(VENV)/mlserver/.ready  ## the server against LitServe, BentoML and others, with wrk; half an hour (ARGS="--quick": less)
	@$(BIN)/python -m benchmarks.serving --peers $(VENV)/peers/bin/python $(VENV)/mlserver/bin/python $(ARGS)

venv: $(DEV)   ## make .venv with what development needs

test: $(DEV)   ## run the tests (ARGS="-k relu" picks some)
	@$(BIN)/python -m pytest $(ARGS)

test-gpu: $(VENV)/.with-dev,gpu  ## all that can be tested on a GPU (ARGS="--stage tests": a part)
	@$(BIN)/python scripts/test_gpu.py $(ARGS)

test-gpu-shim: $(DEV)  ## run the GPU tests on the CPU: CUDA kernels through a shim, CuPy through a stand-in
	@TINYGRAD_ISH_GPU=stand-in $(BIN)/python -m pytest -m "gpu or cuda" $(ARGS)

lint: $(DEV)   ## ruff: rules and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: $(DEV) ## let ruff mend and format the code
	@$(BIN)/ruff check --fix-only --quiet . && $(BIN)/ruff format .

types: $(DEV)  ## mypy on the built wheel
	@$(BIN)/python scripts/check_types.py

wheel-check: $(DEV)  ## build the wheel and use it from a clean environment
	@$(BIN)/python scripts/check_wheel.py

check: lint types test wheel-check  ## the one door: what CI runs (EXTRAS=dev,parity compares with PyTorch too)

clean:         ## remove .venv, caches and build products (runs/ stays)
	@rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find kernels tinygrad_ish serve tests examples scripts benchmarks -name __pycache__ -prune -exec rm -rf {} +

# An environment is ready, and an extra is in it, when the stamp says so: a failed or interrupted
# step leaves none and is done again.
$(VENV)/.ready:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python 3.10 or newer, or name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) scripts/check_python.py $(PYTHON)
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) && touch $@

$(VENV)/.with-%: setup.cfg pyproject.toml | $(VENV)/.ready
	@echo "installing tinygrad_ish[$*] into $(VENV) (once; a minute or two)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable ".[$*]" || { echo "tinygrad_ish[$*] was not installed: pip says why above. Once that is mended (often: the network), run the same command again." >&2; exit 1; }
	@touch $@

# The servers that bench-serve races pin what they need: they live beside us, MLServer by itself.
$(VENV)/peers/.ready: PEERS = bench-serve
$(VENV)/mlserver/.ready: PEERS = bench-mlserver
$(VENV)/peers/.ready $(VENV)/mlserver/.ready: setup.cfg | $(VENV)/.ready
	@echo "installing $(PEERS) into $(@D) (once; some minutes)"
	@$(PYTHON) -m venv $(@D) && $(@D)/bin/python -m pip install -qq --disable-pip-version-check ".[$(PEERS)]" && touch $@
