# make demo   install, then from nothing to a pretrained backbone that beats an untrained one
# make test   install, then the whole test suite
# make lint   style checks
# make slurm  install Debian's SLURM packages, for the cluster tests
#
# VENV=DIR uses another virtual environment (created if absent).

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
READY = $(VENV)/.polyscene-installed

.PHONY: demo test lint slurm install

install: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(READY)

demo: $(READY)
	$(BIN)/polyscene scenes runs/demo/scenes
	$(BIN)/polyscene pretrain configs/pretrain/quickstart.yaml
	$(BIN)/polyscene probe configs/probe/quickstart.yaml
	@echo "Look at runs/demo/scenes/contact_sheet.png and runs/demo/pretrain/pictures/views.png"

test: $(READY)
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

slurm:
	apt-get update
	apt-get install --yes slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge
