//! A replica from a base backup, over a slot, by `pg_basebackup`.

use std::{fs, time::Duration};

use rustix::process::Signal;

use crate::{
    error::ServerError,
    process_table,
    server::{ServerSpec, Upstream, remove, run},
};

impl ServerSpec {
    /// Copies the upstream's data directory and makes it a replica's: log comes over the
    /// upstream's slot from the first byte on, so the copy can never be too old to follow.
    ///
    /// What an interrupted copy left is removed first, and its program killed. The data
    /// directory appears only when it is whole.
    ///
    /// # Errors
    /// If there is a data directory already, or the copy fails; then nothing is left.
    pub async fn base_backup(&self, upstream: &Upstream, deadline: Duration) -> Result<(), ServerError> {
        let mut command = self.command("pg_basebackup");
        command
            .arg("--pgdata")
            .arg(self.incoming_dir())
            .arg("--dbname")
            // under a name of its own: a commit must not be taken for safe because an unfinished copy has received it
            .arg(self.conninfo(&Upstream {
                application_name: format!("copy for {}", upstream.application_name),
                ..upstream.clone()
            }))
            .arg("--slot")
            .arg(&upstream.slot)
            .args(["--wal-method=stream", "--checkpoint=fast", "--no-password"]);
        self.replica_from(upstream, async { run(command, "pg_basebackup", deadline).await.map(drop) }).await
    }

    /// The same with a copy that comes from elsewhere: `copied` fills [`ServerSpec::incoming_dir`], which is not there yet,
    /// with log in `pg_wal` at least up to what the upstream's slot keeps.
    ///
    /// # Errors
    /// If there is a data directory already, or the copy fails; then nothing is left.
    pub async fn replica_from<E: From<ServerError>>(
        &self,
        upstream: &Upstream,
        copied: impl Future<Output = Result<(), E>>,
    ) -> Result<(), E> {
        let data = self.data_dir();
        if data.exists() {
            return Err(ServerError::NotADataDirectory { path: data }.into());
        }
        self.prepare_folder()?;
        self.end_copies();
        let incoming = self.incoming_dir();
        remove(&incoming)?;
        self.write_private_files(Some(upstream))?;
        let made = match copied.await {
            Ok(()) => self.finish(upstream).map_err(E::from),
            Err(error) => Err(error),
        };
        if made.is_err()
            && let Err(error) = remove(&incoming)
        {
            tracing::warn!(%error, "cannot remove an unfinished copy");
        }
        made
    }

    fn finish(&self, upstream: &Upstream) -> Result<(), ServerError> {
        let incoming = self.incoming_dir();
        let signal = incoming.join("standby.signal");
        fs::write(&signal, "").map_err(ServerError::io("write", &signal))?;
        self.run_as.own(&signal)?;
        self.configure_dir(&incoming, Some(upstream))?;
        self.settle()
    }

    /// Kills copies into this folder that outlived their supervisor: they would go on writing, and
    /// hold the upstream's slot.
    pub fn end_copies(&self) {
        for process in process_table::working_in(&self.folder) {
            if matches!(&*process.program, "pg_basebackup" | "pg_rewind") {
                tracing::info!(pid = process.pid, process.program, "ending a program left by an earlier supervisor");
                process_table::signal(process.pid, Signal::KILL);
            }
        }
    }
}
