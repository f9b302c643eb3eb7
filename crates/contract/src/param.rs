//! Texts that people type for a report's parameters → values.

use crate::{
    query::Value,
    report::{Param, ParamType, Report},
};

/// A text does not fit its parameter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected} for “{label}”")]
pub struct BadParam {
    pub label: String,
    pub text: String,
    pub expected: &'static str,
}

impl ParamType {
    /// The value of a text.
    ///
    /// # Errors
    /// What was expected instead, to stand after "is not".
    pub fn read(self, text: &str) -> Result<Value, &'static str> {
        match self {
            Self::Text => Ok(Value::Text(text.into())),
            Self::Integer => text.parse().map(Value::Int).map_err(|_| "a whole number"),
            Self::Decimal => decimal(text).ok_or("a number"),
            Self::Date => date(text).ok_or("a date like 2024-01-31"),
        }
    }
}

impl Param {
    /// The text that holds when `given` was given for the parameter. Nothing given at all leaves the default;
    /// an empty text is no value, whatever the default.
    #[must_use]
    pub fn effective<'a>(&'a self, given: Option<&'a str>) -> Option<&'a str> {
        match given {
            Some(text) => Some(text.trim()).filter(|text| !text.is_empty()),
            None => self.default.as_deref(),
        }
    }

    /// The value when `given` was given: see [`Param::effective`]; no text is null.
    ///
    /// # Errors
    /// If the text is not of the parameter's type.
    pub fn value(&self, given: Option<&str>) -> Result<Value, BadParam> {
        let Some(text) = self.effective(given) else { return Ok(Value::Null) };
        self.param_type.read(text).map_err(|expected| BadParam {
            label: self.label.clone(),
            text: text.chars().take(80).collect(),
            expected,
        })
    }
}

impl Report {
    /// The values of all parameters in their order; `given` looks up what a person gave for a name.
    ///
    /// # Errors
    /// The first text that does not fit.
    pub fn bind<'a>(&'a self, given: impl Fn(&str) -> Option<&'a str>) -> Result<Vec<Value>, BadParam> {
        self.params.iter().map(|param| param.value(given(&param.name))).collect()
    }
}

fn date(text: &str) -> Option<Value> {
    // jiff reads more forms than one would explain to a person
    let date: jiff::civil::Date = (text.len() == 10).then(|| text.parse().ok())??;
    let epoch = jiff::civil::Date::constant(1970, 1, 1);
    Some(Value::Date(epoch.until(date).ok()?.get_days()))
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
            (ParamType::Date, "20240301", Err("`20240301` is not a date like 2024-01-31 for “P”")),
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

    #[test]
    fn nothing_given_is_the_default_and_an_empty_text_is_null() {
        let default = Some("2024-03-01".to_owned());
        let param =
            Param { name: "p".into(), param_type: ParamType::Date, label: "P".into(), default, choices_sql: None };
        assert_eq!(param.value(None), Ok(Value::Date(19_783)));
        assert_eq!(param.value(Some(" ")), Ok(Value::Null));
        assert_eq!(param.value(Some(" 2024-03-02 ")), Ok(Value::Date(19_784)));
    }
}
