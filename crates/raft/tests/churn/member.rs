//! The child process: a node, asked in lines on standard input, answering in lines on standard output.
//!
//! A request is `<tag> <verb> [argument]`, its answer `<tag> ok|no|unknown [text]`, where `no` means that nothing
//! happened and nothing will. The first line is `up <id>`. The process ends when its input does.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use raft::core::MemberId;
use raft::error::{AdminError, NodeError};
use raft::{MemberInfo, Node};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::machine::{Add, Numbers, Question};

/// The exit code of a member that was removed.
pub(crate) const REMOVED: u8 = 3;

/// `dir own_address peers|join address,address,...`
pub(crate) async fn run(arguments: &[String]) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(std::io::stderr).finish();
    tracing::subscriber::set_global_default(log)?;
    let [dir, address, role, others] = arguments else { return Err("member takes four".into()) };
    let others: Vec<&str> = others.split(',').collect();
    let builder = Node::builder(Numbers::default())
        .data_dir(PathBuf::from(dir))
        .address(address)
        .election_timeout(Duration::from_millis(150), Duration::from_millis(300))
        .heartbeat_interval(Duration::from_millis(50))
        .settings(|settings| {
            // Small, so that members that come and return get snapshots, too.
            settings.checkpoint_entries = 2000;
            settings.trailing_entries = 200;
        });
    let builder = if role == "join" { builder.join(others) } else { builder.peers(others) };
    let node = builder.start().await?;
    let (answers, lines) = unbounded_channel();
    answers.send(format!("up {:x}", node.status().node.member.0))?;
    let printer = tokio::spawn(print(lines));
    let mut input = BufReader::new(tokio::io::stdin()).lines();
    let ended = loop {
        tokio::select! {
            line = input.next_line() => match line? {
                Some(line) => drop(tokio::spawn(answer(node.clone(), line, answers.clone()))),
                None => break node.shutdown().await,
            },
            ended = node.stopped() => break ended,
        }
    };
    drop(answers);
    printer.abort();
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if matches!(*error, NodeError::Removed) => Ok(ExitCode::from(REMOVED)),
        Err(error) => Err(error.to_string().into()),
    }
}

async fn print(mut lines: UnboundedReceiver<String>) -> std::io::Result<()> {
    let mut output = tokio::io::stdout();
    while let Some(line) = lines.recv().await {
        output.write_all(format!("{line}\n").as_bytes()).await?;
        output.flush().await?;
    }
    Ok(())
}

async fn answer(node: Node<Numbers>, line: String, answers: UnboundedSender<String>) {
    let mut words = line.split(' ');
    let (tag, verb) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let argument = words.next().unwrap_or_default();
    let text = match verb {
        "write" => match node.propose(Add(number(argument, 10))).await {
            Ok(count) => format!("ok {count}"),
            Err(error) if error.is_definite() => format!("no {error}"),
            Err(error) => format!("unknown {error}"),
        },
        "read" => read(&node, Question::All).await,
        "last" => read(&node, Question::Last).await,
        "voters" => voters(&node).await,
        "leader" => match node.status().leader {
            Some(leader) => format!("ok {:x}", leader.0),
            None => String::from("no leader"),
        },
        "add" => {
            let info = MemberInfo {
                name: argument.to_owned(),
                peer_address: argument.to_owned(),
                ..MemberInfo::default()
            };
            changed(node.members().add(info).await)
        }
        "remove" => changed(node.members().remove(MemberId(number(argument, 16))).await),
        _ => format!("no such request: {verb}"),
    };
    // Nobody listens any more when the process is ending.
    drop(answers.send(format!("{tag} {text}")));
}

async fn read(node: &Node<Numbers>, question: Question) -> String {
    match node.read(question).await {
        Ok(numbers) => {
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            format!("ok {}", numbers.join(","))
        }
        Err(error) => format!("no {error}"),
    }
}

/// The committed configuration: one that is in force before and after a write is not rolled back any more, since
/// the write lies behind it in the log.
async fn voters(node: &Node<Numbers>) -> String {
    let before = node.status();
    if let Err(error) = node.propose(Add::NOTHING).await {
        return format!("no {error}");
    }
    let members = &node.status().membership;
    if *members != before.membership || members.is_joint() || !members.learners().is_empty() {
        return String::from("no a change is under way");
    }
    let voters: Vec<String> =
        members.voters().iter().map(|node| format!("{:x}", node.member.0)).collect();
    format!("ok {}", voters.join(","))
}

fn changed(outcome: Result<(), AdminError>) -> String {
    match outcome {
        Ok(()) => String::from("ok"),
        Err(error @ (AdminError::Unknown | AdminError::Stopped)) => format!("unknown {error}"),
        Err(error) => format!("no {error}"),
    }
}

fn number(word: &str, radix: u32) -> u64 {
    u64::from_str_radix(word, radix).unwrap_or_default()
}
