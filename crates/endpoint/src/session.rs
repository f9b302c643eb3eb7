//! A session: messages in, answers out (PostgreSQL manual, "Message Flow").
//!
//! Invariants: exactly one ReadyForQuery for each Query and each Sync; after an error in the extended protocol
//! everything up to the Sync is skipped; rows are sent as they come and never collected; a cancel request, a client
//! that hangs up and a shutdown each end the running statement.

use std::{collections::HashMap, sync::Arc};

use millrace_contract::{Query, Value};
use tokio_util::sync::CancellationToken;

use crate::{
    Context, backend,
    backend::{Field, Plain, format_of},
    cancel::Registered,
    command::{self, Command, REPORTED, Settings},
    error::{Ended, Refusal},
    frontend::{Bind, Message, Target},
    portal::{Cursor, Kind, Portal, Statement},
    split, types,
    wire::{Stream, Wire},
};

/// What ReadyForQuery says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    Idle,
    /// Set by BEGIN; ends by COMMIT or ROLLBACK.
    Open,
    /// Set by an error within [`Transaction::Open`]; ends by COMMIT or ROLLBACK.
    Failed,
}

/// How a row limit ended.
enum Progress {
    Done,
    Suspended,
}

pub(crate) struct Session<S> {
    wire: Wire<S>,
    context: Arc<Context>,
    settings: Settings,
    registered: Registered,
    statements: HashMap<String, Arc<Statement>>,
    portals: HashMap<String, Portal>,
    transaction: Transaction,
    /// Between an error of the extended protocol and its Sync.
    skipping: bool,
}

impl<S: Stream> Session<S> {
    pub(crate) fn new(wire: Wire<S>, context: Arc<Context>, settings: Settings, registered: Registered) -> Self {
        Self {
            wire,
            context,
            settings,
            registered,
            statements: HashMap::new(),
            portals: HashMap::new(),
            transaction: Transaction::Idle,
            skipping: false,
        }
    }

    /// Serves until the client leaves, is refused or the server stops.
    pub(crate) async fn run(mut self) {
        loop {
            match self.turn().await {
                Ok(()) => {}
                Err(Ended::Gone) => return,
                Err(Ended::Refused(refusal)) => {
                    backend::refusal(&mut self.wire.out, &refusal);
                    return self.wire.close().await;
                }
            }
        }
    }

    /// One message and its answer.
    async fn turn(&mut self) -> Result<(), Ended> {
        if self.wire.is_idle() {
            self.wire.flush().await?;
        }
        let token = self.context.token.clone();
        // next() keeps what it has read when it is dropped
        let message = tokio::select! {
            message = self.wire.next() => message,
            () = token.cancelled() => Err(shutdown().into()),
            () = tokio::time::sleep(self.context.limits.idle) => {
                Err(Refusal::fatal("57P05", "terminating connection due to idle-session timeout").into())
            }
        };
        let message = match message {
            Err(Ended::Refused(refusal)) if !refusal.is_fatal() => return self.failed(refusal, true),
            other => other?,
        };
        match message {
            Message::Terminate => Err(Ended::Gone),
            Message::Query(sql) => {
                self.skipping = false;
                self.simple(&sql).await
            }
            Message::Sync => {
                self.skipping = false;
                if self.transaction == Transaction::Idle {
                    self.portals.clear();
                }
                self.ready();
                self.wire.flush().await
            }
            _ if self.skipping => Ok(()),
            Message::Flush => self.wire.flush().await,
            Message::Copy => Ok(()),
            Message::Password(_) => Err(Refusal::fatal("08P01", "unexpected password message").into()),
            message => match self.extended(message).await {
                Err(Ended::Refused(refusal)) if !refusal.is_fatal() => self.failed(refusal, true),
                other => other,
            },
        }
    }

    /// Tells the client of an error and goes on.
    fn failed(&mut self, refusal: Refusal, skip: bool) -> Result<(), Ended> {
        backend::refusal(&mut self.wire.out, &refusal);
        self.skipping = skip;
        if self.transaction == Transaction::Open {
            self.transaction = Transaction::Failed;
            self.portals.clear();
        }
        Ok(())
    }

