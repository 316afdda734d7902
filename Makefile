# Every target works in a fresh clone with Go alone, except those that say what else they need. The modules are
# read from go.work, and "work" is the go command's pattern for all packages of all of them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

ARGS ?=
FUZZTIME ?= 20s
BENCHTIME ?= 1s
SECONDS ?= 60
SEED ?=
LOAD_CLIENTS ?= 10000
BENCH_ARGS ?=
BENCH_PAGE ?= docs/benchmarks/$(shell date -u +%F).md
VERSION ?= local

# synctests makes franz-go's mutexes count as durably blocked in a testing/synctest bubble.
TEST_TAGS := synctests
ALL_TAGS := synctests,e2e

ROOT := $(CURDIR)
BIN := $(ROOT)/.bin
MODULES = $(shell go list -m -f '{{.Dir}}')
GO_FILES = git ls-files -co --exclude-standard '*.go' | while read -r f; do [ ! -e "$$f" ] || printf '%s\n' "$$f"; done
SCRIPTS = $(shell git ls-files -co --exclude-standard '*.sh' 'e2e/images/kafka/run' '.ci/run')
COMPOSE = $(shell if docker compose version >/dev/null 2>&1; then echo docker compose; else echo docker-compose; fi)
COMPOSE_FILES := -f docker-compose.yml
EMQX_FILES := -f docker-compose.yml -f docker-compose.emqx.yml

# each-module runs a command in every module's folder, with the module's own go.mod in force, not the workspace.
define each-module
for dir in $(MODULES); do \
	(cd "$$dir" && export GOWORK=off && $(1)) || { echo "$@: in $${dir#$(ROOT)/}: $(2)" >&2; exit 1; }; \
done
endef

##@ Use

.PHONY: help
help: ## Show this list.
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: run
run: ## Run all of Presence in one process (ARGS="--flag value" goes to it).
	@go run ./services/presence/cmd/presence $(ARGS)

.PHONY: up
up: images ## Start broker, Kafka and the services with compose (needs Docker).
	PRESENCE_VERSION=$(VERSION) $(COMPOSE) $(COMPOSE_FILES) up -d
	@echo "up: curl -u dev:dev-only-change-me http://127.0.0.1:8080/client-id/dev1/status"

.PHONY: down
down: ## Stop what `make up` started and remove its volumes.
	$(COMPOSE) $(COMPOSE_FILES) down --volumes --remove-orphans

##@ Test

.PHONY: test
test: ## Run every test that needs no Docker, in all modules.
	go test -tags $(TEST_TAGS) work

.PHONY: race
race: ## The same under the race detector (needs a C compiler).
	go test -race -tags $(TEST_TAGS) work

.PHONY: fuzz
fuzz: ## Run each fuzz target of every module for FUZZTIME (default 20s).
	@targets="$$(go test -tags $(TEST_TAGS) -list '^Fuzz' work | \
		awk '/^Fuzz/ { names[++n] = $$1 } /^ok/ { for (i = 1; i <= n; i++) print $$2, names[i]; n = 0 }')"; \
	[ -n "$$targets" ] || { echo "fuzz: no fuzz target was found" >&2; exit 1; }; \
	while read -r pkg name; do \
		echo "== $$pkg $$name"; \
		go test -tags $(TEST_TAGS) -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null; \
	done <<<"$$targets"

.PHONY: soak
soak: ## Check the laws of the fold on new simulated histories for SECONDS (default 60), from SEED if given.
	@cd libs && go test -count=1 -timeout 0 -run '^TestSoak$$' -v ./simulator -soak $(SECONDS)s $(if $(SEED),-soak-seed $(SEED)) | \
		awk '/^soak: / { closing = $$0; next } { print } END { print closing }'

.PHONY: mutants
mutants: ## Break the fold on purpose, one way at a time, and see the tests catch each.
	@cd libs && go run ./simulator/cmd/mutants $(ARGS)

# The page is for a run with nothing else on the machine: BENCH_PAGE= writes none, BENCH_ARGS="--parts peers" measures a part only.
.PHONY: bench bench-go bench-peers
bench: bench-go ## Run the Go benchmarks, the load tool, and the comparisons of the goals over a real Kafka, written to BENCH_PAGE (needs a JDK, Maven, Mosquitto).
	go run ./e2e/load --clients $(LOAD_CLIENTS)
	go run ./e2e/bench $(if $(BENCH_PAGE),--page $(BENCH_PAGE)) $(BENCH_ARGS)
