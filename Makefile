# make demo | make test [TORCH=1] [SLOW=1] | make peers | make aot | make lint. The environment is .venv, made from PYTHON (3.11 or 3.12).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint environment peers aot
environment: $(VENV)/ready

$(VENV)/ready: requirements.txt requirements-data.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-data.txt
	touch $@

$(VENV)/torch: $(VENV)/ready
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --no-deps peft==0.21.2 accelerate==1.15.0
	touch $@

# What the bench compares with; TRL's other needs are there already.
peers: $(VENV)/peers
$(VENV)/peers: $(VENV)/torch
	$(BIN)/python -m pip install --quiet --no-deps trl==1.16.0
	touch $@

# The compilers of `python -m hir_jax.aot`; no TPU or GPU is needed.
aot: $(VENV)/aot
$(VENV)/aot: requirements-aot.txt $(VENV)/ready
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-aot.txt
	touch $@

# On the CPU, whatever else is there; so that the compilers of `make aot`, which jax takes for devices, do not speak up.
test: $(VENV)/ready $(if $(TORCH),$(VENV)/torch)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest $(if $(SLOW),,-m "not slow") $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

demo: $(VENV)/ready
	$(BIN)/python -m experiments.demo
