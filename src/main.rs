//! ferry moves a running process tree to another host.

fn main() {}
