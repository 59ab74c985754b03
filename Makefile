PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The embedded digits are small: a short run at a batch size that gives a few hundred steps.
DEMO := --data digits --arch Mlp --train_batchsize 32 --epoch_num 60

.DEFAULT_GOAL := help
.PHONY: help demo test clean

help:  ## list what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(VENV)/installed  ## train a small network, prune it at 19 ratios, draw the pictures
	@$(BIN)/python train_prune.py $(DEMO)
	@echo
	@$(BIN)/python test_weight_distribution.py $(DEMO)
	@echo
	@$(BIN)/python test_prune.py $(DEMO)

test: $(VENV)/installed-dev  ## lint, then run the tests
	$(BIN)/ruff check .
	$(BIN)/pytest

clean:  ## remove the virtual environment (outputs and data stay)
	rm -rf $(VENV)

$(VENV)/installed: requirements.txt
	@echo "Installing requirements.txt into $(VENV). This happens once and takes minutes and about"
	@echo "6 GB of disk: the registry's torch brings CUDA with it. A CPU is enough to run it."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(BIN)/pip install --disable-pip-version-check -r requirements-dev.txt
	@touch $@
