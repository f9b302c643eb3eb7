//! The running platform: everything started in order, watched, and ended in the opposite order.

mod observe;
mod operator;
pub mod prepare;
mod run;
mod serve;

pub use operator::PlatformOperator;
pub use run::{Start, run};
