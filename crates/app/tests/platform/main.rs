//! Whole platforms, run as a user runs them: the real binary, real servers, real files.

mod bad_input;
mod berka;
mod browser;
mod crash;
mod harness;
mod source_changes;
mod whole_path;
