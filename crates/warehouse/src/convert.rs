//! PostgreSQL's text of values → typed Arrow columns, exactly or not at all.
//!
//! Invariants: nothing is rounded, clipped or guessed; what the engine cannot hold is a [`Misfit`] that
//! names the column and says what to do, and becomes the table's quarantine. Sessions of capture fix
//! the text's form (DateStyle ISO, TimeZone UTC, bytea hex).

use std::{collections::HashMap, sync::Arc};

use arrow::{
    array::{
        ArrayRef, BinaryBuilder, BooleanBuilder, Decimal128Builder, FixedSizeBinaryBuilder, Float32Builder,
        Float64Builder, Int16Builder, Int32Builder, Int64Builder, PrimitiveBuilder, StringBuilder, UInt64Array,
    },
    datatypes::{
        ArrowPrimitiveType, DataType, Date32Type, Field, Schema, Time64MicrosecondType, TimeUnit,
        TimestampMicrosecondType,
    },
    record_batch::RecordBatch,
};
use millrace_contract::{Cell, ColumnType, Rows, TableSchema};

use crate::time_text;

/// A value that the warehouse cannot hold as its column's type.
#[derive(Debug, thiserror::Error)]
#[error("column {column} ({declared}): {reason}")]
pub(crate) struct Misfit {
    column: String,
    declared: String,
    reason: String,
}

/// How a column is stored.
pub(crate) fn duckdb_type(column_type: &ColumnType) -> String {
    match column_type {
        ColumnType::Bool => "boolean".into(),
        ColumnType::Int2 => "smallint".into(),
        ColumnType::Int4 => "integer".into(),
        ColumnType::Int8 => "bigint".into(),
        ColumnType::Float4 => "real".into(),
        ColumnType::Float8 => "double".into(),
        ColumnType::Decimal { precision, scale } => format!("decimal({precision},{scale})"),
        ColumnType::NumericText | ColumnType::Text | ColumnType::Other => "varchar".into(),
        ColumnType::Date => "date".into(),
        ColumnType::Time => "time".into(),
        ColumnType::Timestamp => "timestamp".into(),
        ColumnType::TimestampTz => "timestamptz".into(),
        ColumnType::Uuid => "uuid".into(),
        ColumnType::Json => "json".into(),
        ColumnType::Bytea => "blob".into(),
    }
}

