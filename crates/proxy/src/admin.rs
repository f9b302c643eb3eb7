//! The administration console in PgBouncer's dialect, on the virtual database `pgbouncer`, so that people, exporters and
//! scripts that know it need nothing new (PgBouncer manual, "Admin console").
//!
//! Only the simple query protocol, as there. Invariants: who may log in here is listed by name; what is shown comes from
//! the workers' own books and never from another server. Tables are made in [`tables`], which is pure.

mod command;
mod stats;
mod tables;

pub(crate) use {stats::by_database, tables::merged};

use std::{io, sync::Arc, time::Duration};

use crate::{
    conversation::Conversation,
    handle::Handle,
    message::{self, Severity},
    proxy::Shared,
};

use command::{AdminCommand, parse};
use tables::{Book, Table};

/// The database's name.
pub const DATABASE: &str = "pgbouncer";
/// What the dialect is that of. Tools compare this.
const VERSION: &str = "PgBouncer 1.18.0 (Millrace)";
/// OID of `text`: every column is one.
const TEXT_OID: u32 = 25;

/// What follows the proof of the password: the greeting.
pub(crate) fn greeting(out: &mut Vec<u8>) {
    message::message(out, b'R', |out| out.extend_from_slice(&0u32.to_be_bytes()));
    for (name, value) in [
        ("server_version", "1.18.0/millrace"),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
    ] {
        message::parameter_status(out, name, value);
    }
    // nothing here takes long enough to be cancelled
    message::message(out, b'K', |out| out.extend_from_slice(&[0; 8]));
    message::ready(out, b'I');
}

/// Answers until the client leaves.
pub(crate) async fn serve(shared: &Arc<Shared>, mut conversation: Conversation, user: &str) -> io::Result<()> {
    let handle = Handle::of(shared.clone());
    loop {
        let (tag, body) = match conversation.message().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let mut out = Vec::new();
        match tag {
            b'X' => return Ok(()),
            b'Q' => {
                let mut rest = &body[..];
                let text = message::read_cstr(&mut rest).ok().and_then(|text| std::str::from_utf8(text).ok());
                answer(&handle, user, text.unwrap_or_default(), &mut out).await;
                message::ready(&mut out, b'I');
            }
            // of an extended query only its end is answered
            b'P' | b'B' | b'D' | b'E' | b'C' | b'H' => {}
            b'S' => {
                let text = "extended query protocol not supported by the console";
                message::error(&mut out, Severity::Error, "0A000", text, "use simple queries");
                message::ready(&mut out, b'I');
            }
            _ => {
                message::error(&mut out, Severity::Fatal, "08P01", "unexpected message", "");
                return conversation.send(&out).await;
            }
        }
        conversation.send(&out).await?;
    }
}

async fn answer(handle: &Handle, user: &str, text: &str, out: &mut Vec<u8>) {
    let command = match parse(text) {
        Ok(command) => command,
        Err(reason) => return message::error(out, Severity::Error, "42601", &reason, "SHOW HELP lists the commands"),
    };
    if command.changes() {
        tracing::info!(user, command = text, "proxy console");
    }
    match command {
        AdminCommand::Empty => message::message(out, b'I', |_| {}),
        AdminCommand::Set => message::complete(out, "SET"),
        AdminCommand::Show(what) => {
            let book = Book { views: handle.view().await, handle };
            write_table(out, &tables::show(what, &book));
            message::complete(out, "SHOW");
        }
        AdminCommand::Pause(database) => {
            // a transaction that goes on and on would keep the console for ever
            match tokio::time::timeout(PAUSE_MAX, handle.pause(database.as_deref())).await {
                Ok(Ok(())) => message::complete(out, "PAUSE"),
                Ok(Err(error)) => message::error(out, Severity::Error, "55000", &error.to_string(), ""),
                Err(_) => {
                    let text = format!("transactions still run after {} s; new ones wait", PAUSE_MAX.as_secs());
                    message::error(out, Severity::Error, "55006", &text, "RESUME, or wait for SHOW POOLS to be quiet");
                }
            }
        }
        AdminCommand::Resume(database) => {
            handle.resume(database.as_deref());
            message::complete(out, "RESUME");
        }
        AdminCommand::Reconnect(database) => {
            handle.reconnect(database.as_deref());
            message::complete(out, "RECONNECT");
        }
        AdminCommand::WaitClose(database) => {
            match tokio::time::timeout(PAUSE_MAX, handle.wait_close(database.as_deref())).await {
                Ok(()) => message::complete(out, "WAIT_CLOSE"),
                Err(_) => {
                    let text = format!("old connections are still in use after {} s", PAUSE_MAX.as_secs());
                    message::error(out, Severity::Error, "55006", &text, "SHOW SERVERS names their clients");
                }
            }
        }
        AdminCommand::Kill(database) => match handle.kill(database.as_deref()).await {
            Ok(()) => {
                message::notice(out, "who comes now waits for RESUME");
                message::complete(out, "KILL");
            }
            Err(error) => message::error(out, Severity::Error, "55000", &error.to_string(), ""),
        },
        AdminCommand::KillClient(id) => {
            if handle.kill_client(id).await {
                message::complete(out, "KILL_CLIENT");
            } else {
                let text = format!("there is no client {id}");
                message::error(out, Severity::Error, "55000", &text, "SHOW CLIENTS has their ids");
            }
        }
        AdminCommand::Disable(database) => {
            handle.disable(&database);
            message::complete(out, "DISABLE");
        }
        AdminCommand::Enable(database) => {
            handle.enable(&database);
            message::complete(out, "ENABLE");
        }
        AdminCommand::Reload => reload(handle, out).await,
    }
}

/// Each difference is a notice.
async fn reload(handle: &Handle, out: &mut Vec<u8>) {
    match handle.reread().await {
        Ok(reloaded) => {
            for change in &reloaded.changed {
                message::notice(out, change);
            }
            for waits in &reloaded.waits {
                message::notice(out, &format!("from the next start: {waits}"));
            }
            message::complete(out, "RELOAD");
        }
        Err(error) => {
            let (text, hint) = error.split_once("\n  hint: ").unwrap_or((&error, ""));
            message::error(out, Severity::Error, "F0000", text, hint);
        }
    }
}

/// As long as a client waits for a connection.
const PAUSE_MAX: Duration = Duration::from_secs(120);

fn write_table(out: &mut Vec<u8>, table: &Table) {
    let count =
        |out: &mut Vec<u8>, n: usize| out.extend_from_slice(&u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes());
    message::message(out, b'T', |out| {
        count(out, table.columns.len());
        for name in &table.columns {
            message::cstr(out, name.as_bytes());
            out.extend_from_slice(&[0; 6]);
            out.extend_from_slice(&TEXT_OID.to_be_bytes());
            // of any length, no modifier, as text
            out.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        }
    });
    for row in &table.rows {
        message::message(out, b'D', |out| {
            count(out, row.len());
            for value in row {
                match value {
                    None => out.extend_from_slice(&(-1i32).to_be_bytes()),
                    Some(text) => {
                        out.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_be_bytes());
                        out.extend_from_slice(text.as_bytes());
                    }
                }
            }
        });
    }
}
