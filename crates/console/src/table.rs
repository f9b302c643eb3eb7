//! A report's rows and numbers as HTML.

use maud::{Markup, html};
use millrace_contract::report::Format;

use crate::{
    params::{Filters, query_of},
    tile::{Sort, TileColumn, TileData},
};

/// The header of a column, with its currency.
fn heading(column: &TileColumn, currency: Option<&str>) -> String {
    match (column.format, currency) {
        (Format::Money, Some(currency)) => format!("{} ({currency})", column.label),
        _ => column.label.clone(),
    }
}

/// All rows as a table. With `sort`, the headers are links that sort.
pub(crate) fn table(data: &TileData, sort: Option<&Filters>) -> Markup {
    let now = sort.and_then(|filters| filters.given("_sort")).map(Sort::parse);
    html! {
        table {
            caption.sr { (data.title) }
            thead { tr {
                @for column in &data.columns {
                    @let current = now.filter(|s| s.column == column.name);
                    th scope="col" class=[column.number.then_some("num")]
                       aria-sort=[current.map(|s| if s.descending { "descending" } else { "ascending" })] {
                        @if let Some(filters) = sort {
                            @let ascending = current.map_or(column.number, |s| !s.descending);
                            @let next = if ascending { format!("-{}", column.name) } else { column.name.clone() };
                            a href=(format!("/reports/{}{}", data.report, query_of(&filters.with("_sort", Some(&next))))) {
                                (heading(column, data.currency.as_deref()))
                                @if let Some(current) = current {
                                    span.arrow aria-hidden="true" { @if current.descending { "↓" } @else { "↑" } }
                                }
                            }
                        } @else { (heading(column, data.currency.as_deref())) }
                    }
                }
            } }
            tbody {
                @for (i, row) in data.texts.iter().enumerate() {
                    @let link = data.links.as_ref().and_then(|links| links.get(i));
                    tr {
                        @for (j, (text, column)) in row.iter().zip(&data.columns).enumerate() {
                            td class=[column.number.then_some("num")] {
                                @match link {
                                    Some(link) if j == 0 => a href=(link) { (text) },
                                    _ => (text),
                                }
                            }
                        }
                    }
                }
            }
        }
        @if data.texts.is_empty() { p.empty { "No rows match." } }
        @if data.truncated {
            p.note { "The first " (data.texts.len()) " rows are shown; " a href=(data.csv) { "the CSV has them all" } "." }
        }
    }
}

/// The measures of a one-row report, big.
pub(crate) fn numbers(data: &TileData) -> Markup {
    let figures: Vec<(&TileColumn, &String)> = data
        .columns
        .iter()
        .zip(data.texts.first().into_iter().flatten())
        .filter(|(column, _)| data.y.is_empty() || data.y.contains(&column.name))
        .collect();
    html! {
        dl.figures {
            @for (column, text) in &figures {
                div.figure {
                    dt { (column.label) }
                    dd data-column=(column.name) { (figure(column, text, data.currency.as_deref())) }
                }
            }
        }
        @if figures.is_empty() { p.empty { "No data yet." } }
    }
}

/// The currency small before the amount, the cents small behind it.
fn figure(column: &TileColumn, text: &str, currency: Option<&str>) -> Markup {
    let money = column.format == Format::Money;
    let (whole, cents) = if money { text.split_once('.').unwrap_or((text, "")) } else { (text, "") };
    html! {
        @if let (true, Some(currency)) = (money, currency) { span.unit { (currency) "\u{a0}" } }
        span.whole { (whole) }
        @if !cents.is_empty() { span.cents { "." (cents) } }
    }
}
