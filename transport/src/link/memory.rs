//! An in-memory link.
