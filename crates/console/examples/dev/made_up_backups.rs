//! A month of backups, with a hole in the log.

use millrace_base::{Lsn, Micros};
use millrace_contract::backups::{BackupEntry, Backups, DumpEntry, LogEntry, RestorePlan, WindowEntry};

pub(super) fn all(now: Micros) -> Backups {
    const DAY: i64 = 86_400_000_000;
    let entry = |days: i64| BackupEntry {
        label: format!("backup-{days:02}"),
        full: days % 7 == 0,
        parent: (days % 7 != 0).then(|| format!("backup-{:02}", days + 1)),
        from_replica: days % 3 != 0,
        at: Micros(now.0 - days * DAY - DAY / 3),
        data_bytes: 48_000_000_000 - u64::try_from(days).unwrap_or(0) * 90_000_000,
        stored_bytes: if days % 7 == 0 { 11_200_000_000 } else { 240_000_000 },
        timeline: 3 + u32::from(days < 9),
        proven: (days % 2 == 1).then_some(Micros(now.0 - days * DAY - DAY / 4)),
        failed_proof: (days == 4).then_some(Micros(now.0 - days * DAY - DAY / 5)),
        held: days == 7,
    };
    let dump = |days: i64| DumpEntry {
        label: format!("dump-{days:02}"),
        database: if days % 2 == 0 { "loans_db" } else { "postgres" }.to_owned(),
        parts: if days == 4 { vec!["operational".to_owned()] } else { Vec::new() },
        at: Micros(now.0 - days * DAY - DAY / 5),
        data_bytes: 31_000_000_000,
        stored_bytes: 7_400_000_000,
    };
    let window = |days: i64| WindowEntry {
        label: format!("backup-{days:02}"),
        timeline: 4,
        from: Micros(now.0 - days * DAY - DAY / 3),
        to: Micros(if days > 17 { now.0 - 18 * DAY } else { now.0 - 700_000 }),
    };
    Backups {
        backups: (0..28).map(entry).collect(),
        windows: (0..28).filter(|days| *days != 17).map(window).collect(),
        timelines: vec![
            LogEntry {
                timeline: 3,
                first: Lsn(0x9_0000_0000),
                last: Lsn(0x12_0400_0000),
                last_at: Micros(now.0 - 9 * DAY),
                files: 2_104,
                stored_bytes: 6_800_000_000,
                gaps: vec![(Lsn(0xC_1000_0000), Lsn(0xC_1400_0000))],
            },
            LogEntry {
                timeline: 4,
                first: Lsn(0x12_0400_0000),
                last: Lsn(0x14A_3B00_0000),
                last_at: Micros(now.0 - 700_000),
                files: 941,
                stored_bytes: 2_950_000_000,
                gaps: Vec::new(),
            },
        ],
        dumps: (0..6).map(dump).collect(),
        problems: Vec::new(),
    }
}

/// Of any moment.
pub(super) fn plan() -> RestorePlan {
    RestorePlan {
        backups: vec!["backup-07".into(), "backup-06".into()],
        timeline: 4,
        about: Some(std::time::Duration::from_secs(1_080)),
        log_files: 212,
        data_bytes: 47_900_000_000,
    }
}
