//! What a restored server is told: how to get log, where to stop, and that it is alone. Pure.

use std::fmt::Write;

use millrace_base::Lsn;

use crate::{
    plan::{Plan, Target},
    scan::RESTORE_WAL,
};

/// Where a restored server gets its log from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalSource {
    /// All of it is brought into the data directory first; the server removes it when recovery ends.
    Prefetch,
    /// A `restore_command`, as PostgreSQL runs it (`%f`, `%p`): for a log too long to be kept twice.
    Command(String),
    /// All of it is put where the server keeps its own, and the server is a standby: after that it goes on with what its
    /// primary sends. Whoever asks for this sets `primary_conninfo`.
    Standby,
}

const HEADING: &str = "\n# of the restore; what is about recovery has no effect once it is over\n";

/// The text of `postgresql.auto.conf` without the settings that the last restore added.
pub(crate) fn without(text: &str) -> &str {
    text.rfind(HEADING).and_then(|at| text.get(..at)).unwrap_or(text)
}

/// The settings of recovery, for the end of `postgresql.auto.conf`. The last of equal names counts. A standby needs none.
pub(crate) fn settings(plan: &Plan, source: &WalSource) -> String {
    let mut text = HEADING.to_owned();
    let mut set = |name: &str, value: &str| {
        let value = value.replace('\\', "\\\\").replace('\'', "''");
        // writing to a String cannot fail
        _ = writeln!(text, "{name} = '{value}'");
    };
    match source {
        // the server runs it in its data directory
        WalSource::Prefetch => {
            set("restore_command", &format!("cp \"{RESTORE_WAL}/%f\" \"%p\""));
            set("recovery_end_command", &format!("rm -rf \"{RESTORE_WAL}\""));
        }
        WalSource::Command(command) => set("restore_command", command),
        WalSource::Standby => return String::new(),
    }
    set("recovery_target_timeline", &plan.timeline.to_string());
    set("recovery_target_action", "promote");
    // a target in an earlier restore's settings must not count
    for name in [
        "recovery_target",
        "recovery_target_time",
        "recovery_target_lsn",
        "recovery_target_xid",
        "recovery_target_name",
    ] {
        set(name, "");
    }
    let mut target = |name: &str, value: String, inclusive: bool| {
        set(name, &value);
        set("recovery_target_inclusive", if inclusive { "on" } else { "off" });
    };
    match &plan.target {
        Target::Latest => {}
        Target::Consistent => set("recovery_target", "immediate"),
        Target::Time { at, inclusive } => {
            let text =
                at.to_timestamp().map_or_else(String::new, |t| t.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string());
            target("recovery_target_time", text, *inclusive);
        }
        Target::Lsn { at, inclusive } => target("recovery_target_lsn", at.to_string(), *inclusive),
        Target::Xid { xid, inclusive } => target("recovery_target_xid", xid.to_string(), *inclusive),
        Target::Name(name) => set("recovery_target_name", name),
    }
    // it must not write into the archive of the server it is a copy of, follow that one, or wait for its replicas
    set("archive_mode", "off");
    set("primary_conninfo", "");
    set("primary_slot_name", "");
    set("synchronous_standby_names", "");
    text
}

/// What makes a restored server stop at a position and answer there, as a standby, in place of what [`settings`] say of the
/// end; also to be put at the end. The record that begins at the position is not replayed. Where the log ends just there, a
/// standby waits, and a recovery would fail.
pub(crate) fn stand_at(at: Lsn) -> String {
    format!(
        "recovery_target_lsn = '{at}'\nrecovery_target_inclusive = 'off'\nrecovery_target_action = 'pause'\n\
         hot_standby = 'on'\nwal_retrieve_retry_interval = '100ms'\n"
    )
}

/// The server's map of tablespaces with new places: lines of an oid, a space and a path.
pub(crate) fn remap(tablespace_map: &str, place: impl Fn(u32) -> Option<String>) -> String {
    let line = |line: &str| {
        let oid = line.split_once(' ').map(|(oid, _)| oid);
        match oid.and_then(|oid| Some((oid, place(oid.parse().ok()?)?))) {
            // as the server reads it: a backslash or a newline in a path is escaped
            Some((oid, path)) => format!("{oid} {}\n", path.replace('\\', "\\\\").replace('\n', "\\\n")),
            None => format!("{line}\n"),
        }
    };
    tablespace_map.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use millrace_base::Micros;

    use super::*;
    use crate::plan::tests::{archive, backup};

    fn plan(target: Target) -> Plan {
        let backups = [backup("a", 1, 16 << 20, (16 << 20) + 5)];
        let mut plan = crate::plan::plan(&backups, &archive(&[(1, 1)], &[]), &Target::Latest, None, None).unwrap();
        plan.target = target;
        plan
    }

    #[test]
    fn targets_are_settings() {
        let time = Target::Time { at: Micros(1_700_000_000_123_456), inclusive: false };
        let text = settings(&plan(time), &WalSource::Prefetch);
        assert!(text.contains("recovery_target_time = '2023-11-14 22:13:20.123456+00'"), "{text}");
        assert!(text.contains("recovery_target_inclusive = 'off'"), "{text}");
        let text = settings(&plan(Target::Lsn { at: Lsn(77), inclusive: true }), &WalSource::Command("x '%f'".into()));
        assert!(
            text.contains("recovery_target_lsn = '0/4D'") && text.contains("restore_command = 'x ''%f'''"),
            "{text}"
        );
        let added = settings(&plan(Target::Name("it's".into())), &WalSource::Prefetch);
        assert!(added.contains("'it''s'"));
        assert_eq!(without(&format!("a = 1\n{added}")), "a = 1\n");
        assert_eq!(without(&format!("a = 1\n{added}{added}")), format!("a = 1\n{added}"), "the last restore's");
        assert_eq!(without("a = 1\n"), "a = 1\n");
    }

    #[test]
    fn tablespaces_are_remapped() {
        let map = "16402 /old place/a\n16403 /b\n";
        let new = remap(map, |oid| (oid == 16402).then(|| "/new place".to_owned()));
        assert_eq!(new, "16402 /new place\n16403 /b\n");
    }
}
