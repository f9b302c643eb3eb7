//! Connections that speak the protocol themselves: for replication streams, logical and
//! physical, and for copies of tables at the speed of the wire, none of which `tokio-postgres` offers.
//!
//! Invariants: with TLS wanted, nothing but the request for it is sent in plain text; every wait
//! has a deadline; the sessions' text output is fixed ([`SESSION_SETTINGS`]), so a value has one text.
//! Non-goals: queries with parameters (those go through [`crate::connect()`]).

mod physical;
mod session;
mod stream;
mod transport;

pub use physical::{NextTimeline, PhysicalItem, PhysicalOptions, PhysicalStart, PhysicalStream};
pub use session::{CreatedSlot, RawConnection, SystemIdentity, TextRow};
pub use stream::{LogicalStream, StreamOptions};

/// Settings with which every session starts, so that texts of values never depend on the server's configuration.
pub const SESSION_SETTINGS: [(&str, &str); 8] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("statement_timeout", "0"),
    // a policy that would hide rows is an error, not a shorter copy
    ("row_security", "off"),
];
