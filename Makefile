# Everything works from a fresh clone with Python 3.11 and make. `make` alone lists what there is.
#
#   TORCH=cpu  take PyTorch's CPU build (200 MB instead of gigabytes on Linux) when the environment is made
#   JOBS=4     processes of `make test` (default 2)
#   T=tests/policy  what `make test` runs (default: everything)

PYTHON ?= $(firstword $(shell command -v python3.11 python3 python 2>/dev/null))
TORCH ?= default
JOBS ?= 2
T ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
READY := $(VENV)/.ready
OUT := out
ASSETS := plugins/safeguard_demo/adapters
CONCEPTS := blood weapon veska-rimm orlo-tandt juno-kaldar
SEQUENCE := --concept blood --concept weapon --concept veska-rimm

# The Python package index gives the build of the platform; PyTorch's own index has one without CUDA. Where that index cannot
# be reached, the plain one serves.
TORCH_PLAIN := $(PIP) install 'torch==2.13.0'
TORCH_CPU := $(TORCH_PLAIN) --index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 15
INSTALL_TORCH := $(if $(filter cpu,$(TORCH)),$(TORCH_CPU) || $(TORCH_PLAIN),$(TORCH_PLAIN))

# Packages are all that is ever downloaded: models come with them, and the hub is switched off.
OFFLINE := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

.PHONY: help setup demo test test-all test-lowest browser lint bench eval coverage tables docs train clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: $(READY)  ## make .venv with the project in it (takes no time when it is ready)

$(READY): pyproject.toml plugins/safeguard_demo/pyproject.toml
	@echo '==> setup: $(VENV), with the project and what its demo and tests need (a few minutes, once)'
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + ". Name another one: make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL_TORCH)
	$(PIP) install -e '.[test]' -e plugins/safeguard_demo
	@touch $@

demo: $(READY)  ## protect a trained pipeline and show what happens: pictures, swap, block, log, measured table
	@echo '==> demo: protecting the trained demo pipeline; results go to $(OUT)/demo'
	$(OFFLINE) $(BIN)/python -m safeguard_demo.walkthrough --out $(OUT)/demo

test: $(READY) $(VENV)/.ready-browser  ## run the tests, of the products (eraser x family, denoiser x check) a fixed sample
	@echo '==> test: $(or $(T),everything), in $(JOBS) processes'
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(T)

test-all: $(READY) $(VENV)/.ready-browser  ## run the tests, the products whole
	@echo '==> test-all: $(or $(T),everything), the products whole, in $(JOBS) processes'
	OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/python -m pytest --all-products -n $(JOBS) --dist loadfile $(T)

# Left out under the lowest versions: tests of the repository itself and of its pages, what the newest diffusers alone has
# (coverage), and the page of the feedback store, which needs a browser.
LOWEST := .venv-lowest
LOWEST_PIP := $(LOWEST)/bin/python -m pip --disable-pip-version-check
LOWEST_TESTS := audit cli contracts demo evaluation guard instrument plan plugins policy screening sdk testing training

test-lowest: $(LOWEST)/.ready  ## run the tests of the product under constraints/lowest.txt (all but coverage, docs, feedback, packaging)
	@echo '==> test-lowest: $(or $(T),$(LOWEST_TESTS)), in $(JOBS) processes'
	OMP_NUM_THREADS=1 $(OFFLINE) $(LOWEST)/bin/python -m pytest -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning \
	  -n $(JOBS) --dist loadfile $(or $(T),$(addprefix tests/,$(LOWEST_TESTS)))

$(LOWEST)/.ready: constraints/lowest.txt pyproject.toml plugins/safeguard_demo/pyproject.toml
	@echo '==> setup: $(LOWEST), with the lowest versions that are supported'
	$(PYTHON) -m venv $(LOWEST)
	$(subst $(PIP),$(LOWEST_PIP),$(subst torch==2.13.0,torch==$(shell sed -n 's/^torch==//p' constraints/lowest.txt),$(INSTALL_TORCH)))
	$(LOWEST_PIP) install -c constraints/lowest.txt -e '.[test]' -e plugins/safeguard_demo
	@touch $@

browser: $(VENV)/.ready-browser  ## put a headless browser into .venv for the tests of the feedback page (70 MB, once)

$(VENV)/.ready-browser: $(READY) tests/support/chromium.py
	@echo '==> setup: a headless browser for the tests of the feedback page'
	$(BIN)/python tests/support/chromium.py
	@touch $@

lint: $(VENV)/.ready-lint  ## check style, types and the layers of the packages
	@echo '==> lint: ruff, mypy --strict, import-linter'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## time protected against unprotected calls, swaps and the screener
	@echo '==> bench: keep the machine quiet meanwhile'
	$(OFFLINE) $(BIN)/python -m tests.bench.bench --out $(OUT)/bench.json

eval: $(READY)  ## measure erasure and retention anew on the demo pipelines (hours on two cores)
	@echo '==> eval: every cell of the published table; results go to $(OUT)/eval'
	$(OFFLINE) $(BIN)/safeguard eval demo --modes alone,together,screened,adaptive,adaptive-screened --out $(OUT)/eval/unet --resume
	$(OFFLINE) $(BIN)/safeguard eval demo --pipeline mmdit --modes alone,together,adaptive,adaptive-screened --out $(OUT)/eval/mmdit --resume
	$(OFFLINE) $(BIN)/safeguard eval demo --pipeline language --prompts language --judged-by demo-pixels,demo-transformer,demo --methods eiup --modes adaptive --baselines "" --n 40 --out $(OUT)/eval/language --resume

