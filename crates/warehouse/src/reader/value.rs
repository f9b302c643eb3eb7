//! DuckDB's result columns (Arrow) as [`Value`]s.
//!
//! Scalars keep their type. Lists, structs, maps and intervals become text in PostgreSQL's notation
//! (`{1,2,NULL}`, `(1,abc)`, `1 mon 2 days 03:04:05`).

use std::{fmt::Write as _, sync::Arc};

use arrow::{
    array::{
        Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, FixedSizeListArray, ListArray, MapArray, StructArray,
    },
    datatypes::{
        DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
        IntervalMonthDayNano, IntervalMonthDayNanoType, IntervalUnit, Time64MicrosecondType, Time64NanosecondType,
        TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
        UInt8Type, UInt16Type, UInt32Type, UInt64Type,
    },
};
use duckdb::core::{LogicalTypeHandle, LogicalTypeId};
use millrace_contract::{Value, query::ValueType};

/// The contract's type of a DuckDB type.
pub(super) fn value_type(handle: &LogicalTypeHandle) -> ValueType {
    use LogicalTypeId as Id;
    let Ok(id) = handle.try_id() else { return ValueType::Other };
    match id {
        Id::Boolean => ValueType::Bool,
        Id::Tinyint | Id::Smallint => ValueType::Int2,
        Id::UTinyint | Id::USmallint | Id::Integer | Id::IntegerLiteral | Id::SqlNull => ValueType::Int4,
        Id::UInteger | Id::Bigint => ValueType::Int8,
        Id::UBigint | Id::Hugeint | Id::UHugeint => ValueType::HugeInt,
        Id::Float => ValueType::Float4,
        Id::Double => ValueType::Float8,
        Id::Decimal => ValueType::Decimal { precision: handle.decimal_width(), scale: handle.decimal_scale() },
        Id::Varchar if handle.get_alias().is_some_and(|alias| alias.eq_ignore_ascii_case("json")) => ValueType::Json,
        Id::Varchar | Id::StringLiteral | Id::Enum => ValueType::Text,
        Id::Blob => ValueType::Bytes,
        Id::Date => ValueType::Date,
        Id::Time | Id::TimeNs => ValueType::Time,
        Id::Timestamp | Id::TimestampS | Id::TimestampMs | Id::TimestampNs => ValueType::Timestamp,
        Id::TimestampTZ => ValueType::TimestampTz,
        Id::Uuid => ValueType::Uuid,
        _ => ValueType::Other,
    }
}

/// The contract's type of a type's name as DuckDB's `DESCRIBE` writes it.
pub(super) fn value_type_named(name: &str) -> ValueType {
    if let Some(inside) = name.strip_prefix("DECIMAL(").and_then(|rest| rest.strip_suffix(')'))
        && let Some((precision, scale)) = inside.split_once(',')
        && let (Ok(precision), Ok(scale)) = (precision.trim().parse(), scale.trim().parse())
    {
        return ValueType::Decimal { precision, scale };
    }
    match name {
        "BOOLEAN" => ValueType::Bool,
        "TINYINT" | "SMALLINT" => ValueType::Int2,
        "UTINYINT" | "USMALLINT" | "INTEGER" | "\"NULL\"" | "NULL" => ValueType::Int4,
        "UINTEGER" | "BIGINT" => ValueType::Int8,
        "UBIGINT" | "HUGEINT" | "UHUGEINT" => ValueType::HugeInt,
        "FLOAT" => ValueType::Float4,
        "DOUBLE" => ValueType::Float8,
        "VARCHAR" => ValueType::Text,
        "JSON" => ValueType::Json,
        "BLOB" => ValueType::Bytes,
        "DATE" => ValueType::Date,
        "TIME" | "TIME_NS" => ValueType::Time,
        "TIMESTAMP" | "TIMESTAMP_S" | "TIMESTAMP_MS" | "TIMESTAMP_NS" => ValueType::Timestamp,
        "TIMESTAMP WITH TIME ZONE" => ValueType::TimestampTz,
        "UUID" => ValueType::Uuid,
        name if name.starts_with("ENUM") => ValueType::Text,
        _ => ValueType::Other,
    }
}

/// Appends column `array` to `rows`, one value each.
pub(super) fn append(array: &ArrayRef, value_type: ValueType, rows: &mut [Vec<Value>]) {
    for (index, row) in rows.iter_mut().enumerate() {
        row.push(value(array, index, Some(value_type)));
    }
}

