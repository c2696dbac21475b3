//! Reading at one revision: ranges and comparisons, as etcd answers them.

use std::cmp::Ordering;
use std::ops::ControlFlow;

use crate::error::KvError;
use crate::key_range::KeyRange;
use crate::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response as OpResponse;
use crate::proto::etcdserverpb::{
    Compare, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest,
    TxnResponse,
};
use crate::store::data::Data;
use crate::store::version::{Live, Version};

/// The store as it was at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) data: &'a Data,
    /// The present revision.
    pub(crate) revision: i64,
    /// Reading below it is refused.
    pub(crate) compact_revision: i64,
}

impl<'a> View<'a> {
    /// What readers may see now.
    pub(crate) fn published(data: &'a Data) -> Self {
        // The compact revision first: it is never above a revision that is read later.
        let compact_revision = data.compact_revision();
        View { data, revision: data.revision(), compact_revision }
    }
}

impl View<'_> {
    /// The revision at which to read when a request asks for `revision`.
    pub(crate) const fn at(&self, revision: i64) -> Result<i64, KvError> {
        if revision > self.revision {
            Err(KvError::FutureRevision)
        } else if revision <= 0 {
            Ok(self.revision)
        } else if revision < self.compact_revision {
            Err(KvError::Compacted)
        } else {
            Ok(revision)
        }
    }

    /// Answers a request that [`check_range`](crate::check_range) let pass.
    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        let at = self.at(request.revision)?;
        let plan = RangePlan::new(request);
        let mut count = 0;
        let mut found: Vec<Version> = Vec::new();
        self.data.walk(&KeyRange::new(&request.key, &request.range_end), at, |version, live| {
            count += 1;
            if found.len() < plan.collect_max && passes_filters(request, version, live) {
                found.push(version.clone());
            }
            ControlFlow::Continue(())
        });
        plan.sort(&mut found);
        let more = found.len() > plan.limit;
        found.truncate(plan.limit);
        let kvs = found.iter().map(|version| {
            let mut kv = version.key_value();
            if request.keys_only {
                kv.value.clear();
            }
            kv
        });
        Ok(RangeResponse { header: header(self.revision), kvs: kvs.collect(), more, count })
    }

    /// Refuses an operation of a transaction that reads at a revision that is not there. More than
    /// [`at`](Self::at) does, since etcd also refuses a negative one below the compact revision.
    pub(crate) const fn check_range_op(&self, request: &RangeRequest) -> Result<(), KvError> {
        if request.revision > self.revision {
            Err(KvError::FutureRevision)
        } else if request.revision != 0 && request.revision < self.compact_revision {
            Err(KvError::Compacted)
        } else {
            Ok(())
        }
    }

    /// Runs a transaction of nothing but ranges.
    pub(crate) fn txn(&self, request: &TxnRequest) -> Result<TxnResponse, KvError> {
        let succeeded = request.compare.iter().all(|compare| self.compare(compare));
        let ops = if succeeded { &request.success } else { &request.failure };
        let mut responses = Vec::new();
        for range in ops.iter().filter_map(range_of) {
            self.check_range_op(range)?;
            let response = Some(OpResponse::ResponseRange(self.range(range)?));
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse { header: header(self.revision), succeeded, responses })
    }

    /// Whether every key that the comparison names passes it.
    pub(crate) fn compare(&self, compare: &Compare) -> bool {
        let mut any = false;
        let mut all = true;
        let range = KeyRange::new(&compare.key, &compare.range_end);
        self.data.walk(&range, self.revision, |version, live| {
            any = true;
            all = compare_live(compare, version.revision().main, live);
            if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        if any {
            return all;
        }
        // A missing key has no value, so no comparison with one holds; its numbers are 0.
        compare.target != i32::from(CompareTarget::Value) && compare_live(compare, 0, MISSING)
    }
}

/// The range that an operation is, if it is one.
pub(crate) const fn range_of(op: &RequestOp) -> Option<&RangeRequest> {
    match &op.request {
        Some(Request::RequestRange(range)) => Some(range),
        Some(Request::RequestPut(_) | Request::RequestDeleteRange(_) | Request::RequestTxn(_))
        | None => None,
    }
}

/// What a comparison sees of a key that does not exist.
const MISSING: Live<'_> = Live { value: &[], create_revision: 0, version: 0, lease: 0 };

/// A header with the revision only.
#[expect(clippy::unnecessary_wraps, reason = "the messages' fields are optional")]
pub(crate) const fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 0, member_id: 0, revision, raft_term: 0 })
}

