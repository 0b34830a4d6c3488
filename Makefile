# From a bare checkout, with python3 (3.11 or newer) and make alone:  make demo   make test
# Each target sets up what it needs in $(VENV); that happens once, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV ?= .venv
CHECKPOINT ?= emoji
DATA ?= emoji.parquet
OUT ?= runs/emoji
JUDGE := $(HOME)/.cache/mmgpt/judge-efficientnet-lite0.safetensors
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

export HF_HUB_OFFLINE = 1

.PHONY: help install demo test test-long test-hf lint data train eval clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile | expand -t 14

install: $(INSTALLED)  ## the environment alone

demo: $(INSTALLED)  ## captions eight pictures, draws eight prompts into demo/
	$(BIN)/python -m mmgpt demo -o demo --checkpoint $(CHECKPOINT)

test: $(INSTALLED)  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

test-long: $(INSTALLED)  ## hundreds of kills and damaged files instead of a few; prints its counts
	$(BIN)/python -m pytest -m long -s $(ARGS)

test-hf: $(INSTALLED)  ## transformers' own tests on the adapter, on the installed version and on 5.17.0 (fetches both)
	$(BIN)/python tools/hf_tests.py installed 5.17.0

lint: $(INSTALLED)  ## style and unused names
	$(BIN)/ruff check .

data: $(DATA)  ## the pictures to train on, from public packages (needs npm)

train: $(INSTALLED) $(DATA)  ## trains the codec, then the model, into runs/
	$(BIN)/python -m mmgpt train emoji-codec data=$(DATA) out=$(OUT)-codec
	$(BIN)/python -m mmgpt train emoji data=$(DATA) codec=$(OUT)-codec/final out=$(OUT)

eval: $(INSTALLED) $(DATA) $(JUDGE)  ## measures CHECKPOINT: captions, drawings, codec
	$(BIN)/python -m mmgpt eval caption $(CHECKPOINT) --data $(DATA)
	$(BIN)/python -m mmgpt eval draw $(CHECKPOINT) --data $(DATA)
	$(BIN)/python -m mmgpt eval codec $(CHECKPOINT) --data $(DATA)

clean:  ## removes the environment, caches and what the demo drew; keeps runs/ and the data
	rm -rf $(VENV) demo build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml constraints.txt
	@rm -f $@
	@echo "setting up $(VENV): some minutes and 6 GB, once"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e '.[dev]'
	@touch $@

$(DATA): | $(INSTALLED)
	@mkdir -p $(dir $@)
	$(INSTALL) -e '.[data]'
	$(BIN)/python tools/build_emoji.py $@

$(JUDGE): | $(INSTALLED)
	$(INSTALL) -e '.[eval]'
	$(BIN)/python tools/convert_judge.py
