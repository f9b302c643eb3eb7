//! Drivers as applications use them, on the server itself and through the proxy: what comes of each step is the same.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails there")]

mod others;
mod rust;
