# `make demo` and `make test` need nothing but Python (>= 3.10) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VENV_ADDONS := .venv-addons
# tensorflow-addons has wheels for Python 3.9 to 3.11 only.
PYTHON_ADDONS ?= $(shell for p in $(PYTHON) python3.11 python3.10; do \
  $$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' 2>/dev/null \
  && echo $$p && break; done)
PYTEST_FLAGS := -n 2 --dist loadfile --durations=15
# What can differ between TensorFlow's versions, or uses tensorflow-addons; empty: all tests.
ADDONS_TESTS := $(addprefix tests/test_,$(addsuffix .py,api augment checkpoint colors environment \
  golden initial_weights layers optimizers resize trainer))
PIP_FLAGS := --quiet --disable-pip-version-check

.PHONY: demo test test-all test-addons fuzz lint docs clean

$(VENV)/.installed: pyproject.toml
	@echo "== installing into $(VENV) (a few minutes the first time) =="
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[dev,pretrained,embeddings]' 'tensorflow==2.20.*' 'tf-keras==2.20.*' 'tf-models-official==2.20.*'
	@touch $@

$(VENV_ADDONS)/.installed: pyproject.toml
	@echo "== installing into $(VENV_ADDONS) =="
	$(PYTHON_ADDONS) -m venv $(VENV_ADDONS)
	$(VENV_ADDONS)/bin/python -m pip install $(PIP_FLAGS) --upgrade pip
	$(VENV_ADDONS)/bin/python -m pip install $(PIP_FLAGS) -e '.[addons,dev,pretrained,embeddings]'
	@touch $@

# The dense CRF is compiled from source. Where that fails, its tests say that they did not run.
NO_CRF := == the extra [crf] could not be compiled: install a C++ compiler to test the dense CRF ==

$(VENV)/.crf: $(VENV)/.installed
	@$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[crf]' && touch $@ || echo "$(NO_CRF)"

$(VENV_ADDONS)/.crf: $(VENV_ADDONS)/.installed
	@$(VENV_ADDONS)/bin/python -m pip install $(PIP_FLAGS) -e '.[crf]' && touch $@ || echo "$(NO_CRF)"

demo: $(VENV)/.installed
	$(BIN)/tfseg demo --output_dir=demo_output

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install $(PIP_FLAGS) -e '.[docs]'
	@touch $@

# The pages of docs/ as a site, in site/; a link that leads nowhere is an error.
docs: $(VENV)/.docs
	$(BIN)/python docs/flags.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open in a browser: site/index.html"

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

test: $(VENV)/.installed $(VENV)/.crf lint
	TFSEG_EXPECT_TENSORFLOW=2.20 $(BIN)/python -m pytest $(PYTEST_FLAGS) -m "not nightly"

# Everything, on both stacks: before a release, or by night.
test-all: $(VENV)/.installed $(VENV)/.crf lint
	TFSEG_EXPECT_TENSORFLOW=2.20 $(BIN)/python -m pytest $(PYTEST_FLAGS)
	$(MAKE) test-addons ADDONS_TESTS=

# A longer search than the one of `make test`: FUZZ="--examples 1000000 --targets image record".
FUZZ := --examples 50000

fuzz: $(VENV)/.installed
	$(BIN)/python -m tests.fuzzing $(FUZZ)

ifeq ($(strip $(PYTHON_ADDONS)),)
test-addons:
	@echo "make test-addons needs Python 3.10 or 3.11 (tensorflow-addons has no wheel for newer ones); none was found, so these tests did not run."
else
test-addons: $(VENV_ADDONS)/.installed $(VENV_ADDONS)/.crf
	TFSEG_EXPECT_TENSORFLOW=2.15 $(VENV_ADDONS)/bin/python -m pytest $(PYTEST_FLAGS) -m "not nightly" $(ADDONS_TESTS)
endif

clean:
	rm -rf $(VENV) $(VENV_ADDONS) demo_output site
