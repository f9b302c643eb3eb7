//! A node that is asked again and again over one connection, beside the supervisor.

use std::time::Duration;

use millrace_contract::status::NodeStatus;
use millrace_pg::{ConnectParams, Connection, PgError, connect};
use tokio::time::timeout;

use crate::{ClusterError, ClusterSpec};

#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) name: String,
    params: ConnectParams,
    connection: Option<Connection>,
    answer_max: Duration,
}

impl Asked {
    pub(crate) fn new(
        spec: &ClusterSpec,
        node: &NodeStatus,
        program: &str,
        answer_max: Duration,
    ) -> Result<Self, ClusterError> {
        let params =
            ConnectParams { application_name: program.to_owned(), ..spec.superuser_at(&node.host, node.port)? };
        Ok(Self { name: node.name.clone(), params, connection: None, answer_max })
    }

    /// It asks the server of this node, where it is now.
    pub(crate) fn is_of(&self, node: &NodeStatus) -> bool {
        (&self.name, &self.params.host, self.params.port) == (&node.name, &node.host, node.port)
    }

    pub(crate) fn in_database(mut self, database: &str) -> Self {
        self.params = self.params.to_database(database);
        self
    }

    /// Host and port.
    pub(crate) fn place(&self) -> (String, u16) {
        (self.params.host.clone(), self.params.port)
    }

    /// Asks over the open connection, or a new one; after an error the next question opens another.
    pub(crate) async fn ask<T>(
        &mut self,
        question: impl AsyncFnOnce(&Connection) -> Result<T, PgError>,
    ) -> Result<T, PgError> {
        let asking = async {
            let open = match self.connection.take() {
                Some(open) if !open.is_closed() => open,
                _ => connect(&self.params, self.answer_max).await?,
            };
            let answer = question(&open).await?;
            Ok((open, answer))
        };
        match timeout(self.answer_max, asking).await {
            Ok(Ok((open, answer))) => {
                self.connection = Some(open);
                Ok(answer)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(PgError::Timeout { address: self.params.address(), deadline: self.answer_max }),
        }
    }
}