bench-go: ## Run the Go benchmarks of all modules, with allocation counts.
	go test -tags $(TEST_TAGS) -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) work
# The compiler takes default.pgo from beside the main package. The path of the program that was profiled is of one machine, and goes.
.PHONY: pgo
pgo: ## Profile the fold anew for the build of the materializer (its default.pgo; alone on the machine).
	mkdir -p "$(BIN)"
	CGO_ENABLED=0 go test -trimpath -tags $(TEST_TAGS) -c -o "$(BIN)/fold.test" ./services/materializer
	cd services/materializer && "$(BIN)/fold.test" -test.run '^$$' -test.bench '^BenchmarkRebuild$$' -test.benchtime 4x -test.cpuprofile "$(BIN)/fold.pprof"
	gzip -dc "$(BIN)/fold.pprof" | perl -pe 's{\Q$(BIN)\E/fold\.test}{"-" x length($$&)}ge' | gzip -9n > services/materializer/cmd/materializer/default.pgo
# The baselines are a module of their own, so that no other module depends on what they need.
bench-peers: ## Check the Goka baseline, which the workspace does not hold.
	cd e2e/peers && GOWORK=off go vet ./...

.PHONY: e2e
e2e: ## Run the scenarios over real Kafka, a real broker and our images, and in Chromium (needs Docker).
	@if docker info >/dev/null 2>&1; then \
		exec $(MAKE) e2e-docker; \
	elif [ "$${PRESENCE_E2E_REQUIRE_DOCKER:-}" = 1 ]; then \
		echo "e2e: no Docker engine answers, and PRESENCE_E2E_REQUIRE_DOCKER=1: start one (e2e/images/ensure-docker.sh)" >&2; \
		exit 1; \
	else \
		echo "*******************************************************************"; \
		echo "** e2e: SKIPPED. No Docker engine answers, so NOTHING was tested. **"; \
		echo "** Start one (e2e/images/ensure-docker.sh), then run this again.  **"; \
		echo "*******************************************************************"; \
	fi

# Ryuk, the container that would clean up after testcontainers, cannot be pulled everywhere; the tests remove what
# they start. Where the machine looks like a container, testcontainers would take the gateway for the engine's host.
# The scenarios start presence/*:local, whatever VERSION says.
.PHONY: e2e-docker
e2e-docker: override VERSION := local
e2e-docker: images
	@if [ -e /.dockerenv ]; then export TESTCONTAINERS_HOST_OVERRIDE="$${TESTCONTAINERS_HOST_OVERRIDE:-127.0.0.1}"; fi; \
	export TESTCONTAINERS_RYUK_DISABLED=true; \
	export PRESENCE_E2E_KAFKA_IMAGE="$${PRESENCE_E2E_KAFKA_IMAGE:-apache/kafka:4.3.1}"; \
	export PRESENCE_E2E_MOSQUITTO_IMAGE="$${PRESENCE_E2E_MOSQUITTO_IMAGE:-eclipse-mosquitto:2.0}"; \
	echo "e2e: Kafka $$PRESENCE_E2E_KAFKA_IMAGE, Mosquitto $$PRESENCE_E2E_MOSQUITTO_IMAGE"; \
	go test -tags e2e -timeout 30m -count=1 -v ./e2e/...

# DURATION, RATE and CLIENTS are the run's; what is planned depends on SEED and DURATION alone.
.PHONY: chaos
chaos: override VERSION := local
chaos: images ## Kill, stop, cut off and restart every kind of process for DURATION (default 10m) from SEED (default 1), then prove that nothing is wrong (needs Docker and root).
	@if [ -e /.dockerenv ]; then export TESTCONTAINERS_HOST_OVERRIDE="$${TESTCONTAINERS_HOST_OVERRIDE:-127.0.0.1}"; fi; \
	export TESTCONTAINERS_RYUK_DISABLED=true PRESENCE_E2E_REQUIRE_DOCKER=1; \
	export PRESENCE_E2E_CHAOS_SEED="$(or $(SEED),1)" PRESENCE_E2E_CHAOS_DURATION="$(or $(DURATION),10m)"; \
	export PRESENCE_E2E_CHAOS_RATE="$(or $(RATE),1000)" PRESENCE_E2E_CHAOS_CLIENTS="$(or $(CLIENTS),5000)"; \
	go test -tags e2e -timeout 0 -count=1 -run '^TestChaos$$' -v ./e2e

##@ Develop

.PHONY: generate generate-proto generate-go
generate: generate-proto generate-go ## Generate code from proto/ and from go:generate lines.
generate-proto:
	$(MAKE) -C proto generate
