//! CRIU image files: parsing with limits, and assembling a directory that restores.
