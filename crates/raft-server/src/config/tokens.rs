//! How clients prove who they are once authenticated: etcd's `--auth-token` and `--auth-token-ttl`, word for word.
//!
//! ```text
//! simple
//! jwt,sign-method=RS256,pub-key=public.pem,priv-key=private.pem,ttl=10m
//! ```

use std::path::PathBuf;
use std::time::Duration;

use super::etcd::values::duration;

/// How long a token is good for if nothing else is said, as in etcd.
pub const TOKEN_TTL: Duration = Duration::from_secs(300);
/// `auth_token_ttl` at most: a year.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// How tokens are made and checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TokenConfig {
    /// Sealed with a secret that the cluster draws; for so long without being used.
    Simple(Duration),
    /// JSON Web Tokens.
    Jwt(JwtConfig),
}

impl Default for TokenConfig {
    fn default() -> Self {
        Self::Simple(TOKEN_TTL)
    }
}

/// JSON Web Tokens, whose keys are in files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JwtConfig {
    /// The name of the method: RS256, HS512, …
    pub method: String,
    /// The key that checks; for methods with a pair of keys.
    pub public_key: Option<PathBuf>,
    /// The key that signs. Without it tokens come from somewhere else.
    pub private_key: Option<PathBuf>,
    /// How long a token is good for after it was made.
    pub ttl: Duration,
}

impl TokenConfig {
    /// Reads what `--auth-token` takes; `ttl` is what `--auth-token-ttl` says, which is for simple ones.
    ///
    /// # Errors
    /// In words: what is wrong.
    pub fn parse(text: &str, ttl: Duration) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        match parts.next() {
            Some("simple") => match parts.next() {
                None => Ok(Self::Simple(ttl)),
                Some(option) => Err(format!("simple tokens have no option {option:?}")),
            },
            Some("jwt") => JwtConfig::of(parts).map(Self::Jwt),
            other => Err(format!("{:?} is no kind of token", other.unwrap_or_default())),
        }
    }
}

impl JwtConfig {
    fn of<'a>(options: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let mut jwt =
            Self { method: String::new(), public_key: None, private_key: None, ttl: TOKEN_TTL };
        for option in options {
            let (name, value) =
                option.split_once('=').ok_or_else(|| format!("{option:?} has no value"))?;
            match name {
                "sign-method" => jwt.method = value.to_owned(),
                "pub-key" => jwt.public_key = Some(value.into()),
                "priv-key" => jwt.private_key = Some(value.into()),
                "ttl" => {
                    let ttl = duration(value).filter(|ttl| !ttl.is_zero() && *ttl <= TTL_MAX);
                    jwt.ttl = ttl.ok_or_else(|| {
                        format!("{value:?} is no time from a second to a year, like 90s or 1h30m")
                    })?;
                }
                _ => return Err(format!("jwt has no option {name:?}")),
            }
        }
        if jwt.method.is_empty() {
            return Err("jwt needs a sign-method".to_owned());
        }
        Ok(jwt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<TokenConfig, String> {
        TokenConfig::parse(text, Duration::from_secs(2))
    }

    #[test]
    fn etcds_own_examples_are_understood() {
        assert_eq!(parsed("simple"), Ok(TokenConfig::Simple(Duration::from_secs(2))));
        let text = "jwt,pub-key=app.rsa.pub,priv-key=app.rsa,sign-method=RS512,ttl=10m";
        let jwt = JwtConfig {
            method: "RS512".to_owned(),
            public_key: Some("app.rsa.pub".into()),
            private_key: Some("app.rsa".into()),
            ttl: Duration::from_secs(600),
        };
        assert_eq!(parsed(text), Ok(TokenConfig::Jwt(jwt)));
    }

    #[test]
    fn whatever_else_is_refused_by_name() {
        for (text, part) in [
            ("", "no kind of token"),
            ("token", "no kind of token"),
            ("simple,ttl=3s", "no option"),
            ("jwt", "sign-method"),
            ("jwt,sign-method", "no value"),
            ("jwt,sign-method=RS256,key=a", "no option \"key\""),
            ("jwt,sign-method=RS256,ttl=5", "no time"),
            ("jwt,sign-method=RS256,ttl=0s", "no time"),
            ("jwt,sign-method=RS256,ttl=9000h", "no time"),
            ("jwt,sign-method=RS256,ttl=-1s", "no time"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
