//! What happens: writers, kills and membership changes at once, then the reckoning.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::{Duration, Instant};

use raft::core::Rng;
use tempfile::TempDir;

use crate::history::Recorder;
use crate::process::{Answer, Member};

/// Writers, each with one write under way.
const WRITERS: u32 = 8;
/// A writer reads before one in this many of its writes.
const READS: usize = 3;
/// Members between two rounds.
const MEMBERS: usize = 3;
/// Acknowledged writes between two rounds.
const WRITES: usize = 200;
/// What takes longer than this will never happen: two elections and a snapshot take a fraction of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Everything that the tasks of this one thread share.
struct Cluster {
    folder: TempDir,
    /// Those that are members or are to become ones.
    members: RefCell<Vec<Rc<Member>>>,
    started: Cell<u64>,
    rng: RefCell<Rng>,
    stop: Cell<bool>,
    /// The next number to write, and what is known of those before.
    next: Cell<u64>,
    fates: RefCell<BTreeMap<u64, Answer>>,
    recorder: Recorder,
    /// When a write was acknowledged last, and the longest time without any.
    success: Cell<Instant>,
    gap: Cell<Duration>,
}

impl Cluster {
    fn below(&self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX);
        usize::try_from(self.rng.borrow_mut().below(limit)).unwrap_or(0)
    }

    /// A random moment within so many milliseconds.
    async fn pause(&self, millis_max: usize) {
        let millis = u64::try_from(self.below(millis_max)).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// A new member at an address that was free a moment ago; it does not run yet.
    fn member(&self, address: String, role: &str, others: &[String]) -> Rc<Member> {
        let name = self.started.get().to_string();
        self.started.set(self.started.get() + 1);
        let dir = self.folder.path().join(format!("member_{name}"));
        let role = [role.to_owned(), others.join(",")];
        let member = Rc::new(Member::new(name, address, dir, role));
        self.members.borrow_mut().push(Rc::clone(&member));
        member
    }

    fn addresses(&self) -> Vec<String> {
        self.members.borrow().iter().map(|member| member.address.clone()).collect()
    }

    /// Any member of the cluster whose process runs, if one does.
    fn any(&self) -> Option<Rc<Member>> {
        let members = self.members.borrow();
        let up: Vec<_> = members.iter().filter(|it| it.is_up() && it.joined.get()).collect();
        (!up.is_empty()).then(|| Rc::clone(up[self.below(up.len())]))
    }

    /// The leader as some member knows it, or any member.
    async fn leader(&self) -> Option<Rc<Member>> {
        let any = self.any()?;
        let Answer::Ok(id) = any.ask(String::from("leader")).await else { return Some(any) };
        let leader = self.members.borrow().iter().find(|it| *it.id.borrow() == id).cloned();
        Some(leader.unwrap_or(any))
    }

    /// Asks members, one after the other, for a change until one has made it, or `done` in the configuration that
    /// is committed: an answer may have died with its member.
    async fn change(&self, request: &str, done: impl Fn(&str) -> bool) {
        loop {
            if let Some(member) = self.any() {
                let answer = member.ask(request.to_owned()).await;
                if matches!(answer, Answer::Ok(_)) {
                    return;
                }
                if let Answer::Ok(voters) = member.ask(String::from("voters")).await
                    && done(&voters)
                {
                    return;
                }
            }
            self.pause(20).await;
        }
    }
}

/// Addresses that were free a moment ago.
fn addresses(count: usize) -> Vec<String> {
    let bind = |_| TcpListener::bind("127.0.0.1:0").expect("a free port");
    let listeners: Vec<_> = (0..count).map(bind).collect();
    let address = |it: &TcpListener| it.local_addr().expect("it is bound").to_string();
    listeners.iter().map(address).collect()
}

async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(output) => output,
        Err(_) => panic!("never: {what}"),
    }
}

