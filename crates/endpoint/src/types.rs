//! PostgreSQL's types on the wire: oids, text and binary forms of values (PostgreSQL sources, `send` functions of
//! `utils/adt`; the binary forms are those every driver reads).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use millrace_contract::{
    Value,
    query::{ResultColumn, ValueType},
};

use crate::{backend::Field, error::Refusal};

/// Days from 1970-01-01 to 2000-01-01, PostgreSQL's epoch.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 946_684_800_000_000;

pub(crate) fn oid(value_type: ValueType) -> u32 {
    match value_type {
        ValueType::Bool => 16,
        ValueType::Bytes => 17,
        ValueType::Int8 => 20,
        ValueType::Int2 => 21,
        ValueType::Int4 => 23,
        ValueType::Text | ValueType::Other => 25,
        ValueType::Json => 114,
        ValueType::Float4 => 700,
        ValueType::Float8 => 701,
        ValueType::Date => 1082,
        ValueType::Time => 1083,
        ValueType::Timestamp => 1114,
        ValueType::TimestampTz => 1184,
        ValueType::HugeInt | ValueType::Decimal { .. } => 1700,
        ValueType::Uuid => 2950,
    }
}

/// The type that a client declared for a parameter; `None` leaves it to the reader.
pub(crate) fn declared(oid: u32) -> Option<ValueType> {
    Some(match oid {
        16 => ValueType::Bool,
        17 => ValueType::Bytes,
        20 | 26 => ValueType::Int8,
        21 => ValueType::Int2,
        23 => ValueType::Int4,
        19 | 25 | 1042 | 1043 => ValueType::Text,
        114 | 3802 => ValueType::Json,
        700 => ValueType::Float4,
        701 => ValueType::Float8,
        1082 => ValueType::Date,
        1083 => ValueType::Time,
        1114 => ValueType::Timestamp,
        1184 => ValueType::TimestampTz,
        1700 => ValueType::Decimal { precision: 38, scale: 10 },
        2950 => ValueType::Uuid,
        _ => return None,
    })
}

/// The description of a result column.
pub(crate) fn field(column: &ResultColumn) -> Field {
    let (size, modifier) = match column.value_type {
        ValueType::Bool => (1, -1),
        ValueType::Int2 => (2, -1),
        ValueType::Int4 | ValueType::Float4 | ValueType::Date => (4, -1),
        ValueType::Int8 | ValueType::Float8 | ValueType::Time | ValueType::Timestamp | ValueType::TimestampTz => {
            (8, -1)
        }
        ValueType::Uuid => (16, -1),
        ValueType::Decimal { precision, scale } => (-1, (i32::from(precision) << 16) + i32::from(scale) + 4),
        ValueType::HugeInt | ValueType::Text | ValueType::Bytes | ValueType::Json | ValueType::Other => (-1, -1),
    };
    Field { name: column.name.clone(), oid: oid(column.value_type), size, modifier }
}

/// Appends a value in the wanted format; false is null.
///
/// # Errors
/// If the value does not fit the type that was described to the client.
pub(crate) fn put(value: &Value, oid: u32, format: i16, out: &mut BytesMut) -> Result<bool, Refusal> {
    if matches!(value, Value::Null) {
        return Ok(false);
    }
    if format == 1 && put_binary(value, oid, out)? {
        return Ok(true);
    }
    if format == 1 && !matches!(oid, 25 | 114) {
        return Err(Refusal::error("0A000", format!("no binary form of this value as type {oid}")));
    }
    match value {
        Value::Text(text) => out.put_slice(text.as_bytes()),
        other => {
            if let Some(text) = other.to_text() {
                out.put_slice(text.as_bytes());
            }
        }
    }
    Ok(true)
}