/// The value at `index`; `wanted` tells apart what Arrow does not (hugeint, uuid).
fn value(array: &ArrayRef, index: usize, wanted: Option<ValueType>) -> Value {
    if array.is_null(index) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => Value::Bool(array.as_any().downcast_ref::<BooleanArray>().is_some_and(|a| a.value(index))),
        DataType::Int8 => Value::Int(array.as_primitive::<Int8Type>().value(index).into()),
        DataType::Int16 => Value::Int(array.as_primitive::<Int16Type>().value(index).into()),
        DataType::Int32 => Value::Int(array.as_primitive::<Int32Type>().value(index).into()),
        DataType::Int64 => Value::Int(array.as_primitive::<Int64Type>().value(index)),
        DataType::UInt8 => Value::Int(array.as_primitive::<UInt8Type>().value(index).into()),
        DataType::UInt16 => Value::Int(array.as_primitive::<UInt16Type>().value(index).into()),
        DataType::UInt32 => Value::Int(array.as_primitive::<UInt32Type>().value(index).into()),
        DataType::UInt64 => Value::HugeInt(array.as_primitive::<UInt64Type>().value(index).into()),
        DataType::Float32 => float4(array.as_primitive::<Float32Type>().value(index)),
        DataType::Float64 => Value::Float(array.as_primitive::<Float64Type>().value(index)),
        DataType::Decimal128(_, scale) => {
            let unscaled = array.as_any().downcast_ref::<Decimal128Array>().map_or(0, |a| a.value(index));
            match (wanted, u8::try_from(*scale)) {
                (Some(ValueType::HugeInt), _) | (_, Err(_)) => Value::HugeInt(unscaled),
                (_, Ok(scale)) => Value::Decimal { unscaled, scale },
            }
        }
        DataType::Utf8 => text(array.as_string::<i32>().value(index), wanted),
        DataType::LargeUtf8 => text(array.as_string::<i64>().value(index), wanted),
        DataType::Utf8View => text(array.as_string_view().value(index), wanted),
        DataType::Binary => Value::Bytes(array.as_binary::<i32>().value(index).into()),
        DataType::LargeBinary => Value::Bytes(array.as_binary::<i64>().value(index).into()),
        DataType::BinaryView => Value::Bytes(array.as_binary_view().value(index).into()),
        DataType::FixedSizeBinary(_) => Value::Bytes(array.as_fixed_size_binary().value(index).into()),
        DataType::Date32 => Value::Date(array.as_primitive::<Date32Type>().value(index)),
        DataType::Time64(TimeUnit::Microsecond) => {
            Value::Time(array.as_primitive::<Time64MicrosecondType>().value(index))
        }
        DataType::Time64(TimeUnit::Nanosecond) => {
            Value::Time(array.as_primitive::<Time64NanosecondType>().value(index) / 1_000)
        }
        DataType::Timestamp(unit, zone) => {
            let micros = match unit {
                TimeUnit::Second => array.as_primitive::<TimestampSecondType>().value(index).saturating_mul(1_000_000),
                TimeUnit::Millisecond => {
                    array.as_primitive::<TimestampMillisecondType>().value(index).saturating_mul(1_000)
                }
                TimeUnit::Microsecond => array.as_primitive::<TimestampMicrosecondType>().value(index),
                TimeUnit::Nanosecond => array.as_primitive::<TimestampNanosecondType>().value(index).div_euclid(1_000),
            };
            if zone.is_some() { Value::TimestampTz(micros) } else { Value::Timestamp(micros) }
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            Value::Text(interval(array.as_primitive::<IntervalMonthDayNanoType>().value(index)).into())
        }
        DataType::Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let key = dictionary.normalized_keys().get(index).copied().unwrap_or(0);
            value(dictionary.values(), key, wanted)
        }
        _ => {
            let mut out = String::new();
            nested(array, index, &mut out);
            Value::Text(out.into())
        }
    }
}

fn text(text: &str, wanted: Option<ValueType>) -> Value {
    if wanted == Some(ValueType::Uuid) {
        let hex: String = text.chars().filter(|c| *c != '-').collect();
        if let Ok(uuid) = u128::from_str_radix(&hex, 16) {
            return Value::Uuid(uuid);
        }
    }
    Value::Text(Arc::from(text))
}

