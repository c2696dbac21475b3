//! Passwords: hashed and compared on threads that may take their time, a few at a time.
//!
//! One bcrypt takes tens of milliseconds of a processor. So only so many run at once, only so many wait, and
//! everything else goes on.

use std::num::NonZero;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tonic::Status;

use crate::etcd::errors;

/// etcd's default, and that of Go's bcrypt.
const COST: u32 = 10;
/// What may be asked of a hash that was made elsewhere: each step takes twice as long.
const COST_MAX: u32 = 14;
/// bcrypt looks no further.
const PASSWORD_BYTES_MAX: usize = 72;
/// Those who wait for their turn; with more, clients are told to come back.
const WAITING_MAX: usize = 256;
/// Compared with when there is no user of a name, so that it takes as long: of no password that anybody knows.
const NOBODYS: &str = "$2a$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";

/// Turns.
pub(super) struct Passwords {
    running: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Default for Passwords {
    /// Half of the processors are for everything else.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            running: Arc::new(Semaphore::new((processors / 2).max(1))),
            waiting: Semaphore::new(WAITING_MAX),
        }
    }
}

impl Passwords {
    /// The hash of a password, in the form that etcd and Go write.
    pub(super) async fn hash(&self, password: String) -> Result<Bytes, Status> {
        if password.len() > PASSWORD_BYTES_MAX {
            // In the words of Go's library, as etcd lets them through.
            return Err(Status::unknown("bcrypt: password length exceeds 72 bytes"));
        }
        let hashed = self.run(move || bcrypt::hash_with_result(password, COST)).await?;
        match hashed {
            Ok(parts) => Ok(parts.format_for_version(bcrypt::Version::TwoA).into()),
            Err(error) => Err(Status::internal(format!("etcdserver: no hash: {error}"))),
        }
    }

    /// Whether the password is the one of the hash. Takes as long without a hash.
    pub(super) async fn is_right(
        &self,
        password: String,
        hash: Option<Bytes>,
    ) -> Result<bool, Status> {
        self.run(move || {
            let known = hash.as_deref().and_then(|hash| std::str::from_utf8(hash).ok());
            let is_right = bcrypt::verify(password, known.unwrap_or(NOBODYS));
            // A hash of another form is nobody's.
            known.is_some() && is_right.unwrap_or(false)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let _place = self.waiting.try_acquire().map_err(|_| errors::overloaded())?;
        // It is never closed. The work keeps its turn when nobody waits for it any more.
        let turn = Arc::clone(&self.running).acquire_owned().await;
        let work = spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        work.await.map_err(|error| Status::internal(format!("etcdserver: {error}")))
    }
}

/// A hash that was made elsewhere, if it is one.
pub(super) fn foreign_hash(text: &str) -> Option<Bytes> {
    let parts: bcrypt::HashParts = text.parse().ok()?;
    (parts.get_cost() <= COST_MAX).then(|| Bytes::copy_from_slice(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those that every implementation of bcrypt is tested with.
    #[test]
    fn hashes_of_other_programs_are_understood() {
        for (password, hash) in [
            ("", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy"),
            ("U*U*", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK"),
            ("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
        ] {
            assert!(bcrypt::verify(password, hash).unwrap(), "{password:?}");
            assert!(!bcrypt::verify("other", hash).unwrap());
        }
        assert!(foreign_hash(NOBODYS).is_some());
        assert!(foreign_hash(&NOBODYS.replace("$10$", "$31$")).is_none(), "years of work");
        assert!(foreign_hash("hunter2").is_none());
        assert!(foreign_hash("").is_none());
    }

    #[tokio::test]
    async fn a_password_fits_its_own_hash_only() {
        let passwords = Passwords::default();
        let hash = passwords.hash("pass".into()).await.unwrap();
        assert!(hash.starts_with(b"$2a$10$"), "{hash:?}");
        assert!(passwords.is_right("pass".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.is_right("Pass".into(), Some(hash)).await.unwrap());
        assert!(!passwords.is_right("pass".into(), None).await.unwrap());
        assert!(!passwords.is_right("pass".into(), Some("junk".into())).await.unwrap());
        let long = passwords.hash("x".repeat(73)).await.unwrap_err();
        assert_eq!(long.code(), tonic::Code::Unknown);
        assert_eq!(long.message(), "bcrypt: password length exceeds 72 bytes");
    }

    #[tokio::test]
    async fn so_many_wait_and_no_more() {
        let passwords = Passwords::default();
        let all = passwords.waiting.acquire_many(u32::try_from(WAITING_MAX).unwrap()).await;
        let refused = passwords.is_right("pass".into(), None).await.unwrap_err();
        assert_eq!(refused.message(), "etcdserver: too many requests");
        drop(all);
        assert!(passwords.is_right("pass".into(), None).await.is_ok());
    }
}
