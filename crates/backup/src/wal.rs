//! The write-ahead log in the repository: [`receive()`] brings it there, [`fetch()`] back, into a [`Spool`] beforehand,
//! [`status()`] says what is there.

mod archive;
mod fetch;
mod receive;
mod segment;
mod spool;
mod status;

pub use archive::{Inventory, inventory};
pub(crate) use archive::{Stored, listed, parse_name, put_history, read, read_segment_now, short_hash, write_file};
pub use fetch::{Found, fetch, find};
pub use receive::{ReceiveOptions, ReceiveStatus, receive};
pub(crate) use segment::history_name;
pub use segment::{History, HistoryError, Segment};
pub use spool::{Filled, Spool};
pub(crate) use status::describe;
pub use status::{Gap, TimelineStatus, WalStatus, status};
