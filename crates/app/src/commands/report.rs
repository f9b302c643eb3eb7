//! `millrace report`: the pack's reports on the command line.

use std::time::Duration;

use crate::{
    cli::{Format, ReportCommand},
    context::Context,
    control::Client,
    explain::Usage,
    output::{csv_line, table},
    platform::{ReportAnswer, ReportRequest},
};

const DEADLINE: Duration = Duration::from_secs(300);

pub(crate) async fn run(context: &Context, command: &ReportCommand) -> anyhow::Result<u8> {
    let output = context.output;
    let (name, format, params, limit) = match command {
        ReportCommand::List => {
            let reports = &context.pack.catalog.reports;
            output.json(reports)?;
            let rows: Vec<Vec<String>> = reports
                .iter()
                .map(|report| {
                    let params: Vec<_> = report.params.iter().map(|param| param.name.as_str()).collect();
                    vec![report.name.clone(), report.title.clone(), params.join(", ")]
                })
                .collect();
            output.line(table(&["report", "title", "parameters"], &rows));
            return Ok(0);
        }
        ReportCommand::Run { name, format, params, limit } => (name, *format, params, *limit),
    };
    let split = |text: &String| match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(Usage(format!("`{text}` is not a parameter\n  hint: write --param name=value"))),
    };
    let params = params.iter().map(split).collect::<Result<_, _>>()?;
    let request = ReportRequest { name: name.clone(), params, limit };
    let answer: ReportAnswer = Client::new(context.layout.run()).post("/report", &request, DEADLINE).await?;
    let format = if output.json { Format::Json } else { format };
    match format {
        Format::Json => {
            let rows: Vec<serde_json::Map<String, serde_json::Value>> = answer
                .rows
                .iter()
                .map(|row| answer.columns.iter().cloned().zip(row.iter().map(|cell| cell.clone().into())).collect())
                .collect();
            let result = serde_json::json!({
                "report": name, "watermark": answer.watermark, "commit_time": answer.commit_time,
                "truncated": answer.truncated, "rows": rows,
            });
            output.raw(format!("{}\n", serde_json::to_string_pretty(&result)?));
        }
        Format::Csv => {
            let header: Vec<_> = answer.columns.iter().cloned().map(Some).collect();
            output.raw(csv_line(&header));
            for row in &answer.rows {
                output.raw(csv_line(row));
            }
        }
        Format::Table => {
            let header: Vec<&str> = answer.columns.iter().map(String::as_str).collect();
            let rows: Vec<Vec<String>> = answer
                .rows
                .iter()
                .map(|row| row.iter().map(|cell| cell.clone().unwrap_or_default()).collect())
                .collect();
            output.raw(table(&header, &rows));
            output.raw(output.faint(&format!(
                "{} rows as of {} ({})\n",
                rows.len(),
                answer.watermark,
                answer.commit_time
            )));
        }
    }
    if answer.truncated {
        output.note(format!("only the first {limit} rows: raise --limit for more"));
    }
    Ok(0)
}
