# Two commands do everything: `make deploy` shows the road on a sandbox cluster, `make test` proves it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV      ?= .venv
INVENTORY ?= inventories/sandbox
CLUSTER   ?= a3-cluster
# Further arguments for ansible-playbook: make deploy ARGS='--tags check -e bench=true'
ARGS      ?=

BIN     := $(VENV)/bin
SANDBOX := $(BIN)/python sandbox/cluster.py
# Which sandbox: of INVENTORY, and of CLUSTER where the inventory has several and it is given.
WHICH   := --inventory $(INVENTORY) $(if $(filter command line environment,$(origin CLUSTER)),--cluster $(CLUSTER))
PLAY    := $(BIN)/ansible-playbook -i $(INVENTORY) -l $(CLUSTER)
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help
help: ## Show the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "%-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Make the virtual environment and install what the sandbox needs; quick when nothing is to do
	@ASCENT_VENV=$(VENV) tools/setup.sh

.PHONY: deploy
deploy: sandbox ## Boot the sandbox cluster and run deploy.yml on it
	@$(PLAY) deploy.yml $(ARGS)

.PHONY: sandbox
sandbox: setup ## Boot the sandbox cluster of INVENTORY
	@$(SANDBOX) up $(WHICH)

.PHONY: sandbox-status
sandbox-status: setup ## Show the sandbox's nodes
	@$(SANDBOX) status $(WHICH)

.PHONY: sandbox-down
sandbox-down: setup ## Remove the sandbox and only it
	@$(SANDBOX) down $(WHICH)

.PHONY: sandbox-shell
sandbox-shell: setup ## A shell on NODE, or COMMAND there: make sandbox-shell NODE=a3-01
	@$(SANDBOX) shell $(WHICH) $(or $(NODE),$(error name the node: make sandbox-shell NODE=a3-01)) $(COMMAND)

.PHONY: sandbox-real
sandbox-real: setup ## Boot two servers without accelerators for the real engine (the CPU build of vLLM)
	@$(SANDBOX) up --inventory inventories/sandbox-real

.PHONY: test
test: setup ## Everything CI runs: lint, unit tests, molecule, the road end to end
	@$(SANDBOX) build --real
	@$(BIN)/python tools/lanes.py test-roads test-static test-roles
	@printf '\nEverything CI runs has passed.\n'

.PHONY: test-all
test-all: test ## What CI has no time for, after what it runs
	@$(MAKE) --no-print-directory clients
	pytest -m thorough tests/sandbox
	pytest -m thorough tests/fabric
	pytest -m thorough tests/layouts
	pytest tests/upgrade
	pytest -m thorough tests/security
	pytest -m thorough tests/diagnosis
	pytest -x tests/nodes
	pytest -x tests/offline
	pytest -x tests/real_engine/test_layouts.py

.PHONY: clients
clients: setup ## Public clients, each in an environment of its own (2 GB of downloads once), on hub and simulator
	pytest tests/clients

.PHONY: test-static
test-static: lint unit

# Two lanes, each in a row: what stands beside another in its lane may share its addresses.
.PHONY: test-roles
test-roles:
	@$(MAKE) --no-print-directory molecule
	@$(MAKE) --no-print-directory faults
	@$(MAKE) --no-print-directory diagnosis
	@$(MAKE) --no-print-directory test-real

.PHONY: test-roads
test-roads:
	@$(MAKE) --no-print-directory e2e
	@$(MAKE) --no-print-directory layouts
	@$(MAKE) --no-print-directory upgrade
	@$(MAKE) --no-print-directory provision
	@$(MAKE) --no-print-directory fabric
	@$(MAKE) --no-print-directory security

.PHONY: lint
lint: setup ## ruff, mypy, yamllint, shellcheck, ansible-lint (production)
	ruff check .
	ruff format --check .
	mypy
	yamllint --strict .
	shellcheck tools/*.sh tests/roles/*.sh .ci/run
	ansible-lint --strict

.PHONY: unit
unit: setup ## Unit and module tests
	pytest -n 2 tests/unit tests/modules tests/conformance

.PHONY: molecule
molecule: setup ## Every role on sandbox nodes
	tests/roles/run.sh

.PHONY: e2e
e2e: setup ## The road, end to end, on a sandbox cluster of its own
	pytest -x tests/e2e

.PHONY: upgrade
upgrade: setup ## A service upgraded, and one that undoes it; every reason for that in test-all
	pytest -x -m 'not thorough' tests/upgrade

.PHONY: layouts
layouts: setup ## Two servers on one node from launch to stop; every other layout, killed controllers and lost power in test-all
	pytest -x -m 'not thorough' tests/layouts

.PHONY: provision
provision: setup ## What provision brings to nodes of different states, and every way in which that goes wrong
	pytest -x tests/provision

.PHONY: faults
faults: setup ## A third of the sandbox's faults, each on real nodes; all of them in test-all
	pytest -m 'not thorough' tests/sandbox

.PHONY: diagnosis
diagnosis: setup ## Faults on a cluster that serves, each named by the stage that sees it first; most of them in test-all
	pytest -m 'not thorough' tests/diagnosis

.PHONY: fabric
fabric: setup ## The fabric gate on real nodes: clean, and with several faults at once; each by itself in test-all
	pytest -m 'not thorough' tests/fabric

.PHONY: security
security: setup ## API keys, TLS, bound addresses and file modes on real nodes, and a search for planted secrets
	pytest -x -m 'not thorough' tests/security

.PHONY: test-real
test-real: setup ## The real engine on one server, and the suite that it shares with the simulator
	pytest -x tests/real_engine/test_single.py

.PHONY: bench
bench: setup ## Figures, as ratios within one run; not part of pass or fail
	@$(BIN)/python bench/planner.py
	@$(BIN)/python bench/engine_timing.py
	@$(BIN)/python bench/image_spread.py
	@$(BIN)/python bench/fabric.py
	@$(BIN)/python bench/launch.py --inventory $(INVENTORY) --cluster $(CLUSTER)
	@$(BIN)/python bench/clients.py
	@$(BIN)/python bench/no_op_run.py --inventory $(INVENTORY) --cluster $(CLUSTER)
	@$(BIN)/python bench/no_op_run.py --inventory bench/inventory --cluster eight-hosts --tags provision,tune --boot

.PHONY: clean
clean: ## Remove the virtual environment and past runs
	rm -rf $(VENV) runs
