//! How many connections may be in their first moments at once (decision 26).
//!
//! A connection counts until it has said something sensible: a whole HTTP/2 preface, the head of an HTTP/1
//! request, or the first byte of the peer protocol, whose handshake the transport limits by itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections that have not introduced themselves, from everywhere.
const PENDING_MAX: usize = 1000;
/// Connections that have not introduced themselves, from one address.
const PENDING_PER_ADDRESS_MAX: usize = 64;

/// Counts connections that have not introduced themselves. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Admission {
    pending: Arc<Mutex<Pending>>,
}

#[derive(Debug, Default)]
struct Pending {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Ticket {
    admission: Admission,
    address: IpAddr,
}

impl Admission {
    /// A place for a connection from `address`; `None` when there are too many.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Ticket> {
        let mut pending = self.lock();
        if pending.total >= PENDING_MAX {
            return None;
        }
        let from_here = pending.by_address.entry(address).or_default();
        if *from_here >= PENDING_PER_ADDRESS_MAX {
            return None;
        }
        *from_here += 1;
        pending.total += 1;
        Some(Ticket { admission: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        // Two counters are right at every moment at which a panic could poison them.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut pending = self.admission.lock();
        pending.total -= 1;
        if let Some(from_here) = pending.by_address.get_mut(&self.address) {
            *from_here -= 1;
            if *from_here == 0 {
                pending.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn one_address_cannot_take_all_places_and_gives_them_back() {
        let admission = Admission::default();
        let here = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        let tickets: Vec<Ticket> = std::iter::from_fn(|| admission.enter(here)).collect();
        assert_eq!(tickets.len(), PENDING_PER_ADDRESS_MAX);
        let others: Vec<Ticket> = (0..=u16::MAX)
            .filter_map(|n| admission.enter(IpAddr::V4(Ipv4Addr::from(0x0b00_0000 + u32::from(n)))))
            .collect();
        assert_eq!(tickets.len() + others.len(), PENDING_MAX);
        drop(tickets);
        assert!(admission.enter(here).is_some());
        drop(others);
        assert_eq!(admission.lock().total, 0);
        assert!(admission.lock().by_address.is_empty());
    }
}
