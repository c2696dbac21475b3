//! Values as Go writes them: booleans, durations, URLs.

use std::time::Duration;

use super::super::{check_syntax, check_syntax_with_any_port};

/// A URL to listen at or to be found at.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Url {
    /// `https`.
    pub tls: bool,
    /// `host:port`.
    pub address: String,
}

impl Url {
    /// Reads `http://host:port` or `https://host:port`; one slash at the end does no harm.
    ///
    /// # Errors
    /// In words: what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Self::parse_with_any_port(text)?;
        check_syntax(&url.address)?;
        Ok(url)
    }

    /// The same, where port 0 stands for any that is free.
    ///
    /// # Errors
    /// In words: what is wrong with it.
    pub fn parse_with_any_port(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some(("unix" | "unixs", _)) => {
                return Err(format!("{text:?} is a Unix socket, which is not served"));
            }
            Some((scheme, _)) => {
                return Err(format!(
                    "{text:?} begins with {scheme}:// instead of http:// or https://"
                ));
            }
            None => return Err(format!("{text:?} does not begin with http:// or https://")),
        };
        let address = rest.strip_suffix('/').unwrap_or(rest);
        if address.contains('/') {
            return Err(format!("{text:?} has a path"));
        }
        check_syntax_with_any_port(address)?;
        Ok(Self { tls, address: address.to_owned() })
    }
}

impl std::fmt::Display for Url {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }
}

/// One of Go's booleans.
pub(crate) fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// One of Go's durations that is not negative: `1h30m`, `0.5s`, `0`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "µs" | "μs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let good = [
            ("0", 0),
            ("0s", 0),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("100ms", 100),
            ("2h0m0s", 7_200_000),
            (".5s", 500),
            ("+3s", 3000),
        ];
        for (text, millis) in good {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in
            ["", "1", "s", "-1s", "1x", "1h30", "1..2s", "inf", "1e3s", "99999999999999999999h"]
        {
            assert_eq!(duration(text), None, "{text}");
        }
    }

    #[test]
    fn urls_are_a_scheme_and_an_address() {
        let url = Url::parse(" https://10.0.0.1:2379/ ").unwrap();
        assert_eq!((url.tls, url.address.as_str()), (true, "10.0.0.1:2379"));
        assert_eq!(url.to_string(), "https://10.0.0.1:2379");
        assert_eq!(Url::parse("http://[::1]:2380").unwrap().address, "[::1]:2380");
        let bad = [
            ("10.0.0.1:2379", "does not begin"),
            ("ftp://a:1", "instead of"),
            ("unix://a:1", "Unix socket"),
            ("http://a", "no port"),
            ("http://a:1/x", "has a path"),
            ("http://:1", "no host"),
            ("", "does not begin"),
        ];
        for (text, part) in bad {
            let wrong = Url::parse(text).unwrap_err();
            assert!(wrong.contains(part), "{text}: {wrong}");
        }
    }
}
