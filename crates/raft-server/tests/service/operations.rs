//! docs/operations.md, executed: every command in its boxes, in its order, in one shell and an empty folder.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use crate::support::{folder, free_ports};

const PAGE: &str = include_str!("../../../../docs/operations.md");
/// Nothing in it takes this long unless it is broken.
const LIMIT: Duration = Duration::from_secs(120);
/// How the first line of a box begins that is not executed, and why.
const NOT_RUN: &str = "# not run by the test: ";
/// How that of a box begins that is executed where a program is installed.
const NEEDS: &str = "# needs ";

/// The boxes of a kind, in the page's order.
fn boxes(kind: &str) -> Vec<&'static str> {
    let begin = format!("\n```{kind}\n");
    let all = PAGE.split(begin.as_str()).skip(1);
    all.map(|rest| rest.split("\n```\n").next().unwrap()).collect()
}

/// The commands of a box, without what is fed to them.
fn commands(text: &str) -> impl Iterator<Item = &str> {
    let mut fed = false;
    text.lines().filter(move |line| {
        let is_command = !fed && !line.starts_with('#');
        if line.ends_with("<<'END'") {
            fed = true;
        } else if *line == "END" {
            fed = false;
            return false;
        }
        is_command
    })
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Whether a box is executed here; if not, says so.
fn is_run(text: &str) -> bool {
    let first = text.lines().next().unwrap_or_default();
    let missing = match first.strip_prefix(NEEDS) {
        Some(program) if !is_installed(program) => Some(format!("no {program} on the PATH")),
        Some(_) => None,
        None => first.strip_prefix(NOT_RUN).map(str::to_owned),
    };
    if let Some(why) = &missing {
        for command in commands(text) {
            eprintln!("NOTICE: not executed ({why}): {command}");
        }
    }
    missing.is_none()
}

/// With addresses that are free here in place of those of the page.
fn with_free_addresses(script: &str) -> String {
    let (cluster, imported) = (free_ports(4), free_ports(3));
    let mut script = script.to_owned();
    for n in 0..4u16 {
        script = script.replace(&(54000 + n).to_string(), &(cluster + n).to_string());
    }
    script = script.replace("54004", &imported.to_string());
    let words = script.split(|c: char| !c.is_ascii_digit() && c != '.' && c != ':');
    let others = words.filter(|word| word.starts_with("10.0.0.") && word.contains(':'));
    let others: BTreeSet<String> = others.map(str::to_owned).collect();
    for address in others {
        script = script.replace(&address, &format!("127.0.0.1:{}", free_ports(1)));
    }
    script
}

/// A shell and everything that it has started. Killed together when dropped.
struct Shell {
    group: Pid,
    ended: Receiver<ExitStatus>,
}

impl Drop for Shell {
    fn drop(&mut self) {
        // They may be gone already.
        kill_process_group(self.group, Signal::KILL).ok();
    }
}

impl Shell {
    /// Runs a script in a folder, with this program on the PATH; what is printed goes to `log`.
    fn start(folder: &Path, script: &Path, log: &Path) -> Self {
        let bin = folder.join("bin");
        fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_rusty-raft"), bin.join("rusty-raft"))
            .unwrap();
        let mut path = vec![bin];
        path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
        let output = fs::File::create(log).unwrap();
        let mut child = Command::new("sh")
            .arg("-eux")
            .arg(script)
            .current_dir(folder)
            .env("PATH", std::env::join_paths(path).unwrap())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap();
        let group = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        let (sender, ended) = channel();
        // Nobody listens any more when it took too long.
        std::thread::spawn(move || sender.send(child.wait().unwrap()).ok());
        Self { group, ended }
    }
}

#[test]
fn every_command_of_the_page_is_executed() {
    let boxes = boxes("sh");
    let run: Vec<&str> = boxes.iter().copied().filter(|text| is_run(text)).collect();
    let script = with_free_addresses(&run.join("\n")).replace("sleep 1", "sleep 0.1");
    let folder = folder();
    let (script_file, log): (PathBuf, PathBuf) =
        (folder.path().join("operations.sh"), folder.path().join("log"));
    fs::write(&script_file, script).unwrap();
    let shell = Shell::start(folder.path(), &script_file, &log);
    let ended = shell.ended.recv_timeout(LIMIT);
    let printed = fs::read(&log).unwrap();
    let printed = String::from_utf8_lossy(&printed);
    assert!(ended.is_ok_and(|status| status.success()), "{ended:?}\n{printed}");
}

#[test]
fn every_command_of_the_page_stands_in_a_box() {
    let all: Vec<&str> = boxes("sh").iter().flat_map(|text| commands(text)).collect();
    assert!(all.iter().filter(|line| line.contains("rusty-raft ")).count() > 40, "{all:?}");
    // What is shown with its output is executed, too.
    let shown = boxes("text").into_iter().flat_map(str::lines);
    for command in shown.filter_map(|line| line.strip_prefix("$ ")) {
        assert!(all.iter().any(|line| line.starts_with(command)), "{command}");
    }
    for line in PAGE.lines() {
        let is_command = ["    rusty-raft ", "    $ ", "    etcdctl "];
        assert!(!is_command.iter().any(|begin| line.starts_with(begin)), "not in a box: {line}");
    }
    // Whatever has a line of its own in the list of commands is there; one belongs to the simulator's page.
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix("| `rusty-raft "));
    let names: Vec<&str> = rows.filter_map(|row| row.split([' ', '`']).next()).collect();
    assert!(names.len() > 12, "{names:?}");
    for name in names.into_iter().filter(|name| *name != "sim") {
        let with_name = format!("rusty-raft {name}");
        assert!(all.iter().any(|line| line.contains(&with_name)), "{with_name} is in no box");
    }
}
