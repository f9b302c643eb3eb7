//! The running platform: everything started in order, watched, and ended in the opposite order.

mod observe;
mod operator;
pub mod prepare;
mod run;
mod serve;

pub use operator::ModelReport;
pub use run::{Start, models, parse_models, run};
pub use serve::{ReportAnswer, ReportRequest};
