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
test: tests/clients/node_modules ## Run every test
	cargo build --workspace --all-targets
	cargo test --workspace

export TARGET
conformance: ## Compare a gateway with the contract, ours or TARGET=wss://host/stage, and print the scoreboard
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
