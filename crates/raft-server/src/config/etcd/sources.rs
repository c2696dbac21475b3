//! Where a setting may come from: the configuration file, then the environment, then the command line; the last one wins.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::super::problem::{Place, Problem};
use super::super::scan::nearest;
use super::flags::{self, FLAGS, Flag, Shape};
use super::{values, yaml};

/// Where a value was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nowhere.
    Default,
    /// In etcd's configuration file.
    File(PathBuf, Place),
    /// In the variable of this name.
    Environment(String),
    /// On the command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path, place) => write!(f, "{}:{}", path.display(), place.line),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag => write!(f, "flag"),
        }
    }
}

/// The values of one flag, the one that wins last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Given {
    /// What was said, and where; never empty.
    said: Vec<(String, Origin)>,
}

/// Everything that was given.
#[derive(Debug, Default)]
pub(super) struct Sources {
    given: BTreeMap<&'static str, Given>,
    /// What was given and means nothing to etcd.
    pub(super) warnings: Vec<String>,
}

/// What the command line asks for beside a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// A server.
    Serve,
    /// `--version`.
    Version,
    /// `--help`.
    Help,
}

/// A problem of the command line.
fn of_command_line(
    field: Option<&str>,
    wrong: impl Into<String>,
    right: impl Into<String>,
) -> Box<Problem> {
    let mut problem = Problem::of_file(Path::new("the command line"), wrong, right);
    problem.field = field.map(str::to_owned);
    problem
}

/// Flags in the order in which they were given.
pub(super) type Words = Vec<(&'static Flag, String)>;

/// Splits a command line as Go does: one dash or two, the value after `=` or as the next word.
pub(super) fn command_line(words: &[String]) -> Result<(Request, Words), Box<Problem>> {
    let mut found = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'));
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            let right = match word.as_str() {
                "gateway" | "grpc-proxy" => {
                    "flags only: a proxy is not part of this program".to_owned()
                }
                _ => "flags only, as in: etcd --name n0 --data-dir n0.etcd".to_owned(),
            };
            return Err(of_command_line(None, format!("{word:?} is not a flag"), right));
        };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        match name {
            "version" => return Ok((Request::Version, Vec::new())),
            "h" | "help" => return Ok((Request::Help, Vec::new())),
            _ => {}
        }
        let Some(flag) = flags::find(name) else {
            let near = nearest(name, FLAGS.iter().map(|flag| flag.name)).unwrap_or_default();
            let wrong = format!("etcd knows no flag --{name}");
            return Err(of_command_line(None, wrong, format!("did you mean --{near}?")));
        };
        let value = match value {
            Some(value) => value,
            None if matches!(flag.shape, Shape::Switch | Shape::Ignored) => "true".to_owned(),
            None => words.next().cloned().ok_or_else(|| {
                let right = format!("--{name} <value> or --{name}=<value>");
                of_command_line(Some(flag.name), "it has no value", right)
            })?,
        };
        found.push((flag, value));
    }
    Ok((Request::Serve, found))
}

/// What variables may be called like ours and are none of ours.
const OTHER_PROGRAMS: [&str; 3] = ["ETCDCTL_", "ETCDUTL_", "ETCD_VERIFY"];