    fn ready(&mut self) {
        let status = match self.transaction {
            Transaction::Idle => b'I',
            Transaction::Open => b'T',
            Transaction::Failed => b'E',
        };
        backend::ready(&mut self.wire.out, status);
    }

    // the simple protocol

    async fn simple(&mut self, sql: &str) -> Result<(), Ended> {
        self.portals.remove("");
        let statements = split::statements(sql);
        if statements.is_empty() {
            backend::plain(&mut self.wire.out, Plain::EmptyQuery);
        }
        for statement in statements {
            match self.simple_statement(statement).await {
                Ok(()) => {}
                Err(Ended::Refused(refusal)) if !refusal.is_fatal() => {
                    self.failed(refusal, false)?;
                    break;
                }
                Err(ended) => return Err(ended),
            }
        }
        if self.transaction == Transaction::Idle {
            self.portals.clear();
        }
        self.ready();
        self.wire.flush().await
    }

    async fn simple_statement(&mut self, sql: &str) -> Result<(), Ended> {
        if let Some(command) = command::parse(sql)? {
            if let Some(fields) = self.command_fields(&command)? {
                backend::row_description(&mut self.wire.out, &fields, &[]);
            }
            return self.command(&command, Vec::new(), &[]).await;
        }
        self.may_run()?;
        let cancel = self.registered.running.begin();
        let mut cursor = self.start(sql, Vec::new(), &cancel).await.map(|stream| Cursor::new(stream, None))?;
        backend::row_description(&mut self.wire.out, &cursor.fields, &[]);
        let mut sent = 0;
        self.send(&mut cursor, &[], 0, &mut sent, &cancel).await?;
        self.registered.running.end();
        backend::command_complete(&mut self.wire.out, &format!("SELECT {sent}"));
        Ok(())
    }

    /// In a failed transaction only its end is accepted.
    fn may_run(&self) -> Result<(), Refusal> {
        if self.transaction == Transaction::Failed {
            return Err(Refusal::error(
                "25P02",
                "current transaction is aborted, commands ignored until end of transaction block",
            ));
        }
        Ok(())
    }

    // the extended protocol

    async fn extended(&mut self, message: Message) -> Result<(), Ended> {
        match message {
            Message::Parse { name, sql, types } => self.parse(name, &sql, types)?,
            Message::Bind(bind) => self.bind(bind).await?,
            Message::Describe(Target::Statement(name)) => self.describe_statement(&name).await?,
            Message::Describe(Target::Portal(name)) => self.describe_portal(&name).await?,
            Message::Execute { portal, rows_max } => self.execute(&portal, rows_max).await?,
            Message::Close(target) => {
                match target {
                    Target::Statement(name) => drop(self.statements.remove(&name)),
                    Target::Portal(name) => drop(self.portals.remove(&name)),
                }
                backend::plain(&mut self.wire.out, Plain::CloseComplete);
            }
            // handled before
            _ => {}
        }
        if self.wire.is_full() {
            self.wire.flush().await?;
        }
        Ok(())
    }

    fn parse(&mut self, name: String, sql: &str, declared: Vec<u32>) -> Result<(), Refusal> {
        if !name.is_empty() && self.statements.contains_key(&name) {
            return Err(Refusal::error("42P05", format!("prepared statement \"{name}\" already exists")));
        }
        if self.statements.len() >= self.context.limits.statements && !self.statements.contains_key(&name) {
            return Err(Refusal::error("54000", "too many prepared statements in this session").hint("DEALLOCATE some"));
        }
        let (sql, kind) = match split::statements(sql).as_slice() {
            [] => ("", Kind::Empty),
            [one] => (*one, command::parse(one)?.map_or(Kind::Query, Kind::Command)),
            _ => return Err(Refusal::error("42601", "cannot insert multiple commands into a prepared statement")),
        };
        if !matches!(kind, Kind::Command(Command::Commit | Command::Rollback | Command::Savepoint("ROLLBACK"))) {
            self.may_run()?;
        }
        let statement = Statement { sql: sql.to_owned(), kind, declared, description: std::sync::OnceLock::new() };
        self.statements.insert(name, Arc::new(statement));
        backend::plain(&mut self.wire.out, Plain::ParseComplete);
        Ok(())
    }

