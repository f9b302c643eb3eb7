//! Made-up loans data of any size, as capture would hand it on, without a publisher.
//!
//! Shaped as the sample generator's: for N payments N/10 loans and N/50 customers, payments in order of
//! time over eight years, loans and branches at random. The same size gives the same rows.

use std::{fmt::Write as _, sync::Arc};

use anyhow::ensure;
use jiff::ToSpan as _;
use millrace_base::{Lsn, Micros};
use millrace_contract::{
    BatchEnd, Cell, Column, ColumnType, Op, RowHead, Rows, RunKind, Sink, Step, TableName, TableSchema,
};

/// Of the made-up source.
pub(crate) const SYSTEM_ID: u64 = 1;
/// Where the initial copy stands.
pub(crate) const COPY_LSN: Lsn = Lsn(0x100_0000);
/// 2026-01-01.
const COPY_TIME: Micros = Micros(1_767_225_600_000_000);
const STEP_ROWS: u64 = 50_000;
/// From 2018-01-01 on.
const DAYS: u64 = 2_900;
const MONEY: ColumnType = ColumnType::Decimal { precision: 14, scale: 2 };
const RATE: ColumnType = ColumnType::Decimal { precision: 5, scale: 2 };

/// The made-up source.
#[derive(Debug)]
pub(crate) struct MadeUp {
    pub(crate) payments: u64,
    pub(crate) loans: u64,
    customers: u64,
    /// `2018-01-01`, …
    days: Vec<String>,
    schemas: [Arc<TableSchema>; 4],
}

/// A table of the made-up source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Table {
    Products,
    Customers,
    Loans,
    Payments,
}

/// A number that looks random for a row and a purpose (splitmix64's finalizer).
fn chance(id: u64, salt: u64) -> u64 {
    let mut x = id.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(salt.wrapping_mul(0xd1b5_4a32_d192_ed03));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn pick(list: &'static [&'static str], id: u64, salt: u64) -> &'static str {
    let length = u64::try_from(list.len()).unwrap_or(1);
    usize::try_from(chance(id, salt) % length).ok().and_then(|i| list.get(i)).copied().unwrap_or_default()
}

const PRODUCTS: [&str; 5] = ["personal", "business", "mortgage", "auto", "education"];
const BRANCHES: [&str; 11] =
    ["NBO-01", "NBO-02", "MSA-01", "KSM-01", "NKR-01", "ELD-01", "THK-01", "NYR-01", "MCK-01", "MER-01", "KSI-01"];
const CITIES: [&str; 6] = ["Nairobi", "Mombasa", "Kisumu", "Nakuru", "Eldoret", "Thika"];
const METHODS: [&str; 5] = ["mpesa", "bank_transfer", "cash", "cheque", "online"];
const SEGMENTS: [&str; 5] = ["retail", "retail", "retail", "sme", "corporate"];
const STATUSES: [&str; 8] = ["active", "active", "active", "active", "repaid", "repaid", "repaid", "defaulted"];

impl MadeUp {
    pub(crate) fn new(payments: u64) -> Self {
        let first = jiff::civil::date(2018, 1, 1);
        let days = (0..DAYS)
            .filter_map(|day| first.checked_add(i64::try_from(day).ok()?.days()).ok())
            .map(|day| day.to_string());
        Self {
            payments,
            loans: (payments / 10).max(1),
            customers: (payments / 50).max(1),
            days: days.collect(),
            schemas: [products(), customers(), loans(), payments_schema()].map(Arc::new),
        }
    }

    /// Writes all of it as an initial copy.
    pub(crate) async fn copy_into(&self, sink: &mut impl Sink, mut told: impl FnMut(&str)) -> anyhow::Result<()> {
        sink.begin(RunKind::InitialCopy, SYSTEM_ID).await?;
        for (table, count) in [
            (Table::Products, 5),
            (Table::Customers, self.customers),
            (Table::Loans, self.loans),
            (Table::Payments, self.payments),
        ] {
            sink.append(Step::Schema(self.schema(table))).await?;
            let mut next = 1;
            while next <= count {
                let end = count.min(next + STEP_ROWS - 1);
                let mut rows = Rows::new(self.schema(table));
                for id in next..=end {
                    self.push(&mut rows, table, Op::Copy, id, COPY_LSN, 0, 0)?;
                }
                sink.append(Step::Rows(rows)).await?;
                next = end + 1;
            }
            told(&format!("  {count} {table:?}"));
        }
        sink.commit(BatchEnd { watermark: COPY_LSN, commit_time: COPY_TIME, transactions: 1 }).await?;
        Ok(())
    }