/// The shortest decimal text of a `real`, so that 0.1 stays 0.1.
fn float4(value: f32) -> Value {
    Value::Float(value.to_string().parse().unwrap_or_else(|_| f64::from(value)))
}

/// Lists, structs and maps in PostgreSQL's notation.
fn nested(array: &ArrayRef, index: usize, out: &mut String) {
    if let Some(list) = array.as_any().downcast_ref::<ListArray>() {
        elements(&list.value(index), out);
    } else if let Some(list) = array.as_any().downcast_ref::<FixedSizeListArray>() {
        elements(&list.value(index), out);
    } else if let Some(list) = array.as_list_opt::<i64>() {
        elements(&list.value(index), out);
    } else if let Some(map) = array.as_any().downcast_ref::<MapArray>() {
        let entries: ArrayRef = Arc::new(map.value(index));
        elements(&entries, out);
    } else if let Some(fields) = array.as_any().downcast_ref::<StructArray>() {
        out.push('(');
        for (position, column) in fields.columns().iter().enumerate() {
            if position > 0 {
                out.push(',');
            }
            if let Some(text) = inner_text(column, index) {
                quoted(&text, |c| matches!(c, '(' | ')' | ',' | '"' | '\\') || c.is_whitespace(), out);
            }
        }
        out.push(')');
    } else {
        // a type that DuckDB does not export today; said rather than guessed
        _ = write!(out, "<{}>", array.data_type());
    }
}

fn elements(values: &ArrayRef, out: &mut String) {
    out.push('{');
    for position in 0..values.len() {
        if position > 0 {
            out.push(',');
        }
        let is_list =
            matches!(values.data_type(), DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(_, _));
        match inner_text(values, position) {
            None => out.push_str("NULL"),
            Some(text) if is_list => out.push_str(&text),
            Some(text) if text.eq_ignore_ascii_case("null") => {
                _ = write!(out, "\"{text}\"");
            }
            Some(text) => quoted(&text, |c| matches!(c, '{' | '}' | ',' | '"' | '\\') || c.is_whitespace(), out),
        }
    }
    out.push('}');
}

fn inner_text(array: &ArrayRef, index: usize) -> Option<String> {
    value(array, index, None).to_text()
}

fn quoted(text: &str, needs: impl Fn(char) -> bool, out: &mut String) {
    if !text.is_empty() && !text.chars().any(needs) {
        out.push_str(text);
        return;
    }
    out.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
}

/// PostgreSQL's text of an interval (IntervalStyle postgres).
fn interval(value: IntervalMonthDayNano) -> String {
    let mut parts = Vec::new();
    let mut unit = |count: i32, name: &str| {
        if count != 0 {
            // a positive part after a negative one carries its sign
            let plural = if count == 1 { "" } else { "s" };
            parts.push(format!("{count} {name}{plural}"));
        }
    };
    unit(value.months / 12, "year");
    unit(value.months % 12, "mon");
    unit(value.days, "day");
    let micros = value.nanoseconds / 1_000;
    if micros != 0 || parts.is_empty() {
        let sign = if micros < 0 { "-" } else { "" };
        let magnitude = micros.unsigned_abs();
        let (seconds, fraction) = (magnitude / 1_000_000, magnitude % 1_000_000);
        let mut text = format!("{sign}{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
        if fraction != 0 {
            let digits = format!("{fraction:06}");
            text.push('.');
            text.push_str(digits.trim_end_matches('0'));
        }
        parts.push(text);
    }
    for position in 1..parts.len() {
        let negative_before = parts.get(position - 1).is_some_and(|part| part.starts_with('-'));
        if let Some(part) = parts.get_mut(position)
            && negative_before
            && !part.starts_with('-')
        {
            part.insert(0, '+');
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_postgresqls() {
        let cases = [
            ((14, 3, 14_706_000_000_000), "1 year 2 mons 3 days 04:05:06"),
            ((0, 0, 0), "00:00:00"),
            ((-1, 2, 0), "-1 mons +2 days"),
            ((0, 1, -500_000_000), "1 day -00:00:00.5"),
        ];
        for ((months, days, nanos), text) in cases {
            assert_eq!(interval(IntervalMonthDayNano::new(months, days, nanos)), text);
        }
    }
}
