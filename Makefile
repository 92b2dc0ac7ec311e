# Every target composes commands; what they do is in pipeline/ and benchmarks/.
#   RECIPE=flowers make run     another recipe of configs/, or the path of one
#   GPU=1 make run              the environment of requirements-gpu.txt
#   ARGS="--set train.seed=2"   options for the command

TARGETS := help install install-gpu install-serve install-distributed run train export quantize build verify benchmark accuracy infer report bundle doctor \
           lint check test test-slow test-gpu test-distributed gpu-evidence contract key-tables result-tables clean
VARIABLES := RECIPE ARGS GPU PYTHON VENV

ifeq ($(strip $(RECIPE)),)
override RECIPE := digits
endif
ARGS ?=
ifneq ($(filter-out 0 no false,$(GPU)),)
VENV ?= .venv-gpu
REQUIREMENTS := requirements-gpu.txt
else
VENV ?= .venv
REQUIREMENTS := requirements.txt
endif
PY := $(VENV)/bin/python
OF_VERIFY := --layers --reduce
OPTIONS := -c "$(RECIPE)" $(filter-out $(OF_VERIFY),$(ARGS))
# An unpacked archive brings its recipe as artifacts/<name>/recipe.yaml: there the folder names it.
FOLDER := $(notdir $(patsubst %/,%,$(dir $(RECIPE))))
UNPACKED := $(filter artifacts/$(FOLDER)/recipe.yaml %/artifacts/$(FOLDER)/recipe.yaml,$(RECIPE))
NAME := $(if $(UNPACKED),$(FOLDER),$(patsubst %.yml,%,$(patsubst %.yaml,%,$(notdir $(RECIPE)))))
INSTALLED := $(VENV)/.installed
TEST_TOOLS := $(VENV)/.test-tools
SERVE := $(VENV)/.serve
DISTRIBUTED := $(VENV)/.distributed

# --- refused before anything runs: words that make would ignore, and then work on the default recipe ---

UNKNOWN := $(filter-out $(TARGETS) gpu-or-said $(PY) $(INSTALLED) $(TEST_TOOLS) $(SERVE) $(DISTRIBUTED),$(MAKECMDGOALS))
ifneq ($(UNKNOWN),)
KNOWN := $(or $(filter $(TARGETS),$(MAKECMDGOALS)),run)
$(error Expected targets of this Makefile (make help lists them). Received: $(UNKNOWN). \
  If it is a recipe, write: RECIPE=$(firstword $(UNKNOWN)) make $(KNOWN))
endif
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
LOWER_CASE := $(foreach name,recipe args gpu,$(if $(filter undefined,$(origin $(name))),,$(name)))
MISNAMED := $(sort $(filter-out $(VARIABLES) PY INSTALLED SHELL MAKE%,$(filter-out -%,$(GIVEN))) $(LOWER_CASE))
ifneq ($(MISNAMED),)
$(error Expected the variables $(VARIABLES), in capitals. Received: $(MISNAMED). \
  Write for instance: RECIPE=mine make run (a key of the recipe: ARGS="--set section.key=value"))
