# make help lists what can be typed. CI runs `make test`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# A rustup that was installed for this user only.
export PATH := $(PATH):$(HOME)/.cargo/bin:/usr/sbin:/sbin

TARGET := $(or $(CARGO_TARGET_DIR),target)
CARGO := cargo --locked
NEXTEST := $(shell PATH="$(PATH)" cargo nextest --version >/dev/null 2>&1 && echo yes)

# The tests' Postgres: RHONE_PG_BIN, else the newest package of version 15 or later.
PG_BIN := $(or $(RHONE_PG_BIN),$(shell ls -d /usr/lib/postgresql/*/bin 2>/dev/null \
	| awk -F/ '$$5 >= 15 {print $$5, $$0}' | sort -n | tail -n 1 | cut -d' ' -f2))

# What tests, chaos and the benchmark use.
tests verify sim test-static test-arm64: export RHONE_PG_BIN := $(PG_BIN)
tests verify: export RHONE_BIN = $(abspath $(TARGET))/debug/rhone
chaos bench bench-proxy bench-clients bench-scale soak thirteen takeover dashboard: export RHONE_BIN = $(abspath $(TARGET))/release/rhone

RUNS ?= 20
MINUTES ?=
ROUNDS ?=
SCENARIO ?=
SEED ?=
STATES ?=
MUTANT ?=
SHOWS ?=
SECONDS ?=
PEERS ?=
SYSTEMS ?=
MEMBERS ?=
MEGABYTES ?=
FAULTS ?=
RECORDS ?=
SYNC ?=
WITNESS ?=
TIMING ?=
# This machine's, as Debian names it, and the one that is asked for.
OWN := $(if $(filter aarch64,$(shell uname -m)),arm64,amd64)
ARCH ?= $(OWN)
FOREIGN := $(filter-out $(OWN),$(ARCH))

.PHONY: help demo test tests verify lint fix chaos bench bench-proxy bench-clients bench-scale thirteen takeover sim soak test-all model static test-static test-page arm64 test-arm64 image deb \
	deps release dashboard fuzz mutants

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## three real Postgres servers on loopback; the primary is killed under a writer
	@deploy/install-deps.sh run
	$(CARGO) build --release -p rhone
	$(TARGET)/release/rhone demo --kill-primary

test: ## everything CI runs: formatting, lints, docs, unit, simulation, live Postgres, chaos scenarios
	@deploy/install-deps.sh test
	@$(MAKE) --no-print-directory lint tests

# One build for everything: cargo makes the rhone binary beside the tests that run it.
tests:
	@test -x "$(PG_BIN)/postgres" || { echo "error: no Postgres 15 or later: make deps" >&2; exit 1; }
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --workspace --no-fail-fast
else
	$(CARGO) test --workspace --all-targets --no-fail-fast
endif

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps --document-private-items

release:
	$(CARGO) build --release -p rhone -p rhone-chaos

verify: lint ## before a commit: formatting, lints, docs, all tests but the chaos scenarios; writes nothing
ifeq ($(NEXTEST),yes)
	$(CARGO) nextest run --workspace -E 'not package(rhone-chaos)'
else
	$(CARGO) test --workspace --exclude rhone-chaos --all-targets
endif

fix: ## formats, and applies what clippy can
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	$(CARGO) fmt --all

# Without SCENARIO: the thirty rounds in which no acknowledged row may be lost, for both topologies, everything else in
# asynchronous mode, and noise in which no failover may come; MINUTES is then shared, a quarter of a minute of each
# for founding and verdict. SYNC and WITNESS change what a scenario builds: alone they mean SCENARIO=all.
CHAOS_SCENARIOS = $(or $(SCENARIO),$(if $(SYNC)$(WITNESS),all,quorum witness all calm))
CHAOS_MINUTES = $(if $(SCENARIO)$(SYNC)$(WITNESS),$(MINUTES),$(shell awk -v minutes="$(MINUTES)" -v runs=$(words $(CHAOS_SCENARIOS)) \
	'BEGIN { share = minutes / runs - 0.25; print (share > 0.25 ? share : 0.25) }'))
chaos: release ## random faults on real Postgres: SCENARIO=all|quorum|witness|calm|… or a file, MINUTES=, ROUNDS=, SEED=, SYNC=quorum, WITNESS=1, DEAD_MAN=1
	@set -e; for scenario in $(CHAOS_SCENARIOS); do \
		echo "== $$scenario"; \
		"$(TARGET)/release/chaos" run --scenario "$$scenario" $(if $(MINUTES),--minutes $(CHAOS_MINUTES)) \
			$(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) $(if $(SYNC),--sync $(SYNC)) \
			$(if $(WITNESS),--witness) $(if $(DEAD_MAN),--dead-man); \
	done

# PEERS=1: Patroni with etcd and in its raft mode, pg_auto_failover, on the same nodes; docs/benchmarks.md gets the tables.
# RECORDS= names a file of an earlier run that is to be continued.
bench: release ## write gaps after each fault and the cost of idling, in a table: RUNS=20, SYNC=quorum, TIMING=fast; PEERS=1 RUNS=10 with peers
ifneq ($(PEERS),)
	@deploy/install-deps.sh test
	@deploy/install-peers.sh
	$(if $(RECORDS),,rm -f "$(TARGET)/peers.jsonl")
	"$(TARGET)/release/chaos" bench-peers --runs "$(if $(filter command line environment,$(origin RUNS)),$(RUNS),10)" \
		$(if $(SYSTEMS),--systems "$(SYSTEMS)") $(if $(FAULTS),--faults "$(FAULTS)") $(if $(SECONDS),--cost "$(SECONDS)") \
		--records "$(or $(RECORDS),$(TARGET)/peers.jsonl)" --page docs/benchmarks.md
else
	"$(TARGET)/release/chaos" bench --runs "$(RUNS)" $(if $(SYNC),--sync "$(SYNC)") $(if $(TIMING),--timing "$(TIMING)")
endif

bench-proxy: release ## pgbench direct, through Rhone's rw port and through HAProxy, in turns: ROUNDS=5 SECONDS=60
	"$(TARGET)/release/chaos" bench-proxy --rounds "$(or $(ROUNDS),5)" --seconds "$(or $(SECONDS),60)"

bench-clients: release ## switchovers through PgBouncer without an error, waits of failovers behind the rw ports: ROUNDS=20
	"$(TARGET)/release/chaos" bench-clients --switchovers "$(or $(ROUNDS),20)" --failovers "$(or $(ROUNDS),20)"

bench-scale: release ## clusters of 3, 5, 7 and 13: founding, failover, cost; copies of 1 and 10 GB, rewinds: RUNS=10 MEMBERS=3,5 MEGABYTES=1000
	"$(TARGET)/release/chaos" bench-scale --runs "$(if $(filter command line environment,$(origin RUNS)),$(RUNS),10)" \
		$(if $(MEMBERS),--members "$(MEMBERS)") $(if $(MEGABYTES),--megabytes "$(MEGABYTES)")

sim: ## whole clusters in virtual time, by seed: SECONDS=60 or RUNS=…; SEED=… for one story, MUTANT=…|all without a rule
	$(CARGO) build --profile simulation -p rhone-simulation
	$(TARGET)/simulation/simulate $(if $(SEED),--seed "$(SEED)",--seconds "$(or $(SECONDS),60)" \
		$(if $(filter command line environment,$(origin RUNS)),--runs "$(RUNS)")) $(if $(MUTANT),--mutant "$(MUTANT)") $(if $(SHOWS),--shows "$(SHOWS)")

soak: release ## an hour of harmless noise without a failover, then eight of every fault: MINUTES=480 SCENARIO=all; goes on where it was broken off
	$(TARGET)/release/chaos run --scenario calm --minutes 60 --resume $(TARGET)/soak-calm.json
	$(TARGET)/release/chaos run --scenario $(or $(SCENARIO),all) --resume $(TARGET)/soak.json \
		--minutes $(if $(filter command line,$(origin MINUTES)),$(MINUTES),480) $(if $(SEED),--seed $(SEED))

thirteen: release ## thirteen members on this machine, five voters: a failover, and what a member costs beside one of three
	$(CARGO) test -p rhone-chaos --test thirteen -- --nocapture

takeover: release ## running servers, then a live Patroni cluster, taken over under a writer; Patroni and etcd come from PyPI and Debian
	@deploy/install-peers.sh
	$(CARGO) test -p rhone-chaos --test adopt --test takeover -- --nocapture

dashboard: release ## a real Prometheus scrapes a cluster: every query of the Grafana dashboard has data, no alert fires
	@deploy/install-deps.sh test
	$(CARGO) test -p rhone-deploy --test dashboard -- --nocapture

test-all: test test-static arm64 ## `make test`, the static build, the one for ARM64, then half an hour of chaos, thirteen members, and the benchmark
	@$(MAKE) --no-print-directory chaos MINUTES=$(if $(filter command line,$(origin MINUTES)),$(MINUTES),30)
	@$(MAKE) --no-print-directory thirteen
	@$(MAKE) --no-print-directory bench

test-page: ## the status page in headless Chromium through a failover; the pictures are kept
	$(CARGO) build -p rhone
	RHONE_SCREENSHOTS="$(abspath $(TARGET))/pictures" RHONE_BIN="$(abspath $(TARGET))/debug/rhone" $(CARGO) test -p rhone-chaos --test page -- --nocapture

model: ## small worlds of lease and failover searched as deep as they go, and every mutant: STATES=1000000 a world
	$(CARGO) run -p rhone-model --bin model -- $(STATES)

fuzz: ## what strangers send, longer than in `make test`: SECONDS=60 for each parser
	RHONE_FUZZ_SECONDS=$(or $(SECONDS),60) $(CARGO) test --workspace --lib fuzz -- --nocapture --test-threads 2

mutants: ## chaos against the supervisor with one rule left out, each in its turn: MUTANT=Cover for one
	$(CARGO) build -p rhone -p rhone-chaos --features rhone/mutants --bin rhone-mutants --bin chaos
	@RHONE_BIN="$(abspath $(TARGET))/debug/rhone-mutants" tests/chaos/mutants.sh "$(TARGET)/debug/chaos" $(MUTANT)

static: ## rhone without any library, for every image: ARCH=arm64 for a Raspberry Pi's
	@deploy/static.sh "$(ARCH)" "$(TARGET)"

test-static: ## the static build on real Postgres
	@tests/deploy/static.sh "$(ARCH)" "$(TARGET)"

arm64: ## the program and its Debian package for a Raspberry Pi, built on a PC
	@$(MAKE) --no-print-directory deb ARCH=arm64

test-arm64: ## the static build for ARM64 on real Postgres: Rhone under qemu where this machine is none, Postgres native
	@tests/deploy/static.sh arm64 "$(TARGET)"

image: ## the container image rhone:VERSION, by podman, docker or buildah: IMAGE=registry.example.com/rhone:0.1.0 ARCH=arm64
	@binary="$(IMAGE_BINARY)"; [ -n "$$binary" ] || binary=$$(deploy/static.sh "$(ARCH)" "$(TARGET)"); \
	deploy/container/build.sh "$$binary" "$(IMAGE)"

deb: ## the Debian package, in target/debian: ARCH=arm64 for a Raspberry Pi, DEB_BINARY= for a binary of your own
	$(if $(DEB_BINARY)$(FOREIGN),,$(CARGO) build --release -p rhone)
	@binary="$(or $(DEB_BINARY),$(if $(FOREIGN),,$(TARGET)/release/rhone))"; \
	[ -n "$$binary" ] || binary=$$(deploy/static.sh "$(ARCH)" "$(TARGET)"); \
	deploy/debian/build.sh "$$binary" "$(TARGET)/debian"

deps: ## installs what is missing for all of the above, as root or by sudo
	@deploy/install-deps.sh test
