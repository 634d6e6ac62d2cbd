//! lazy
