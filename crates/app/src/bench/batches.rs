//! The time of one batch of 1,000 scattered changes, from its begin to its commit.

use std::time::Instant;

use millrace_base::{Lsn, Micros};
use millrace_contract::{BatchEnd, Op, Rows, RunKind, Sink, Step};

use super::rows::{COPY_LSN, MadeUp, SYSTEM_ID, Table};

const BATCHES: u64 = 12;
/// The first ones warm caches and are not counted.
const UNCOUNTED: usize = 2;
/// What a batch is made of.
pub(crate) const WHAT: &str =
    "300 payments inserted, 300 updated, 100 deleted, 300 loans updated, scattered over the whole tables";
/// A prime: multiples of it, modulo a table's length, visit every row once, far from each other.
const STRIDE: u64 = 2_654_435_761;

/// Milliseconds of each batch.
pub(crate) async fn measure(made: &MadeUp, sink: &mut impl Sink) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::new();
    for batch in 0..BATCHES {
        let lsn = Lsn(COPY_LSN.0 + (batch + 1) * 4096);
        let (payments, loans) = changes(made, batch, lsn)?;
        let start = Instant::now();
        sink.begin(RunKind::Changes, SYSTEM_ID).await?;
        if batch == 0 {
            // as after a start of capture: the stream describes each table before its first row
            sink.append(Step::Schema(made.schema(Table::Payments))).await?;
            sink.append(Step::Schema(made.schema(Table::Loans))).await?;
        }
        sink.append(Step::Rows(payments)).await?;
        sink.append(Step::Rows(loans)).await?;
        let commit_time = Micros(1_767_225_600_000_000 + i64::try_from(lsn.0)?);
        sink.commit(BatchEnd { watermark: lsn, commit_time, transactions: 100 }).await?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(times.split_off(UNCOUNTED))
}

fn changes(made: &MadeUp, batch: u64, lsn: Lsn) -> anyhow::Result<(Rows, Rows)> {
    let mut payments = Rows::new(made.schema(Table::Payments));
    let mut loans = Rows::new(made.schema(Table::Loans));
    let mut sequence = 0..;
    let mut next = || sequence.next().unwrap_or(0);
    let scattered = |n: u64, length: u64| 1 + n.wrapping_mul(STRIDE) % length;
    for n in 0..300 {
        made.push(&mut payments, Table::Payments, Op::Insert, made.payments + 1 + batch * 300 + n, lsn, next(), 0)?;
        let updated = scattered(batch * 400 + n, made.payments);
        made.push(&mut payments, Table::Payments, Op::Update, updated, lsn, next(), batch + 1)?;
        made.push(
            &mut loans,
            Table::Loans,
            Op::Update,
            scattered(batch * 300 + n, made.loans),
            lsn,
            next(),
            batch + 1,
        )?;
    }
    for n in 300..400 {
        made.push(
            &mut payments,
            Table::Payments,
            Op::Delete,
            scattered(batch * 400 + n, made.payments),
            lsn,
            next(),
            0,
        )?;
    }
    Ok((payments, loans))
}