/// The whole story.
pub(crate) async fn members_come_and_go(rounds: u64, seed: u64) {
    // On a real file system: a temporary one in memory makes every sync a lie.
    let mut folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    // After a failure the logs are what is looked at.
    folder.disable_cleanup(true);
    println!("in {}", folder.path().display());
    let cluster = Rc::new(Cluster {
        folder,
        members: RefCell::new(Vec::new()),
        started: Cell::new(0),
        rng: RefCell::new(Rng::new(seed)),
        stop: Cell::new(false),
        next: Cell::new(0),
        fates: RefCell::new(BTreeMap::new()),
        recorder: Recorder::new(),
        success: Cell::new(Instant::now()),
        gap: Cell::new(Duration::ZERO),
    });
    let founders = addresses(MEMBERS);
    for address in &founders {
        let member = cluster.member(address.clone(), "peers", &founders);
        assert!(member.start().await, "a founder is removed");
    }
    let writers: Vec<_> = (0..WRITERS)
        .map(|client| tokio::task::spawn_local(write(Rc::clone(&cluster), client)))
        .collect();
    for round in 0..rounds {
        patiently("a round ends", turn_over(&cluster)).await;
        let acknowledged = count(&cluster, |fate| matches!(fate, Answer::Ok(_)));
        println!("round {round}: {acknowledged} writes acknowledged");
    }
    cluster.stop.set(true);
    for writer in writers {
        patiently("a write is answered", writer).await.expect("a writer ends");
    }
    patiently("the cluster serves through every member", reckon(&cluster)).await;
    let all: Vec<_> = cluster.members.borrow().clone();
    for member in &all {
        member.kill().await;
    }
    for member in &all {
        assert!(member.start().await, "member {} is removed", member.name);
    }
    patiently("the cluster serves after all were killed", reckon(&cluster)).await;
    for member in &all {
        member.stop().await;
    }
    cluster.recorder.check();
    println!(
        "{} acknowledged, {} refused, {} unknown; longest time without an acknowledgement {} ms",
        count(&cluster, |fate| matches!(fate, Answer::Ok(_))),
        count(&cluster, |fate| matches!(fate, Answer::No(_))),
        count(&cluster, |fate| matches!(fate, Answer::Unknown)),
        cluster.gap.get().as_millis()
    );
    std::fs::remove_dir_all(cluster.folder.path()).expect("the folder can be removed");
}

fn count(cluster: &Cluster, which: impl Fn(&Answer) -> bool) -> usize {
    cluster.fates.borrow().values().filter(|fate| which(fate)).count()
}

async fn write(cluster: Rc<Cluster>, client: u32) {
    while !cluster.stop.get() {
        let Some(member) = cluster.any() else {
            cluster.pause(20).await;
            continue;
        };
        if cluster.below(READS) == 0 {
            read_one(&cluster, &member, client).await;
        }
        if write_one(&cluster, &member, client).await {
            let gap = cluster.success.replace(Instant::now()).elapsed();
            cluster.gap.set(cluster.gap.get().max(gap));
        } else {
            cluster.pause(5).await;
        }
    }
}

/// Reads the last number through this member.
async fn read_one(cluster: &Cluster, member: &Member, client: u32) {
    let called = cluster.recorder.reads(client);
    match member.ask(String::from("last")).await {
        Answer::Ok(text) => {
            let mut numbers = text.split(',').map(|number| number.parse().ok());
            let length = numbers.next().flatten().expect("an answer begins with the length");
            cluster.recorder.read(&called, length, numbers.next().flatten());
        }
        // It changed nothing in any case.
        Answer::No(_) | Answer::Unknown => cluster.recorder.refused(&called),
    }
}

/// Writes the next number through this member; whether that is acknowledged.
async fn write_one(cluster: &Cluster, member: &Member, client: u32) -> bool {
    let number = cluster.next.get();
    cluster.next.set(number + 1);
    // Until it is answered, and when it never is, nobody knows.
    cluster.fates.borrow_mut().insert(number, Answer::Unknown);
    let called = cluster.recorder.writes(client, number);
    let answer = member.ask(format!("write {number}")).await;
    let acknowledged = matches!(answer, Answer::Ok(_));
    match &answer {
        Answer::Ok(length) => {
            let length = length.parse().expect("a write is answered with the length");
            cluster.recorder.written(&called, length);
        }
        Answer::No(_) => cluster.recorder.refused(&called),
        Answer::Unknown => {}
    }
    cluster.fates.borrow_mut().insert(number, answer);
    acknowledged
}

