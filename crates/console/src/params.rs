//! Filters of a URL → values of a report's parameters.

use millrace_contract::{
    param::BadParam,
    query::Value,
    report::{Param, Report},
};

/// The query part of a URL, in its order. Names that begin with `_` are the console's own.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filters(Vec<(String, String)>);

impl Filters {
    pub(crate) fn new(pairs: Vec<(String, String)>) -> Self {
        Self(pairs)
    }

    /// The text in the URL, which may be empty; `None` if the name is not there at all.
    fn named(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// What the reader gave; an empty text is as good as none.
    pub(crate) fn given(&self, name: &str) -> Option<&str> {
        self.named(name).map(str::trim).filter(|value| !value.is_empty())
    }

    /// What applies to a parameter: the given text, else its default.
    pub(crate) fn effective<'a>(&'a self, param: &'a Param) -> Option<&'a str> {
        param.effective(self.named(&param.name))
    }

    /// Fills in the defaults of a dashboard's filters, which go before those of its reports.
    pub(crate) fn with_defaults(mut self, params: &[Param]) -> Self {
        for param in params {
            if let (None, Some(default)) = (self.named(&param.name), &param.default) {
                self.0.push((param.name.clone(), default.clone()));
            }
        }
        self
    }

    /// Whether the reader gave any of `params`.
    pub(crate) fn any_given(&self, params: &[Param]) -> bool {
        params.iter().any(|p| self.given(&p.name).is_some())
    }

    /// The pairs that concern `params`, for the link to another page about the same data.
    pub(crate) fn for_params(&self, params: &[Param]) -> Vec<(String, String)> {
        self.0.iter().filter(|(key, _)| params.iter().any(|p| p.name == *key)).cloned().collect()
    }

    /// Binds all parameters of a report in their order.
    ///
    /// # Errors
    /// The first value that does not fit.
    pub(crate) fn bind(&self, report: &Report) -> Result<Vec<Value>, BadParam> {
        report.bind(|name| self.named(name))
    }

    /// This URL's pairs with one replaced (or taken out).
    pub(crate) fn with(&self, name: &str, value: Option<&str>) -> Vec<(String, String)> {
        let mut pairs: Vec<_> = self.0.iter().filter(|(key, _)| key != name).cloned().collect();
        if let Some(value) = value {
            pairs.push((name.to_owned(), value.to_owned()));
        }
        pairs
    }
}

/// `?a=1&b=2`, or nothing; percent-encoded.
pub(crate) fn query_string<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (key, value) in pairs {
        text.push(if text.is_empty() { '?' } else { '&' });
        encode(key, &mut text);
        text.push('=');
        encode(value, &mut text);
    }
    text
}

/// As [`query_string`], of owned pairs.
pub(crate) fn query_of(pairs: &[(String, String)]) -> String {
    query_string(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())))
}

fn encode(text: &str, to: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => to.push(char::from(byte)),
            _ => {
                to.push('%');
                to.push(char::from(HEX[usize::from(byte >> 4)]));
                to.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
}

/// A path of this console to go back to; anything else could lead a reader to another site.
pub(crate) fn local_path(text: &str) -> Option<&str> {
    let good = ["/dashboards/", "/reports/"].iter().any(|start| text.starts_with(start));
    (good && !text.contains("//") && !text.contains('\\') && text.bytes().all(|b| b.is_ascii_graphic())).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_paths_are_followed_back() {
        assert!(local_path("/dashboards/loans?from=2024-01-01").is_some());
        for bad in [
            "//evil.example/dashboards/",
            "https://x",
            "/dashboards//evil",
            "javascript:x",
            "/dashboards/\\x",
            "/login",
        ] {
            assert_eq!(local_path(bad), None, "{bad}");
        }
        assert_eq!(query_string([("a b", "ä&=")]), "?a%20b=%C3%A4%26%3D");
    }
}
