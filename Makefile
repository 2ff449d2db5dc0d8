.DEFAULT_GOAL := help
.PHONY: help run publish build test conformance soak simulate lint fmt check package deploy remove logs test-release test-deploy bench clean

# Which deployment, where, and for which processors: arm64 or x86_64.
STAGE ?= dev
REGION ?= us-east-1
export STAGE REGION ARCH ARGS
# The framework's SDK announces on Node 20 that it will need 22 one day.
export AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED = true

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# Without a namespace the functions write no metrics, which nobody would collect here.
run: build ## Start everything on this machine and print what to paste
	cargo run --quiet --bin switchboard-local -- --env METRICS_NAMESPACE= --query userId=1 $(ARGS)

export TOPIC DATA
publish: ## Publish to a running stack: make publish TOPIC=general DATA='"deploy done"'
	AWS_ENDPOINT_URL=http://localhost:8000 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local \
	cargo run --quiet --example put-event -- switchboard-dev-events "$$TOPIC" "$$DATA"

build: ## Build every binary
	cargo build --workspace --bins

# One build of everything first: `cargo test` alone would not build the binaries that the tests start.
test: tests/clients/node_modules target/python/installed infra/node_modules ## Run every test
	cargo build --workspace --all-targets
	cargo test --workspace

export TARGET
conformance: tests/clients/node_modules target/python/installed ## Compare a gateway with API Gateway's behaviour, ours or TARGET=wss://host/stage
	cargo build --workspace --all-targets
	cargo test --package switchboard-tests --test conformance

test-release: package tests/clients/node_modules infra/node_modules ## Run the end to end tests on the packaged functions
	cargo build --workspace --all-targets
	tests/release.sh

test-deploy: package target/venv/test-deploy ## Lint the deployment, then deploy it to an imitation of AWS
	target/venv/test-deploy/bin/pytest -q tests/deploy

# Two sockets a connection, both on this machine.
soak: build ## Two thousand connections, faults and an account at the end; SECONDS=60
	ulimit -n 16384 && cargo test -p switchboard-tests --test soak -- --seconds $(or $(SECONDS),60)

# Optimisation of this one package takes seconds and makes the model five times as fast.
simulate: ## Random runs of a model of reliable topics: SEEDS=10000, or each step of SEED=7
	cargo test -q -p switchboard-tests --test simulate --config 'profile.dev.package.switchboard-tests.opt-level=3' -- \
		--run $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)

# The memory and CPU time of processes are read from Linux's /proc.
bench: ## What events cost: CPU time, calls, bytes, memory
	cargo build --workspace --bins
	cargo build --release --bins --workspace --exclude switchboard-local --exclude switchboard-tests
	cargo test -p switchboard-tests --test bench -- --run

lint: ## Clippy, warnings are errors
	cargo clippy --workspace --all-targets -- -D warnings

fmt: ## Format the code
	cargo fmt --all

# Everything that can be known without an AWS account. The release build is most of a first run.
check: ## What CI runs: format, lint, every test
	cargo fmt --all --check
	$(MAKE) lint test test-release test-deploy

package: target/venv/package infra/node_modules ## Build, zip and describe what is deployed; ARCH=arm64 or x86_64
	infra/build.sh
	infra/serverless.sh package --package target/package/$(STAGE)

# Packaging comes first and touches only what has changed, so a deployment is never older than the code.
deploy: package ## Put the stage STAGE=dev on AWS, or update it
	@node infra/preflight.mjs target/package/$(STAGE)/cloudformation-template-update-stack.json
	infra/serverless.sh deploy
	infra/serverless.sh info --verbose

remove: infra/node_modules ## Take the stage STAGE=dev off AWS
	@node infra/preflight.mjs
	infra/serverless.sh remove

logs: infra/node_modules ## Follow the log of FUNCTION=connect of STAGE=dev
	@node infra/preflight.mjs
	infra/serverless.sh logs --tail --function $(or $(FUNCTION),connect)

clean: ## Remove what was built and installed
	cargo clean
	rm -rf tests/clients/node_modules infra/node_modules

tests/clients/node_modules: tests/clients/package-lock.json
	cd tests/clients && npm ci --no-audit --no-fund
	touch $@

infra/node_modules: infra/package-lock.json
	@infra/need.sh npm
	cd infra && npm ci --no-audit --no-fund
	touch $@

target/venv/package: infra/requirements.txt
	infra/venv.sh $@ $<
	touch $@

target/venv/test-deploy: tests/deploy/requirements.txt
	infra/venv.sh $@ $<
	touch $@

target/python/installed: tests/clients/requirements.txt
	@if ! command -v python3 >/dev/null; then echo "no python3: the rows of Python's clients are not tried"; \
	else python3 -m venv target/python && target/python/bin/pip install --quiet --disable-pip-version-check -r $< && \
	touch $@; fi
