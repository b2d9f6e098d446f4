# make demo   install, then from nothing to a pretrained backbone, its evaluation, a multi-task model and a report
# make test   install, then the whole test suite
# make lint   style checks
# make slurm  install Debian's SLURM packages, for the cluster tests
# make test-cluster  the tests that start a SLURM cluster of two nodes on this machine (make test leaves them out)
# make browser  install Debian's Chromium, for the tests of the report
#
# VENV=DIR uses another virtual environment (created if absent).

VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
READY = $(VENV)/.polyscene-installed

.PHONY: demo test test-cluster lint slurm browser install

install: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $(READY)

demo: $(READY)
	$(BIN)/polyscene scenes runs/demo/scenes
	$(BIN)/polyscene pretrain configs/pretrain/quickstart.yaml
	$(BIN)/polyscene probe configs/probe/quickstart.yaml
	$(BIN)/polyscene retrieve configs/retrieve/quickstart.yaml
	$(BIN)/polyscene multitask configs/multitask/scenes/demo.yaml
	$(BIN)/polyscene multitask configs/multitask/scenes/demo_mti_net.yaml
	$(BIN)/polyscene report runs/demo out=runs/demo/report.html
	@echo "Open runs/demo/report.html; the data are in runs/demo/scenes/contact_sheet.png"

test: $(READY)
	$(BIN)/python -m pytest

test-cluster: $(READY)
	POLYSCENE_CLUSTER_TESTS=1 $(BIN)/python -m pytest tests/launch/cluster/test_*on_slurm.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

slurm:
	apt-get update
	apt-get install --yes slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge

browser:
	apt-get update
	apt-get install --yes --no-install-recommends chromium