endif
ifneq ($(filter clean gpu-evidence,$(MAKECMDGOALS)),)
ifeq ($(shell printf '%s\n' '$(subst ','\'',$(NAME))' | grep -Ex '[A-Za-z0-9_][A-Za-z0-9._-]*'),)
$(error Expected RECIPE with a name of letters, digits, dots, underscores and hyphens, whose artifacts lie in \
  artifacts/<name>. Received: $(RECIPE))
endif
endif

.DEFAULT_GOAL := help
.PHONY: $(TARGETS) gpu-or-said

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */\1|/' | awk -F'|' '{printf "  %-12s %s\n", $$1, $$2}'
	@echo; echo "  RECIPE=$(RECIPE) (of configs/), GPU=1 for the GPU environment, ARGS=\"--force\" for options"

# --- environment: made once; a second call installs nothing ---

# What shows a GPU: devices of the driver (of WSL, of Jetson), its library or its tool. `make install-gpu` does not ask.
GPU_SIGNS := /dev/nvidia* /dev/dxg /dev/nvmap /proc/driver/nvidia /usr/lib/wsl/lib/libcuda.so*
define gpu_or
if ls -d $(GPU_SIGNS) 2>/dev/null | grep -q . || command -v nvidia-smi >/dev/null \
  || { ldconfig -p || /sbin/ldconfig -p; } 2>/dev/null | grep -qF libcuda.so; then exit 0; fi; \
echo "Expected an NVIDIA GPU and its driver for $(1). Received: no sign of one (/dev/nvidia*, nvidia-smi, libcuda.so)."; \
echo "$(2)"; exit 2
endef

gpu-or-said:
ifneq ($(filter test-gpu,$(MAKECMDGOALS)),)
	@$(call gpu_or,test-gpu,Run it on a machine that has one; the tests that need none: make test)
else ifeq ($(REQUIREMENTS)$(filter install,$(MAKECMDGOALS)),requirements-gpu.txt)
	@[ ! -e $(INSTALLED) ] || exit 0; \
	$(call gpu_or,GPU=1,Leave GPU=1 out; to install $(VENV) all the same: make install-gpu)
endif

$(PY): | gpu-or-said
	@found=""; for python in $(PYTHON) python3 python3.12 python3.13 python3.11; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null; \
	  then found=$$python; break; fi; done; \
	if [ -z "$$found" ]; then \
	  echo "Expected Python 3.11, 3.12 or 3.13 with its venv module. Received: none of them on the PATH."; \
	  echo "Install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12),"; \
	  echo "or name it: make PYTHON=/path/to/python3.12 run"; exit 2; fi; \
	echo "creating $(VENV) with $$($$found --version)"; $$found -m venv $(VENV)

PIP := $(PY) -m pip install --quiet --disable-pip-version-check
OR_SAY = || { echo "Expected pip to install the packages of $(1). Received: its failure, above. Fix what it names (network," \
  "disk space, a package that this system or its Python has none of) and run the same line again." $(2); exit 2; }
ifeq ($(REQUIREMENTS),requirements-gpu.txt)
SIZE := several GB
NVIDIAS := "The package tensorrt fetches its libraries from NVIDIA's own package index, which this machine has to reach."
else
SIZE := about a minute, 2 GB
endif

# What a Python that runs bundles alone does instead of a target; it was made by hand, so that nothing is put into it.
ON_BUNDLES := $(firstword $(filter build verify benchmark infer bundle,$(MAKECMDGOALS)))
INSTEAD = $(if $(filter gpu-evidence,$(MAKECMDGOALS)),benchmarks.gpu_evidence artifacts/$(NAME),pipeline $(if \
  $(ON_BUNDLES),$(ON_BUNDLES) -c $(RECIPE),doctor))

$(INSTALLED): requirements-common.txt requirements-legacy.txt $(REQUIREMENTS) | gpu-or-said $(PY)
	@old="$$($(PY) -c 'import sys; sys.version_info < (3, 11) and print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"; \
	case "$$old" in "") exit 0;; \
	3.10) echo "Expected Python 3.11, 3.12 or 3.13 in $(VENV). Received: 3.10, which runs bundles alone; nothing was installed."; \
	  echo "Write instead: $(PY) -m $(INSTEAD)";; \
	*) echo "Expected Python 3.11, 3.12 or 3.13 in $(VENV). Received: $$old; nothing was installed."; \
	  echo "Make another environment: make install VENV=.venv-new";; esac; exit 2
	@echo "installing $(REQUIREMENTS) into $(VENV) ($(SIZE); once)"
	@$(PIP) -r $(REQUIREMENTS) $(call OR_SAY,$(REQUIREMENTS),$(NVIDIAS))
	@$(PIP) --no-deps -r requirements-legacy.txt $(call OR_SAY,requirements-legacy.txt)
	@touch $@

$(TEST_TOOLS): requirements-dev.txt requirements-serve.txt requirements-tritonclient.txt $(INSTALLED) | gpu-or-said
	@echo "installing requirements-dev.txt into $(VENV)"
	@$(PIP) -r requirements-dev.txt $(call OR_SAY,requirements-dev.txt)
	@$(PIP) --no-deps -r requirements-tritonclient.txt $(call OR_SAY,requirements-tritonclient.txt)
	@touch $@

$(SERVE): requirements-serve.txt $(INSTALLED) | gpu-or-said
	@echo "installing requirements-serve.txt into $(VENV)"
	@$(PIP) -r requirements-serve.txt $(call OR_SAY,requirements-serve.txt)
	@touch $@

$(DISTRIBUTED): requirements-distributed.txt $(INSTALLED) | gpu-or-said
	@echo "installing requirements-distributed.txt into $(VENV) (about 700 MB)"
	@$(PIP) -r requirements-distributed.txt $(call OR_SAY,requirements-distributed.txt)
	@touch $@