fn field(name: &str, column_type: &ColumnType) -> Field {
    let data_type = match column_type {
        ColumnType::Bool => DataType::Boolean,
        ColumnType::Int2 => DataType::Int16,
        ColumnType::Int4 => DataType::Int32,
        ColumnType::Int8 => DataType::Int64,
        ColumnType::Float4 => DataType::Float32,
        ColumnType::Float8 => DataType::Float64,
        ColumnType::Decimal { precision, scale } => {
            DataType::Decimal128(*precision, i8::try_from(*scale).unwrap_or(i8::MAX))
        }
        ColumnType::NumericText | ColumnType::Text | ColumnType::Other | ColumnType::Json => DataType::Utf8,
        ColumnType::Date => DataType::Date32,
        ColumnType::Time => DataType::Time64(TimeUnit::Microsecond),
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        ColumnType::Uuid => {
            let extension = HashMap::from([("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned())]);
            return Field::new(name, DataType::FixedSizeBinary(16), true).with_metadata(extension);
        }
        ColumnType::Bytea => DataType::Binary,
    };
    Field::new(name, data_type, true)
}

/// What the columns beside the source's own are, in `batch_<table>`, `raw` and `staging` alike.
pub(crate) const HEAD_COLUMNS: [(&str, &str); 4] =
    [("_commit_lsn", "ubigint"), ("_sequence", "ubigint"), ("_op", "varchar"), ("_commit_time", "timestamptz")];

/// Converted rows of one table.
#[derive(Debug)]
pub(crate) struct Converted {
    pub(crate) schema: Arc<TableSchema>,
    /// The source's columns, the four of [`HEAD_COLUMNS`], and `_unchanged`.
    pub(crate) batch: RecordBatch,
    pub(crate) facts: RowFacts,
}

/// What is known of a table's rows in a batch.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RowFacts {
    pub(crate) rows: u64,
    pub(crate) copies: u64,
    pub(crate) inserts: u64,
    pub(crate) updates: u64,
    pub(crate) deletes: u64,
    /// Cells that the stream left out.
    pub(crate) unchanged: u64,
}

impl RowFacts {
    pub(crate) fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.copies += other.copies;
        self.inserts += other.inserts;
        self.updates += other.updates;
        self.deletes += other.deletes;
        self.unchanged += other.unchanged;
    }
}

/// Converts rows.
///
/// # Errors
/// The first value that does not fit.
pub(crate) fn convert(rows: &Rows) -> Result<Converted, Misfit> {
    let schema = rows.schema();
    let mut fields = Vec::with_capacity(schema.columns.len() + 5);
    let mut arrays = Vec::with_capacity(schema.columns.len() + 5);
    let mut unchanged: Vec<String> = Vec::new();
    let mut facts = RowFacts { rows: rows.len() as u64, ..RowFacts::default() };
    for (position, column) in schema.columns.iter().enumerate() {
        let mut cells = Cells { rows, position, unchanged: &mut unchanged, left_out: &mut facts.unchanged };
        let array = cells.convert(&column.column_type).map_err(|reason| Misfit {
            column: column.name.clone(),
            declared: column.declared.clone(),
            reason,
        })?;
        fields.push(field(&column.name, &column.column_type));
        arrays.push(array);
    }
    let heads = rows.heads();
    for head in heads {
        match head.op {
            millrace_contract::Op::Copy => facts.copies += 1,
            millrace_contract::Op::Insert => facts.inserts += 1,
            millrace_contract::Op::Update => facts.updates += 1,
            millrace_contract::Op::Delete => facts.deletes += 1,
        }
    }
    let mut letters = StringBuilder::with_capacity(heads.len(), heads.len());
    let mut times = PrimitiveBuilder::<TimestampMicrosecondType>::with_capacity(heads.len()).with_timezone("UTC");
    for head in heads {
        letters.append_value(head.op.letter());
        times.append_value(head.commit_time.0);
    }
    let mut left_out = StringBuilder::with_capacity(heads.len(), 0);
    for row in 0..heads.len() {
        match unchanged.get(row).filter(|names| !names.is_empty()) {
            Some(names) => left_out.append_value(names),
            None => left_out.append_null(),
        }
    }
    let times = times.finish();
    fields.push(Field::new("_commit_lsn", DataType::UInt64, true));
    fields.push(Field::new("_sequence", DataType::UInt64, true));
    fields.push(Field::new("_op", DataType::Utf8, true));
    fields.push(Field::new("_commit_time", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true));
    fields.push(Field::new("_unchanged", DataType::Utf8, true));
    arrays.push(Arc::new(UInt64Array::from_iter_values(heads.iter().map(|h| h.commit_lsn.0))));
    arrays.push(Arc::new(UInt64Array::from_iter_values(heads.iter().map(|h| h.sequence))));
    arrays.push(Arc::new(letters.finish()));
    arrays.push(Arc::new(times));
    arrays.push(Arc::new(left_out.finish()));
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|e| Misfit {
        column: "*".into(),
        declared: "row".into(),
        reason: e.to_string(),
    })?;
    Ok(Converted { schema: schema.clone(), batch, facts })
}

/// One column's cells on their way.
struct Cells<'a> {
    rows: &'a Rows,
    position: usize,
    /// Row → `,3,7,`: positions of cells that the stream left out.
    unchanged: &'a mut Vec<String>,
    left_out: &'a mut u64,
}

