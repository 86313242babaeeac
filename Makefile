# Each target is a script in scripts/. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help dev guest check test soak bench

help: ## List the targets
	@awk -F ': *## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' Makefile $(if $(wildcard crates/benches/Cargo.toml),,| grep -v '^make bench')

dev: ## Build and start a whole cloud here, with an example app that is updated before your eyes (CHAIN=anvil: with a chain whose contracts govern keys; SIM=1: on simulated machines; YES=1: do not ask; ARGS="...": more options)
	@CHAIN="$(CHAIN)" scripts/dev $(ARGS)

guest: ## What real machines boot, and two container images to try: kernel, initramfs with our agent, in .casemate-guest
	@scripts/guest

check: ## The inner loop: formatting, lints, unit and HTTP tests
	@scripts/check

test: ## Everything that CI runs, as timed stages (STAGES="clients": only these)
	@scripts/test $(STAGES)

soak: ## The same tests with bigger numbers (CASEMATE_TEST_SCALE=20), for an hour without company
	@CASEMATE_TEST_SCALE="$${CASEMATE_TEST_SCALE:-20}" scripts/test tools build sweeps crash fuzz vms

ifneq ($(wildcard crates/benches/Cargo.toml),)
bench: ## Measure Casemate beside limit servers of its own, as ratios
	@cargo run --release --locked -p casemate-benches
endif
