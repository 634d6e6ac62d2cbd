//! Test hosts, self-checking workloads and probing clients.
