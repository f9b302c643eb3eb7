//! Capture against real servers, into a sink that keeps everything in memory and refuses whatever
//! does not fit: an insert of a key that is there, an update or delete of one that is not, a batch
//! that comes twice. So a row lost or applied twice fails the test that caused it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod barrier;
mod copies;
mod crash;
mod harness;
mod refusals;
mod rewrites;
mod store;
mod stream;
