//! One child process per member: started, watched, restarted, stopped.
//!
//! Each child has its own process group, so that Ctrl-C reaches only the supervisor, and holds one end of a pipe
//! as its standard input: when the supervisor closes it, or dies of whatever (`kill -9` too), the child stops
//! gracefully (decision 25).

mod output;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::output::{Output, Printer};
use crate::exit::Exit;

/// How long a member may take to stop before it is killed. The whole cluster has 2 s.
const STOP_GRACE: Duration = Duration::from_millis(1700);
/// The wait before the first restart; doubles with each one that follows soon.
const RESTART_WAIT_MIN: Duration = Duration::from_millis(100);
/// The wait before a restart at most.
const RESTART_WAIT_MAX: Duration = Duration::from_secs(10);
/// A member that ran this long starts with the shortest wait again.
const RESTART_FORGIVEN: Duration = Duration::from_secs(30);

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, one list a member.
    pub arguments: Vec<Vec<OsString>>,
    /// Start members that die again.
    pub restart: bool,
    /// Colour the members' names.
    pub color: bool,
}

/// What becomes of the members, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A process runs.
    Started {
        /// Which member.
        index: usize,
        /// Its process.
        pid: u32,
    },
    /// A member has ended and is not started again.
    Ended {
        /// Which member.
        index: usize,
        /// Its exit code, or 75 when a signal killed it.
        code: i32,
    },
}

/// The running members.
#[derive(Debug)]
pub struct Supervisor {
    keepers: JoinSet<()>,
    stop: watch::Sender<Stop>,
    events: mpsc::UnboundedReceiver<Event>,
    printer: Printer,
}

/// What the keepers are told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum Stop {
    Run,
    Gracefully,
    Now,
}

impl Supervisor {
    /// Starts all members.
    ///
    /// # Errors
    /// When the printing thread cannot be started; a member that cannot be started is an [`Event::Ended`].
    pub fn start(plan: Plan) -> io::Result<Self> {
        let (output, printer) = output::start(plan.color)?;
        let (stop, _) = watch::channel(Stop::Run);
        let (report, events) = mpsc::unbounded_channel();
        let mut keepers = JoinSet::new();
        for (index, arguments) in plan.arguments.into_iter().enumerate() {
            let keeper = Keeper {
                index,
                program: plan.program.clone(),
                arguments,
                restart: plan.restart,
                output: output.clone(),
                report: report.clone(),
                stop: stop.subscribe(),
            };
            keepers.spawn(keeper.run());
        }
        Ok(Self { keepers, stop, events, printer })
    }

    /// The next event; `None` when every member has ended for good.
    pub async fn event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// Asks every member to stop; those that do not are killed within two seconds.
    pub fn stop(&self) {
        self.stop.send_if_modified(|stop| raise(stop, Stop::Gracefully));
    }

    /// Kills every member at once.
    pub fn kill(&self) {
        self.stop.send_if_modified(|stop| raise(stop, Stop::Now));
    }

    /// Returns when every member has ended and everything that they said is printed.
    pub async fn finish(mut self) {
        while let Some(ended) = self.keepers.join_next().await {
            if let Err(error) = ended {
                tracing::error!("a member's keeper died: {error}");
            }
        }
        self.printer.finish();
    }
}

fn raise(stop: &mut Stop, to: Stop) -> bool {
    let raised = *stop < to;
    if raised {
        *stop = to;
    }
    raised
}

/// Keeps one member running.
struct Keeper {
    index: usize,
    program: PathBuf,
    arguments: Vec<OsString>,
    restart: bool,
    output: Output,
    report: mpsc::UnboundedSender<Event>,
    stop: watch::Receiver<Stop>,
}

/// A running child with the pipe that keeps it alive.
struct Running {
    child: Child,
    lifeline: Option<ChildStdin>,
    copies: JoinSet<()>,
}

impl Keeper {
    async fn run(mut self) {
        let mut wait = RESTART_WAIT_MIN;
        let code = loop {
            let since = Instant::now();
            let mut running = match self.spawn() {
                Ok(running) => running,
                Err(error) => {
                    self.output.about(self.index, &format!("cannot be started: {error}"));
                    break i32::from(Exit::RestartMe.code());
                }
            };
            let ended = self.watch(&mut running).await;
            // What it said last is printed before anything is said about it.
            while running.copies.join_next().await.is_some() {}
            let (code, again) = match ended {
                Ok(status) => (code_of(status), wants_restart(status)),
                Err(error) => {
                    self.output.about(self.index, &format!("cannot be waited for: {error}"));
                    break i32::from(Exit::RestartMe.code());
                }
            };
            if *self.stop.borrow() != Stop::Run {
                break code;
            }
            let what = match ended {
                Ok(status) if status.code().is_none() => format!("was killed ({status})"),
                _ => format!("ended with code {code}: {}", Exit::describe(code)),
            };
            if !(again && self.restart) {
                self.output.about(self.index, &format!("{what}; not restarted"));
                break code;
            }
            if since.elapsed() >= RESTART_FORGIVEN {
                wait = RESTART_WAIT_MIN;
            }
            self.output.about(self.index, &format!("{what}; restarting in {wait:?}"));
            let stopping = self.stop.wait_for(|stop| *stop != Stop::Run);
            if tokio::time::timeout(wait, stopping).await.is_ok() {
                break code;
            }
            wait = (wait * 2).min(RESTART_WAIT_MAX);
        };
        self.tell(Event::Ended { index: self.index, code });
    }

    fn spawn(&self) -> io::Result<Running> {
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let mut copies = JoinSet::new();
        if let Some(pipe) = child.stdout.take() {
            copies.spawn(self.output.clone().copy(self.index, pipe));
        }
        if let Some(pipe) = child.stderr.take() {
            copies.spawn(self.output.clone().copy(self.index, pipe));
        }
        if let Some(pid) = child.id() {
            self.tell(Event::Started { index: self.index, pid });
        }
        let lifeline = child.stdin.take();
        Ok(Running { child, lifeline, copies })
    }

    /// Waits until the child has ended, by itself or because it was told to.
    async fn watch(&mut self, running: &mut Running) -> io::Result<ExitStatus> {
        let level = tokio::select! {
            status = running.child.wait() => return status,
            level = told(&mut self.stop, Stop::Gracefully) => level,
        };
        if level == Stop::Gracefully {
            drop(running.lifeline.take());
            tokio::select! {
                status = running.child.wait() => return status,
                _ = told(&mut self.stop, Stop::Now) => {}
                () = tokio::time::sleep(STOP_GRACE) => {
                    self.output.about(self.index, "does not stop; killed");
                }
            }
        }
        running.child.start_kill()?;
        running.child.wait().await
    }

    fn tell(&self, event: Event) {
        if self.report.send(event).is_err() {
            tracing::debug!("nobody listens to the supervisor any more");
        }
    }
}

/// Waits until the keepers are told at least `least`. A supervisor that is gone means [`Stop::Now`].
async fn told(stop: &mut watch::Receiver<Stop>, least: Stop) -> Stop {
    stop.wait_for(|stop| *stop >= least).await.map_or(Stop::Now, |stop| *stop)
}

/// A signal is no verdict of the member about itself: as good as "restart me".
fn code_of(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| i32::from(Exit::RestartMe.code()))
}

fn wants_restart(status: ExitStatus) -> bool {
    status.code().is_none_or(Exit::wants_restart)
}
