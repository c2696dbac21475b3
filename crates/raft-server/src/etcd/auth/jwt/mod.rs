//! JSON Web Tokens (RFC 7519), as etcd makes and takes them: whoever has the key that signs can make them, every member
//! with the key that checks takes them, and nothing about them is stored.
//!
//! ```text
//! {"username": …, "revision": the auth revision when it was made, "exp": seconds since 1970}
//! ```
//!
//! etcd refuses a token once anything about users and roles was changed after it was made. Here it ends only when its
//! user was deleted, made anew or got another password since.

mod ring;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, EncodingKey, Header, Validation};
use raft_kv::auth::AuthState;
use serde::{Deserialize, Serialize};

use crate::config::JwtConfig;

/// Bytes of a file with a key at most.
const KEY_BYTES_MAX: u64 = 1 << 20;

/// What is said in a token.
#[derive(Serialize, Deserialize)]
struct Claims {
    username: String,
    revision: u64,
    exp: u64,
}

/// The keys, and what is done with them.
pub(super) struct Jwt {
    header: Header,
    sign: Option<EncodingKey>,
    check: DecodingKey,
    rules: Validation,
    life: Duration,
}

/// Without the keys.
impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Jwt({:?})", self.header.alg)
    }
}

impl Jwt {
    /// Reads the keys.
    ///
    /// # Errors
    /// In words: which file is wrong, or what is missing.
    pub(super) fn load(config: &JwtConfig) -> Result<Self, String> {
        ring::install();
        let method = &config.method;
        let algorithm = Algorithm::from_str(method)
            .map_err(|_| format!("there is no sign-method {method:?} here; RS256, PS256, ES256, EdDSA and HS256 are some"))?;
        let private = config.private_key.as_deref().map(read).transpose()?;
        let public = config.public_key.as_deref().map(read).transpose()?;
        let of_file = |path: &Option<PathBuf>, error: jsonwebtoken::errors::Error| {
            let path = path.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
            format!("{path} holds no key for {method}: {error}")
        };
        let (sign, check) = if algorithm.family() == AlgorithmFamily::Hmac {
            // One secret for both; etcd takes it from either option.
            let secret = private.or(public).filter(|secret| !secret.is_empty());
            let secret =
                secret.ok_or_else(|| format!("{method} needs priv-key: a file with the secret"))?;
            (Some(EncodingKey::from_secret(&secret)), DecodingKey::from_secret(&secret))
        } else {
            let public = public.ok_or_else(|| {
                format!("{method} needs pub-key: a file with the key that checks")
            })?;
            let signs = |key: Vec<u8>| match algorithm.family() {
                AlgorithmFamily::Rsa => EncodingKey::from_rsa_pem(&key),
                AlgorithmFamily::Ec => EncodingKey::from_ec_pem(&key),
                AlgorithmFamily::Ed | AlgorithmFamily::Hmac => EncodingKey::from_ed_pem(&key),
            };
            let check = match algorithm.family() {
                AlgorithmFamily::Rsa => DecodingKey::from_rsa_pem(&public),
                AlgorithmFamily::Ec => DecodingKey::from_ec_pem(&public),
                AlgorithmFamily::Ed | AlgorithmFamily::Hmac => DecodingKey::from_ed_pem(&public),
            };
            let sign = private.map(signs).transpose();
            let sign = sign.map_err(|error| of_file(&config.private_key, error))?;
            (sign, check.map_err(|error| of_file(&config.public_key, error))?)
        };
        let mut rules = Validation::new(algorithm);
        rules.leeway = 0;
        rules.validate_aud = false;
        let jwt = Self { header: Header::new(algorithm), sign, check, rules, life: config.ttl };
        jwt.try_keys()?;
        Ok(jwt)
    }

    /// What one key signs the other one must take.
    fn try_keys(&self) -> Result<(), String> {
        if self.sign.is_none() {
            return Ok(());
        }
        let token = self.sign("nobody", 0, SystemTime::now());
        let token = token.ok_or("priv-key does not sign with this sign-method")?;
        self.read(&token).map(drop).ok_or_else(|| "pub-key and priv-key are no pair".to_owned())
    }

    /// Whether tokens are made here; else they are only checked.
    pub(super) const fn signs(&self) -> bool {
        self.sign.is_some()
    }

    /// A token for a user; `None` when there is no such user, or nothing to sign with.
    pub(super) fn issue(&self, user: &str, state: &AuthState, now: SystemTime) -> Option<String> {
        state.user(user).filter(|_| state.is_enabled())?;
        self.sign(user, state.revision(), now)
    }

    fn sign(&self, user: &str, revision: u64, now: SystemTime) -> Option<String> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let exp = now.saturating_add(self.life).as_secs();
        let claims = Claims { username: user.to_owned(), revision, exp };
        jsonwebtoken::encode(&self.header, &claims, self.sign.as_ref()?).ok()
    }

    fn read(&self, token: &str) -> Option<Claims> {
        let read = jsonwebtoken::decode::<Claims>(token, &self.check, &self.rules);
        read.map(|token| token.claims).ok()
    }

    /// For whom a token is, with [`User::since`](raft_kv::auth::User::since), if it is one and its time is not over.
    pub(super) fn verify(&self, token: &str, state: &AuthState) -> Option<(String, u64)> {
        let claims = self.read(token)?;
        let since = state.user(&claims.username).filter(|_| state.is_enabled())?.since();
        (claims.revision >= since).then_some((claims.username, since))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let wrong = |reason: &dyn fmt::Display| format!("{}: {reason}", path.display());
    let size = std::fs::metadata(path).map_err(|error| wrong(&error))?.len();
    if size > KEY_BYTES_MAX {
        return Err(wrong(&"too large for a key"));
    }
    std::fs::read(path).map_err(|error| wrong(&error))
}