/// False when there is nothing but the text.
fn put_binary(value: &Value, oid: u32, out: &mut BytesMut) -> Result<bool, Refusal> {
    let range = |name: &str| Refusal::error("22003", format!("{name} out of range"));
    match (oid, value) {
        (16, Value::Bool(value)) => out.put_u8(u8::from(*value)),
        (21, Value::Int(value)) => out.put_i16(i16::try_from(*value).map_err(|_| range("smallint"))?),
        (23, Value::Int(value)) => out.put_i32(i32::try_from(*value).map_err(|_| range("integer"))?),
        (20, Value::Int(value)) => out.put_i64(*value),
        (20, Value::HugeInt(value)) => out.put_i64(i64::try_from(*value).map_err(|_| range("bigint"))?),
        (700, Value::Float(value)) => out.put_f32(float4(*value)),
        (701, Value::Float(value)) => out.put_f64(*value),
        (1700, Value::Decimal { unscaled, scale }) => numeric(*unscaled, *scale, out),
        (1700, Value::HugeInt(value)) => numeric(*value, 0, out),
        (1700, Value::Int(value)) => numeric(i128::from(*value), 0, out),
        (17, Value::Bytes(bytes)) => out.put_slice(bytes),
        (25 | 114, Value::Text(text)) => out.put_slice(text.as_bytes()),
        (1082, Value::Date(days)) => out.put_i32(match *days {
            i32::MAX => i32::MAX,
            days if days <= -i32::MAX => i32::MIN,
            days => days.saturating_sub(EPOCH_DAYS),
        }),
        (1083, Value::Time(micros)) => out.put_i64(*micros),
        (1114, Value::Timestamp(micros) | Value::TimestampTz(micros))
        | (1184, Value::TimestampTz(micros) | Value::Timestamp(micros)) => out.put_i64(match *micros {
            i64::MAX => i64::MAX,
            micros if micros <= -i64::MAX => i64::MIN,
            micros => micros.saturating_sub(EPOCH_MICROS),
        }),
        (2950, Value::Uuid(value)) => out.put_u128(*value),
        _ => return Ok(false),
    }
    Ok(true)
}

#[expect(clippy::cast_possible_truncation, reason = "the value came from a real and goes back to one")]
fn float4(value: f64) -> f32 {
    value as f32
}

