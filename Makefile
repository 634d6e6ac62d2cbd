.PHONY: demo test test-apps test-slow fuzz lint

# Two hosts, a client and a workload on this machine; needs root, makes CRIU itself.
demo:
	cargo run --release --bin ferry -- demo

# One build, then every suite. Real processes, a real CRIU: root. Suites that share CPU-bound
# workloads run one after another.
test:
	cargo build --release --workspace --all-targets
	cargo run --release --bin ferry -- setup
	cargo test --release -p ferry-transport
	cargo test --release -p ferry-fuzz
	cargo test --release -p ferry-engine --lib
	cargo test --release -p ferry-engine --test protocol_model --test store_model --test store_images --test net_hooks
	cargo test --release -p ferry-engine --test criu_process --test lazy_restore --test check_source --test check_wire
	cargo test --release -p ferry-engine --test native_memory
	cargo test --release -p ferry --test check

# Real programs, each there and back three times.
test-apps:
	scripts/install-test-apps
	cargo run --release --bin ferry -- setup
	cargo test --release -p ferry --test apps_servers --test apps_postgresql -- --test-threads=1

# Suites that a busy machine can make fail.
test-slow:
	cargo test --release -p ferry-lab
	cargo test --release -p ferry-engine --test net_identity --test native_processes --test criu_install

# Every parser of foreign bytes, five minutes each, with overflow checks; `make test` has
# a second of each.
fuzz:
	FERRY_FUZZ_SECONDS=300 cargo test --profile fuzz -p ferry-fuzz

lint:
	cargo fmt --check
	cargo clippy --release --workspace --all-targets -- -D warnings
