//! `millrace bench capture`: initial copy, apply rate and freshness beside native logical replication.

use super::{
    Measured, apply, changes::Changes, copy, freshness, lab::Lab, native::Native, ours, ours::Ours, source::Source,
};

/// What all of it runs under, beside the settings of each figure.
const SETTINGS: &str = "all servers on this host with the platform's settings (fsync on, checksums, wal_level logical, TLS, SCRAM, \
     wal_compression); subscriber tables have primary keys only; warehouse with raw history, staging and every model of the loans pack";

pub(crate) async fn measure(lab: &mut Lab, rows: u64) -> anyhow::Result<Measured> {
    let source = Source::make(lab, rows).await?;
    let mut native = Native::make(lab, &source).await?;
    let publisher = source.connect().await?;
    let mut measured = copy::measure(lab, &source, &mut native, &publisher).await?;

    lab.note("prepares both sides for changes");
    let ours = Ours::open(lab, "warehouse")?;
    lab.versions.push(format!("DuckDB {}", duckdb_version(&ours).await?));
    let mut capture = ours.capture(lab, &source)?;
    capture.copied().await?;
    capture.stop().await?;
    let target = native.database(true).await?;
    native.subscribe(&target).await?;
    target.copied().await?;
    target.disable(&publisher).await?;

    let changes = Changes::new(&source).await?;
    let side =
        apply::Sides { lab, source: &source, publisher: &publisher, ours: &ours, target: &target, changes: &changes };
    side.apply(rows, &mut measured).await?;
    freshness::measure(&side, &mut measured).await?;

    for figure in &mut measured.figures {
        figure.settings = format!("{}; {SETTINGS}", figure.settings);
    }
    target.enable().await?;
    native.remove(target).await?;
    ours::drop_slot(&publisher).await?;
    Ok(measured)
}

/// As the engine says it.
pub(crate) async fn duckdb_version(ours: &Ours) -> anyhow::Result<String> {
    let engine = ours.engine.clone();
    let version = tokio::task::spawn_blocking(move || anyhow::Ok(engine.connect()?.version()?)).await??;
    Ok(version)
}
