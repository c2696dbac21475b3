//! What one seed draws: the cluster, its settings, and which faults it suffers how often (a "swarm": most seeds
//! have only some kinds of faults, so that each kind also meets a system that is otherwise well).

use std::collections::BTreeSet;
use std::time::Duration;

use raft_core::Rng;

use crate::faults::FaultClass;

/// What a caller may fix; the seed decides the rest.
#[derive(Clone, Debug)]
pub struct Options {
    /// Members of the cluster; drawn when `None`.
    pub members: Option<u64>,
    /// Virtual time under faults.
    pub faulty: Duration,
    /// Of how many commits it is checked on the disks themselves that a quorum holds them: one in this many. Zero
    /// for none.
    pub audit_every: u64,
    /// Requests a second of all clients together, about; drawn when `None`. From 1 to 1,000,000.
    pub rate: Option<u64>,
    /// The classes of faults; those that the seed draws when `None`.
    pub faults: Option<BTreeSet<FaultClass>>,
    /// Only the faults with these numbers happen, of those that the seed draws; all of them when `None`
    /// ([`Fault::number`](crate::Fault::number)).
    pub only: Option<BTreeSet<u64>>,
    /// Keep what a picture of the run is made of ([`picture`](crate::picture())).
    pub record: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            members: None,
            faulty: Duration::from_secs(5),
            audit_every: 1000,
            rate: None,
            faults: None,
            only: None,
            record: false,
        }
    }
}

/// How far two clocks run apart at most, in millionths; what leases declare.
pub(crate) const DRIFT_MAX_PPM: u64 = 20_000;

/// Members and spares together are no more than this.
const MACHINES_MAX: usize = 16;

/// Rates are in thousandths of a chance at each occasion, delays in microseconds.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Members at first, all voters.
    pub members: u64,
    /// A message of the protocol is lost, without anybody noticing.
    pub loss: u64,
    /// It arrives twice.
    pub duplication: u64,
    /// One from long ago arrives once more.
    pub replay: u64,
    /// It overtakes or is overtaken.
    pub reordering: u64,
    /// One that is repeated or overtaken comes more than a second late.
    pub very_late: u64,
    /// A connection breaks.
    pub reset: u64,
    /// Longest usual delay of a message.
    pub delay_max: u64,
    /// Longest usual time of a disk's work.
    pub disk_max: u64,
    /// A piece of a disk's work takes seconds.
    pub disk_stall: u64,
    /// A process dies.
    pub crash: u64,
    /// A machine loses power.
    pub power: u64,
    /// All machines lose power at once.
    pub blackout: u64,
    /// Some links stop carrying anything.
    pub partition: u64,
    /// It is the leader that is cut off or dies, and the next one as soon as that is over.
    pub hunt: bool,
    /// Whoever was cut off is restarted once it no longer is.
    pub cut_off_restarts: bool,
    /// A process is paused.
    pub pause: u64,
    /// A sync of a file fails.
    pub sync_failure: u64,
    /// A file system gives up: a sync of a directory fails, and nothing can be written until power is cycled.
    pub journal_failure: u64,
    /// A disk is full for a while.
    pub full: u64,
    /// A disk is lost, and its machine goes on with an empty one.
    pub wipe: u64,
    /// A machine whose disk fails or rots loses power soon after.
    pub power_follows: bool,
    /// Bits of a disk rot.
    pub rot: u64,
    /// Bits of the logs of several members rot while all of them are down.
    pub rot_entries: u64,
    /// A write that was acknowledged is lost, or goes elsewhere.
    pub misplaced: u64,
    /// A power loss tears whole pages, not only the sectors that are being written.
    pub page_tears: bool,
    /// A clock stops for a while, or jumps.
    pub clock: u64,
    /// Clocks run apart by this much, in millionths.
    pub drift_ppm: u64,
    /// Machines beside the first members: empty, waiting to be added.
    pub spares: u64,
    /// Somebody changes the membership.
    pub change: u64,
    /// Voters are demoted and removed as well; then no disk is lost for good.
    pub shrink: bool,
    /// Somebody hands leadership over.
    pub transfer: u64,
    /// When the faults end, only a quorum is there for a while: it must do.
    pub only_a_quorum: bool,
    /// When the faults end, one link or one member's ears stay out of order for a while: the others must do, and stay as
    /// they are.
    pub disturbed: bool,
    /// Lease reads are switched on (and off) by whoever changes the membership.
    pub lease: bool,
    /// Entries of one message.
    pub append_entries: usize,
    /// Bytes of one message with more than one entry.
    pub append_bytes: usize,
    /// Messages in flight to one follower.
    pub inflight_messages: usize,
    /// Bytes of a log segment.
    pub segment_bytes: u64,
    /// Of each machine: entries between two checkpoints, and entries kept behind one.
    pub checkpoints: Vec<(u64, u64)>,
    /// Bytes of a revision segment of the store.
    pub store_segment_bytes: u64,
    /// Clients, each with one request at a time.
    pub clients: u64,
    /// Keys they share.
    pub keys: u64,
    /// Longest value in bytes.
    pub value_bytes: u64,
    /// Longest pause of a client between two requests.
    pub think_max: u64,
    /// Nobody asks for anything in every other half of a second.
    pub quiet_windows: bool,
    /// A client stays with whom it asked last for as long as it gets answers there, and goes to the leader then.
    pub sticky: bool,
    /// How long a client waits before it gives up and asks for something else.
    pub patience: u64,
    /// Who the clients are, and of what.
    pub load: Load,
}