install: $(INSTALLED)  ## the environment in .venv

install-gpu:  ## the environment for a GPU machine in .venv-gpu
	@$(MAKE) --no-print-directory install GPU=1

install-serve: $(SERVE)  ## what `python -m pipeline serve` needs besides

install-distributed: $(DISTRIBUTED)  ## what `infer --engine ray` and Spark need besides

# --- the chain: a stage whose inputs did not change is skipped ---

# What comes after the verdict is made where that is fail, too; the status tells at the end, as that of `run` does.
define after_the_verdict
@$(PY) -m pipeline verify $(OPTIONS); verdict=$$?; [ $$verdict -le 1 ] || exit $$verdict; \
  $(1) || exit $$?; exit $$verdict
endef

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
	@$(PY) -m pipeline verify $(OPTIONS) $(filter $(OF_VERIFY),$(ARGS))

benchmark: build  ## latency and throughput
	@$(PY) -m pipeline benchmark $(OPTIONS)

accuracy: build  ## every precision and calibration method on the test images
	$(call after_the_verdict,$(PY) -m benchmarks.accuracy $(OPTIONS))

infer: build  ## classify a sample of the test images
	$(call after_the_verdict,$(PY) -m pipeline infer $(OPTIONS))

report: run  ## one HTML page with everything, which wants the whole chain

bundle: $(INSTALLED)  ## the artifacts as one archive, for another machine
	@$(PY) -m pipeline bundle $(OPTIONS)

doctor: $(INSTALLED)  ## what is installed, and what each stage can do here
	@$(PY) -m pipeline doctor

# --- tests ---

lint: $(TEST_TOOLS)  ## ruff, the order of imports between rooms, mypy
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(VENV)/bin/lint-imports --no-logo
	@$(PY) -m mypy
	@$(PY) -m mypy --config-file tests/mypy.ini tests

QUICK_TESTS := -m pytest -m "not slow and not gpu and not distributed" -n auto --dist loadscope

check: lint  ## lint, then the tests that need no TensorFlow: under two minutes
	@$(PY) $(QUICK_TESTS) --unit -rfE

test: lint  ## lint, then every test that needs no GPU and no long time
	@$(PY) $(QUICK_TESTS)

test-slow: $(TEST_TOOLS)  ## the long tests
	@$(PY) -m pytest -m "slow and not distributed"

test-distributed: $(TEST_TOOLS) $(DISTRIBUTED)  ## Ray and Spark, on two worker processes of this machine
	@$(PY) -m pytest -m distributed tests/pipeline/distributed

# Named, so that the others, which need TensorFlow and more, are not even imported.
GPU_TESTS := tests/pipeline/runners/test_engines_on_gpu.py tests/pipeline/runners/test_cuda.py tests/benchmarks/peers/test_pytorch_runner.py

test-gpu: $(TEST_TOOLS)  ## the tests that need an NVIDIA GPU
	@$(PY) -c "import sys; from export.tensorrt.driver import driver_status as ask; here = ask(); \
	  sys.exit(0 if here else f'Expected an NVIDIA GPU. Received: {here.reason}.')"
	@$(PY) -m pytest -m gpu $(GPU_TESTS)

gpu-evidence: $(INSTALLED)  ## on a GPU: build, check and time the recipe's engines, write artifacts/<recipe>/evidence/
	@$(PY) -m benchmarks.gpu_evidence "artifacts/$(NAME)" $(ARGS)

contract: $(TEST_TOOLS)  ## the TensorRT names that the code wants, read off the bindings of every version
	@$(PY) -m tests.contract

key-tables: $(TEST_TOOLS)  ## the tables of a recipe's keys in README.md and docs/recipe.md
	@$(PY) -m tests.key_tables

result-tables: $(TEST_TOOLS)  ## the tables of INT8's measurements in README.md and docs/int8.md
	@$(PY) -m tests.result_tables

clean:  ## remove what can be made again of the recipe; never trained models
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
	@if [ ! -d "artifacts/$(NAME)" ]; then \
	  echo "artifacts/$(NAME): nothing there to remove. Recipes with artifacts:" $(or $(notdir $(wildcard artifacts/*)),none); \
	else \
	  rm -rf $(foreach stage,export quantize build verify layers benchmark infer report,"artifacts/$(NAME)/$(stage)"); \
	  echo "kept: artifacts/$(NAME)/train, other recipes, the environments"; \
	fi