impl Sources {
    /// Gathers what the file, the environment and the command line say.
    pub(super) fn gather(
        words: Words,
        variables: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Box<Problem>> {
        let mut sources = Self::default();
        let variables: BTreeMap<String, String> = variables
            .filter(|(name, _)| name.starts_with("ETCD_"))
            .filter(|(name, _)| !OTHER_PROGRAMS.iter().any(|other| name.starts_with(other)))
            .collect();
        let file = words.iter().rev().find(|(flag, _)| flag.name == "config-file");
        let file = file.map(|(_, path)| path).or_else(|| variables.get("ETCD_CONFIG_FILE"));
        if let Some(path) = file.filter(|path| !path.is_empty()) {
            let path = Path::new(path);
            for yaml::Entry { flag, value, place } in yaml::read(path)? {
                sources.add(flag, value, Origin::File(path.to_owned(), place))?;
            }
        }
        for (variable, value) in variables {
            let flag = FLAGS.iter().map(|flag| flag.name).find_map(|name| {
                let plain = flags::variable(name) == variable;
                let name = if plain { name.to_owned() } else { format!("experimental-{name}") };
                (flags::variable(&name) == variable).then(|| flags::find(&name)).flatten()
            });
            match flag {
                // As in etcd, an empty variable says nothing.
                Some(_) if value.is_empty() => {}
                Some(flag) => sources.add(flag, value, Origin::Environment(variable))?,
                // Kubernetes makes variables of this form for every service called etcd: a warning, no more.
                None => sources
                    .warnings
                    .push(format!("unknown environment variable {variable}, ignored")),
            }
        }
        for (flag, value) in words {
            sources.add(flag, value, Origin::Flag)?;
        }
        Ok(sources)
    }

    /// Adds a value that has the form of its flag.
    fn add(
        &mut self,
        flag: &'static Flag,
        value: String,
        origin: Origin,
    ) -> Result<(), Box<Problem>> {
        let right = match flag.shape {
            Shape::Text | Shape::List | Shape::Ignored => None,
            Shape::Switch => values::switch(&value).is_none().then_some("true or false"),
            Shape::Number => value.parse::<i64>().is_err().then_some("a whole number"),
            // As in etcd's file, where durations are whole nanoseconds.
            Shape::Duration => (values::duration(&value).is_none()
                && value.parse::<u64>().is_err())
            .then_some("a duration such as 5s, 1m30s or 1h"),
        };
        if let Some(right) = right {
            return Err(problem(flag.name, &origin, format!("it is {value:?}"), right));
        }
        let given = self.given.entry(flag.name).or_insert_with(|| Given { said: Vec::new() });
        // Said again in one place: the last one counts, as in Go.
        if given.said.last().is_some_and(|(_, last)| *last == origin) {
            given.said.pop();
        }
        given.said.push((value, origin));
        Ok(())
    }

    /// What was given for a flag, and where it was said last.
    pub(super) fn given(&self, name: &str) -> Option<(&str, &Origin)> {
        let (value, origin) = self.given.get(name)?.said.last()?;
        Some((value, origin))
    }

    /// The value of a flag.
    pub(super) fn value(&self, name: &str) -> &str {
        let default = || flags::find(name).map_or("", |flag| flag.default);
        self.given(name).map_or_else(default, |(value, _)| value)
    }

    /// Whether a switch is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        values::switch(self.value(name)).unwrap_or(false)
    }

    /// What is wrong with a flag's value.
    pub(super) fn wrong(
        &self,
        name: &str,
        wrong: impl Into<String>,
        right: impl Into<String>,
    ) -> Box<Problem> {
        let origin = self.given(name).map_or(&Origin::Default, |(_, origin)| origin);
        problem(name, origin, wrong, right)
    }

    /// Every flag with its value, where that comes from, and what else was said, the weakest first.
    pub(super) fn table(&self) -> Vec<Row> {
        let row = |flag: &'static Flag| match self.given.get(flag.name) {
            Some(Given { said }) => {
                let (last, before) = said.split_last()?;
                Some(Row {
                    name: flag.name,
                    value: last.0.clone(),
                    origin: last.1.clone(),
                    overruled: before.to_vec(),
                })
            }
            None => Some(Row {
                name: flag.name,
                value: flag.default.to_owned(),
                origin: Origin::Default,
                overruled: Vec::new(),
            }),
        };
        FLAGS.iter().filter_map(row).collect()
    }
}

/// One setting as `config show` prints it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The flag, without dashes.
    pub name: &'static str,
    /// What counts.
    pub value: String,
    /// Where it was said.
    pub origin: Origin,
    /// What was said elsewhere and does not count.
    pub overruled: Vec<(String, Origin)>,
}

