.DEFAULT_GOAL := help
.PHONY: help run publish history build test test-rust test-long test-js test-client test-browser no-browser conformance soak soak-history soak-rotation fan-out fan-out-release flood load simulate lint deny fmt check settings package deploy remove logs test-release test-deploy bench instructions cost clean

# STAGE and REGION name the deployment. ARCH is the processors' architecture: arm64 or x86_64. DROP names what a deployment may
# take away from its stage.
STAGE ?= dev
REGION ?= us-east-1
export STAGE REGION ARCH ARGS DROP
# On Node 20 the framework's SDK warns that it will need Node 22 one day. This variable silences it.
export AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED = true

# End to end tests mostly wait, so three of them run at a time on each processor.
export RUST_TEST_THREADS ?= $(shell expr 3 \* $$(getconf _NPROCESSORS_ONLN))

# The browser that tests the pages.
CHROMIUM ?= $(firstword $(wildcard /usr/bin/chromium /usr/bin/chromium-browser /usr/bin/google-chrome))
export CHROMIUM

DENY_VERSION := 0.20.2
DENY := target/tools/cargo-deny-$(DENY_VERSION)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Nobody collects metrics on this machine, and without a namespace the functions write none.
run: build ## Start the service and the chat page on this machine, and print what to try
	cargo run --quiet --bin switchboard-local -- --env METRICS_NAMESPACE= --query userId=1 --web crates/client/web $(ARGS)

export TOPIC DATA
publish: ## Publish an event to a running stack: make publish TOPIC=general DATA='"deploy done"'
	AWS_ENDPOINT_URL=http://localhost:8000 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local \
	cargo run --quiet --example put-event -- switchboard-dev-events "$$TOPIC" "$$DATA"

history: ## Print what a topic keeps: make history TOPIC=room.7; with AWS_ENDPOINT_URL that of STAGE on AWS
	@if [ -z "$$AWS_ENDPOINT_URL" ]; then export AWS_ENDPOINT_URL=http://localhost:8000 AWS_REGION=us-east-1 \
	AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local; fi; \
	cargo run --quiet --example read-history -- "switchboard-$$STAGE-messages" "$$TOPIC"

build: ## Build every binary
	cargo build --workspace --bins

# Everything is built first, because tests start binaries that `cargo test` alone would not build.
test: tests/clients/node_modules target/python/installed infra/node_modules crates/client/js/node_modules ## Run every test
	cargo build --workspace --all-targets
	$(MAKE) -j 3 test-rust test-long test-js

# These run beside all other tests: a row of conformance that waits for half a minute, the small soaks, and the simulation.
test-rust:
	cargo test --workspace -- --skip 'BI-03 ' --skip soak:: --skip simulate::

test-long:
	cargo test --workspace --test conformance -- 'BI-03 '
	cargo test --workspace --test soak --test simulate

# This builds nothing: another build would replace the binaries while the tests beside it start them.
test-js:
	npm test --silent --prefix crates/client/js

test-client: build crates/client/js/node_modules ## Run the tests of the JavaScript client
	$(MAKE) test-js

# SCREENSHOTS=DIR writes pictures of the pages into a folder. CHROMIUM names another browser.
test-browser: build crates/client/js/node_modules ## Use the chat page and the inspector in Chromium
	npm run test-browser --silent --prefix crates/client/js

export TARGET
conformance: tests/clients/node_modules target/python/installed ## Compare the local gateway, or TARGET=wss://host/stage, with API Gateway
	cargo build --workspace --all-targets
	cargo test --workspace --test conformance

test-release: package tests/clients/node_modules infra/node_modules ## Run the end to end tests on the packaged functions
	cargo build --workspace --all-targets
	tests/release.sh

test-deploy: build package target/venv/test-deploy ## Lint the deployment, and deploy it to an imitation of AWS
	target/venv/test-deploy/bin/pytest -q tests/deploy

# Both sockets of a connection are on this machine, so 2,000 connections need 4,000 open files and some more.
soak: build ## Open 2,000 connections, inject faults, and check every row and process at the end; SECONDS=60
	ulimit -n 16384 && cargo test --workspace --test soak -- --seconds $(or $(SECONDS),60)

soak-history: build ## Lose acks, cut sockets and kill functions on topics with history; ARGS='--cut-sockets --messages 100000'
	ulimit -n 16384 && cargo test --workspace --test soak -- --history $(ARGS)

fan-out: build ## Publish to many receivers at the gateway's rate, and kill a process; RECEIVERS=100000 RATE=1000
	cargo test --workspace --test soak -- --fan-out $(or $(RECEIVERS),20000) $(or $(RATE),1000)

# The functions are the zipped ones, and the stack is a release build, so two processors are enough for the rate of an account.
fan-out-release: package ## The same with packaged functions, as fast as an account allows; RECEIVERS=100000 RATE=10000
	cargo build --workspace --all-targets
	cargo build --release --package switchboard-local --bin switchboard-local
	functions=$$(tests/unpack.sh) && cp target/release/switchboard-local "$$functions" && \
	SWITCHBOARD_BINARIES=$$functions \
	cargo test --workspace --test soak -- --fan-out $(or $(RECEIVERS),100000) $(or $(RATE),10000) "$$functions"

flood: build ## Run one client at full speed beside a polite neighbour, and print what the neighbour notices; SECONDS=30
	cargo test --workspace --test soak -- --flood $(or $(SECONDS),30)

soak-rotation: build crates/client/js/node_modules ## Let CLIENTS=300 talk over three rotations, 60 times as fast as on AWS; RATE=10 messages a second
	CLIENTS=$(or $(CLIENTS),300) RATE=$(or $(RATE),10) node --test crates/client/js/test/soak/rotations.js

