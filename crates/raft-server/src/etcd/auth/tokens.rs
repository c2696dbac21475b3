//! Tokens: what a client shows instead of its password.
//!
//! A token says for whom it was made and when, and carries a seal that only somebody who knows the cluster's token
//! secret can make. Every member knows it, so every member takes the tokens of every other, also after a restart, and
//! logging in writes nothing into the log. The secret is drawn when authentication is enabled.
//!
//! ```text
//! base64 of:  version u8 = 1 | made, milliseconds since 1970 u64 | user's since u64 | user … | HMAC-SHA-256 of all before, 32 bytes
//! ```
//!
//! A token is good for five minutes, unless the configuration says otherwise, after it was made or, as far as the member knows that is asked, last used. That
//! rests on the members' clocks: with one that is ahead by five minutes, tokens of the others are void there. It is
//! void at once when its user is deleted or gets another password, or authentication is disabled.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use crossbeam_skiplist::SkipMap;
use hmac::{Hmac, KeyInit as _, Mac as _};
use raft_kv::KvError;
use raft_kv::auth::AuthState;
use sha2::Sha256;

use super::jwt::Jwt;
use crate::config::{TOKEN_TTL, TokenConfig};

/// The uses that are remembered. A token beyond them is good for its first five minutes.
const USES_MAX: usize = 65_536;
/// A use is not worth remembering when the last one is no longer ago than this.
const USE_RESOLUTION_MS: u64 = 1000;
/// After so many new tokens, those that are over are forgotten.
const SWEEP_EVERY: u64 = 1024;

const VERSION: u8 = 1;
const SEAL_BYTES: usize = 32;
/// The version and two numbers.
const FRONT_BYTES: usize = 17;

/// Makes and checks tokens.
pub struct Tokens {
    /// How long a token is good for without being used.
    life: Duration,
    /// In place of ours.
    jwt: Option<Jwt>,
    /// By the seal: when the token was last used, in milliseconds since 1970.
    uses: SkipMap<[u8; SEAL_BYTES], AtomicU64>,
    remembered: AtomicU64,
}

impl Default for Tokens {
    fn default() -> Self {
        Self::new(TOKEN_TTL, None)
    }
}

/// Without anything secret.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("life", &self.life).field("jwt", &self.jwt).finish()
    }
}

impl Tokens {
    /// As configured.
    ///
    /// # Errors
    /// In words: which key is wrong, or what is missing.
    pub fn load(config: &TokenConfig) -> Result<Self, String> {
        match config {
            TokenConfig::Simple(life) => Ok(Self::new(*life, None)),
            TokenConfig::Jwt(jwt) => Ok(Self::new(jwt.ttl, Some(Jwt::load(jwt)?))),
        }
    }

    fn new(life: Duration, jwt: Option<Jwt>) -> Self {
        Self { life, jwt, uses: SkipMap::new(), remembered: AtomicU64::new(0) }
    }

    /// Whether there is a key to make tokens with.
    pub(super) fn are_made_here(&self) -> bool {
        self.jwt.as_ref().is_none_or(Jwt::signs)
    }

    /// A token for a user; `None` when there is no such user, or no secret.
    pub(super) fn issue(&self, user: &str, state: &AuthState, now: SystemTime) -> Option<String> {
        if let Some(jwt) = &self.jwt {
            return jwt.issue(user, state, now);
        }
        let mut token = vec![VERSION];
        token.extend_from_slice(&milliseconds(now).to_be_bytes());
        token.extend_from_slice(&state.user(user)?.since().to_be_bytes());
        token.extend_from_slice(user.as_bytes());
        let seal = seal(state, &token)?.finalize().into_bytes();
        token.extend_from_slice(&seal);
        Some(URL_SAFE_NO_PAD.encode(token))
    }

    /// For whom a token is, with [`User::since`](raft_kv::auth::User::since), which is the present one.
    pub(super) fn verify(
        &self,
        token: &str,
        state: &AuthState,
        now: SystemTime,
    ) -> Result<(String, u64), KvError> {
        let found = match &self.jwt {
            Some(jwt) => jwt.verify(token, state),
            None => self.look_into(token, state, milliseconds(now)),
        };
        found.ok_or(KvError::InvalidAuthToken)
    }

