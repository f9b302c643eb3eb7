//! Connections of this host on which the other end is gone in the midst of an answer, by the system's table of sockets.
//!
//! Keepalive probes find out whoever is cut off while nothing is under way. Where something has been sent that is not
//! acknowledged the system sends that again instead, and gives up only after a quarter of an hour (`tcp_retries2`).
//! `TCP_USER_TIMEOUT` would end those soon, and whoever reads slowly too. The table tells both apart: sending again is one
//! timer, waiting for room at the reader's another.
//!
//! Source: Linux, Documentation/networking/proc_net_tcp.rst.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Between looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// Sent again so often without an answer: on a usual network six seconds after the first time, as keepalive takes eight.
const AGAIN_MAX: u32 = 5;
/// And for so long, since on some networks five times take no second.
const SILENT_MAX: Duration = Duration::from_secs(6);
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
/// As the tables have it: `ESTABLISHED`, and the timer that sends again.
const ESTABLISHED: &str = "01";
const SENDS_AGAIN: &str = "01:";

/// A connection as its server sees it: the port here, and the other end.
pub type Ends = (u16, SocketAddr);

/// Connections in one of the system's tables on which something is being sent again, and how often it has been.
fn unanswered(table: &str) -> impl Iterator<Item = (Ends, u32)> + '_ {
    table.lines().skip(1).filter_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let (local, remote, state) = (columns.next()?, columns.next()?, columns.next()?);
        let timer = columns.nth(1)?;
        if state != ESTABLISHED || !timer.starts_with(SENDS_AGAIN) {
            return None;
        }
        let times = u32::from_str_radix(columns.next()?, 16).ok().filter(|times| *times > 0)?;
        Some(((address(local)?.port(), address(remote)?), times))
    })
}

/// `0100007F:1538`: words of the address as this machine stores them, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (at, of) in bytes.chunks_exact_mut(4).enumerate() {
                of.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, u16::from_str_radix(port, 16).ok()?))
}

/// Looks again and again.
#[derive(Debug, Default)]
pub struct Unanswered {
    /// Since when; an answer to any of it ends that.
    since: BTreeMap<Ends, Instant>,
    ticks: Option<Interval>,
}

impl Unanswered {
    /// Once it is time to look again: connections whose other end has not answered for about six seconds. None where the
    /// system has no such tables. Dropping this loses nothing.
    pub async fn next(&mut self) -> Vec<Ends> {
        let ticks = self.ticks.get_or_insert_with(|| {
            let mut ticks = interval(INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        });
        ticks.tick().await;
        // a busy host has long tables
        let read = || TABLES.iter().filter_map(|table| std::fs::read_to_string(table).ok()).collect::<Vec<_>>();
        let found = tokio::task::spawn_blocking(move || {
            read().iter().flat_map(|table| unanswered(table)).collect::<BTreeMap<_, _>>()
        });
        match found.await {
            Ok(found) => self.take(&found, Instant::now()),
            Err(error) => {
                tracing::warn!(%error, "the system's sockets cannot be read");
                Vec::new()
            }
        }
    }

    fn take(&mut self, found: &BTreeMap<Ends, u32>, now: Instant) -> Vec<Ends> {
        self.since.retain(|ends, _| found.contains_key(ends));
        let mut lasting = Vec::new();
        for (ends, times) in found {
            let since = *self.since.entry(*ends).or_insert(now);
            if *times >= AGAIN_MAX && now.duration_since(since) >= SILENT_MAX {
                lasting.push(*ends);
            }
        }
        lasting
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_acknowledge_is_told_from_who_reads_slowly() {
        // the columns of Linux 6; of each connection: what it is, its timer, how often that has run out
        let line = |remote: &str, state: &str, timer: &str, times: &str| {
            format!(
                "   7: 0100007F:1540 {remote} {state} 00000010:00000000 {timer}:00000014 000000{times}   104        0 9 2 0 0 20 4 30 10 -1"
            )
        };
        let table = [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
                .to_owned(),
            line("00000000:0000", "0A", "00", "00"),
            line("0100007F:0001", ESTABLISHED, "01", "05"),
            line("0100007F:0002", ESTABLISHED, "01", "00"),
            // it waits for room at the reader's
            line("0100007F:0003", ESTABLISHED, "04", "00"),
            // it probes
            line("0100007F:0004", ESTABLISHED, "02", "00"),
            line("0100007F:0005", "04", "01", "09"),
            "nonsense".to_owned(),
        ];
        let found: BTreeMap<_, _> = unanswered(&table.join("\n")).collect();
        assert_eq!(found, [((0x1540, "127.0.0.1:1".parse().unwrap()), 5)].into());
    }

    #[test]
    fn it_takes_both_time_and_tries() {
        let client = (5432, "127.0.0.1:1".parse().unwrap());
        let found = |times| BTreeMap::from([(client, times)]);
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut sockets = Unanswered::default();
        assert_eq!(sockets.take(&found(9), at(0)), [], "quick tries");
        assert_eq!(sockets.take(&found(4), at(7)), [], "slow tries");
        assert_eq!(sockets.take(&found(5), at(7)), [client]);
        // an answer comes
        assert_eq!(sockets.take(&BTreeMap::new(), at(8)), []);
        assert_eq!(sockets.take(&found(5), at(9)), []);
        assert_eq!(sockets.take(&found(6), at(15)), [client]);
    }

    #[test]
    fn addresses_are_as_people_write_them() {
        let known = [
            ("0100007F:1538", "127.0.0.1:5432"),
            ("0000000000000000FFFF00000100007F:1538", "127.0.0.1:5432"),
            ("B80D0120:15381538", ""),
            ("B80D0120000000000000000001000000:1538", "[2001:db8::1]:5432"),
        ];
        for (text, expected) in known.into_iter().filter(|_| cfg!(target_endian = "little")) {
            assert_eq!(address(text), expected.parse().ok(), "{text}");
        }
        assert_eq!(address(""), None);
    }
}
