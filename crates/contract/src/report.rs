//! Reports and dashboards of a pack, parsed: what the console, the CLI and the API show.

use std::sync::Arc;

use serde::Serialize;

/// How a report is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChartKind {
    /// One row; each `y` column is a big number.
    Number,
    Bar,
    HorizontalBar,
    Line,
    Pie,
    Table,
}

/// How a column's values are written for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Plain,
    /// Thousands separated, no decimals.
    Integer,
    /// Thousands separated, two decimals, the pack's currency.
    Money,
    /// A fraction shown as a percentage.
    Percent,
    Date,
    /// Year and month.
    Month,
}

/// The type of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamType {
    Text,
    Integer,
    Decimal,
    Date,
}

/// A parameter of a report; in the file `-- param: from date "From" [= default]`, in the SQL `:from`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Param {
    pub name: String,
    pub param_type: ParamType,
    pub label: String,
    /// Used when the reader gives none; `None` binds null.
    pub default: Option<String>,
    /// A statement whose first column lists the values to choose from.
    #[serde(skip)]
    pub choices_sql: Option<String>,
}

/// Clicking a mark opens `report`, its parameters taken from the mark's row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drill {
    pub report: String,
    /// `(parameter of the opened report, column of this one)`.
    pub bind: Vec<(String, String)>,
}

/// `reports/<name>.sql`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub name: String,
    pub title: String,
    pub description: String,
    /// As in the file, with `:name` parameters: for "copy SQL".
    pub source_sql: String,
    /// With `$1`, `$2`, … in the order of `params`.
    #[serde(skip)]
    pub sql: String,
    pub params: Vec<Param>,
    pub chart: ChartKind,
    /// The column on the axis (or the slices' names).
    pub x: Option<String>,
    /// The measures drawn.
    pub y: Vec<String>,
    /// Column → how it is written; columns not named are [`Format::Plain`].
    pub formats: Vec<(String, Format)>,
    pub drill: Option<Drill>,
}

/// A report on a dashboard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tile {
    pub report: String,
    /// Of 12 columns.
    pub width: u8,
    /// Instead of the report's own.
    pub title: Option<String>,
}

/// `dashboards/<slug>.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dashboard {
    pub slug: String,
    pub title: String,
    pub description: String,
    /// Parameters offered on top of the page; each tile takes those that its report has.
    pub filters: Vec<Param>,
    pub tiles: Vec<Tile>,
}

/// Everything readable of a pack.
#[derive(Debug, Clone, Default)]
pub struct ReportCatalog {
    pub reports: Vec<Arc<Report>>,
    pub dashboards: Vec<Arc<Dashboard>>,
    /// ISO 4217 code for [`Format::Money`].
    pub currency: Option<String>,
    /// The slug of the dashboard that the pack wants opened first.
    pub default_dashboard: Option<String>,
}

impl ReportCatalog {
    #[must_use]
    pub fn report(&self, name: &str) -> Option<&Arc<Report>> {
        self.reports.iter().find(|r| r.name == name)
    }

    /// The dashboard opened first: the one that the pack names, else its first.
    #[must_use]
    pub fn home(&self) -> Option<&Arc<Dashboard>> {
        let named = self.default_dashboard.as_deref().and_then(|slug| self.dashboard(slug));
        named.or_else(|| self.dashboards.first())
    }

    #[must_use]
    pub fn dashboard(&self, slug: &str) -> Option<&Arc<Dashboard>> {
        self.dashboards.iter().find(|d| d.slug == slug)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_dashboard_is_home_and_else_the_first() {
        let dashboard = |slug: &str| {
            let (title, description) = (slug.to_uppercase(), String::new());
            Arc::new(Dashboard { slug: slug.into(), title, description, filters: vec![], tiles: vec![] })
        };
        let mut catalog =
            ReportCatalog { dashboards: vec![dashboard("arrears"), dashboard("loans")], ..ReportCatalog::default() };
        let home = |catalog: &ReportCatalog| catalog.home().map(|d| d.slug.clone());
        assert_eq!(home(&catalog).as_deref(), Some("arrears"));
        catalog.default_dashboard = Some("loans".into());
        assert_eq!(home(&catalog).as_deref(), Some("loans"));
        assert_eq!(home(&ReportCatalog::default()), None);
    }
}