    fn statement(&self, name: &str) -> Result<Arc<Statement>, Refusal> {
        self.statements.get(name).cloned().ok_or_else(|| {
            let message = if name.is_empty() {
                "unnamed prepared statement does not exist".to_owned()
            } else {
                format!("prepared statement \"{name}\" does not exist")
            };
            Refusal::error("26000", message)
        })
    }

    async fn bind(&mut self, bind: Bind) -> Result<(), Ended> {
        let statement = self.statement(&bind.statement)?;
        let untyped_binary = (0..bind.params.len())
            .any(|index| statement.param_oid(index) == 0 && format_of(&bind.param_formats, index) == 1);
        if untyped_binary {
            self.described(&statement).await?;
        }
        if let Some(description) = statement.description.get()
            && description.params.len() != bind.params.len()
        {
            return Err(Refusal::error(
                "08P01",
                format!(
                    "bind message supplies {} parameters, but prepared statement \"{}\" requires {}",
                    bind.params.len(),
                    bind.statement,
                    description.params.len()
                ),
            )
            .into());
        }
        let params: Result<Vec<Value>, Refusal> = bind
            .params
            .iter()
            .enumerate()
            .map(|(index, bytes)| {
                types::parameter(
                    bytes.as_ref(),
                    statement.param_oid(index),
                    format_of(&bind.param_formats, index),
                    index + 1,
                )
            })
            .collect();
        if !bind.portal.is_empty() && self.portals.contains_key(&bind.portal) {
            return Err(Refusal::error("42P03", format!("cursor \"{}\" already exists", bind.portal)).into());
        }
        if self.portals.len() >= self.context.limits.statements {
            return Err(Refusal::error("54000", "too many portals in this session").into());
        }
        let portal = Portal { statement, params: params?, formats: bind.result_formats, cursor: None, done: false };
        self.portals.insert(bind.portal, portal);
        backend::plain(&mut self.wire.out, Plain::BindComplete);
        Ok(())
    }

    /// Asks the reader about the statement, once.
    async fn described(&mut self, statement: &Arc<Statement>) -> Result<(), Ended> {
        let Some(sql) = statement.query() else { return Ok(()) };
        if statement.description.get().is_some() {
            return Ok(());
        }
        self.may_run()?;
        let declared: Vec<_> = statement.declared.iter().map(|oid| types::declared(*oid)).collect();
        let cancel = self.registered.running.begin();
        let reader = self.context.reader.clone();
        let description = self.unless_ended(reader.prepare(sql, &declared), &cancel).await?.map_err(Refusal::from)?;
        self.registered.running.end();
        statement.description.get_or_init(|| description);
        Ok(())
    }

    async fn describe_statement(&mut self, name: &str) -> Result<(), Ended> {
        let statement = self.statement(name)?;
        self.described(&statement).await?;
        let count = statement.description.get().map_or(0, |description| description.params.len());
        let oids: Vec<u32> = (0..count).map(|index| statement.param_oid(index)).collect();
        backend::parameter_description(&mut self.wire.out, &oids);
        let fields = match &statement.kind {
            Kind::Empty => None,
            Kind::Command(command) => self.command_fields(command)?,
            Kind::Query => statement.description.get().map(|d| d.columns.iter().map(types::field).collect()),
        };
        match fields {
            Some(fields) => backend::row_description(&mut self.wire.out, &fields, &[]),
            None => backend::plain(&mut self.wire.out, Plain::NoData),
        }
        Ok(())
    }

    async fn describe_portal(&mut self, name: &str) -> Result<(), Ended> {
        let mut portal = self.take_portal(name)?;
        let described = self.portal_fields(&mut portal).await;
        let formats = portal.formats.clone();
        self.portals.insert(name.to_owned(), portal);
        match described? {
            Some(fields) => backend::row_description(&mut self.wire.out, &fields, &formats),
            None => backend::plain(&mut self.wire.out, Plain::NoData),
        }
        Ok(())
    }

