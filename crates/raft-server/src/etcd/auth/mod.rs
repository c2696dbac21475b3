//! Auth: who asks, and may they? Every request passes [`Etcd::admit`] before anybody looks at it.
//!
//! What a request needs is said by its type ([`Governed`]); whether the caller has it is decided by
//! [`raft_kv::auth`], here with what this member knows and, for whatever goes through the log, again when it is
//! applied. A refusal is not given out before this member has heard everything that was agreed: it may know old
//! permissions only. A read is given out only if the permissions were the same before and after it.
//!
//! The message of a [`Request`] is to be had from [`Etcd::admit`] only; a lint refuses other ways (clippy.toml). So a
//! new kind of request does not compile before it is said what it needs, and then not before that is decided about.
//! While authentication is off, all of this costs one atomic load for each request.

mod jwt;
mod passwords;
mod rpcs;
mod service;
mod tokens;

use std::sync::Arc;
use std::time::SystemTime;

use raft_kv::auth::{Access, AuthChanges, AuthState, AuthView};
use raft_kv::{Caller, KvError};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use self::passwords::Passwords;
pub(in crate::etcd) use self::rpcs::{Governed, GovernedStream, Reach};
pub use self::tokens::Tokens;
use super::{Etcd, errors};
use crate::tls::CommonName;

/// What the services know of users, and what proves who somebody is.
pub(super) struct Auth {
    view: AuthView,
    tokens: Tokens,
    passwords: Passwords,
    /// The epoch, whenever it changes.
    changes: watch::Receiver<u64>,
}

/// Somebody whose request was let in.
#[derive(Clone, Debug, Default)]
pub(super) struct Admission {
    token: Option<Arc<str>>,
    /// The name in the caller's certificate, where that says who it is.
    name: Option<Arc<str>>,
    /// Who it is; nobody while authentication is off, or when it does not matter.
    caller: Option<Caller>,
    /// See [`AuthView::epoch`]: the one under which this was decided.
    epoch: u64,
}

impl Admission {
    /// Whose command or question it is.
    pub(super) fn caller(&self) -> Option<Caller> {
        self.caller.clone()
    }
}

impl Auth {
    /// Publishes changes to `epochs` until nobody listens. Made apart, since it is a task.
    pub(super) fn new(view: AuthView, tokens: Tokens) -> (Self, watch::Sender<u64>) {
        let (epochs, changes) = watch::channel(view.epoch());
        let auth = Self { view, tokens, passwords: Passwords::default(), changes };
        (auth, epochs)
    }

    /// The users and roles as this member knows them.
    pub(super) fn state(&self) -> Arc<AuthState> {
        self.view.state()
    }

    /// See [`AuthView::epoch`].
    pub(super) fn epoch(&self) -> u64 {
        self.view.epoch()
    }

    /// The epoch, whenever it changes.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }

    /// Whether a token of the metadata is one, with what this member knows: the user and what
    /// [`User::since`](raft_kv::auth::User::since) is.
    pub(super) fn client(
        &self,
        admission: &Admission,
        state: &AuthState,
    ) -> Result<Option<(String, u64)>, KvError> {
        let Some(token) = &admission.token else {
            // Whoever holds a certificate is whoever bears its name now, after a new password, too.
            let since = |name: &str| state.user(name).map_or(0, |user| user.since());
            return Ok(admission.name.as_deref().map(|name| (name.to_owned(), since(name))));
        };
        let (user, since) = self.tokens.verify(token, state, SystemTime::now())?;
        Ok(Some((user, since)))
    }

    /// Decides, with what this member knows.
    pub(super) fn decide(
        &self,
        admission: &mut Admission,
        access: &Access<'_>,
    ) -> Result<(), KvError> {
        self.decide_with(admission, access).map(drop)
    }

    /// As [`decide`](Self::decide); the state that it was decided with.
    fn decide_with(
        &self,
        admission: &mut Admission,
        access: &Access<'_>,
    ) -> Result<Arc<AuthState>, KvError> {
        let state = self.view.state();
        admission.epoch = state.epoch();
        admission.caller = None;
        let nobody = state.authorize(None, access);
        if nobody.is_err() && (admission.token.is_some() || admission.name.is_some()) {
            let client = self.client(admission, &state)?;
            admission.caller = client.map(|(user, _)| Caller::new(user, state.revision()));
            state.authorize(admission.caller.as_ref(), access)?;
        } else {
            nobody?;
        }
        Ok(state)
    }