    fn look_into(&self, token: &str, state: &AuthState, now: u64) -> Option<(String, u64)> {
        let token = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (sealed, given) = token.split_last_chunk::<SEAL_BYTES>()?;
        seal(state, sealed)?.verify_slice(given).ok()?;
        let (front, user) = sealed.split_at_checked(FRONT_BYTES)?;
        let (&version, numbers) = front.split_first()?;
        let (made, since) = numbers.split_first_chunk::<8>()?;
        let (made, since) = (u64::from_be_bytes(*made), u64::from_be_bytes(since.try_into().ok()?));
        let user = std::str::from_utf8(user).ok()?;
        if version != VERSION || state.user(user)?.since() != since {
            return None;
        }
        self.is_young(given, made, now).then(|| (user.to_owned(), since))
    }

    /// Whether the token was made or used lately; remembers that it was used now.
    fn is_young(&self, seal: &[u8; SEAL_BYTES], made: u64, now: u64) -> bool {
        let entry = self.uses.get(seal);
        let used = entry.as_ref().map_or(0, |entry| entry.value().load(Ordering::Relaxed));
        if !self.is_within_life(made.max(used), now) {
            return false;
        }
        match entry {
            Some(entry) if now.saturating_sub(used) > USE_RESOLUTION_MS => {
                entry.value().fetch_max(now, Ordering::Relaxed);
            }
            Some(_) => {}
            None => {
                if self.remembered.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1
                {
                    self.sweep(now);
                }
                if self.uses.len() < USES_MAX {
                    self.uses.insert(*seal, AtomicU64::new(now));
                }
            }
        }
        true
    }

    /// Forgets what is over.
    fn sweep(&self, now: u64) {
        for entry in &self.uses {
            if !self.is_within_life(entry.value().load(Ordering::Relaxed), now) {
                entry.remove();
            }
        }
    }

    fn is_within_life(&self, from: u64, now: u64) -> bool {
        u128::from(now.saturating_sub(from)) <= self.life.as_millis()
    }
}

