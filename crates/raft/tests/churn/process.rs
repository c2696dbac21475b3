//! The parent's end of a member's process.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::member::REMOVED;

/// What a member answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// It happened.
    Ok(String),
    /// It did not happen and will not.
    No(String),
    /// Nobody knows: also when the process died first.
    Unknown,
}

/// A member: its folder and address outlive its processes.
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: String,
    dir: PathBuf,
    /// `peers` or `join`, and the addresses.
    role: [String; 2],
    process: RefCell<Option<Process>>,
    /// The id, in hexadecimal digits.
    pub(crate) id: RefCell<String>,
    /// It belongs to the cluster, and may be asked for anything.
    pub(crate) joined: Cell<bool>,
}

struct Process {
    child: Child,
    requests: UnboundedSender<String>,
    asked: Rc<RefCell<Asked>>,
    next: u64,
}

/// Who waits for an answer, by tag; `None` once the process has closed its output.
type Asked = Option<BTreeMap<u64, oneshot::Sender<Answer>>>;

impl Member {
    pub(crate) fn new(name: String, address: String, dir: PathBuf, role: [String; 2]) -> Self {
        let (process, id) = (RefCell::new(None), RefCell::new(String::new()));
        let joined = Cell::new(role[0] == "peers");
        Self { name, address, dir, role, process, id, joined }
    }

    /// Starts a process; returns once the member listens. False: it found itself removed.
    pub(crate) async fn start(&self) -> bool {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.with_extension("log"))
            .expect("the log can be opened");
        let mut child = Command::new(std::env::current_exe().expect("this program has a name"))
            .arg("member")
            .arg(&self.dir)
            .arg(&self.address)
            .args(&self.role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("a member starts");
        let output = child.stdout.take().expect("it is piped");
        let mut output = BufReader::new(output).lines();
        let first = output.next_line().await.expect("its output can be read");
        let Some(first) = first else {
            let status = child.wait().await.expect("it can be waited for");
            assert_eq!(status.code(), Some(i32::from(REMOVED)), "member {} ends", self.name);
            return false;
        };
        let id = first.strip_prefix("up ").expect("it says its id first");
        *self.id.borrow_mut() = id.to_owned();
        let (requests, receiver) = unbounded_channel();
        let asked = Rc::new(RefCell::new(Some(BTreeMap::new())));
        let input = child.stdin.take().expect("it is piped");
        tokio::task::spawn_local(write(input, receiver));
        tokio::task::spawn_local(read(output, Rc::clone(&asked)));
        *self.process.borrow_mut() = Some(Process { child, requests, asked, next: 0 });
        true
    }

    pub(crate) fn is_up(&self) -> bool {
        self.process.borrow().is_some()
    }

    /// kill -9. Nothing to do when it has ended by itself.
    pub(crate) async fn kill(&self) {
        let process = self.process.borrow_mut().take();
        if let Some(mut process) = process {
            process.child.kill().await.expect("it can be killed");
        }
    }

    /// Waits until the process has ended because the member was removed.
    pub(crate) async fn removed(&self) {
        let process = self.process.borrow_mut().take();
        let Some(mut process) = process else { return };
        let ended = tokio::time::timeout(Duration::from_secs(30), process.child.wait()).await;
        let code = ended.expect("a removed member ends").expect("it can be waited for").code();
        assert_eq!(code, Some(i32::from(REMOVED)), "how the removed member {} ended", self.name);
    }

    /// Ends its input, and waits until it has ended well.
    pub(crate) async fn stop(&self) {
        let process = self.process.borrow_mut().take();
        if let Some(Process { mut child, requests, .. }) = process {
            drop(requests);
            let status = child.wait().await.expect("it can be waited for");
            assert!(status.success(), "member {} ended with {status}", self.name);
        }
    }

    /// Asks the member's process; unknown when it is down or dies.
    pub(crate) async fn ask(&self, request: String) -> Answer {
        let (waiter, answer) = oneshot::channel();
        {
            let mut process = self.process.borrow_mut();
            let Some(process) = &mut *process else {
                return Answer::No(String::from("the process is down"));
            };
            process.next += 1;
            match &mut *process.asked.borrow_mut() {
                Some(asked) => drop(asked.insert(process.next, waiter)),
                None => return Answer::No(String::from("the process has ended")),
            }
            // When it dies of this moment, nobody holds the waiter any more.
            drop(process.requests.send(format!("{} {request}\n", process.next)));
        }
        answer.await.unwrap_or(Answer::Unknown)
    }
}

async fn write(mut input: ChildStdin, mut requests: tokio::sync::mpsc::UnboundedReceiver<String>) {
    while let Some(request) = requests.recv().await {
        if input.write_all(request.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn read(mut output: tokio::io::Lines<BufReader<ChildStdout>>, asked: Rc<RefCell<Asked>>) {
    while let Ok(Some(line)) = output.next_line().await {
        let mut words = line.splitn(3, ' ');
        let tag = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        let (verb, text) = (words.next(), words.next().unwrap_or_default().to_owned());
        let answer = match verb {
            Some("ok") => Answer::Ok(text),
            Some("no") => Answer::No(text),
            Some(_) | None => Answer::Unknown,
        };
        if let Some(waiter) = asked.borrow_mut().as_mut().and_then(|asked| asked.remove(&tag)) {
            // Whoever asked may have given up.
            drop(waiter.send(answer));
        }
    }
    asked.borrow_mut().take();
}
