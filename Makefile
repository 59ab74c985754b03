PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The embedded digits are small: a short run at a batch size that gives a few hundred steps.
DEMO := --data digits --arch Mlp --train_batchsize 32 --epoch_num 60

# The CUDA device; -1 is the CPU. Further flags of the comparison.
GPU ?= -1
ARGS ?= --precision bf16

.DEFAULT_GOAL := help
.PHONY: help demo test bench proxy first-proxy second-proxy reproduce results clean

help:  ## list what there is
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

demo: $(VENV)/installed  ## train a small network, prune it at 19 ratios, draw the pictures
	@$(BIN)/python train_prune.py $(DEMO)
	@echo
	@$(BIN)/python test_weight_distribution.py $(DEMO)
	@echo
	@$(BIN)/python test_prune.py $(DEMO) --save_pruned 0.9 0.95

test: $(VENV)/installed-dev  ## lint, then run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

bench: $(VENV)/installed-dev  ## time steps and training against their peers, about ten minutes
	@$(BIN)/python benchmarks/optimizer_step.py
	@$(BIN)/python benchmarks/training.py --gpu $(GPU)

# The command shares its runs when it is started twice. Two of one thread each take less time than
# one of two.
proxy: export OMP_NUM_THREADS = 1
proxy: $(VENV)/installed  ## SFW, SGD and CrAM+ tuned and compared on a narrow ResNet18; takes hours
	@$(MAKE) --no-print-directory --jobs 2 first-proxy second-proxy

first-proxy second-proxy:
	@$(BIN)/python experiments/proxy.py

reproduce: $(VENV)/installed  ## the paper's comparison on CIFAR-10; GPU=0, ARGS="--seeds 0 1 2"
	$(BIN)/python experiments/reproduce.py --gpu $(GPU) $(ARGS)

results: $(VENV)/installed  ## fill the tables and draw the pictures of docs/results/ from their files
	@$(BIN)/python experiments/tables.py

clean:  ## remove the virtual environment (outputs and data stay)
	rm -rf $(VENV)

# What a requirements file is installed by; it is marked only when all went well.
define install
	@echo "Installing $< into $(VENV). This happens once and takes minutes and about 6 GB of disk:"
	@echo "the registry's torch brings CUDA with it. A CPU is enough to run it."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -r $<
	@touch $@
endef

$(VENV)/installed: requirements.txt
	$(install)

$(VENV)/installed-dev: requirements-dev.txt requirements-optional.txt requirements.txt
	$(install)
