.DEFAULT_GOAL := help
.PHONY: help run publish build test conformance lint fmt check clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: build ## Start everything on this machine and print what to paste
	cargo run --quiet --bin switchboard-local -- --query userId=1 $(ARGS)

export TOPIC DATA
publish: ## Publish to a running stack: make publish TOPIC=general DATA='"deploy done"'
	AWS_ENDPOINT_URL=http://localhost:8000 AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=local AWS_SECRET_ACCESS_KEY=local \
	cargo run --quiet --example put-event -- switchboard-dev-events "$$TOPIC" "$$DATA"

build: ## Build every binary
	cargo build --workspace --bins

# One build of everything first: `cargo test` alone would not build the binaries that the tests start.
test: tests/clients/node_modules target/python/installed ## Run every test
	cargo build --workspace --all-targets
	cargo test --workspace

export TARGET
conformance: tests/clients/node_modules target/python/installed ## Compare a gateway with the contract, ours or TARGET=wss://host/stage, and print the scoreboard
	cargo build --workspace --all-targets
	cargo test --package switchboard-tests --test conformance

lint: ## Clippy, warnings are errors
	cargo clippy --workspace --all-targets -- -D warnings

fmt: ## Format the code
	cargo fmt --all

check: ## What CI runs: format, lint, test
	cargo fmt --all --check
	$(MAKE) lint test

clean: ## Remove what was built and installed
	cargo clean
	rm -rf tests/clients/node_modules

tests/clients/node_modules: tests/clients/package-lock.json
	cd tests/clients && npm ci --no-audit --no-fund
	touch $@

target/python/installed: tests/clients/requirements.txt
	@if ! command -v python3 >/dev/null; then echo "no python3: the rows of Python's clients are not tried"; \
	else python3 -m venv target/python && target/python/bin/pip install --quiet --disable-pip-version-check -r $< && \
	touch $@; fi
