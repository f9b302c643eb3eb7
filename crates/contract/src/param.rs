//! Texts that people type for a report's parameters → values.

use crate::{
    query::Value,
    report::{Param, ParamType},
};

/// A text does not fit its parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected} for “{label}”")]
pub struct BadParam {
    pub label: String,
    pub text: String,
    pub expected: &'static str,
}

impl Param {
    /// The value of a text; no text is null.
    ///
    /// # Errors
    /// If the text is not of the parameter's type.
    pub fn value(&self, text: Option<&str>) -> Result<Value, BadParam> {
        let Some(text) = text else { return Ok(Value::Null) };
        let bad = |expected| BadParam { label: self.label.clone(), text: text.chars().take(80).collect(), expected };
        Ok(match self.param_type {
            ParamType::Text => Value::Text(text.into()),
            ParamType::Integer => Value::Int(text.parse().map_err(|_| bad("a whole number"))?),
            ParamType::Decimal => decimal(text).ok_or_else(|| bad("a number"))?,
            ParamType::Date => {
                let date: jiff::civil::Date = text.parse().map_err(|_| bad("a date like 2024-01-31"))?;
                let epoch = jiff::civil::Date::constant(1970, 1, 1);
                Value::Date(epoch.until(date).map_err(|_| bad("a date"))?.get_days())
            }
        })
    }
}

fn decimal(text: &str) -> Option<Value> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    if digits.is_empty() || !digits.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let scale = u8::try_from(fraction.len()).ok().filter(|scale| *scale <= 38)?;
    Some(Value::Decimal { unscaled: format!("{whole}{fraction}").parse().ok()?, scale })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_values_or_clear_errors() {
        let param =
            |param_type| Param { name: "p".into(), param_type, label: "P".into(), default: None, choices_sql: None };
        let cases = [
            (ParamType::Date, "2024-03-01", Ok(Value::Date(19_783))),
            (ParamType::Date, "1969-12-31", Ok(Value::Date(-1))),
            (ParamType::Date, "2024-02-30", Err("`2024-02-30` is not a date like 2024-01-31 for “P”")),
            (ParamType::Integer, "-7", Ok(Value::Int(-7))),
            (ParamType::Integer, "1; drop table x", Err("`1; drop table x` is not a whole number for “P”")),
            (ParamType::Decimal, "-1.50", Ok(Value::Decimal { unscaled: -150, scale: 2 })),
            (ParamType::Decimal, "1e5", Err("`1e5` is not a number for “P”")),
            (ParamType::Decimal, "-", Err("`-` is not a number for “P”")),
            (ParamType::Text, "it's", Ok(Value::Text("it's".into()))),
        ];
        for (param_type, text, expected) in cases {
            let found = param(param_type).value(Some(text)).map_err(|e| e.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{text}");
        }
        assert_eq!(param(ParamType::Date).value(None), Ok(Value::Null));
    }
}
