.PHONY: demo test lint

demo:
	cargo run --release --bin ferry -- demo

# The tests that need no CRIU and no second host; the others are run by name.
test:
	cargo test --release -p ferry-transport --lib
	cargo test --release -p ferry-engine --lib -- journal strategy source destination criu page_store

lint:
	cargo fmt --check
	cargo clippy --release --all-targets -- -D warnings
