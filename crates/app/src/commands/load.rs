use crate::context::Context;
use millrace_pg::ConnectParams;
pub async fn is_empty(_: &Context, _: &ConnectParams) -> anyhow::Result<bool> { Ok(false) }
pub async fn sample(_: &Context, _: &ConnectParams, _: u32, _: u64) -> anyhow::Result<()> { Ok(()) }
pub async fn run(_: &Context, _: &crate::cli::Load) -> anyhow::Result<u8> { Ok(0) }
pub async fn simulate(_: &Context, _: &crate::cli::Simulate) -> anyhow::Result<u8> { Ok(0) }