/// How a range is collected, sorted and cut.
struct RangePlan {
    target: SortTarget,
    order: SortOrder,
    /// The most keys to return.
    limit: usize,
    /// The most keys to collect before sorting.
    collect_max: usize,
}

impl RangePlan {
    fn new(request: &RangeRequest) -> Self {
        let target = request.sort_target();
        let order = match (target, request.sort_order()) {
            (SortTarget::Key, SortOrder::Ascend) => SortOrder::None,
            (_, order) => order,
        };
        let limit = match usize::try_from(request.limit) {
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        let collect_max = if request.count_only {
            0
        } else if order == SortOrder::None && (target == SortTarget::Key || !has_filters(request)) {
            // One more than the limit shows that there are more. Sorting by something else than the key
            // without an order is etcd's odd case: it sorts ascending what the limit left.
            limit.saturating_add(1)
        } else {
            usize::MAX
        };
        Self { target, order, limit, collect_max }
    }

    fn sort(&self, found: &mut [Version]) {
        // Only what is present is collected.
        fn number(version: &Version, field: fn(Live<'_>) -> i64) -> i64 {
            version.live().map_or(0, field)
        }
        match self.target {
            // They were collected in this order.
            SortTarget::Key => {}
            SortTarget::Version => found.sort_by_key(|found| number(found, |live| live.version)),
            SortTarget::Create => {
                found.sort_by_key(|found| number(found, |live| live.create_revision))
            }
            SortTarget::Mod => found.sort_by_key(|found| found.revision().main),
            SortTarget::Value => {
                fn value(version: &Version) -> Option<&[u8]> {
                    version.live().map(|live| live.value)
                }
                found.sort_by(|a, b| value(a).cmp(&value(b)));
            }
        }
        if self.order == SortOrder::Descend {
            found.reverse();
        }
    }
}

const fn has_filters(request: &RangeRequest) -> bool {
    request.min_mod_revision != 0
        || request.max_mod_revision != 0
        || request.min_create_revision != 0
        || request.max_create_revision != 0
}

/// The four filters; 0 is none.
fn passes_filters(request: &RangeRequest, version: &Version, live: Live<'_>) -> bool {
    const fn within(value: i64, min: i64, max: i64) -> bool {
        (min == 0 || value >= min) && (max == 0 || value <= max)
    }
    within(version.revision().main, request.min_mod_revision, request.max_mod_revision)
        && within(live.create_revision, request.min_create_revision, request.max_create_revision)
}

/// Compares one key. What is missing or unknown in the comparison is taken as etcd takes it: an absent
/// number for 0, an unknown target for equal, an unknown result for true.
fn compare_live(compare: &Compare, mod_revision: i64, live: Live<'_>) -> bool {
    let given = compare.target_union.as_ref();
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Version) => match given {
            Some(TargetUnion::Version(given)) => live.version.cmp(given),
            _ => live.version.cmp(&0),
        },
        Ok(CompareTarget::Create) => match given {
            Some(TargetUnion::CreateRevision(given)) => live.create_revision.cmp(given),
            _ => live.create_revision.cmp(&0),
        },
        Ok(CompareTarget::Mod) => match given {
            Some(TargetUnion::ModRevision(given)) => mod_revision.cmp(given),
            _ => mod_revision.cmp(&0),
        },
        Ok(CompareTarget::Value) => match given {
            Some(TargetUnion::Value(given)) => live.value.cmp(given),
            _ => live.value.cmp(&[]),
        },
        Ok(CompareTarget::Lease) => match given {
            Some(TargetUnion::Lease(given)) => live.lease.cmp(given),
            _ => live.lease.cmp(&0),
        },
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}
