.PHONY: demo test test-apps test-docker bench fuzz lint deny

# Two hosts, a client and a workload on this machine; needs root, makes CRIU itself.
demo:
	cargo run --release --bin ferry -- demo

# One build, then every suite. Real processes, a real CRIU: root.
test:
	cargo build --release --workspace --all-targets
	cargo run --release --bin ferry -- setup
	cargo test --release -p ferry-transport -p ferry-fuzz -p ferry-lab -p ferry-engine
	cargo test --release -p ferry --bins --test lazy_dump --test check --test together --test connections --test files --test deadline --test demo
	cargo test --release -p ferry --test faults --test faults_criu -- --test-threads=5

# Real programs, each there and back three times.
test-apps:
	scripts/install-test-apps
	cargo run --release --bin ferry -- setup
	cargo test --release -p ferry --test apps_servers --test apps_postgresql --test oci -- --test-threads=1
	cargo test --release -p ferry-engine --test oci -- --test-threads=1

# Docker containers, with engines of the test's own.
test-docker:
	scripts/install-test-docker
	cargo run --release --bin ferry -- setup
	cargo test --release -p ferry-lab --test docker
	cargo test --release -p ferry --test docker_api --test docker -- --test-threads=2

# Numbers into benches/results: how to read them is in benches/README.md. Root.
bench:
	cargo run --release --bin ferry -- setup
	cargo bench -p ferry --bench suite

# Every parser of foreign bytes, five minutes each, with overflow checks; `make test` has
# a second of each. Shorter: make fuzz FERRY_FUZZ_SECONDS=60
FERRY_FUZZ_SECONDS ?= 300
fuzz:
	FERRY_FUZZ_SECONDS=$(FERRY_FUZZ_SECONDS) cargo test --profile fuzz -p ferry-fuzz -- --nocapture

lint:
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	scripts/check-units

# Licences, sources and advisories of everything that is linked: deny.toml. Advisories need
# RustSec's database, and so GitHub; without it: make deny DENY="licenses bans sources".
DENY ?= advisories licenses bans sources
deny:
	@cargo deny --version >/dev/null 2>&1 || { echo "make deny needs cargo-deny: cargo install cargo-deny --locked"; exit 1; }
	cargo deny --workspace --all-features check $(DENY)