/// `numeric` in base 10,000 (PostgreSQL's `numeric_send`).
fn numeric(unscaled: i128, scale: u8, out: &mut BytesMut) {
    let scale = usize::from(scale);
    let mut digits = unscaled.unsigned_abs().to_string();
    if digits.len() <= scale {
        digits.insert_str(0, &"0".repeat(scale + 1 - digits.len()));
    }
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let whole = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
    let fraction = format!("{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
    let group = |chunk: &[u8]| chunk.iter().fold(0_i16, |n, digit| n * 10 + i16::from(digit - b'0'));
    let mut weight = i16::try_from(whole.len() / 4).unwrap_or(0) - 1;
    let all: Vec<i16> = whole.as_bytes().chunks(4).chain(fraction.as_bytes().chunks(4)).map(group).collect();
    let mut groups = all.as_slice();
    while let [0, rest @ ..] = groups {
        groups = rest;
        weight -= 1;
    }
    while let [rest @ .., 0] = groups {
        groups = rest;
    }
    out.put_i16(i16::try_from(groups.len()).unwrap_or(0));
    out.put_i16(if groups.is_empty() { 0 } else { weight });
    out.put_u16(if unscaled < 0 { 0x4000 } else { 0 });
    out.put_i16(i16::try_from(scale).unwrap_or(0));
    for digit in groups {
        out.put_i16(*digit);
    }
}

/// A parameter as the client sent it.
///
/// # Errors
/// If the bytes are no value of the type.
pub(crate) fn parameter(bytes: Option<&Bytes>, oid: u32, format: i16, number: usize) -> Result<Value, Refusal> {
    let Some(bytes) = bytes else { return Ok(Value::Null) };
    let read = match (format, element(oid)) {
        (0, None) => std::str::from_utf8(bytes).ok().and_then(|text| from_text(text, oid)),
        (0, Some(_)) => std::str::from_utf8(bytes).ok().and_then(array_from_text),
        (1, None) => from_binary(bytes.clone(), oid),
        (1, Some(element)) => array_from_binary(bytes.clone(), element),
        _ => return Err(Refusal::error("08P01", format!("unsupported format code: {format}"))),
    };
    read.ok_or_else(|| {
        if format == 1 && declared(oid).is_none() {
            Refusal::error("0A000", format!("parameter ${number}: type {oid} is not supported in binary form"))
                .hint("send it as text")
        } else if format == 1 {
            Refusal::error("22P03", format!("incorrect binary data format in bind parameter {number}"))
        } else {
            Refusal::error("22P02", format!("invalid input syntax for parameter ${number} of type {oid}"))
        }
    })
}

/// The element's type of an array's type.
fn element(oid: u32) -> Option<u32> {
    Some(match oid {
        1000 => 16,
        1005 => 21,
        1007 => 23,
        1009 => 25,
        1015 => 1043,
        1016 => 20,
        1021 => 700,
        1022 => 701,
        1028 => 26,
        1115 => 1114,
        1182 => 1082,
        1185 => 1184,
        1231 => 1700,
        2951 => 2950,
        _ => return None,
    })
}

/// One dimension, in the engine's notation: `["a","b",NULL]`.
fn array(elements: impl IntoIterator<Item = Option<String>>) -> Value {
    let items: Vec<String> = elements
        .into_iter()
        .map(|element| match element {
            None => "NULL".to_owned(),
            Some(text) => format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")),
        })
        .collect();
    Value::Text(format!("[{}]", items.join(",")).into())
}

fn array_from_text(text: &str) -> Option<Value> {
    let inside = text.trim().strip_prefix('{')?.strip_suffix('}')?;
    let mut elements = Vec::new();
    let mut chars = inside.chars().peekable();
    while chars.peek().is_some() {
        let (mut element, mut quoted) = (String::new(), false);
        loop {
            match chars.next() {
                None | Some(',') => break,
                Some('{' | '}') => return None,
                Some('"') => {
                    quoted = true;
                    loop {
                        match chars.next()? {
                            '"' => break,
                            '\\' => element.push(chars.next()?),
                            c => element.push(c),
                        }
                    }
                }
                Some('\\') => element.push(chars.next()?),
                Some(c) => element.push(c),
            }
        }
        let is_null = !quoted && element.eq_ignore_ascii_case("null");
        elements.push((!is_null).then_some(element));
    }
    Some(array(elements))
}

/// `array_recv`, one dimension.
fn array_from_binary(mut bytes: Bytes, element: u32) -> Option<Value> {
    let dimensions = bytes.try_get_i32().ok()?;
    let _has_nulls = bytes.try_get_i32().ok()?;
    let sent = bytes.try_get_u32().ok()?;
    if dimensions == 0 {
        return bytes.is_empty().then(|| array([]));
    }
    let count = usize::try_from(bytes.try_get_i32().ok()?).ok()?;
    let _lower_bound = bytes.try_get_i32().ok()?;
    if dimensions != 1 || sent != element || count.checked_mul(4)? > bytes.len() {
        return None;
    }
    let mut elements = Vec::with_capacity(count);
    for _ in 0..count {
        match bytes.try_get_i32().ok()? {
            -1 => elements.push(None),
            length => {
                let length = usize::try_from(length).ok().filter(|length| *length <= bytes.len())?;
                elements.push(from_binary(bytes.split_to(length), element)?.to_text());
            }
        }
    }
    bytes.is_empty().then(|| array(elements))
}

fn from_text(text: &str, oid: u32) -> Option<Value> {
    Some(match oid {
        16 => Value::Bool(match text.trim().to_lowercase().as_str() {
            "t" | "true" | "on" | "yes" | "1" => true,
            "f" | "false" | "off" | "no" | "0" => false,
            _ => return None,
        }),
        20 | 21 | 23 | 26 => Value::Int(text.trim().parse().ok()?),
        700 | 701 => Value::Float(text.trim().parse().ok()?),
        1700 => decimal(text.trim()).unwrap_or_else(|| Value::Text(text.into())),
        17 => Value::Bytes(hex(text.strip_prefix("\\x")?)?.into()),
        // dates and the like: the engine reads PostgreSQL's text itself
        _ => Value::Text(text.into()),
    })
}

/// Exact, if it has at most 38 digits.
fn decimal(text: &str) -> Option<Value> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = [whole, fraction].concat();
    if fraction.contains(['+', '-']) || digits.len() > 38 {
        return None;
    }
    Some(Value::Decimal { unscaled: digits.parse().ok()?, scale: u8::try_from(fraction.len()).ok()? })
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect();
    let digits = digits?;
    digits.chunks(2).map(|pair| if let [high, low] = pair { Some(high << 4 | low) } else { None }).collect()
}

