//! The write-ahead log in the repository: [`receive()`] brings it there, [`fetch`] back, [`status()`] says what is there.

mod archive;
mod receive;
mod segment;
mod status;

pub use archive::{Inventory, fetch, inventory};
pub(crate) use archive::{Stored, listed, parse_name, put_history, read, read_segment_now, short_hash, write_file};
pub use receive::{ReceiveOptions, ReceiveStatus, receive};
pub(crate) use segment::history_name;
pub use segment::{History, HistoryError, Segment};
pub(crate) use status::describe;
pub use status::{Gap, TimelineStatus, WalStatus, status};