    pub(crate) fn schema(&self, table: Table) -> Arc<TableSchema> {
        let [products, customers, loans, payments] = &self.schemas;
        match table {
            Table::Products => products.clone(),
            Table::Customers => customers.clone(),
            Table::Loans => loans.clone(),
            Table::Payments => payments.clone(),
        }
    }

    /// Appends row `id`; another `version` of it differs in an amount. A deletion has the key alone.
    pub(crate) fn push(
        &self,
        rows: &mut Rows,
        table: Table,
        op: Op,
        id: u64,
        lsn: Lsn,
        sequence: u64,
        version: u64,
    ) -> anyhow::Result<()> {
        let head = RowHead { op, commit_lsn: lsn, commit_time: Micros(COPY_TIME.0 + i64::try_from(lsn.0)?), sequence };
        let mut text = Text::default();
        text.put(id);
        if op != Op::Delete {
            match table {
                Table::Products => self.product(&mut text, id),
                Table::Customers => self.customer(&mut text, id),
                Table::Loans => self.loan(&mut text, id, version),
                Table::Payments => self.payment(&mut text, id, version),
            }
        }
        ensure!(rows.push(head, text.cells()), "a made-up row has too many columns");
        Ok(())
    }

    fn day(&self, n: u64) -> &str {
        usize::try_from(n % DAYS).ok().and_then(|n| self.days.get(n)).map_or("2018-01-01", String::as_str)
    }

    fn product(&self, text: &mut Text, id: u64) {
        let kind = usize::try_from(id - 1).ok().and_then(|i| PRODUCTS.get(i)).copied().unwrap_or("personal");
        for part in [
            kind,
            kind,
            "5000.00",
            "10000000.00",
            "3",
            "180",
            "16.00",
            "2018-01-01 00:00:00+00",
            "2018-01-01 00:00:00+00",
        ] {
            text.put(part);
        }
    }

    fn customer(&self, text: &mut Text, id: u64) {
        text.put(format_args!("Customer {id}"));
        text.put(format_args!("c{id}@example.com"));
        text.put(format_args!("+2547{id:08}"));
        text.put(10_000_000 + id);
        text.put(pick(&CITIES, id, 1));
        text.put("Kenya");
        text.put(pick(&SEGMENTS, id, 2));
        for _ in 0..2 {
            text.put(format_args!("{} 08:00:00+00", self.day(chance(id, 3) % 700)));
        }
    }

    fn loan(&self, text: &mut Text, id: u64, version: u64) {
        let amount = 5_000 + chance(id, 11) % 500_000;
        let status = pick(&STATUSES, id, 12);
        let day = self.day(chance(id, 13));
        text.put(1 + chance(id, 10) % self.customers);
        text.put(1 + chance(id, 14) % 5);
        text.put(format_args!("{amount}.00"));
        text.put(format_args!("{}.50", 12 + chance(id, 15) % 8));
        text.put(12 * (1 + chance(id, 16) % 5));
        text.put(status);
        let balance = if status == "repaid" { 0 } else { 1 + chance(id + version, 17) % amount };
        text.put(format_args!("{balance}.00"));
        text.put(format_args!("{day} 11:00:00+00"));
        text.put("2030-01-01");
        text.put(pick(&BRANCHES, id, 18));
        text.put(format_args!("Officer {}", chance(id, 19) % 40));
        for _ in 0..2 {
            text.put(format_args!("{day} 08:30:00+00"));
        }
    }

    fn payment(&self, text: &mut Text, id: u64, version: u64) {
        let principal = 500 + chance(id + version, 21) % 20_000;
        let interest = chance(id, 22) % 3_000;
        let penalty = if chance(id, 23).is_multiple_of(20) { 250 } else { 0 };
        let clock = 5 * 3_600 + chance(id, 24) % 36_000;
        // they come in order of time
        let day = id.min(self.payments) * (DAYS - 1) / self.payments.max(1);
        text.put(1 + chance(id, 20) % self.loans);
        text.put(format_args!("{}.00", principal + interest + penalty));
        text.put(format_args!("{principal}.00"));
        text.put(format_args!("{interest}.00"));
        text.put(format_args!("{penalty}.00"));
        text.put(pick(&METHODS, id, 25));
        text.put(format_args!("{} {:02}:{:02}:{:02}+00", self.day(day), clock / 3_600, clock / 60 % 60, clock % 60));
        text.put("sample");
    }
}

