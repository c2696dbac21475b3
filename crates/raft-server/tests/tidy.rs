//! What the compiler does not check: who may import whom, links, one writer for each of the values on which
//! safety rests, and a few words that must not appear.

#![expect(clippy::unwrap_used, reason = "a test fails on what it does not expect")]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// All files below `dir` with the given extension, sorted; build output, data and hidden folders aside.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name == "target" || name.starts_with('.') || name.ends_with("_data") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a source file that are code, without the unit tests at its end.
fn code_lines(path: &Path) -> Vec<(usize, String)> {
    let source = text(path);
    let code = source.split("\n#[cfg(test)]\nmod ").next().unwrap_or_default();
    (1..)
        .zip(code.lines())
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| (number, line.to_owned()))
        .collect()
}

fn sources(crate_name: &str) -> Vec<PathBuf> {
    files(&root().join("crates").join(crate_name).join("src"), "rs")
}

/// `node → {log, transport, apply}`, and those three never import each other.
#[test]
fn modules_of_the_node_import_in_one_direction() {
    let forbidden = [
        ("log", ["crate::node", "crate::transport", "crate::apply"]),
        ("transport", ["crate::node", "crate::log", "crate::apply"]),
        ("apply", ["crate::node", "crate::log", "crate::transport"]),
    ];
    let src = root().join("crates/raft/src");
    for (module, imports) in forbidden {
        let folder = src.join(module);
        let mut paths = vec![src.join(format!("{module}.rs"))];
        if folder.is_dir() {
            paths.extend(files(&folder, "rs"));
        }
        for path in paths.iter().filter(|path| path.exists()) {
            for (number, line) in code_lines(path) {
                for import in imports {
                    assert!(
                        !line.contains(import),
                        "{}:{number}: `{module}` must not use `{import}`",
                        path.display()
                    );
                }
            }
        }
    }
}

/// Dependencies of the crates point one way.
#[test]
fn crates_depend_in_one_direction() {
    let allowed: [(&str, &[&str]); 5] = [
        ("raft-core", &[]),
        ("raft", &["raft-core"]),
        ("raft-kv", &["raft-core"]),
        ("raft-server", &["raft", "raft-kv", "raft-sim"]),
        ("raft-sim", &["raft-core", "raft", "raft-kv"]),
    ];
    for (name, allowed) in allowed {
        let manifest = text(&root().join("crates").join(name).join("Cargo.toml"));
        let dependencies = section(&manifest, "[dependencies]");
        for line in dependencies.lines() {
            let dependency = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if ["raft-core", "raft", "raft-kv", "raft-server", "raft-sim"].contains(&dependency) {
                assert!(allowed.contains(&dependency), "{name} must not depend on {dependency}");
            }
        }
        if name == "raft-core" {
            let count = dependencies.lines().filter(|line| line.contains("workspace")).count();
            assert!(count <= 2, "raft-core has {count} dependencies, at most two are allowed");
        }
    }
}

fn section<'a>(manifest: &'a str, header: &str) -> &'a str {
    let rest = manifest.split(&format!("\n{header}\n")).nth(1).unwrap_or_default();
    rest.split("\n[").next().unwrap_or_default()
}

/// Safety rests on these; each has one function that sets it.
#[test]
fn the_values_on_which_safety_rests_have_one_writer_each() {
    for value in ["commit_index", "hard_state", "last_applied"] {
        let assignment = format!("self.{value} = ");
        let mut writers = Vec::new();
        for path in sources("raft-core") {
            for (number, line) in code_lines(&path) {
                if line.contains(&assignment) {
                    writers.push(format!("{}:{number}", path.display()));
                }
            }
        }
        assert!(writers.len() == 1, "`{value}` is written in {writers:?}");
    }
}

/// No lock in the protocol nor on the path of a proposal or a read, under whatever name.
#[test]
fn there_is_no_lock_in_the_protocol_and_the_node() {
    for path in sources("raft-core").into_iter().chain(sources("raft")) {
        for (number, line) in code_lines(&path) {
            for word in ["Mutex", "RwLock", "DashMap", "parking_lot", "unsafe "] {
                assert!(!line.contains(word), "{}:{number}: `{word}`", path.display());
            }
        }
    }
}

/// No unfinished business, and no test that waits for time instead of an event.
#[test]
fn nothing_is_left_undone() {
    for crate_name in ["raft-core", "raft", "raft-kv", "raft-server", "raft-sim"] {
        for path in files(&root().join("crates").join(crate_name), "rs") {
            if path.ends_with("tests/tidy.rs") {
                continue;
            }
            for (number, line) in (1..).zip(text(&path).lines()) {
                for word in ["todo!(", "unimplemented!(", "#[ignore", "dbg!(", "FIXME", "XXX"] {
                    assert!(!line.contains(word), "{}:{number}: `{word}`", path.display());
                }
                assert!(
                    !line.chars().any(|c| c.is_control() && c != '\t'),
                    "{}:{number}: a control character",
                    path.display()
                );
            }
        }
    }
}

/// Every relative link of every document leads somewhere, and where the link's text is a symbol in
/// backticks, the file contains it.
#[test]
fn links_in_the_documents_lead_somewhere() {
    let root = root();
    let mut links = 0;
    for path in files(&root, "md") {
        let document = text(&path);
        for piece in document.split("](").skip(1) {
            let target = piece.split(')').next().unwrap_or_default();
            if target.starts_with("http") || target.starts_with('#') || target.is_empty() {
                continue;
            }
            links += 1;
            let file = target.split('#').next().unwrap_or_default();
            let linked = path.parent().unwrap().join(file);
            assert!(linked.exists(), "{}: {target} does not exist", path.display());
        }
        for (before, after) in document.split("`](").zip(document.split("`](").skip(1)) {
            let symbol = before.rsplit("[`").next().unwrap_or_default();
            let file = after.split([')', '#']).next().unwrap_or_default();
            let linked = path.parent().unwrap().join(file);
            if linked.is_file() && !symbol.contains('/') {
                assert!(
                    text(&linked).contains(symbol),
                    "{}: {file} does not contain `{symbol}`",
                    path.display()
                );
            }
        }
    }
    assert!(links > 20, "only {links} links were found: the search itself is broken");
}

/// ARCHITECTURE.md tells the life of a write, all nine steps of it.
#[test]
fn the_life_of_a_write_has_nine_linked_steps() {
    let document = text(&root().join("ARCHITECTURE.md"));
    for step in 1..=9 {
        let row = document
            .lines()
            .find(|line| line.starts_with(&format!("| {step} |")))
            .unwrap_or_else(|| panic!("step {step} is missing"));
        assert!(row.contains("](crates/"), "step {step} has no link: {row}");
    }
}
