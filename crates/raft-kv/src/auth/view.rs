//! Looking at users and roles beside the apply thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use atomic_waker::AtomicWaker;

use super::AuthState;

/// What the store has published.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// See [`AuthState::epoch`]. Written after `state`, so that whoever sees an epoch finds a state that is at least
    /// as new.
    epoch: AtomicU64,
    state: ArcSwap<AuthState>,
    waker: AtomicWaker,
}

impl Published {
    /// To be called before what was written under these permissions is published.
    pub(crate) fn publish(&self, state: &Arc<AuthState>) {
        self.state.store(Arc::clone(state));
        self.epoch.store(state.epoch(), Ordering::Release);
        self.waker.wake();
    }
}

/// Looks at users and roles from any thread, without a lock.
#[derive(Clone, Debug)]
pub struct AuthView {
    published: Arc<Published>,
}

impl AuthView {
    pub(crate) const fn new(published: Arc<Published>) -> Self {
        Self { published }
    }

    /// 0 while permissions are not demanded, else the auth revision: all that a request costs while
    /// authentication is off. An epoch that is the same before and after a read of keys was in force all the while.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.published.epoch.load(Ordering::Acquire)
    }

    /// Users and roles as they are now: at least as new as the epoch that was seen before.
    #[must_use]
    pub fn state(&self) -> Arc<AuthState> {
        self.published.state.load_full()
    }
}

/// Wakes one task when users, roles or permissions have changed. Made by
/// [`Store::auth_changes`](crate::Store::auth_changes).
#[derive(Debug)]
pub struct AuthChanges {
    view: AuthView,
    seen: u64,
}

impl AuthChanges {
    pub(crate) fn new(view: AuthView) -> Self {
        let seen = view.epoch();
        Self { view, seen }
    }

    /// Ready with the new [`epoch`](AuthView::epoch) once it is another than the last one that this returned.
    pub fn poll(&mut self, context: &Context<'_>) -> Poll<u64> {
        // Registered before looking, so that nothing slips between.
        self.view.published.waker.register(context.waker());
        let epoch = self.view.epoch();
        if epoch == self.seen {
            return Poll::Pending;
        }
        self.seen = epoch;
        Poll::Ready(epoch)
    }
}