/// One comes, one goes, both are asked for at once, and members are killed meanwhile.
async fn turn_over(cluster: &Cluster) {
    let before = count(cluster, |fate| matches!(fate, Answer::Ok(_)));
    while count(cluster, |fate| matches!(fate, Answer::Ok(_))) < before + WRITES {
        cluster.pause(20).await;
    }
    let others = cluster.addresses();
    let leaver = Rc::clone(&cluster.members.borrow()[cluster.below(others.len())]);
    let [address] = &addresses(1)[..] else { return };
    let newcomer = cluster.member(address.clone(), "join", &others);
    assert!(newcomer.start().await, "the newcomer is removed");
    let (added, removed) = (newcomer.id.borrow().clone(), leaver.id.borrow().clone());
    let (add, remove) = (format!("add {address}"), format!("remove {removed}"));
    let there = |voters: &str, id: &str| voters.split(',').any(|voter| voter == id);
    let changes = async {
        tokio::join!(
            async {
                cluster.change(&add, |voters| there(voters, &added)).await;
                newcomer.joined.set(true);
            },
            cluster.change(&remove, |voters| !there(voters, &removed)),
        )
    };
    tokio::join!(changes, kill(cluster));
    // It has heard so, or hears it when it comes back.
    if leaver.is_up() || leaver.start().await {
        leaver.removed().await;
    }
    cluster.members.borrow_mut().retain(|member| !Rc::ptr_eq(member, &leaver));
}

/// Kills the leader or any other process, the newcomer's too, one at a time, each for a short while.
async fn kill(cluster: &Cluster) {
    for _ in 0..2 {
        cluster.pause(150).await;
        let leader = if cluster.below(2) == 0 { cluster.leader().await } else { None };
        let victim = leader.unwrap_or_else(|| {
            let members = cluster.members.borrow();
            Rc::clone(&members[cluster.below(members.len())])
        });
        victim.kill().await;
        cluster.pause(200).await;
        // It may have been removed meanwhile, and then ends by itself.
        if !victim.start().await {
            println!("member {} was removed while it was down", victim.name);
        }
    }
}

/// Every member has the same, all that was acknowledged, nothing that was refused and nothing twice, and takes
/// writes.
async fn reckon(cluster: &Cluster) {
    let all: Vec<_> = cluster.members.borrow().clone();
    let expected: BTreeSet<String> = all.iter().map(|member| member.id.borrow().clone()).collect();
    for member in &all {
        while !write_one(cluster, member, WRITERS).await {}
        let voters = loop {
            if let Answer::Ok(voters) = member.ask(String::from("voters")).await {
                break voters;
            }
        };
        let voters: BTreeSet<String> = voters.split(',').map(str::to_owned).collect();
        assert_eq!(voters, expected, "the members as {} knows them", member.name);
    }
    let mut lists: Vec<Vec<u64>> = Vec::new();
    for member in &all {
        let list = loop {
            if let Answer::Ok(text) = member.ask(String::from("read")).await {
                break text;
            }
        };
        lists.push(list.split(',').filter_map(|number| number.parse().ok()).collect());
    }
    let fates = cluster.fates.borrow();
    for (member, list) in all.iter().zip(&lists) {
        let name = &member.name;
        // What was unknown may still come between two of the reads.
        let common = list.len().min(lists[0].len());
        assert_eq!(list[..common], lists[0][..common], "member {name} has another history");
        let numbers: BTreeSet<u64> = list.iter().copied().collect();
        assert_eq!(numbers.len(), list.len(), "member {name} has applied a write twice");
        for (number, fate) in fates.iter() {
            let there = numbers.contains(number);
            match fate {
                Answer::Ok(_) => assert!(there, "member {name}: the acknowledged {number} is lost"),
                Answer::No(why) => assert!(!there, "member {name}: {number} was refused ({why})"),
                Answer::Unknown => {}
            }
        }
        assert!(numbers.iter().all(|number| fates.contains_key(number)), "never written");
    }
}
