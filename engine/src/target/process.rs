//! `pid:N`: a process and all its descendants.
