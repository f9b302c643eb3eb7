# Two commands matter: `make up` and `make test`. The rest are short names for `millrace` verbs.

SHELL := /bin/bash
DIR ?= platform
PACK ?= loans
# sample data if the database is empty, and a trickle of simulated customers; `make up UP=` starts without
UP ?= --sample --simulate 1
BIN := $(or $(CARGO_TARGET_DIR),target)/debug/millrace
RUN := $(BIN) --dir $(DIR)

.DEFAULT_GOAL := help
.PHONY: help up up-detached down test setup build web status logs ps health verify prove replication etl suites peers \
        psql-primary psql-replica1 psql-replica2 psql-warehouse sample bench docs nuke clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

up: build $(DIR)/millrace.toml ## install what is missing, build, make ./platform, start everything; Ctrl-C stops it
	@$(RUN) up $(UP)

up-detached: build $(DIR)/millrace.toml ## the same, staying in the background
	@$(RUN) up --detach $(UP)

test: ## install what is missing, run every check
	@scripts/setup.sh test
	@cargo xtask ci

suites: ## run other people's test suites through the proxy and compare (ten minutes; not part of `make test`)
	@scripts/suites.sh

peers: ## install what `millrace bench failover` and `bench proxy` compare with (not needed for anything else)
	@scripts/peers.sh

setup: ## install what is missing, and nothing else
	@scripts/setup.sh test

build:
	@scripts/setup.sh up
	@echo 'build: cargo build (the first time takes some minutes)'
	@cargo build --quiet --package millrace-app

web: ## build the console's browser bundle
	@scripts/setup.sh web

$(DIR)/millrace.toml: | build
	@$(BIN) init --pack $(PACK) $(DIR)

down: ## stop everything cleanly
	@$(RUN) down
status: ## one screen: nodes, lag, watermark, what is wrong and what to do
	@$(RUN) status
replication: status
logs: ## the newest log lines
	@$(RUN) logs
ps: ## the platform's processes
	@$(RUN) ps
health: ## exit 0 when nothing is wrong
	@$(RUN) health
verify: ## check every promise on the running platform
	@$(RUN) verify
prove: ## compare source and warehouse exactly
	@$(RUN) prove
etl: ## what changed declarations would do to the warehouse
	@$(RUN) model plan
sample: ## fill the database with sample data
	@$(RUN) load sample
psql-primary: ## psql on the primary
	@$(RUN) psql primary
psql-replica1: ## psql on the first replica
	@$(RUN) psql replica1
psql-replica2:
	@$(RUN) psql replica2
psql-warehouse: ## psql on the warehouse
	@$(RUN) psql warehouse
bench: build ## measure beside the tools that this replaces
	@$(RUN) bench capture
	@$(RUN) bench reports
docs: ## print docs/configuration.md anew from the code
	@cargo run --quiet --package millrace-config --example reference > docs/configuration.md.new
	@mv docs/configuration.md.new docs/configuration.md
nuke: ## delete the platform's data, after asking
	@$(RUN) nuke
clean: ## delete what was built; data stays
	@cargo clean
	@rm -rf web/dist web/node_modules
