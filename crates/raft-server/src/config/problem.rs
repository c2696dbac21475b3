//! What is wrong with a configuration, on one screen.

use std::fmt;
use std::path::{Path, PathBuf};

/// A configuration that cannot be used: what a person needs to put it right. Nothing was written.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The file.
    pub file: PathBuf,
    /// Where in the file, if it is about a place.
    pub place: Option<Place>,
    /// The field, if it is about one.
    pub field: Option<String>,
    /// What is wrong.
    pub wrong: String,
    /// What would be right.
    pub right: String,
    /// What else in the file looks wrong and may be the reason.
    pub also: Vec<String>,
}

/// A place in a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// The line itself.
    pub text: String,
}

impl Place {
    /// The place `offset` bytes into `text`; the end when there are fewer.
    pub(super) fn at(text: &str, offset: usize) -> Self {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let line_start = text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
        let line_text = text[line_start..].lines().next().unwrap_or_default();
        Self {
            line: text[..offset].matches('\n').count() + 1,
            column: text[line_start..offset].chars().count() + 1,
            text: line_text.to_owned(),
        }
    }
}

/// The line as shown, cut so that a one-line file does not fill the screen: text and column of the mark.
fn excerpt(place: &Place) -> (String, usize) {
    const BEFORE: usize = 60;
    const WIDTH: usize = 100;
    let skipped = place.column.saturating_sub(BEFORE);
    let shown: String = place
        .text
        .chars()
        .skip(skipped)
        .take(WIDTH)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    (shown, place.column - skipped)
}

impl Problem {
    /// A problem of a whole file.
    pub(super) fn of_file(
        file: &Path,
        wrong: impl Into<String>,
        right: impl Into<String>,
    ) -> Box<Self> {
        Box::new(Self {
            file: file.to_owned(),
            place: None,
            field: None,
            wrong: wrong.into(),
            right: right.into(),
            also: Vec::new(),
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "rusty-raft: {} cannot be used", self.file.display())?;
        writeln!(f)?;
        if let Some(place) = &self.place {
            writeln!(f, "  place  {}:{}:{}", self.file.display(), place.line, place.column)?;
        }
        if let Some(field) = &self.field {
            writeln!(f, "  field  {field}")?;
        }
        writeln!(f, "  wrong  {}", self.wrong)?;
        writeln!(f, "  right  {}", self.right)?;
        // A screen has room for a few.
        for also in self.also.iter().take(5) {
            writeln!(f, "  also   {also}")?;
        }
        if let Some(place) = &self.place {
            let (text, column) = excerpt(place);
            let number = place.line.to_string();
            let margin = " ".repeat(number.len());
            writeln!(f)?;
            writeln!(f, "  {number} | {text}")?;
            writeln!(f, "  {margin} | {}^", " ".repeat(column.saturating_sub(1)))?;
        }
        writeln!(f)?;
        write!(f, "Nothing was written.")
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "(\n  ä: 1,\n)";
        let place = Place::at(text, text.find('1').unwrap());
        assert_eq!((place.line, place.column, place.text.as_str()), (2, 6, "  ä: 1,"));
        let end = Place::at(text, 1000);
        assert_eq!((end.line, end.column), (3, 2));
        assert_eq!(Place::at("", 5).line, 1);
    }

    #[test]
    fn long_lines_are_cut_around_the_mark() {
        let place = Place { line: 1, column: 5000, text: "x".repeat(10_000) };
        let (text, column) = excerpt(&place);
        assert_eq!((text.len(), column), (100, 60));
    }
}
