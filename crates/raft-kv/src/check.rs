//! What is refused before it is proposed: requests that make no sense, whatever the state.

use std::collections::BTreeSet;

use crate::error::KvError;
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp,
    TxnRequest,
};

/// etcd's default for the most operations (and comparisons) of one transaction.
pub const TXN_OPS_MAX: usize = 128;

/// How deep transactions may stand in each other. The outermost is at depth 1.
pub const TXN_DEPTH_MAX: usize = 16;

/// The longest key and value together, in bytes: what surely fits into one blob of a snapshot. The
/// server's limit on requests is lower (1.5 MiB unless configured).
pub const KEY_VALUE_BYTES_MAX: usize = 8 << 20;

/// The longest lease, in seconds, as in etcd.
pub const LEASE_TTL_MAX: i64 = 9_000_000_000;

/// Checks a [`LeaseGrantRequest`].
///
/// # Errors
/// More seconds than [`LEASE_TTL_MAX`].
pub const fn check_lease_grant(request: &LeaseGrantRequest) -> Result<(), KvError> {
    if request.ttl > LEASE_TTL_MAX { Err(KvError::LeaseTtlTooLarge) } else { Ok(()) }
}

/// Checks a [`RangeRequest`].
///
/// # Errors
/// An empty key, an unknown sort order or target.
pub fn check_range(request: &RangeRequest) -> Result<(), KvError> {
    if request.key.is_empty() {
        return Err(KvError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err()
        || SortTarget::try_from(request.sort_target).is_err()
    {
        return Err(KvError::InvalidSortOption);
    }
    Ok(())
}

/// Checks a [`PutRequest`].
///
/// # Errors
/// An empty key, a value or lease together with the wish to keep the present one, a request that is too large.
pub fn check_put(request: &PutRequest) -> Result<(), KvError> {
    if request.key.is_empty() {
        return Err(KvError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(KvError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(KvError::LeaseProvided);
    }
    if request.key.len().saturating_add(request.value.len()) > KEY_VALUE_BYTES_MAX {
        return Err(KvError::RequestTooLarge);
    }
    Ok(())
}

/// Checks a [`DeleteRangeRequest`].
///
/// # Errors
/// An empty key.
pub fn check_delete(request: &DeleteRangeRequest) -> Result<(), KvError> {
    if request.key.is_empty() { Err(KvError::EmptyKey) } else { Ok(()) }
}

/// Checks a [`CompactionRequest`]. There is nothing to find without the state; the function is here so
/// that every request has its gate.
///
/// # Errors
/// None today.
pub const fn check_compact(_request: &CompactionRequest) -> Result<(), KvError> {
    Ok(())
}

/// Checks a [`TxnRequest`] of at most `ops_max` operations ([`TXN_OPS_MAX`] unless configured).
///
/// # Errors
/// What the checks of its operations say; too many operations; a key that is written twice.
pub fn check_txn(request: &TxnRequest, ops_max: usize) -> Result<(), KvError> {
    check_ops(request, ops_max, 1)?;
    // After the check above, so that the work is bounded.
    Writes::of(&request.success)?;
    Writes::of(&request.failure)?;
    Ok(())
}

/// The largest of the three lists of a transaction counts, and what it leaves is what every nested
/// transaction gets.
fn check_ops(request: &TxnRequest, ops_max: usize, depth: usize) -> Result<(), KvError> {
    let used = request.compare.len().max(request.success.len()).max(request.failure.len());
    let Some(left) = ops_max.checked_sub(used) else {
        return Err(KvError::TooManyOps);
    };
    if depth > TXN_DEPTH_MAX {
        return Err(KvError::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(KvError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(range)) => check_range(range)?,
            Some(Request::RequestPut(put)) => check_put(put)?,
            Some(Request::RequestDeleteRange(delete)) => check_delete(delete)?,
            Some(Request::RequestTxn(txn)) => check_ops(txn, left, depth + 1)?,
            // etcd's word for an operation of no kind.
            None => return Err(KvError::KeyNotFound),
        }
    }
    Ok(())
}

/// The keys that a list of operations may write.
#[derive(Default)]
struct Writes<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: Vec<&'a DeleteRangeRequest>,
}

impl<'a> Writes<'a> {
    /// Collects the writes of a list, or finds a key that is put twice or put and deleted.
    ///
    /// In etcd's order, which decides: the deletes of this list, then its nested transactions one by one
    /// (so a put in one and a delete in a *later* one pass), then its puts. Both branches of a nested
    /// transaction may put the same key, since only one of them runs. Deletes may overlap.
    fn of(ops: &'a [RequestOp]) -> Result<Self, KvError> {
        let mut writes = Self::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                writes.deletes.push(delete);
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                let success = Self::of(&txn.success)?;
                let failure = Self::of(&txn.failure)?;
                let puts: BTreeSet<&[u8]> = success.puts.union(&failure.puts).copied().collect();
                for put in puts {
                    writes.add_put(put)?;
                }
                writes.deletes.extend(success.deletes);
                writes.deletes.extend(failure.deletes);
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                writes.add_put(&put.key)?;
            }
        }
        Ok(writes)
    }

    fn add_put(&mut self, key: &'a [u8]) -> Result<(), KvError> {
        let deleted = self.deletes.iter().any(|delete| deletes(delete, key));
        if deleted || !self.puts.insert(key) { Err(KvError::DuplicateKey) } else { Ok(()) }
    }
}

/// Whether etcd's check takes `key` for deleted. Its check reads the range end as it stands: in "every key
/// from `key` on" (a range end of one zero byte), as in an empty range, it sees no key, and so accepts a put beside such
/// a delete.
fn deletes(delete: &DeleteRangeRequest, key: &[u8]) -> bool {
    let (start, end) = (delete.key.as_ref(), delete.range_end.as_ref());
    if end.is_empty() { key == start } else { start <= key && key < end }
}
