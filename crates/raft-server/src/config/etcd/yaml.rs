//! etcd's configuration file, with the place of every value.
//!
//! The file is flat: keys named as the flags are, scalars or lists of scalars, and two sections with one more level. So
//! the events of a YAML parser are enough.

use std::path::Path;

use saphyr_parser::{Event, Marker, Parser, ScanError, Span};

use super::super::problem::{Place, Problem};
use super::super::scan::nearest;
use super::flags::{self, FLAGS, Flag, SECTION_KEYS, SECTIONS};

/// One value of the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) flag: &'static Flag,
    /// Lists are joined with commas.
    pub(super) value: String,
    /// Where the value stands.
    pub(super) place: Place,
}

const RIGHT: &str = "lines of the form `key: value`, with the names of etcd's flags as keys";

/// Reads etcd's configuration file.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>, Box<Problem>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Problem::of_file(
            path,
            format!("it cannot be read: {error}"),
            "a readable file in etcd's YAML",
        )
    })?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Entry>, Box<Problem>> {
    let mut reader = Reader { path, text, parser: Parser::new_from_str(text), entries: Vec::new() };
    reader.document()?;
    Ok(reader.entries)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    entries: Vec<Entry>,
}

impl<'a> Reader<'a> {
    fn place(&self, at: &Marker) -> Place {
        let text = self.text.lines().nth(at.line().saturating_sub(1)).unwrap_or_default();
        Place { line: at.line(), column: at.col() + 1, text: text.to_owned() }
    }

    fn problem(
        &self,
        at: &Marker,
        field: Option<&str>,
        wrong: impl Into<String>,
        right: impl Into<String>,
    ) -> Box<Problem> {
        let mut problem = Problem::of_file(self.path, wrong, right);
        problem.place = Some(self.place(at));
        problem.field = field.map(str::to_owned);
        problem
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), Box<Problem>> {
        let next = self.parser.next();
        let ended = || ScanError::new(Marker::new(0, 1, 0), "it ends too early".to_owned());
        match next.unwrap_or_else(|| Err(ended())) {
            Ok(event) => Ok(event),
            Err(error) => Err(self.problem(error.marker(), None, error.info(), RIGHT)),
        }
    }