fn from_binary(mut bytes: Bytes, oid: u32) -> Option<Value> {
    let value = match oid {
        16 => Value::Bool(bytes.try_get_u8().ok()? != 0),
        20 => Value::Int(bytes.try_get_i64().ok()?),
        21 => Value::Int(bytes.try_get_i16().ok()?.into()),
        23 => Value::Int(bytes.try_get_i32().ok()?.into()),
        26 => Value::Int(bytes.try_get_u32().ok()?.into()),
        700 => Value::Float(bytes.try_get_f32().ok()?.into()),
        701 => Value::Float(bytes.try_get_f64().ok()?),
        1082 => Value::Date(bytes.try_get_i32().ok()?.saturating_add(EPOCH_DAYS)),
        1083 => Value::Time(bytes.try_get_i64().ok()?),
        1114 => Value::Timestamp(bytes.try_get_i64().ok()?.saturating_add(EPOCH_MICROS)),
        1184 => Value::TimestampTz(bytes.try_get_i64().ok()?.saturating_add(EPOCH_MICROS)),
        1700 => return from_numeric(bytes),
        2950 => Value::Uuid(bytes.try_get_u128().ok()?),
        17 => return Some(Value::Bytes(bytes.to_vec().into())),
        3802 => {
            // a version byte comes first
            (bytes.try_get_u8().ok()? == 1).then_some(())?;
            return Some(Value::Text(std::str::from_utf8(&bytes).ok()?.into()));
        }
        0 | 19 | 25 | 114 | 705 | 1042 | 1043 => return Some(Value::Text(std::str::from_utf8(&bytes).ok()?.into())),
        _ => return None,
    };
    bytes.is_empty().then_some(value)
}

/// `numeric_recv`; values that no decimal of 38 digits holds go as text.
fn from_numeric(mut bytes: Bytes) -> Option<Value> {
    let count = bytes.try_get_u16().ok()?;
    let weight = bytes.try_get_i16().ok()?;
    let sign = bytes.try_get_u16().ok()?;
    let scale = bytes.try_get_u16().ok()?;
    match sign {
        0 | 0x4000 => {}
        0xC000 => return Some(Value::Text("NaN".into())),
        0xD000 => return Some(Value::Text("Infinity".into())),
        0xF000 => return Some(Value::Text("-Infinity".into())),
        _ => return None,
    }
    let groups: Option<Vec<u16>> =
        (0..count).map(|_| bytes.try_get_u16().ok().filter(|group| *group < 10_000)).collect();
    let groups = groups?;
    if !bytes.is_empty() || scale > 1_000 || weight > 1_000 {
        return None;
    }
    let group_at = |position: i32| usize::try_from(position).ok().and_then(|p| groups.get(p)).copied().unwrap_or(0);
    let mut text = String::new();
    for position in 0..=i32::from(weight) {
        text.push_str(&format!("{:04}", group_at(position)));
    }
    let whole = text.trim_start_matches('0').to_owned();
    let mut fraction = String::new();
    let mut position = i32::from(weight) + 1;
    if weight < -1 {
        for _ in 0..(-1 - i32::from(weight)) {
            fraction.push_str("0000");
        }
        position = 0;
    }
    while fraction.len() < usize::from(scale) {
        fraction.push_str(&format!("{:04}", group_at(position)));
        position += 1;
    }
    fraction.truncate(scale.into());
    let sign = if sign == 0 { "" } else { "-" };
    let whole = if whole.is_empty() { "0" } else { &whole };
    let point = if fraction.is_empty() { "" } else { "." };
    let text = format!("{sign}{whole}{point}{fraction}");
    Some(decimal(&text).unwrap_or_else(|| Value::Text(text.into())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numerics_are_postgresqls() {
        let cases: [(i128, u8, &[i16]); 5] = [
            (0, 2, &[0, 0, 0, 2]),
            (12_345_678, 2, &[3, 1, 0, 2, 12, 3456, 7800]),
            (-1, 4, &[1, -1, 0x4000, 4, 1]),
            (10_000, 0, &[1, 1, 0, 0, 1]),
            (5, 1, &[1, -1, 0, 1, 5000]),
        ];
        for (unscaled, scale, groups) in cases {
            let mut out = BytesMut::new();
            numeric(unscaled, scale, &mut out);
            let read: Vec<i16> = out.chunks(2).map(|pair| i16::from_be_bytes([pair[0], pair[1]])).collect();
            assert_eq!(read, groups, "{unscaled} {scale}");
        }
    }

    proptest! {
        #[test]
        fn numerics_come_back(unscaled in -10_i128.pow(37)..10_i128.pow(37), scale in 0..=30_u8) {
            let mut out = BytesMut::new();
            numeric(unscaled, scale, &mut out);
            prop_assert_eq!(from_binary(out.freeze(), 1700), Some(Value::Decimal { unscaled, scale }));
        }

        #[test]
        fn any_bytes_are_answered(oid in prop::sample::select(vec![16_u32, 20, 21, 23, 25, 700, 1082, 1184, 1700, 2950, 3802]), bytes: Vec<u8>, format in 0..3_i16) {
            _ = parameter(Some(&bytes.into()), oid, format, 1);
        }
    }
}
