//! A data directory that went its own way is brought back to where another server's history left it, by `pg_rewind`.

use std::{fs, time::Duration};

use crate::{
    connect::ConnectParams,
    error::ServerError,
    server::{ServerSpec, Upstream, passfile_line, run},
};

impl ServerSpec {
    /// Makes the data directory of a stopped server a replica's of `upstream`: what was written here and not there since
    /// the two histories parted is undone (manual, "pg_rewind"). `source` is the same server, reached by a superuser.
    ///
    /// The source must have written a checkpoint since it was promoted, or nothing is seen to be different. An
    /// interrupted rewind leaves a directory that cannot be started; it is found out by the next one.
    ///
    /// Whether there was anything to undo.
    ///
    /// # Errors
    /// If the log from before the parting is gone, or the program fails otherwise; then only a base backup helps.
    pub async fn rewind(
        &self,
        upstream: &Upstream,
        source: &ConnectParams,
        deadline: Duration,
    ) -> Result<bool, ServerError> {
        self.end_orphans().await?;
        self.prepare_folder()?;
        let password_file = self.private_file("rewind.pgpass", &passfile_line(&source.user, &source.password))?;
        let conninfo = self.conninfo_of(&source.host, source.port, &source.user, "millrace rewind", &password_file.0);
        let mut command = self.command("pg_rewind");
        command.arg("--target-pgdata").arg(self.data_dir()).arg("--source-server").arg(conninfo);
        let said = run(command, "pg_rewind", deadline).await?;
        drop(password_file);
        let signal = self.data_dir().join("standby.signal");
        fs::write(&signal, "").map_err(ServerError::io("write", &signal))?;
        self.run_as.own(&signal)?;
        self.configure(Some(upstream))?;
        Ok(!said.contains("no rewind required"))
    }
}
