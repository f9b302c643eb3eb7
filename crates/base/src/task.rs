//! Named, owned, joined tasks.

use std::{future::Future, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The tasks that one owner started. Dropping it aborts them; [`Tasks::shutdown`] ends them in order.
///
/// A task ends by returning; it is asked to by the token. A panic inside is reported to the
/// owner by [`Tasks::join_next`], never lost.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<(&'static str, Result<(), BoxError>)>,
    token: CancellationToken,
}

/// Any error of a task, reported with the task's name.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How a task ended.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("task {name} failed")]
    Failed {
        name: &'static str,
        #[source]
        source: BoxError,
    },
    #[error("a task panicked: {0}")]
    Panicked(String),
}

impl Tasks {
    /// Tasks that stop when `token` is cancelled.
    #[must_use]
    pub fn new(token: CancellationToken) -> Self {
        Self { set: JoinSet::new(), token }
    }

    /// The token that asks all of them to stop.
    #[must_use]
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }

    /// Starts a task; its name appears in errors and logs.
    pub fn spawn<E>(&mut self, name: &'static str, task: impl Future<Output = Result<(), E>> + Send + 'static)
    where
        E: Into<BoxError> + Send + 'static,
    {
        use tracing::Instrument;
        self.set
            .spawn(async move { (name, task.await.map_err(Into::into)) }.instrument(tracing::info_span!("task", name)));
    }

    /// Waits for the next task to end; `None` when none is left. Safe to drop and call again.
    pub async fn join_next(&mut self) -> Option<Result<&'static str, TaskError>> {
        Some(match self.set.join_next().await? {
            Ok((name, Ok(()))) => Ok(name),
            Ok((name, Err(source))) => Err(TaskError::Failed { name, source }),
            Err(join) => Err(TaskError::Panicked(join.to_string())),
        })
    }

    /// Cancels the token and waits; after `deadline` the rest are aborted.
    /// Returns the errors of the tasks that failed.
    pub async fn shutdown(mut self, deadline: Duration) -> Vec<TaskError> {
        self.token.cancel();
        let mut failed = Vec::new();
        let all = async {
            while let Some(ended) = self.join_next().await {
                failed.extend(ended.err());
            }
        };
        if tokio::time::timeout(deadline, all).await.is_err() {
            tracing::warn!(left = self.set.len(), "tasks did not stop in time and are aborted");
            self.set.shutdown().await;
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn failures_carry_the_name() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("good", async { Ok::<_, std::io::Error>(()) });
        tasks.spawn("bad", async { Err(std::io::Error::other("disk")) });
        let mut names = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            names.push(ended.map_or_else(|e| e.to_string(), str::to_owned));
        }
        names.sort();
        assert_eq!(names, ["good", "task bad failed"]);
    }

    #[tokio::test]
    async fn shutdown_cancels_and_joins() {
        let mut tasks = Tasks::new(CancellationToken::new());
        let token = tasks.token().clone();
        tasks.spawn("waits", async move {
            token.cancelled().await;
            Ok::<_, std::io::Error>(())
        });
        assert!(tasks.shutdown(Duration::from_secs(5)).await.is_empty());
    }
}