/// The workloads that seeds draw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Load {
    /// A few keys of the store, judged by a model.
    Keys,
    /// A bank in the store, judged without one.
    Bank,
    /// A counter in sessions: commands that are tried again are applied once.
    Sessions,
    /// Leases that are renewed or end, and watchers of what happens to keys.
    Tenants,
}

impl Profile {
    /// What this seed draws.
    pub(crate) fn of(seed: u64, options: &Options) -> Self {
        Self::draw(&mut Rng::new(seed).split(1), options)
    }

    fn draw(rng: &mut Rng, options: &Options) -> Self {
        let (mut more, mut third, mut fourth) = (rng.split(7), rng.split(8), rng.split(9));
        let mut rate = |max: u64| if rng.chance(1, 2) { 1 + rng.below(max) } else { 0 };
        let (loss, duplication, reordering) = (rate(50), rate(50), rate(100));
        let (reset, disk_stall, pause) = (rate(5), rate(5), rate(10));
        let (crash, power, blackout) = (rate(20), rate(20), rate(4));
        let (mut partition, sync_failure) = (rate(60), rate(5));
        let drawn = [1, 3, 3, 3, 3, 5, 5][pick(rng, 7)];
        let members = options.members.unwrap_or(drawn);
        let mut seldom = |max: u64| if more.chance(1, 4) { 1 + more.below(max) } else { 0 };
        let (journal_failure, full, clock) = (seldom(4), seldom(8), seldom(10));
        let (mut wipe, mut rot) = (seldom(10), seldom(10));
        let mut page_tears = seldom(2) > 0;
        let (mut transfer, replay) = (seldom(20), seldom(30));
        let hunt = seldom(4) > 0;
        let mut change = if more.chance(1, 2) { 5 + more.below(60) } else { 0 };
        let shrink = change > 0 && more.chance(1, 2);
        // Leases live and die with handovers, and whoever changes the membership switches them on.
        let lease = clock == 0 && third.chance(1, 3);
        if lease {
            change = change.max(30);
            transfer = transfer.max(third.below(60));
        }
        // Whoever loses a disk needs a quorum of others, and somebody who replaces the member.
        if shrink || members < 3 {
            (wipe, rot, page_tears) = (0, 0, false);
        }
        if hunt {
            partition = partition.max(20);
        }
        let mut limits = || {
            let entries = [1, 10, 50, 100_000][pick(&mut third, 4)];
            (entries, [0, 0, 5, 100][pick(&mut third, 4)])
        };
        // Members that are configured alike, and such that are not.
        let alike = limits();
        let checkpoints: Vec<(u64, u64)> = (0..MACHINES_MAX).map(|_| limits()).collect();
        let checkpoints =
            if third.chance(1, 2) { vec![alike; checkpoints.len()] } else { checkpoints };
        let often = checkpoints.iter().any(|(entries, _)| *entries == 1);
        let store_segment_bytes = [256, 4096, 1 << 20][pick(&mut third, 3)];
        // Every checkpoint writes the last segment anew, and looks through the files of all others.
        let store_segment_bytes = if often { 4096 } else { store_segment_bytes };
        let quiet = change == 0 && wipe + rot == 0 && !page_tears;
        let only_a_quorum = quiet && members > 2 && third.chance(2, 3);
        let mut profile = Self {
            members,
            very_late: if third.chance(1, 3) { 200 } else { 0 },
            power_follows: third.chance(1, 2),
            only_a_quorum,
            disturbed: quiet && members > 2 && !only_a_quorum,
            append_entries: [4096, 4096, 1, 3][pick(&mut third, 4)],
            append_bytes: [1 << 20, 1 << 20, 100][pick(&mut third, 3)],
            inflight_messages: [256, 256, 1, 3][pick(&mut third, 4)],
            quiet_windows: third.chance(1, 3),
            sticky: third.chance(1, 2),
            cut_off_restarts: third.chance(1, 2),
            patience: [u64::MAX, u64::MAX, 500_000, 50_000][pick(&mut third, 4)],
            loss,
            duplication,
            replay,
            reordering,
            reset,
            delay_max: [500, 2_000, 20_000][pick(rng, 3)],
            disk_max: [300, 2_000, 20_000][pick(rng, 3)],
            disk_stall,
            crash,
            power,
            blackout,
            partition,
            hunt,
            pause,
            sync_failure,
            journal_failure,
            full,
            wipe,
            rot,
            rot_entries: 0,
            misplaced: 0,
            page_tears,
            clock,
            drift_ppm: [1_000, 10_000, DRIFT_MAX_PPM][pick(&mut more, 3)],
            spares: if change > 0 { more.below(3) } else { 0 },
            change,
            shrink,
            transfer,
            lease,
            segment_bytes: [16 << 10, 64 << 10, 256 << 10][pick(rng, 3)],
            checkpoints,
            store_segment_bytes,
            clients: 1 + rng.below([4, 12, 24][pick(&mut more, 3)]),
            keys: [1, 4, 50][pick(rng, 3)],
            value_bytes: [8, 100, 4000][pick(rng, 3)],
            think_max: [1_000, 20_000, 100_000][pick(rng, 3)],
            load: match rng.chance(1, 3) {
                true => Load::Bank,
                false if fourth.chance(1, 5) => Load::Sessions,
                false => Load::Keys,
            },
        };
        // Drawn last, so that nothing else is drawn otherwise.
        let mut fourth = rng.split(9);
        if profile.members > 2 && !profile.shrink && fourth.chance(1, 3) {
            profile.rot_entries = 1 + fourth.below(8);
            // Whoever has to be replaced in the end cannot spare another one meanwhile.
            profile.disturbed = false;
        }
        if profile.load == Load::Keys && rng.split(10).chance(1, 3) {
            profile.load = Load::Tenants;
            // Leases run out by clocks that do not jump, as those of machines do not.
            profile.clock = 0;
        }
        let mut fifth = rng.split(11);
        if profile.members > 2 && !profile.shrink && fifth.chance(1, 5) {
            profile.misplaced = 1 + fifth.below(10);
            (profile.only_a_quorum, profile.disturbed) = (false, false);
        }
        profile.bound_checkpoints();
        if let Some(rate) = options.rate {
            // One client, who pauses for half of this on average.
            (profile.clients, profile.quiet_windows) = (1, false);
            profile.think_max = (2_000_000 / rate.max(1)).max(1);
        }
        if let Some(faults) = &options.faults {
            profile.restrict(faults);
        }
        profile
    }

    /// A checkpoint costs what the whole state does, so that taking one after every entry is quadratic in the writes:
    /// one such seed took 75 s and 2.2 GB. The more often it is done, the less the clients write.
    fn bound_checkpoints(&mut self) {
        match self.checkpoints.iter().map(|(entries, _)| *entries).min() {
            Some(0..=1) => {
                self.clients = self.clients.min(4);
                self.think_max = 100_000;
            }
            Some(2..=10) => self.think_max = self.think_max.max(20_000),
            Some(_) | None => {}
        }
    }
}

/// A position in a list of `len`.
pub(crate) fn pick(rng: &mut Rng, len: usize) -> usize {
    let bound = u64::try_from(len).unwrap_or(u64::MAX);
    usize::try_from(rng.below(bound)).unwrap_or(0)
}