impl Cells<'_> {
    /// Calls `put` with each cell's text.
    fn each(&mut self, mut put: impl FnMut(Option<&[u8]>) -> Result<(), String>) -> Result<(), String> {
        let Some(column) = self.rows.column(self.position) else {
            return Err("is not in the rows".into());
        };
        for (row, cell) in column.cells().enumerate() {
            match cell {
                Cell::Text(text) => put(Some(text))?,
                Cell::Null => put(None)?,
                Cell::Unchanged => {
                    put(None)?;
                    *self.left_out += 1;
                    if self.unchanged.len() <= row {
                        self.unchanged.resize(self.rows.len(), String::new());
                    }
                    if let Some(positions) = self.unchanged.get_mut(row) {
                        if positions.is_empty() {
                            positions.push(',');
                        }
                        positions.push_str(&format!("{},", self.position));
                    }
                }
            }
        }
        Ok(())
    }

    fn convert(&mut self, column_type: &ColumnType) -> Result<ArrayRef, String> {
        let rows = self.rows.len();
        Ok(match column_type {
            ColumnType::Bool => {
                let mut builder = BooleanBuilder::with_capacity(rows);
                self.each(|text| {
                    builder.append_option(match text {
                        None => None,
                        Some(b"t") => Some(true),
                        Some(b"f") => Some(false),
                        Some(other) => return Err(not_a("boolean", other)),
                    });
                    Ok(())
                })?;
                Arc::new(builder.finish())
            }
            ColumnType::Int2 => self.parsed(Int16Builder::with_capacity(rows), parse_number)?,
            ColumnType::Int4 => self.parsed(Int32Builder::with_capacity(rows), parse_number)?,
            ColumnType::Int8 => self.parsed(Int64Builder::with_capacity(rows), parse_number)?,
            ColumnType::Float4 => self.parsed(Float32Builder::with_capacity(rows), parse_number)?,
            ColumnType::Float8 => self.parsed(Float64Builder::with_capacity(rows), parse_number)?,
            ColumnType::Decimal { precision, scale } => {
                let (precision, scale) = (*precision, *scale);
                let builder = Decimal128Builder::with_capacity(rows)
                    .with_precision_and_scale(precision, i8::try_from(scale).unwrap_or(i8::MAX))
                    .map_err(|e| e.to_string())?;
                self.parsed(builder, |text| parse_decimal(text, precision, scale))?
            }
            ColumnType::Date => self.parsed(PrimitiveBuilder::<Date32Type>::with_capacity(rows), time_text::date)?,
            ColumnType::Time => {
                self.parsed(PrimitiveBuilder::<Time64MicrosecondType>::with_capacity(rows), time_text::time)?
            }
            ColumnType::Timestamp => {
                self.parsed(PrimitiveBuilder::<TimestampMicrosecondType>::with_capacity(rows), time_text::timestamp)?
            }
            ColumnType::TimestampTz => {
                let builder = PrimitiveBuilder::<TimestampMicrosecondType>::with_capacity(rows).with_timezone("UTC");
                self.parsed(builder, time_text::timestamp)?
            }
            ColumnType::Uuid => {
                let mut builder = FixedSizeBinaryBuilder::with_capacity(rows, 16);
                self.each(|text| {
                    match text {
                        None => builder.append_null(),
                        Some(text) => builder.append_value(parse_uuid(text)?).map_err(|e| e.to_string())?,
                    }
                    Ok(())
                })?;
                Arc::new(builder.finish())
            }
            ColumnType::Bytea => {
                let mut builder = BinaryBuilder::with_capacity(rows, 0);
                self.each(|text| {
                    match text {
                        None => builder.append_null(),
                        Some(text) => builder.append_value(parse_bytea(text)?),
                    }
                    Ok(())
                })?;
                Arc::new(builder.finish())
            }
            ColumnType::Text | ColumnType::NumericText | ColumnType::Other | ColumnType::Json => {
                let mut builder = StringBuilder::with_capacity(rows, rows * 8);
                self.each(|text| {
                    match text {
                        None => builder.append_null(),
                        Some(text) => builder.append_value(utf8(text)?),
                    }
                    Ok(())
                })?;
                Arc::new(builder.finish())
            }
        })
    }

    fn parsed<T: ArrowPrimitiveType>(
        &mut self,
        mut builder: PrimitiveBuilder<T>,
        parse: impl Fn(&[u8]) -> Result<T::Native, String>,
    ) -> Result<ArrayRef, String> {
        self.each(|text| {
            builder.append_option(text.map(&parse).transpose()?);
            Ok(())
        })?;
        Ok(Arc::new(builder.finish()))
    }
}

fn utf8(text: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(text).map_err(|_| "the text is not UTF-8".to_owned())
}

/// Never shows the value: it may be a secret.
pub(crate) fn not_a(kind: &str, text: &[u8]) -> String {
    format!("a text of {} bytes is not a {kind}", text.len())
}

fn parse_number<N: std::str::FromStr>(text: &[u8]) -> Result<N, String> {
    utf8(text)?.parse().map_err(|_| not_a("number of this type", text))
}

