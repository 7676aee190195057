# make demo      the whole idea on this machine: real text, a tokenizer, 3 sparse heads on 2 processes, a picture
# make test      the test suite, minutes
# make test-long tests of whole clusters on this machine: several nodes, every mesh, every way to be killed while saving
# make lint      style, types and layers
# make kernels   compile the sparse kernels ahead (else: on first use)
# make install   only the environment (the others do it when needed)
#
# Needs Python 3.11 or newer, make and g++. Everything else goes into .venv.

PYTHON ?= python3
BIN    := .venv/bin
PROCESSES ?= 2
# DEMO_ARGS: options for the run, such as DEMO_ARGS="train.steps=1000". RUN: name of the run, to keep several.
DEMO_ARGS ?=
RUN       ?= demo
AGAIN     := make demo$(if $(filter-out demo,$(RUN)), RUN=$(RUN))

.PHONY: demo install kernels test test-long lint format
.DELETE_ON_ERROR:

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one: make install PYTHON=python3.12"; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
	  { echo "python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 2; }
	@echo "installing the pinned packages into .venv (minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report,dev]'
	@touch $@

# The stamps stand inside the folders they vouch for: deleting a folder makes it anew.
data/kjv-raw/.done: | .venv/.installed
	$(BIN)/python launch/prepare.py corpus kjv --out data/kjv-raw
	@touch $@

data/kjv/.done: data/kjv-raw/.done
	$(BIN)/python launch/prepare.py text data/kjv-raw --out data/kjv --name kjv --validation-share 0.05
	@touch $@

tokenizers/kjv.model: data/kjv/.done
	$(BIN)/python launch/prepare.py tokenizer data/kjv --out tokenizers/kjv.model --vocab-size 4096 --kind unigram

# torchrun turns every failure into exit code 1 and a traceback, so what really happened is read from the run directory.
# "trap : INT": after Ctrl-C this shell waits for the ranks to save and still tells the outcome.
demo: .venv/.installed tokenizers/kjv.model
	@trap : INT TERM; begin=$$(date +%s); \
	$(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) launch/pretrain.py configs/demo.yaml \
	  $(if $(filter-out demo,$(RUN)),run.name=$(RUN)) $(DEMO_ARGS) \
	|| { echo; $(BIN)/python launch/report.py runs/$(RUN) --status --since $$begin --again "$(AGAIN)"; exit; }
	@$(BIN)/python launch/report.py runs/$(RUN)

# Two processes, a file of tests stays in one: most files keep one core busy, and their fixtures are made once for all.
test: .venv/.installed
	$(BIN)/python -m pytest -q -m "not long" -n 2

test-long: .venv/.installed
	$(BIN)/python -m pytest -q -m long

kernels: .venv/.installed
	$(BIN)/python -m nt_pretrain.sparsity.kernels.build

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check --quiet || { echo "some files are not formatted: make format"; exit 1; }
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