/// A problem with a value, wherever it comes from.
fn problem(
    name: &str,
    origin: &Origin,
    wrong: impl Into<String>,
    right: impl Into<String>,
) -> Box<Problem> {
    let file = match origin {
        Origin::Default | Origin::Flag => Path::new("the command line").to_owned(),
        Origin::Environment(variable) => PathBuf::from(format!("the environment ({variable})")),
        Origin::File(path, _) => path.clone(),
    };
    let mut problem = Problem::of_file(&file, wrong, right);
    problem.field = Some(match origin {
        Origin::Flag | Origin::Default => format!("--{name}"),
        Origin::Environment(_) | Origin::File(..) => name.to_owned(),
    });
    if let Origin::File(_, place) = origin {
        problem.place = Some(place.clone());
    }
    problem
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn flags_of(line: &[&str]) -> Vec<(&'static str, String)> {
        let (request, found) = command_line(&words(line)).unwrap();
        assert_eq!(request, Request::Serve);
        found.into_iter().map(|(flag, value)| (flag.name, value)).collect()
    }

    #[test]
    fn command_lines_are_read_as_go_does() {
        let line = [
            "-name",
            "a",
            "--data-dir=b",
            "-debug",
            "--auto-tls=false",
            "--experimental-max-learners",
            "2",
        ];
        let expected = [
            ("name", "a"),
            ("data-dir", "b"),
            ("debug", "true"),
            ("auto-tls", "false"),
            ("max-learners", "2"),
        ];
        assert_eq!(flags_of(&line), expected.map(|(name, value)| (name, value.to_owned())));
        assert_eq!(command_line(&words(&["--version"])).unwrap().0, Request::Version);
        assert_eq!(command_line(&words(&["-h"])).unwrap().0, Request::Help);
        let bad: [(&[&str], &str); 5] = [
            (&["name"], "not a flag"),
            (&["grpc-proxy", "start"], "not a flag"),
            (&["--nmae", "x"], "no flag --nmae"),
            (&["--name"], "no value"),
            (&["-"], "not a flag"),
        ];
        for (line, part) in bad {
            let problem = command_line(&words(line)).unwrap_err();
            assert!(problem.wrong.contains(part), "{problem}");
        }
    }

    #[test]
    fn the_file_yields_to_the_environment_and_that_to_the_command_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etcd.yml");
        std::fs::write(&path, "name: file\ndata-dir: file\nwal-dir: file\n").unwrap();
        let (_, found) = command_line(&words(&[
            "--name=first",
            "--name=flag",
            &format!("--config-file={}", path.display()),
        ]))
        .unwrap();
        let variables = [
            ("ETCD_NAME", "environment"),
            ("ETCD_DATA_DIR", "environment"),
            ("ETCD_SNAPSHOT_COUNT", ""),
            ("ETCD_EXPERIMENTAL_MAX_LEARNERS", "3"),
            ("ETCD_PORT_2379_TCP", "tcp://10.0.0.1:2379"),
            ("ETCDCTL_API", "3"),
            ("PATH", "/bin"),
        ];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let sources = Sources::gather(found, variables.into_iter()).unwrap();
        let said = |name: &str| {
            let (value, origin) = sources.given(name).unwrap();
            (value.to_owned(), origin.to_string())
        };
        assert_eq!(said("name"), ("flag".to_owned(), "flag".to_owned()));
        let expected = ("environment".to_owned(), "environment ETCD_DATA_DIR".to_owned());
        assert_eq!(said("data-dir"), expected);
        assert_eq!(said("wal-dir"), ("file".to_owned(), format!("{}:3", path.display())));
        assert_eq!(sources.value("max-learners"), "3");
        assert_eq!(sources.value("snapshot-count"), "100000");
        assert_eq!(sources.warnings.len(), 1, "{:?}", sources.warnings);
        let table = sources.table();
        let row = table.iter().find(|row| row.name == "name").unwrap();
        let overruled: Vec<&str> = row.overruled.iter().map(|(value, _)| value.as_str()).collect();
        assert_eq!(overruled, ["file", "environment"]);
    }

    #[test]
    fn values_of_a_wrong_form_say_where_they_stand() {
        let (_, found) = command_line(&words(&["--heartbeat-interval=1s"])).unwrap();
        let problem = Sources::gather(found, std::iter::empty()).unwrap_err();
        assert!(problem.to_string().contains("--heartbeat-interval"), "{problem}");
        let variable = ("ETCD_AUTO_TLS".to_owned(), "yes".to_owned());
        let problem = Sources::gather(Vec::new(), std::iter::once(variable)).unwrap_err();
        assert!(problem.to_string().contains("(ETCD_AUTO_TLS)"), "{problem}");
        assert_eq!(problem.right, "true or false");
    }
}