export URL
load: ## Measure a running Switchboard: make load URL=ws://localhost:3001/dev CONNECTIONS=100 RATE=20 FANOUT=10 RECONNECT=10s
	@cargo run --quiet --bin switchboard-load -- "$$URL" $(if $(CONNECTIONS),--connections $(CONNECTIONS)) \
		$(if $(RATE),--rate $(RATE)) $(if $(FANOUT),--fanout $(FANOUT)) $(if $(RECONNECT),--reconnect $(RECONNECT)) $(ARGS)

# Optimisation of this one package takes seconds and makes the model five times as fast. The handlers spend most of their
# time in the SDK and in the embedded DynamoDB, and the profile optimises those.
simulate: ## Random runs of a model of reliable topics, or with HANDLERS=1 of the functions: SEEDS=10000, or each step of SEED=7
	cargo test -q --workspace --test simulate --config 'profile.dev.package.switchboard-tests.opt-level=3' -- \
		--run $(if $(HANDLERS),--handlers) $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

# It reads the memory and the CPU time of processes from /proc, so it needs Linux. The function that does nothing is a release
# build, like the zipped ones, and so is the second local stack.
bench: package ## Measure what events cost: CPU time, calls, bytes, memory
	cargo build --workspace --all-targets
	cargo build --release --package switchboard-fixture --bin fixture --package switchboard-local --bin switchboard-local
	functions=$$(tests/unpack.sh) && cp target/release/fixture "$$functions" && mkdir "$$functions/release" && \
	cp target/release/switchboard-local "$$functions/release" && \
	SWITCHBOARD_BINARIES=$$functions cargo test --workspace --test bench -- --run

# It starts the zipped functions under valgrind. RECORD=1 replaces the record, and EVENT=ping counts only one event.
instructions: package ## Count the instructions of events, and compare them with the record in tests/bench
	cargo build --workspace --all-targets
	SWITCHBOARD_BINARIES=$$(tests/unpack.sh) cargo test --workspace --test bench -- --instructions $(if $(RECORD),--record) $(EVENT)

cost: ## Print what events and three loads cost, in dollars
	cargo run --quiet --example cost

lint: ## Run Clippy, and treat its warnings as errors
	cargo clippy --workspace --all-targets -- -D warnings

# Some machines cannot reach the database of advisories on github.com. The other checks run there, too.
deny: $(DENY)/bin/cargo-deny ## Check licences, sources, versions and known vulnerabilities of the dependencies
	@checks=all; $< --log-level off fetch db || { checks="licenses sources bans"; \
	echo "switchboard: advisories were not checked: the database of advisories cannot be reached" >&2; }; \
	$< --locked check --deny unmatched-skip --deny unnecessary-skip $$checks

fmt: ## Format the code
	cargo fmt --all

# These checks need no AWS account. The release build takes most of the time of a first run.
check: ## Run what CI runs: format, lint, dependencies, every test
	cargo fmt --all --check
	$(MAKE) lint deny test $(if $(CHROMIUM),test-browser,no-browser)
	$(MAKE) simulate HANDLERS=1 SEEDS=2000
	$(MAKE) test-release instructions test-deploy

no-browser:
	@echo "switchboard: the pages were not tested: there is no Chromium here, and CHROMIUM names none" >&2

settings: infra/node_modules ## Check the settings of STAGE, and refuse what is unsafe or what Lambda would refuse
	@node infra/settings.mjs

# The check of the settings comes first, because a stage that is refused needs no build.
package: settings target/venv/package ## Build and zip the functions, and write the template; ARCH=arm64 or x86_64
	infra/build.sh
	infra/serverless.sh package --package target/package/$(STAGE)

# Packaging comes first, so a deployment is never older than the code. It builds only what has changed.
deploy: package ## Create or update the stage STAGE=dev on AWS
	@node infra/preflight.mjs target/package/$(STAGE)/cloudformation-template-update-stack.json
	infra/serverless.sh deploy
	infra/serverless.sh info --verbose

remove: infra/node_modules ## Remove the stage STAGE=dev from AWS
	@node infra/preflight.mjs
	infra/serverless.sh remove

logs: infra/node_modules ## Follow the log of the function FUNCTION=connect in STAGE=dev
	@node infra/preflight.mjs
	infra/serverless.sh logs --tail --function $(or $(FUNCTION),connect)

clean: ## Remove everything that was built or installed here
	cargo clean
	rm -rf tests/clients/node_modules infra/node_modules crates/client/js/node_modules

# cargo-deny is built once, without optimisation: that takes 1.5 minutes of CPU time instead of 4.5, and a check 2 s.
$(DENY)/bin/cargo-deny:
	CARGO_PROFILE_DEV_DEBUG=false cargo install --debug --locked --root $(DENY) cargo-deny@$(DENY_VERSION)

# The packages work without their install scripts, so npm does not run any.
tests/clients/node_modules: tests/clients/package-lock.json
	cd tests/clients && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

crates/client/js/node_modules: crates/client/js/package-lock.json
	cd crates/client/js && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

infra/node_modules: infra/package-lock.json
	@infra/need.sh npm
	cd infra && npm ci --ignore-scripts --no-audit --no-fund
	touch $@

target/venv/package: infra/requirements.txt
	infra/venv.sh $@ $<
	touch $@

target/venv/test-deploy: tests/deploy/requirements.txt
	infra/venv.sh $@ $<
	touch $@

target/python/installed: tests/clients/requirements.txt
	@if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; \
	then echo "switchboard: the rows of Python's clients are not tried, because they need Python 3.11 or later"; \
	else python3 -m venv target/python && target/python/bin/pip install --quiet --disable-pip-version-check -r $< && \
	touch $@; fi