    /// The columns of a portal; a query is started for them, so that its types are those of the values bound.
    async fn portal_fields(&mut self, portal: &mut Portal) -> Result<Option<Vec<Field>>, Ended> {
        let statement = portal.statement.clone();
        match &statement.kind {
            Kind::Empty => Ok(None),
            Kind::Command(command) => Ok(self.command_fields(command)?),
            Kind::Query => {
                if let Some(description) = statement.description.get() {
                    return Ok(Some(description.columns.iter().map(types::field).collect()));
                }
                self.may_run()?;
                let cancel = self.registered.running.begin();
                self.start_portal(portal, &cancel).await?;
                self.registered.running.end();
                Ok(portal.cursor.as_ref().map(|cursor| cursor.fields.clone()))
            }
        }
    }

    fn take_portal(&mut self, name: &str) -> Result<Portal, Refusal> {
        self.portals.remove(name).ok_or_else(|| Refusal::error("34000", format!("portal \"{name}\" does not exist")))
    }

    async fn start_portal(&mut self, portal: &mut Portal, cancel: &CancellationToken) -> Result<(), Ended> {
        if portal.cursor.is_none() && !portal.done {
            let stream = self.start(&portal.statement.sql, portal.params.clone(), cancel).await?;
            portal.cursor = Some(Cursor::new(stream, portal.statement.description.get()));
        }
        Ok(())
    }

    async fn execute(&mut self, name: &str, rows_max: usize) -> Result<(), Ended> {
        let mut portal = self.take_portal(name)?;
        let statement = portal.statement.clone();
        match &statement.kind {
            Kind::Empty => backend::plain(&mut self.wire.out, Plain::EmptyQuery),
            Kind::Command(command) => {
                let params = std::mem::take(&mut portal.params);
                self.command(command, params, &portal.formats).await?;
            }
            Kind::Query => {
                self.may_run()?;
                let cancel = self.registered.running.begin();
                self.start_portal(&mut portal, &cancel).await?;
                let mut sent = 0;
                let progress = match &mut portal.cursor {
                    Some(cursor) => self.send(cursor, &portal.formats, rows_max, &mut sent, &cancel).await?,
                    None => Progress::Done,
                };
                self.registered.running.end();
                match progress {
                    Progress::Suspended => backend::plain(&mut self.wire.out, Plain::PortalSuspended),
                    Progress::Done => {
                        portal.cursor = None;
                        portal.done = true;
                        backend::command_complete(&mut self.wire.out, &format!("SELECT {sent}"));
                    }
                }
            }
        }
        self.portals.insert(name.to_owned(), portal);
        Ok(())
    }

    // statements of the reader