/// The texts of one row, end to end.
#[derive(Debug, Default)]
struct Text {
    all: String,
    ends: Vec<usize>,
}

impl Text {
    fn put(&mut self, value: impl std::fmt::Display) {
        // writing into a String cannot fail
        _ = write!(self.all, "{value}");
        self.ends.push(self.all.len());
    }

    fn cells(&self) -> impl Iterator<Item = Cell<'_>> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| Cell::Text(self.all.as_bytes().get(start..*end).unwrap_or_default()))
    }
}

fn table(name: &str, columns: &[(&str, ColumnType)]) -> TableSchema {
    let columns = columns.iter().enumerate().map(|(i, (name, column_type))| Column {
        name: (*name).to_owned(),
        column_type: column_type.clone(),
        declared: String::new(),
        key: i == 0,
    });
    TableSchema { table: TableName::new("operational", name), oid: 16_384, columns: columns.collect() }
}

fn products() -> TableSchema {
    use ColumnType::{Int4, Text, TimestampTz};
    let columns = [
        ("product_id", Int4),
        ("product_name", Text),
        ("product_type", Text),
        ("min_amount", MONEY),
        ("max_amount", MONEY),
        ("min_tenure_months", Int4),
        ("max_tenure_months", Int4),
        ("interest_rate", RATE),
        ("created_at", TimestampTz),
        ("updated_at", TimestampTz),
    ];
    table("loan_products", &columns)
}

fn customers() -> TableSchema {
    use ColumnType::{Int8, Text, TimestampTz};
    let columns = [
        ("customer_id", Int8),
        ("full_name", Text),
        ("email", Text),
        ("phone", Text),
        ("national_id", Text),
        ("city", Text),
        ("country", Text),
        ("segment", Text),
        ("created_at", TimestampTz),
        ("updated_at", TimestampTz),
    ];
    table("customers", &columns)
}

fn loans() -> TableSchema {
    use ColumnType::{Date, Int4, Int8, Text, TimestampTz};
    let columns = [
        ("loan_id", Int8),
        ("customer_id", Int8),
        ("product_id", Int4),
        ("amount", MONEY),
        ("interest_rate", RATE),
        ("tenure_months", Int4),
        ("status", Text),
        ("outstanding_balance", MONEY),
        ("disbursed_at", TimestampTz),
        ("maturity_date", Date),
        ("branch_code", Text),
        ("loan_officer", Text),
        ("created_at", TimestampTz),
        ("updated_at", TimestampTz),
    ];
    table("loans", &columns)
}

fn payments_schema() -> TableSchema {
    use ColumnType::{Int8, Text, TimestampTz};
    let columns = [
        ("payment_id", Int8),
        ("loan_id", Int8),
        ("amount", MONEY),
        ("principal_portion", MONEY),
        ("interest_portion", MONEY),
        ("penalty_portion", MONEY),
        ("payment_method", Text),
        ("payment_date", TimestampTz),
        ("source", Text),
    ];
    table("payments", &columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_fit_their_tables() {
        let made = MadeUp::new(1_000);
        for table in [Table::Products, Table::Customers, Table::Loans, Table::Payments] {
            let mut rows = Rows::new(made.schema(table));
            for id in 1..=5 {
                made.push(&mut rows, table, Op::Copy, id, COPY_LSN, 0, 0).unwrap();
            }
            let last = rows.column(rows.schema().columns.len() - 1).unwrap();
            assert!(last.cells().all(|cell| matches!(cell, Cell::Text(text) if !text.is_empty())), "{table:?}");
        }
    }

    #[test]
    fn another_version_is_another_row() {
        let made = MadeUp::new(1_000);
        let amount = |version| {
            let mut rows = Rows::new(made.schema(Table::Payments));
            made.push(&mut rows, Table::Payments, Op::Update, 7, COPY_LSN, 0, version).unwrap();
            format!("{:?}", rows.column(2).unwrap().cell(0))
        };
        assert_eq!(amount(0), amount(0));
        assert_ne!(amount(0), amount(1));
    }
}
