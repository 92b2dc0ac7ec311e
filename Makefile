# Every target composes commands; what they do is in pipeline/ and benchmarks/.
#   RECIPE=flowers make run     another recipe of configs/, or the path of one
#   GPU=1 make run              the environment of requirements-gpu.txt
#   ARGS="--set train.seed=2"   options for the command

RECIPE ?= digits
ARGS ?=
ifdef GPU
VENV ?= .venv-gpu
REQUIREMENTS := requirements-gpu.txt
else
VENV ?= .venv
REQUIREMENTS := requirements.txt
endif
PY := $(VENV)/bin/python
OPTIONS := -c "$(RECIPE)" $(ARGS)
NAME := $(patsubst %.yaml,%,$(notdir $(RECIPE)))
INSTALLED := $(VENV)/.installed
TEST_TOOLS := $(VENV)/.test-tools

.DEFAULT_GOAL := help
.PHONY: help install install-gpu run train export quantize build verify benchmark accuracy infer report bundle doctor \
        lint test test-slow test-gpu gpu-evidence contract clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | awk -F'|' '{printf "  %-12s %s\n", $$1, $$2}'
	@echo; echo "  RECIPE=$(RECIPE) (of configs/), GPU=1 for the GPU environment, ARGS=\"--force\" for options"

# --- environment: made once; a second call installs nothing ---

$(PY):
	@found=""; for python in $(PYTHON) python3 python3.12 python3.13 python3.11; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
	  then found=$$python; break; fi; done; \
	if [ -z "$$found" ]; then \
	  echo "Expected Python 3.11, 3.12 or 3.13 with its venv module. Received: none of them on the PATH."; \
	  echo "Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12),"; \
	  echo "or name it: make PYTHON=/path/to/python3.12 run"; exit 2; fi; \
	echo "creating $(VENV) with $$($$found --version)"; $$found -m venv $(VENV)

$(INSTALLED): requirements-common.txt requirements-legacy.txt $(REQUIREMENTS) | $(PY)
	@echo "installing $(REQUIREMENTS) into $(VENV) (about a minute, 2 GB; once)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-legacy.txt
	@touch $@

$(TEST_TOOLS): requirements-dev.txt $(INSTALLED)
	@echo "installing requirements-dev.txt into $(VENV)"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

install: $(INSTALLED)  ## the environment in .venv

install-gpu:  ## the environment for a GPU machine in .venv-gpu
	@$(MAKE) --no-print-directory install GPU=1

# --- the chain: a stage whose inputs did not change is skipped ---

run: $(INSTALLED)  ## the whole chain: train, export, quantize, build, verify, benchmark, infer, report
	@$(PY) -m pipeline run $(OPTIONS)

train: $(INSTALLED)  ## train the model of the recipe
	@$(PY) -m pipeline train $(OPTIONS)

export: train  ## Keras to ONNX
	@$(PY) -m pipeline export $(OPTIONS)

quantize: export  ## the FP16 and INT8 graphs
	@$(PY) -m pipeline quantize $(OPTIONS)

build: quantize  ## TensorRT engines
	@$(PY) -m pipeline build $(OPTIONS)

verify: build  ## compare every file with Keras, give the verdict
	@$(PY) -m pipeline verify $(OPTIONS)

benchmark: build  ## latency and throughput
	@$(PY) -m pipeline benchmark $(OPTIONS)

accuracy: verify  ## every precision and calibration method on the test images
	@$(PY) -m benchmarks.accuracy $(OPTIONS)

infer: verify  ## classify a sample of the test images
	@$(PY) -m pipeline infer $(OPTIONS)

report: infer benchmark  ## one HTML page with everything
	@$(PY) -m pipeline report $(OPTIONS)

bundle: $(INSTALLED)  ## the artifacts as one archive, for another machine
	@$(PY) -m pipeline bundle $(OPTIONS)

doctor: $(INSTALLED)  ## what is installed, and what each stage can do here
	@$(PY) -m pipeline doctor

# --- tests ---

lint: $(TEST_TOOLS)  ## ruff and mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

test: lint  ## lint, then every test that needs no GPU and no long time
	@$(PY) -m pytest -m "not slow and not gpu"

test-slow: $(TEST_TOOLS)  ## the long tests
	@$(PY) -m pytest -m slow

test-gpu: $(TEST_TOOLS)  ## the tests that need an NVIDIA GPU
	@$(PY) -c "import sys; from export.driver import driver_status as ask; here = ask(); \
	  sys.exit(0 if here else f'Expected an NVIDIA GPU. Received: {here.reason}.')"
	@$(PY) -m pytest -m gpu

gpu-evidence: $(INSTALLED)  ## on a GPU: build, check and time the recipe's engines, write benchmarks/results/
	@$(PY) -m benchmarks.gpu_evidence "artifacts/$(NAME)" $(ARGS)

contract: $(TEST_TOOLS)  ## the TensorRT names that the code wants, read off the bindings of every version
	@$(PY) -m tests.contract

clean:  ## remove what can be made again of the recipe; never trained models
	@rm -rf $(foreach stage,export quantize build verify benchmark infer report,"artifacts/$(NAME)/$(stage)")
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
	@echo "kept: artifacts/$(NAME)/train, other recipes, the environments"
