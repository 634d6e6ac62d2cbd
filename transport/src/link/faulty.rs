//! A link that breaks on demand.