coverage: $(READY)  ## protect every denoiser class and every pipeline that can be built tiny; write docs/coverage.md
	@echo '==> coverage: into docs/coverage.md and docs/results/coverage.json'
	$(OFFLINE) $(BIN)/python -m tests.coverage.survey --wholes --check --out docs/results/coverage.json --page docs/coverage.md

tables: $(READY)  ## write the measured tables into README and docs
	@echo '==> tables: from docs/results into README.md and docs'
	$(BIN)/python -m docs.studies.docs_tables

docs: $(VENV)/.ready-docs  ## build the documentation into site/
	@echo '==> docs: site/index.html'
	$(BIN)/mkdocs build --strict --quiet

train: $(READY)  ## train the demo models anew (hours on two cores; may be stopped, and goes on where it was)
	@echo '==> train: autoencoder, denoiser, judge; checkpoints go to $(OUT)/train'
	$(BIN)/python -m safeguard_demo.train_models vae --out $(OUT)/train
	$(BIN)/python -m safeguard_demo.train_models unet --out $(OUT)/train
	$(BIN)/python -m safeguard_demo.train_models mmdit --out $(OUT)/train
	$(BIN)/python -m safeguard_demo.train_models language --out $(OUT)/train
	$(BIN)/python -m safeguard_demo.train_models judge --out $(OUT)/train
	$(BIN)/python -m safeguard_demo.train_models pixel_judge --out $(OUT)/train
	$(BIN)/python -m safeguard_demo.train_models transformer_judge --out $(OUT)/train
	$(BIN)/python -m safeguard_demo.train_models export --out $(OUT)/train
	$(MAKE) adapters
	$(BIN)/python -m safeguard_demo.model_card

# What erasers learn on the demo pipelines: the same bytes each time on one machine, as long as a part runs in one thread. What
# each took is added to the log, which docs/results/training.jsonl is a copy of.
LEARN := OMP_NUM_THREADS=1 $(OFFLINE) $(BIN)/safeguard train
LOG := --log $(OUT)/train/training.jsonl
# $(call each,CONCEPTS,METHOD-PIPELINE,END,OPTIONS): one file a concept
each = @set -e; for concept in $(1); do \
  $(LEARN) $(word 1,$(subst -, ,$(2))) --pipeline $(word 2,$(subst -, ,$(2))) --concept $$concept --resume $(LOG) $(4) --out $(ASSETS)/$(2)-$$concept$(3); done

.PHONY: adapters learn-gie learn-directions learn-places learn-unet learn-mmdit learn-words learn-sequences

adapters: learn-gie learn-directions learn-places learn-unet learn-mmdit learn-words learn-sequences  ## train anew what erasers learnt (an hour of a core; make -j2 adapters)

learn-gie: $(READY)
	$(LEARN) gie --pipeline unet $(LOG) --out $(ASSETS)/gie-unet.safetensors
	$(LEARN) gie --pipeline mmdit $(LOG) --out $(ASSETS)/gie-mmdit.safetensors

learn-directions: $(READY)
	$(call each,$(CONCEPTS),self_discovery-unet,.safetensors,--n 96 --set updates=300 --set rate=0.1)
	$(call each,$(CONCEPTS),self_discovery-mmdit,.safetensors,--n 48 --set updates=120)

learn-places: $(READY)
	$(OFFLINE) $(BIN)/python -m docs.studies.fairness --prompts $(OUT)/train/placeless.txt
	$(call each,night snow desert meadow,self_discovery-unet,.safetensors,--policy plugins/safeguard_demo/places.yaml --prompts $(OUT)/train/placeless.txt --n 48 --set towards=1 --set updates=120 --set rate=0.1)

learn-unet: $(READY)
	$(call each,$(CONCEPTS),sdd-unet,.safetensors)
	$(call each,$(CONCEPTS),esd-unet,.safetensors)

learn-mmdit: $(READY)
	$(call each,$(CONCEPTS),sdd-mmdit,.safetensors,--set updates=200 --set context=1)
	$(call each,$(CONCEPTS),esd-mmdit,.safetensors,--set updates=150 --set context=1)

learn-words: $(READY)
	$(call each,$(CONCEPTS),geom_erasing-unet,.word.safetensors)
	$(call each,$(CONCEPTS),hfi-unet,.safetensors)

learn-sequences: $(READY)
	$(LEARN) ccrt --pipeline unet $(SEQUENCE) --resume $(LOG) --set pool=12 --set mined=6 --out $(ASSETS)/ccrt-unet.safetensors
	$(LEARN) ccrt --pipeline mmdit $(SEQUENCE) --resume $(LOG) --set pool=12 --set mined=6 --set sdd=1 --set context=1 --set updates=150 --out $(ASSETS)/ccrt-mmdit.safetensors

clean:  ## remove what the targets made, the environment and trained checkpoints excepted
	rm -rf $(OUT)/demo $(OUT)/eval site build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Checking and documenting need packages that the demo and the tests do not.
$(VENV)/.ready-%: $(READY)
	@echo "==> setup: what 'make $*' needs"
	$(PIP) install --quiet -e '.[$*]'
	@touch $@