/// Exact: as many fraction digits as the scale has, or fewer.
fn parse_decimal(text: &[u8], precision: u8, scale: u8) -> Result<i128, String> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    let mut unscaled: i128 = 0;
    let mut fraction: Option<u8> = None;
    let mut count = 0u32;
    for byte in digits {
        match byte {
            b'0'..=b'9' => {
                if fraction == Some(scale) {
                    if *byte == b'0' {
                        continue;
                    }
                    return Err(format!("has more than {scale} digits after the point"));
                }
                if let Some(digits) = &mut fraction {
                    *digits += 1;
                }
                count += u32::from(count > 0 || *byte != b'0');
                unscaled = unscaled
                    .checked_mul(10)
                    .and_then(|u| u.checked_add(i128::from(byte - b'0')))
                    .ok_or_else(|| format!("has more than {precision} digits"))?;
            }
            b'.' if fraction.is_none() => fraction = Some(0),
            _ => {
                return Err(match digits {
                    b"NaN" | b"Infinity" => "NaN and Infinity have no place in a decimal of fixed precision; \
                         declare the column as numeric without precision, or correct the row, then resync the table"
                        .to_owned(),
                    _ => not_a("decimal", text),
                });
            }
        }
    }
    if digits.is_empty() {
        return Err(not_a("decimal", text));
    }
    for _ in fraction.unwrap_or(0)..scale {
        unscaled = unscaled.checked_mul(10).ok_or_else(|| format!("has more than {precision} digits"))?;
        count += u32::from(count > 0);
    }
    if count > u32::from(precision) {
        return Err(format!("has more than {precision} digits"));
    }
    Ok(if negative { -unscaled } else { unscaled })
}

fn hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

fn parse_uuid(text: &[u8]) -> Result<[u8; 16], String> {
    let mut digits = text.iter().filter(|b| **b != b'-').map(|b| hex(*b));
    let mut uuid = [0u8; 16];
    for byte in &mut uuid {
        match (digits.next().flatten(), digits.next().flatten()) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return Err(not_a("uuid", text)),
        }
    }
    if digits.next().is_some() { Err(not_a("uuid", text)) } else { Ok(uuid) }
}

fn parse_bytea(text: &[u8]) -> Result<Vec<u8>, String> {
    let Some(digits) = text.strip_prefix(b"\\x") else {
        return Err("the bytes are not in hexadecimal form; capture must set bytea_output = hex".into());
    };
    let (pairs, rest) = digits.as_chunks::<2>();
    let bytes: Option<Vec<u8>> = pairs.iter().map(|[high, low]| Some(hex(*high)? << 4 | hex(*low)?)).collect();
    bytes.filter(|_| rest.is_empty()).ok_or_else(|| not_a("bytea", text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact_or_refused() {
        let good: [(&str, u8, u8, i128); 8] = [
            ("12.34", 10, 2, 1234),
            ("-0.05", 10, 2, -5),
            ("7", 10, 2, 700),
            ("0.00", 2, 2, 0),
            ("1.500", 10, 2, 150),
            ("00012.3", 3, 1, 123),
            ("99999999999999999999999999999999999999", 38, 0, 99_999_999_999_999_999_999_999_999_999_999_999_999),
            ("-.5", 3, 1, -5),
        ];
        for (text, precision, scale, unscaled) in good {
            assert_eq!(parse_decimal(text.as_bytes(), precision, scale), Ok(unscaled), "{text}");
        }
        for text in
            ["", "NaN", "-Infinity", "1.234", "1e5", "1.2.3", "12345678901", "170141183460469231731687303715884105729"]
        {
            assert!(parse_decimal(text.as_bytes(), 10, 2).is_err(), "{text}");
        }
        assert!(parse_decimal(b"NaN", 10, 2).unwrap_err().contains("resync"));
    }

    #[test]
    fn uuids_and_bytes() {
        let uuid = parse_uuid(b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11").unwrap();
        assert_eq!(uuid[..3], [0xa0, 0xee, 0xbc]);
        assert!(parse_uuid(b"a0eebc99").is_err());
        assert_eq!(parse_bytea(b"\\x00Ff"), Ok(vec![0, 255]));
        assert_eq!(parse_bytea(b"\\x"), Ok(vec![]));
        assert!(parse_bytea(b"\\x0").is_err());
        assert!(parse_bytea(b"abc").is_err());
    }

    #[test]
    fn floats_keep_their_specials() {
        assert!(parse_number::<f64>(b"NaN").unwrap().is_nan());
        assert_eq!(parse_number::<f64>(b"-Infinity"), Ok(f64::NEG_INFINITY));
        assert_eq!(parse_number::<f32>(b"1.17549435e-38"), Ok(f32::MIN_POSITIVE));
        assert!(parse_number::<i16>(b"40000").is_err());
    }
}
