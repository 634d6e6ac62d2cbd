.PHONY: demo test test-apps bench fuzz lint deny

# Two hosts, a client and a workload on this machine; needs root, makes CRIU itself.
demo:
	cargo run --release --bin ferry -- demo

# One build, then every suite but the real programs' (apps_*): real processes, a real CRIU,
# real container engines. Root. Each call selects the whole workspace: another selection
# has other features of the libraries, and would build them anew. The suites with an f
# (faults, files) wait more than they work, so more of their tests run at once.
FERRY = $${CARGO_TARGET_DIR:-target}/release/ferry
test:
	scripts/install-test-docker
	cargo build --release --workspace --all-targets
	$(FERRY) setup
	cargo test --release --workspace --lib --bins --test '[!af]*'
	cargo test --release --workspace --test 'f*' -- --test-threads=5

# Real programs, each there and back three times.
test-apps:
	scripts/install-test-apps
	cargo build --release --workspace --all-targets
	$(FERRY) setup
	cargo test --release --workspace --test 'apps_*' -- --test-threads=1

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
