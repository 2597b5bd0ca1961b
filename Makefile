# make demo: a real search with the model that ships with the project; make test: the tests.
# Both set up .venv first, if it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SIDE_BY_SIDE := -n 2 --dist worksteal
RUN ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.PHONY: demo test slow lint types bench checkpoint schemas clean

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/ssmprune search spaces/vim_nano.yaml --trials 150 --workers 2 --out $(RUN)
	$(BIN)/ssmprune report $(RUN)
	$(BIN)/ssmprune export $(RUN) --max-flops-ratio 0.6 -o $(RUN)/policies/flops-60.yaml
	$(BIN)/ssmprune train --model vim_nano --data digits --policy $(RUN)/policies/flops-60.yaml \
	  --init shipped --steps 260 --out $(RUN)/finetuned

test: $(VENV)/installed
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m 'not slow'

slow: $(VENV)/installed
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(VENV)/installed
	$(BIN)/mypy

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks

# Trains the shipped model again; its weights, log and card are then in runs/vim_nano.
checkpoint: $(VENV)/installed
	$(BIN)/ssmprune train --model vim_nano --data digits --out runs/vim_nano

# Writes the JSON Schemas that editors complete YAML with, and docs/policy.md.
schemas: $(VENV)/installed
	$(BIN)/python -m tools.schemas

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