    /// Decides again, if anything has changed since this was decided.
    pub(super) fn decide_again(
        &self,
        admission: &mut Admission,
        access: &Access<'_>,
    ) -> Result<(), Status> {
        if self.is_current(admission) {
            return Ok(());
        }
        self.decide(admission, access).map_err(errors::of_kv)
    }

    /// Whether nothing has changed since this was decided.
    pub(super) fn is_current(&self, admission: &Admission) -> bool {
        self.view.epoch() == admission.epoch
    }
}

/// Tells `epochs` of every change until nobody listens any more.
pub(super) async fn run_changes(mut changes: AuthChanges, epochs: watch::Sender<u64>) {
    loop {
        tokio::select! {
            epoch = std::future::poll_fn(|context| changes.poll(context)) => {
                epochs.send_replace(epoch);
            }
            () = epochs.closed() => return,
        }
    }
}

/// The token of a request, where etcd's clients put it.
fn token(metadata: &MetadataMap) -> Option<Arc<str>> {
    let value = metadata.get("token").or_else(|| metadata.get("authorization"))?;
    // What is no text is no token of ours, and refused like one.
    Some(value.to_str().unwrap_or("?").into())
}

impl Etcd {
    /// Lets a request in, or refuses it: its metadata, what makes no sense in it, whoever asks. The message comes with
    /// who asks, for what is done in their name.
    pub(super) async fn admit<T: Governed>(
        &self,
        request: Request<T>,
    ) -> Result<(T, Admission), Status> {
        let admission = self.inspect(&request).await?;
        #[expect(clippy::disallowed_methods, reason = "this is where requests are let in")]
        Ok((request.into_inner(), admission))
    }

    /// As [`admit`](Self::admit), for whoever needs the rest of the request, too.
    pub(super) async fn inspect<T: Governed>(
        &self,
        request: &Request<T>,
    ) -> Result<Admission, Status> {
        #[expect(clippy::disallowed_methods, reason = "this is where requests are let in")]
        let message = request.get_ref();
        let reach = message.reach();
        match reach {
            Reach::Local => self.check_metadata(request)?,
            Reach::Cluster | Reach::Agreed => self.check_voter(request)?,
        }
        message.check(self.settings.txn_ops_max).map_err(errors::of_kv)?;
        if matches!(reach, Reach::Agreed) {
            self.linearize().await?;
        }
        let mut admission = self.introduce(request);
        if self.auth.epoch() != 0 {
            self.permit(&mut admission, &message.access(), reach).await?;
        }
        Ok(admission)
    }

    /// Whoever asks, as it says.
    fn introduce<T>(&self, request: &Request<T>) -> Admission {
        let token = token(request.metadata());
        let name = if self.settings.certificates_name_users && token.is_none() {
            request.extensions().get::<CommonName>().map(|name| Arc::clone(&name.0))
        } else {
            None
        };
        Admission { token, name, ..Admission::default() }
    }

    /// Lets a stream in. What is asked in it is to be decided about one by one.
    pub(super) fn admit_stream<T: GovernedStream>(
        &self,
        request: Request<T>,
    ) -> Result<(T, Admission), Status> {
        self.check_voter(&request)?;
        let mut admission = self.introduce(&request);
        self.auth.decide(&mut admission, &T::ACCESS).map_err(errors::of_kv)?;
        #[expect(clippy::disallowed_methods, reason = "this is where requests are let in")]
        Ok((request.into_inner(), admission))
    }

    /// Decides about something else that whoever was let in wants.
    pub(super) async fn admit_more(
        &self,
        admission: &mut Admission,
        access: &Access<'_>,
    ) -> Result<(), Status> {
        if self.auth.epoch() == 0 && admission.epoch == 0 {
            return Ok(());
        }
        self.permit(admission, access, Reach::Cluster).await
    }

    async fn permit(
        &self,
        admission: &mut Admission,
        access: &Access<'_>,
        reach: Reach,
    ) -> Result<(), Status> {
        let Err(refusal) = self.auth.decide(admission, access) else {
            return Ok(());
        };
        if matches!(reach, Reach::Local | Reach::Agreed) {
            return Err(errors::of_kv(refusal));
        }
        // What this member knows may be old.
        self.linearize().await?;
        self.auth.decide(admission, access).map_err(errors::of_kv)
    }
}