generate-go:
	@$(call each-module,go generate ./...,go generate ended with an error)

.PHONY: verify
verify: verify-fmt verify-scripts verify-tidy verify-versions verify-generate verify-proto verify-build verify-vet verify-lint verify-compose ## Check formatting, modules, generated code, contract, lint, scripts, compose files.
	@echo "verify: all checks passed"

.PHONY: fix
fix: fix-fmt fix-proto fix-generate fix-versions ## Mend what `make verify` finds, where a machine can.

# Every verify-X says how to mend what it finds: with the fix-X beside it, or by hand where judgement is needed.
# What proto/ generates is compared by verify-proto. Here no test of a clean tree: what counts is that generating
# changes nothing, in a tree with other edits as well.
.PHONY: verify-generate fix-generate
verify-generate:
	@state() { { git diff HEAD; git ls-files -o --exclude-standard -z | xargs -0r sha256sum; } | sha256sum; }; \
	before="$$(state)"; \
	$(MAKE) generate-go; \
	if [ "$$(state)" != "$$before" ]; then \
		git status --short; \
		echo "$@: generated files were not up to date; they are now: commit them" >&2; exit 1; \
	fi
fix-generate: generate-go

.PHONY: verify-tidy fix-tidy
verify-tidy:
	@$(call each-module,go mod tidy -diff,go.mod or go.sum is not tidy: run make fix-tidy)
fix-tidy:
	@$(call each-module,go mod tidy,go mod tidy ended with an error)

# The workspace builds with the highest version that any module asks for. Equal versions everywhere mean that
# what is tested in the workspace is what each module builds alone.
.PHONY: verify-versions fix-versions
verify-versions:
	@for dir in $(MODULES); do \
		awk -v mod="$${dir#$(ROOT)/}" '$$1 == "require" && $$2 != "(" { print $$2, $$3, mod } \
			/^\t/ && $$2 ~ /^v/ && $$3 != "=>" { print $$1, $$2, mod }' "$$dir/go.mod"; \
	done | sort | awk '{ \
			if ($$1 != path) { path = $$1; version = $$2; mod = $$3 } \
			else if ($$2 != version) { printf "  %s: %s in %s, %s in %s\n", $$1, version, mod, $$2, $$3; bad = 1 } \
		} END { if (bad) { print "$@: modules ask for different versions: run make fix-versions"; exit 1 } }' >&2
fix-versions:
	go work sync
	@$(MAKE) fix-tidy

.PHONY: verify-fmt fix-fmt
verify-fmt:
	@files="$$($(GO_FILES) | xargs -r gofmt -l)"; \
	if [ -n "$$files" ]; then printf '%s\n%s\n' "$$files" "$@: not formatted: run make fix-fmt" >&2; exit 1; fi
fix-fmt:
	@$(GO_FILES) | xargs -r gofmt -w

# Lint, format, generated files, and breaking changes of the contract (these last are mended by hand).
.PHONY: verify-proto fix-proto
verify-proto:
	$(MAKE) -C proto verify
fix-proto:
	$(MAKE) -C proto fix

.PHONY: verify-build
verify-build:
	@$(call each-module,go build ./...,it does not build with GOWORK=off: mend its go.mod)

# With every build tag, so that what `make test` does not compile is compiled here.
.PHONY: verify-vet
verify-vet:
	go vet -tags $(ALL_TAGS) work

# staticcheck is pinned in e2e/tools, a module of its own, so that no other module depends on it.
.PHONY: verify-lint
verify-lint:
	@cd e2e/tools && GOWORK=off go build -o $(BIN)/staticcheck honnef.co/go/tools/cmd/staticcheck
	$(BIN)/staticcheck -tags $(ALL_TAGS) work

.PHONY: verify-scripts
verify-scripts:
	@for script in $(SCRIPTS); do bash -n "$$script"; done

.PHONY: verify-compose
verify-compose:
	@if ! $(COMPOSE) version >/dev/null 2>&1; then \
		echo "$@: skipped, neither docker compose nor docker-compose is here"; exit 0; \
	fi; \
	$(COMPOSE) $(COMPOSE_FILES) config -q; \
	$(COMPOSE) $(EMQX_FILES) config -q

##@ Images (need Docker)

.PHONY: images
images: ## Build the services' images, FROM scratch (VERSION=local is their tag).
	e2e/images/build-services.sh $(VERSION)

.PHONY: images-local
images-local: ## Build stand-ins for the Kafka and Mosquitto images, where those cannot be pulled (needs root).
	e2e/images/build-local.sh