    /// Waits for `work`, or for what ends it earlier.
    async fn unless_ended<T>(&mut self, work: impl Future<Output = T>, cancel: &CancellationToken) -> Result<T, Ended> {
        let token = &self.context.token;
        // dropping `work` ends it; hung_up() keeps what it has read
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = cancel.cancelled() => Err(cancelled().into()),
            () = token.cancelled() => Err(shutdown().into()),
            () = self.wire.hung_up() => Err(Ended::Gone),
        }
    }

    async fn start(
        &mut self,
        sql: &str,
        params: Vec<Value>,
        cancel: &CancellationToken,
    ) -> Result<millrace_contract::RowStream, Ended> {
        let most = self.context.limits.statement;
        let deadline = self.settings.statement_timeout().map_or(most, |timeout| timeout.min(most));
        let query = Query { sql: sql.to_owned(), params, deadline, pinned: None };
        let reader = self.context.reader.clone();
        Ok(self.unless_ended(reader.query(query), cancel).await?.map_err(Refusal::from)?)
    }

    /// Sends rows: all, or `rows_max` if that is not 0.
    async fn send(
        &mut self,
        cursor: &mut Cursor,
        formats: &[i16],
        rows_max: usize,
        sent: &mut usize,
        cancel: &CancellationToken,
    ) -> Result<Progress, Ended> {
        loop {
            while let Some(row) = cursor.waiting.pop_front() {
                if rows_max != 0 && *sent == rows_max {
                    cursor.waiting.push_front(row);
                    return Ok(Progress::Suspended);
                }
                let fields = &cursor.fields;
                backend::data_row(&mut self.wire.out, fields.len(), |index, out| {
                    match (row.get(index), fields.get(index)) {
                        (Some(value), Some(field)) => types::put(value, field.oid, format_of(formats, index), out),
                        _ => Ok(false),
                    }
                })?;
                *sent += 1;
                if self.wire.is_full() {
                    // cancel requests are heard between chunks; a write has its own deadline
                    self.wire.flush().await?;
                    if cancel.is_cancelled() {
                        return Err(cancelled().into());
                    }
                }
            }
            match self.unless_ended(cursor.rows.recv(), cancel).await? {
                None => return Ok(Progress::Done),
                Some(chunk) => cursor.waiting.extend(chunk.map_err(Refusal::from)?),
            }
        }
    }

    // statements of the session itself

    /// The columns a command returns.
    fn command_fields(&self, command: &Command) -> Result<Option<Vec<Field>>, Refusal> {
        Ok(match command {
            Command::Show(name) => {
                // `show all` is a table of its own
                let names: &[&str] = if name == "all" { &["name", "setting", "description"] } else { &[name.as_str()] };
                let field = |name: &&str| Field { name: (*name).to_owned(), oid: 25, size: -1, modifier: -1 };
                Some(names.iter().map(field).collect())
            }
            Command::Fetch { name, .. } => {
                let cursor = self.portals.get(name).and_then(|portal| portal.cursor.as_ref());
                Some(cursor.ok_or_else(|| no_cursor(name))?.fields.clone())
            }
            _ => None,
        })
    }

    async fn command(&mut self, command: &Command, params: Vec<Value>, formats: &[i16]) -> Result<(), Ended> {
        if !matches!(command, Command::Commit | Command::Rollback | Command::Savepoint("ROLLBACK")) {
            self.may_run()?;
        }
        let tag = match command {
            Command::Begin => {
                if self.transaction == Transaction::Open {
                    self.warn("25001", "there is already a transaction in progress");
                }
                self.transaction = Transaction::Open;
                "BEGIN".to_owned()
            }
            Command::Commit | Command::Rollback => {
                let failed = self.transaction == Transaction::Failed;
                if self.transaction == Transaction::Idle {
                    self.warn("25P01", "there is no transaction in progress");
                }
                self.transaction = Transaction::Idle;
                self.portals.clear();
                if failed || *command == Command::Rollback { "ROLLBACK".to_owned() } else { "COMMIT".to_owned() }
            }
            Command::Savepoint(tag) => {
                if self.transaction == Transaction::Idle {
                    return Err(Refusal::error("25P01", format!("{tag} can only be used in transaction blocks")).into());
                }
                if *tag == "ROLLBACK" {
                    self.transaction = Transaction::Open;
                }
                (*tag).to_owned()
            }
            Command::Set { name, value } => {
                if let Some(warning) = self.settings.set(name, value)? {
                    backend::notice(&mut self.wire.out, &warning);
                }
                self.report(name);
                "SET".to_owned()
            }
            Command::Reset(name) => {
                match name {
                    Some(name) => self.settings.reset(name),
                    None => self.settings.reset_all(),
                }
                REPORTED.iter().for_each(|name| self.report(name));
                "RESET".to_owned()
            }
            Command::Show(name) => {
                self.show(name, formats)?;
                "SHOW".to_owned()
            }
            Command::Discard => {
                self.statements.clear();
                self.portals.clear();
                self.settings.reset_all();
                REPORTED.iter().for_each(|name| self.report(name));
                "DISCARD ALL".to_owned()
            }
            Command::Deallocate(None) => {
                self.statements.clear();
                "DEALLOCATE ALL".to_owned()
            }
            Command::Deallocate(Some(name)) => {
                self.statement(name)?;
                self.statements.remove(name);
                "DEALLOCATE".to_owned()
            }
            Command::Declare { name, sql } => {
                self.declare(name, sql, params).await?;
                "DECLARE CURSOR".to_owned()
            }
            Command::Fetch { name, rows } => {
                let sent = self.fetch(name, *rows, formats).await?;
                format!("FETCH {sent}")
            }
            Command::Close(None) => {
                self.portals.clear();
                "CLOSE CURSOR ALL".to_owned()
            }
            Command::Close(Some(name)) => {
                self.portals.remove(name).ok_or_else(|| no_cursor(name))?;
                "CLOSE CURSOR".to_owned()
            }
            Command::Nothing(tag) => (*tag).to_owned(),
        };
        backend::command_complete(&mut self.wire.out, &tag);
        Ok(())
    }

    fn show(&mut self, name: &str, formats: &[i16]) -> Result<(), Refusal> {
        let rows: Vec<Vec<String>> = if name == "all" {
            self.settings.all().map(|(name, value)| vec![name.to_owned(), value.to_owned(), String::new()]).collect()
        } else {
            vec![vec![self.settings.get(name)?.to_owned()]]
        };
        for row in rows {
            backend::data_row(&mut self.wire.out, row.len(), |index, out| {
                let value = row.get(index).map_or(Value::Null, |text| Value::Text(text.as_str().into()));
                types::put(&value, 25, format_of(formats, index), out)
            })?;
        }
        Ok(())
    }

    async fn declare(&mut self, name: &str, sql: &str, params: Vec<Value>) -> Result<(), Ended> {
        if self.transaction == Transaction::Idle {
            return Err(Refusal::error("25P01", "DECLARE CURSOR can only be used in transaction blocks").into());
        }
        if self.portals.contains_key(name) {
            return Err(Refusal::error("42P03", format!("cursor \"{name}\" already exists")).into());
        }
        let cancel = self.registered.running.begin();
        let stream = self.start(sql, params, &cancel).await?;
        self.registered.running.end();
        let statement = Statement {
            sql: sql.to_owned(),
            kind: Kind::Query,
            declared: Vec::new(),
            description: std::sync::OnceLock::new(),
        };
        let cursor = Some(Cursor::new(stream, None));
        let portal =
            Portal { statement: Arc::new(statement), params: Vec::new(), formats: Vec::new(), cursor, done: false };
        self.portals.insert(name.to_owned(), portal);
        Ok(())
    }

    async fn fetch(&mut self, name: &str, rows: Option<usize>, formats: &[i16]) -> Result<usize, Ended> {
        if rows == Some(0) {
            return Ok(0);
        }
        let mut portal = self.portals.remove(name).ok_or_else(|| no_cursor(name))?;
        let cancel = self.registered.running.begin();
        let mut sent = 0;
        if let Some(cursor) = &mut portal.cursor {
            self.send(cursor, formats, rows.unwrap_or(0), &mut sent, &cancel).await?;
        }
        self.registered.running.end();
        self.portals.insert(name.to_owned(), portal);
        Ok(sent)
    }

    fn warn(&mut self, sqlstate: &'static str, message: &str) {
        let warning = Refusal { severity: "WARNING", sqlstate, message: message.to_owned(), hint: None };
        backend::notice(&mut self.wire.out, &warning);
    }

    /// Clients are told of changes to the settings they follow.
    fn report(&mut self, name: &str) {
        if let Some(name) = REPORTED.iter().find(|reported| reported.eq_ignore_ascii_case(name))
            && let Ok(value) = self.settings.get(name)
        {
            backend::parameter_status(&mut self.wire.out, name, value);
        }
    }
}

fn cancelled() -> Refusal {
    Refusal::error("57014", "canceling statement due to user request")
}

fn shutdown() -> Refusal {
    Refusal::fatal("57P01", "terminating connection due to administrator command")
}

fn no_cursor(name: &str) -> Refusal {
    Refusal::error("34000", format!("cursor \"{name}\" does not exist"))
}