    fn document(&mut self) -> Result<(), Box<Problem>> {
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::Nothing
                | Event::StreamStart
                | Event::DocumentStart(_)
                | Event::DocumentEnd => {}
                Event::StreamEnd => return Ok(()),
                // A file of comments only may be one scalar of nothing.
                Event::Scalar(text, ..) if text.is_empty() || text == "~" => {}
                Event::MappingStart(..) => self.mapping(None)?,
                Event::Scalar(..)
                | Event::Alias(_)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingEnd => {
                    return Err(self.problem(&span.start, None, "here is no `key: value`", RIGHT));
                }
            }
        }
    }

    /// The keys of the file, or of a section.
    fn mapping(&mut self, section: Option<&'static str>) -> Result<(), Box<Problem>> {
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => return Ok(()),
                Event::Scalar(key, ..) => key,
                Event::Nothing
                | Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(_)
                | Event::DocumentEnd
                | Event::Alias(_)
                | Event::SequenceStart(..)
                | Event::SequenceEnd
                | Event::MappingStart(..) => {
                    return Err(self.problem(&span.start, None, "a key must be a name", RIGHT));
                }
            };
            let flag = match section {
                Some(section) => flags::of_section(section, &key),
                None => match SECTIONS.into_iter().find(|section| *section == key) {
                    Some(section) => {
                        self.section(section)?;
                        continue;
                    }
                    None => flags::find(&key),
                },
            };
            // A file cannot name another one.
            let Some(flag) = flag.filter(|flag| flag.name != "config-file") else {
                return Err(self.unknown(&span.start, &key, section));
            };
            self.value(flag)?;
        }
    }

    fn unknown(&self, at: &Marker, key: &str, section: Option<&str>) -> Box<Problem> {
        let near = match section {
            Some(_) => nearest(key, SECTION_KEYS.iter().copied()),
            None => nearest(key, FLAGS.iter().map(|flag| flag.name).chain(SECTIONS)),
        };
        let wrong = match section {
            Some(section) => format!("etcd knows no key `{key}` in `{section}`"),
            None => format!("etcd knows no key `{key}`"),
        };
        let right = near.map_or_else(|| RIGHT.to_owned(), |near| format!("did you mean `{near}`?"));
        self.problem(at, Some(key), wrong, right)
    }

    fn section(&mut self, name: &'static str) -> Result<(), Box<Problem>> {
        let (event, span) = self.next()?;
        match event {
            Event::MappingStart(..) => self.mapping(Some(name)),
            // A section whose keys are all comments.
            Event::Scalar(text, ..) if text.is_empty() || text == "~" => Ok(()),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::Alias(_)
            | Event::Scalar(..)
            | Event::SequenceStart(..)
            | Event::SequenceEnd
            | Event::MappingEnd => {
                let wrong = "it has a value instead of keys of its own";
                Err(self.problem(&span.start, Some(name), wrong, "indented lines: cert-file: …"))
            }
        }
    }

    fn value(&mut self, flag: &'static Flag) -> Result<(), Box<Problem>> {
        let (event, span) = self.next()?;
        let value = match event {
            // Nothing is given: as if the key were not there.
            Event::Scalar(text, style, ..)
                if style == saphyr_parser::ScalarStyle::Plain
                    && (text.is_empty() || text == "~" || text == "null") =>
            {
                return Ok(());
            }
            Event::Scalar(text, ..) => text.into_owned(),
            Event::SequenceStart(..) => self.list(flag)?,
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd
            | Event::Alias(_)
            | Event::SequenceEnd
            | Event::MappingStart(..)
            | Event::MappingEnd => {
                let wrong = "the value is neither a text nor a list of texts";
                return Err(self.problem(&span.start, Some(flag.name), wrong, RIGHT));
            }
        };
        let place = self.place(&span.start);
        if self.entries.iter().any(|entry| entry.flag.name == flag.name) {
            let wrong = "it is given twice";
            return Err(self.problem(&span.start, Some(flag.name), wrong, "one of the two"));
        }
        self.entries.push(Entry { flag, value, place });
        Ok(())
    }

    fn list(&mut self, flag: &Flag) -> Result<String, Box<Problem>> {
        let mut items: Vec<String> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::SequenceEnd => return Ok(items.join(",")),
                Event::Scalar(text, ..) => items.push(text.into_owned()),
                Event::Nothing
                | Event::StreamStart
                | Event::StreamEnd
                | Event::DocumentStart(_)
                | Event::DocumentEnd
                | Event::Alias(_)
                | Event::SequenceStart(..)
                | Event::MappingStart(..)
                | Event::MappingEnd => {
                    let wrong = "the list holds something else than texts";
                    return Err(self.problem(&span.start, Some(flag.name), wrong, RIGHT));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<(&'static str, String, usize)> {
        let parsed = parse(Path::new("etcd.yml"), text).unwrap();
        parsed.into_iter().map(|entry| (entry.flag.name, entry.value, entry.place.line)).collect()
    }

    #[test]
    fn keys_are_flags_and_two_sections() {
        let text = "# a comment\nname: 'n0'\ndata-dir:\nlog-outputs: [stderr, \"x\"]\nquota-backend-bytes: 0\n\
                    client-transport-security:\n  cert-file: a.pem\n  auto-tls: false\n\
                    peer-transport-security:\n  # nothing\nstrict-reconfig-check: true\n";
        let expected = [
            ("name", "n0", 2),
            ("log-outputs", "stderr,x", 4),
            ("quota-backend-bytes", "0", 5),
            ("cert-file", "a.pem", 7),
            ("auto-tls", "false", 8),
            ("strict-reconfig-check", "true", 11),
        ];
        let expected: Vec<_> =
            expected.map(|(name, value, line)| (name, value.to_owned(), line)).into();
        assert_eq!(entries(text), expected);
        assert_eq!(entries(""), []);
        assert_eq!(entries("# nothing\n"), []);
    }

    #[test]
    fn whatever_is_wrong_has_a_line() {
        let table = [
            ("name: a\nheartbeat-intervall: 1\n", 2, "did you mean `heartbeat-interval`?"),
            ("peer-transport-security:\n  cert-fil: x\n", 2, "did you mean `cert-file`?"),
            ("client-transport-security:\n  allowed-cn: x\n", 2, "did you mean"),
            ("name: a\nname: b\n", 2, "one of the two"),
            ("config-file: x\n", 1, "did you mean"),
            ("client-transport-security: x\n", 1, "indented lines"),
            ("name: {a: b}\n", 1, "key: value"),
            ("log-outputs: [[a]]\n", 1, "key: value"),
            ("- name\n", 1, "key: value"),
            ("name: 'a\n", 1, "key: value"),
            ("? [a]\n: b\n", 1, "key: value"),
        ];
        for (text, line, part) in table {
            let problem = parse(Path::new("etcd.yml"), text).unwrap_err();
            let place = problem.place.clone().unwrap();
            assert!(problem.right.contains(part), "{text}: {problem}");
            assert_eq!(place.line, line, "{text}: {problem}");
        }
    }
}
