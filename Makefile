.PHONY: demo test test-apps bench fuzz lint

# Two hosts, a client and a workload on this machine; needs root, makes CRIU itself.
demo:
	cargo run --release --bin ferry -- demo

# One build, then every suite. Real processes, a real CRIU: root.
test:
	cargo build --release --workspace --all-targets
	cargo run --release --bin ferry -- setup
	cargo test --release -p ferry-transport -p ferry-fuzz -p ferry-lab -p ferry-engine
	cargo test --release -p ferry --bins --test lazy_dump --test check --test together --test connections --test demo
	cargo test --release -p ferry --test faults --test faults_criu -- --test-threads=5

# Real programs, each there and back three times.
test-apps:
	scripts/install-test-apps
	cargo run --release --bin ferry -- setup
	cargo test --release -p ferry --test apps_servers --test apps_postgresql -- --test-threads=1

# Numbers into benches/results: how to read them is in benches/README.md. Root.
bench:
	cargo run --release --bin ferry -- setup
	cargo bench -p ferry --bench suite

# Every parser of foreign bytes, five minutes each, with overflow checks; `make test` has
# a second of each.
fuzz:
	FERRY_FUZZ_SECONDS=300 cargo test --profile fuzz -p ferry-fuzz

lint:
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
