//! Initial copy: ours into the star, against a native subscription and `pg_dump | psql` into plain tables.

use std::time::Instant;

use millrace_pg::Connection;

use super::{
    Measured, ROUNDS,
    figure::{Figure, median},
    lab::Lab,
    native::Native,
    ours::{self, Ours},
    source::{Source, summary},
    usage::{own_cpu_s, server_cpu_s},
};

/// Wall seconds and processor seconds of each round.
#[derive(Debug, Default)]
struct Times {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Ours,
    Native,
    Dump,
}

pub(crate) async fn measure(
    lab: &mut Lab,
    source: &Source,
    native: &mut Native,
    publisher: &Connection,
) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let truth = summary(publisher).await?;
    let [mut ours, mut subscription, mut dump] = [Times::default(), Times::default(), Times::default()];
    let ways = [Way::Ours, Way::Native, Way::Dump];
    for round in 0..ROUNDS {
        for turn in 0..ways.len() {
            // each round begins with another one
            let way = ways.get((round + turn) % ways.len()).copied().unwrap_or(Way::Ours);
            publisher.batch_execute("CHECKPOINT").await?;
            let (wall, cpu, held) = match way {
                Way::Ours => by_ours(lab, source, publisher, round).await?,
                Way::Native => by_subscription(source, native).await?,
                Way::Dump => by_dump(lab, source, native).await?,
            };
            lab.note(format!("initial copy, round {}, {way:?}: {wall:.1} s, {cpu:.1} processor s", round + 1));
            let times = match way {
                Way::Ours => &mut ours,
                Way::Native => &mut subscription,
                Way::Dump => &mut dump,
            };
            times.wall.push(wall);
            times.cpu.push(cpu);
            if held != truth {
                measured.differences.push(format!("initial copy, {way:?}: {held:?} instead of {truth:?}"));
            }
        }
    }
    let rows = source.rows;
    let settings = format!(
        "initial copy of {rows} rows in {} tables, median of {ROUNDS}, in turns; native: max_sync_workers_per_subscription 2, \
         wal_retrieve_retry_interval 500ms; pg_dump --data-only into tables without keys, primary keys added after it",
        source.tables.len()
    );
    let names = ["native subscription's initial copy", "pg_dump | psql, then primary keys"];
    for (peer, name) in [subscription, dump].into_iter().zip(names) {
        for (what, unit, ours, peer) in [
            ("initial copy into the star", "s", &ours.wall, peer.wall),
            ("initial copy, processor time of all processes", "cpu s", &ours.cpu, peer.cpu),
        ] {
            measured.figures.push(Figure {
                what: what.to_owned(),
                unit,
                ours: median(ours.clone()),
                peer: Some(median(peer)),
                peer_name: name.to_owned(),
                higher_is_better: false,
                settings: settings.clone(),
            });
        }
    }
    Ok(measured)
}

type Held = (f64, f64, Vec<String>);

async fn by_ours(lab: &Lab, source: &Source, publisher: &Connection, round: usize) -> anyhow::Result<Held> {
    let cpu = own_cpu_s() + server_cpu_s(source.server.pid);
    let start = Instant::now();
    let ours = Ours::open(lab, &format!("warehouse-{round}"))?;
    let mut capture = ours.capture(lab, source)?;
    capture.copied().await?;
    let wall = start.elapsed().as_secs_f64();
    let cpu = own_cpu_s() + server_cpu_s(source.server.pid) - cpu;
    capture.stop().await?;
    let mut held = ours.summary().await?;
    // the star holds them too, or the copy was not into the star
    let facts =
        ours.rows("select (select count(*) from fact_payments)::text, (select count(*) from fact_loans)::text").await?;
    for (row, expected) in facts.iter().flatten().zip([held.get(3).cloned(), held.get(1).cloned()]) {
        if Some(row) != expected.as_ref() {
            held.push(format!("facts {row}"));
        }
    }
    ours.remove()?;
    ours::drop_slot(publisher).await?;
    Ok((wall, cpu, held))
}

async fn by_subscription(source: &Source, native: &mut Native) -> anyhow::Result<Held> {
    let target = native.database(true).await?;
    let servers = [source.server.pid, native.server.pid];
    let used = || servers.into_iter().map(server_cpu_s).sum::<f64>();
    let cpu = used();
    let start = Instant::now();
    native.subscribe(&target).await?;
    target.copied().await?;
    let wall = start.elapsed().as_secs_f64();
    let cpu = used() - cpu;
    let held = summary(&target.client).await?;
    native.remove(target).await?;
    Ok((wall, cpu, held))
}

async fn by_dump(lab: &Lab, source: &Source, native: &mut Native) -> anyhow::Result<Held> {
    let target = native.database(false).await?;
    let servers = [source.server.pid, native.server.pid];
    // pg_dump and psql are short of two seconds each and are not counted
    let used = || servers.into_iter().map(server_cpu_s).sum::<f64>();
    let cpu = used();
    let start = Instant::now();
    native.dump_and_load(lab, source, &target).await?;
    let wall = start.elapsed().as_secs_f64();
    let cpu = used() - cpu;
    let held = summary(&target.client).await?;
    native.remove(target).await?;
    Ok((wall, cpu, held))
}