/// What seals and unseals; `None` without a secret.
fn seal(state: &AuthState, sealed: &[u8]) -> Option<Hmac<Sha256>> {
    let secret = state.token_secret();
    if secret.is_empty() || !state.is_enabled() {
        return None;
    }
    // HMAC takes a key of any length.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).ok()?;
    mac.update(b"rusty-raft token");
    mac.update(sealed);
    Some(mac)
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use bytes::Bytes;
    use raft::core::{ApplyContext, EntryId, StateMachine as _};
    use raft_kv::proto::etcdserverpb::{AuthUserDeleteRequest, AuthUserGrantRoleRequest};
    use raft_kv::{Caller, Command, Store};

    use super::*;
    use crate::config::JwtConfig;

    fn apply(store: &mut Store, command: Command) {
        let by = Caller::new("root".into(), u64::MAX);
        let id = ApplyContext::at(EntryId::new(1, 1));
        store.apply(id, command.by(Some(by))).unwrap();
        store.flush();
    }

    fn store() -> Store {
        let mut store = Store::new();
        for user in ["root", "alice"] {
            apply(&mut store, Command::user_add(user.into(), Some("hash".into())));
        }
        apply(
            &mut store,
            Command::user_grant_role(AuthUserGrantRoleRequest {
                user: "root".into(),
                role: "root".into(),
            }),
        );
        apply(&mut store, Command::auth_enable(Bytes::from_static(&[7; 32])));
        store
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    #[test]
    fn every_member_takes_the_tokens_of_every_other_for_five_minutes() {
        let state = store().auth().state();
        let (one, other) = (Tokens::default(), Tokens::default());
        let token = one.issue("alice", &state, at(0)).unwrap();
        for tokens in [&one, &other] {
            let (user, since) = tokens.verify(&token, &state, at(300)).unwrap();
            assert_eq!((user.as_str(), since), ("alice", state.user("alice").unwrap().since()));
        }
        let late = Tokens::default();
        assert_eq!(late.verify(&token, &state, at(301)), Err(KvError::InvalidAuthToken));
        assert!(one.issue("nobody", &state, at(0)).is_none());
    }

    #[test]
    fn use_keeps_a_token_alive_where_it_is_used() {
        let state = store().auth().state();
        let tokens = Tokens::default();
        let token = tokens.issue("alice", &state, at(0)).unwrap();
        for seconds in (0..3000).step_by(250) {
            assert!(tokens.verify(&token, &state, at(seconds)).is_ok(), "{seconds}");
        }
        assert!(tokens.verify(&token, &state, at(2750 + 300)).is_ok());
        assert!(tokens.verify(&token, &state, at(3050 + 301)).is_err());
        assert!(Tokens::default().verify(&token, &state, at(2750)).is_err());
    }

    #[test]
    fn a_token_lives_as_long_as_it_is_configured_to() {
        let state = store().auth().state();
        let tokens = Tokens::load(&TokenConfig::Simple(Duration::from_secs(2))).unwrap();
        let token = tokens.issue("alice", &state, at(0)).unwrap();
        for (seconds, is_good) in [(2, true), (4, true), (7, false)] {
            assert_eq!(tokens.verify(&token, &state, at(seconds)).is_ok(), is_good, "{seconds}");
        }
    }

    /// Keys that stand for nothing but these tests.
    fn key(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/etcd/auth/test_keys").join(name)
    }

    fn jwt(method: &str, public: Option<&Path>, private: Option<&Path>) -> Result<Tokens, String> {
        Tokens::load(&TokenConfig::Jwt(JwtConfig {
            method: method.to_owned(),
            public_key: public.map(Path::to_owned),
            private_key: private.map(Path::to_owned),
            ttl: Duration::from_secs(60),
        }))
    }

    fn pair(method: &str, name: &str) -> Tokens {
        let (public, private) = (key(&format!("{name}.pub.pem")), key(&format!("{name}.pem")));
        jwt(method, Some(&public), Some(&private)).unwrap()
    }

    #[test]
    fn a_jwt_is_taken_by_whoever_has_the_key_until_it_is_over() {
        let state = store().auth().state();
        let since = state.user("alice").unwrap().since();
        let now = SystemTime::now();
        // Whoever takes the key that everybody may know for a secret.
        let forger = jwt("HS256", None, Some(&key("rsa.pub.pem"))).unwrap();
        for (method, name) in
            [("RS256", "rsa"), ("RS512", "rsa"), ("PS384", "rsa"), ("ES256", "ec"), ("EdDSA", "ed")]
        {
            let tokens = pair(method, name);
            assert!(tokens.issue("nobody", &state, now).is_none());
            let token = tokens.issue("alice", &state, now).unwrap();
            assert_eq!(
                tokens.verify(&token, &state, now),
                Ok(("alice".to_owned(), since)),
                "{method}"
            );
            let forged = forger.issue("alice", &state, now).unwrap();
            let old = tokens.issue("alice", &state, now - Duration::from_secs(62)).unwrap();
            let unsigned = format!("{}.", token.rsplit_once('.').unwrap().0);
            for bad in [forged, old, unsigned, token[..token.len() - 4].to_owned()] {
                let refused = tokens.verify(&bad, &state, now);
                assert_eq!(refused, Err(KvError::InvalidAuthToken), "{method} {bad}");
            }
            // With the key that checks alone, tokens are taken and not made.
            let checks = jwt(method, Some(&key(&format!("{name}.pub.pem"))), None).unwrap();
            assert!(!checks.are_made_here() && checks.issue("alice", &state, now).is_none());
            assert!(checks.verify(&token, &state, now).is_ok());
        }
        let (one, other) = (forger, jwt("HS512", None, Some(&key("rsa.pub.pem"))).unwrap());
        let token = one.issue("alice", &state, now).unwrap();
        assert!(one.verify(&token, &state, now).is_ok());
        assert!(other.verify(&token, &state, now).is_err(), "another method, the same secret");
    }

    #[test]
    fn a_jwt_ends_with_its_user_and_its_password_and_with_nothing_else() {
        let mut users = store();
        let (tokens, now) = (pair("EdDSA", "ed"), SystemTime::now());
        let token = tokens.issue("alice", &users.auth().state(), now).unwrap();
        let role = raft_kv::proto::etcdserverpb::AuthRoleAddRequest { name: "r".into() };
        apply(&mut users, Command::role_add(role));
        assert!(tokens.verify(&token, &users.auth().state(), now).is_ok());
        apply(&mut users, Command::user_change_password("alice".into(), "other".into()));
        assert!(tokens.verify(&token, &users.auth().state(), now).is_err());
    }

    #[test]
    fn keys_that_are_none_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let (public, private) = (key("ed.pub.pem"), key("ed.pem"));
        let (junk, empty) = (file("junk", "no key"), file("empty", ""));
        let (missing, stranger) = (folder.path().join("missing"), key("stranger.pub.pem"));
        for (method, public, private, part) in [
            ("ES999", Some(&public), Some(&private), "no sign-method \"ES999\""),
            ("none", Some(&public), Some(&private), "no sign-method"),
            ("HS256", None, None, "needs priv-key"),
            ("HS256", None, Some(&empty), "needs priv-key"),
            ("RS256", None, Some(&private), "needs pub-key"),
            ("RS256", Some(&junk), None, "junk holds no key for RS256"),
            ("EdDSA", Some(&public), Some(&junk), "junk holds no key for EdDSA"),
            ("EdDSA", Some(&missing), None, "missing: "),
            ("EdDSA", Some(&stranger), Some(&private), "no pair"),
        ] {
            let refused = jwt(method, public.map(AsRef::as_ref), private.map(AsRef::as_ref));
            let error = refused.unwrap_err();
            assert!(error.contains(part), "{method}: {error}");
        }
    }

    #[test]
    fn nothing_in_a_token_can_be_changed() {
        let state = store().auth().state();
        let tokens = Tokens::default();
        let token = tokens.issue("alice", &state, at(0)).unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for place in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[place] ^= 1;
            let changed = URL_SAFE_NO_PAD.encode(changed);
            assert!(tokens.verify(&changed, &state, at(0)).is_err(), "byte {place}");
        }
        for junk in ["", "?", "a", "AAAA", "abcdefghijklmnop.42", &token[..token.len() - 2]] {
            assert_eq!(tokens.verify(junk, &state, at(0)), Err(KvError::InvalidAuthToken));
        }
    }

    #[test]
    fn a_token_ends_with_its_user_its_password_and_with_authentication() {
        let tokens = Tokens::default();
        let token = |store: &Store| tokens.issue("alice", &store.auth().state(), at(0)).unwrap();
        let is_good =
            |store: &Store, token: &str| tokens.verify(token, &store.auth().state(), at(1)).is_ok();
        let mut changed = store();
        let before = token(&changed);
        apply(
            &mut changed,
            Command::role_add(raft_kv::proto::etcdserverpb::AuthRoleAddRequest {
                name: "r".into(),
            }),
        );
        assert!(is_good(&changed, &before), "a role has nothing to do with it");
        apply(&mut changed, Command::user_change_password("alice".into(), "other".into()));
        assert!(!is_good(&changed, &before));

        let mut again = store();
        let before = token(&again);
        apply(&mut again, Command::user_delete(AuthUserDeleteRequest { name: "alice".into() }));
        assert!(!is_good(&again, &before));
        apply(&mut again, Command::user_add("alice".into(), Some("hash".into())));
        assert!(!is_good(&again, &before), "somebody else of the same name");

        let mut disabled = store();
        let before = token(&disabled);
        apply(&mut disabled, Command::auth_disable());
        assert!(!is_good(&disabled, &before));
        apply(&mut disabled, Command::auth_enable(Bytes::from_static(&[8; 32])));
        assert!(!is_good(&disabled, &before), "another secret");
    }

    #[test]
    fn uses_that_are_over_are_forgotten() {
        let state = store().auth().state();
        let tokens = Tokens::default();
        for n in 0..3 * SWEEP_EVERY {
            let now = at(n);
            let token = tokens.issue("alice", &state, now).unwrap();
            assert!(tokens.verify(&token, &state, now).is_ok());
        }
        assert!(tokens.uses.len() < 1400, "{} are remembered", tokens.uses.len());
    }
}
