//! Finds where in a RON text the fields of the outermost struct stand.
//!
//! `ron` gives values without their places. A person who has to fix a value wants to be shown the line, and
//! a field that nobody asked for is only seen by someone who looks at the names.

/// One `name: value` of the outermost struct. Offsets are bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Key {
    /// The field.
    pub(super) name: String,
    /// Where its name begins.
    pub(super) name_at: usize,
    /// Where its value begins.
    pub(super) value_at: usize,
}

/// The fields of the outermost struct in the order in which they stand. The text need not be valid.
pub(super) fn keys(text: &str) -> Vec<Key> {
    let bytes = text.as_bytes();
    let mut keys = Vec::new();
    let (mut at, mut depth) = (0usize, 0usize);
    while let Some(&byte) = bytes.get(at) {
        let after_blank = skip_blank(bytes, at);
        if after_blank > at {
            at = after_blank;
            continue;
        }
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'"' => {
                at = skip_string(bytes, at);
                continue;
            }
            b'r' if matches!(bytes.get(at + 1), Some(b'"' | b'#')) => {
                at = skip_raw_string(bytes, at);
                continue;
            }
            _ if is_word(byte) => {
                let end = word_end(bytes, at);
                let colon = skip_blank(bytes, end);
                if depth == 1 && bytes.get(colon) == Some(&b':') {
                    keys.push(Key {
                        name: text[at..end].to_owned(),
                        name_at: at,
                        value_at: skip_blank(bytes, colon + 1),
                    });
                }
                at = end;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    keys
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

fn word_end(bytes: &[u8], from: usize) -> usize {
    let len = bytes[from..].iter().take_while(|byte| is_word(**byte)).count();
    from + len
}

/// The first offset from `at` on that is neither white space nor comment.
pub(super) fn skip_blank(bytes: &[u8], mut at: usize) -> usize {
    loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            (Some(byte), _) if byte.is_ascii_whitespace() => at += 1,
            (Some(b'/'), Some(b'/')) => {
                at += bytes[at..].iter().take_while(|byte| **byte != b'\n').count();
            }
            (Some(b'/'), Some(b'*')) => at = skip_block_comment(bytes, at),
            _ => return at,
        }
    }
}

fn skip_block_comment(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0usize;
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'/', Some(b'*')) => {
                depth += 1;
                at += 2;
            }
            (b'*', Some(b'/')) => {
                depth -= 1;
                at += 2;
                if depth == 0 {
                    return at;
                }
            }
            _ => at += 1,
        }
    }
    at
}

fn skip_string(bytes: &[u8], quote: usize) -> usize {
    let mut at = quote + 1;
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn skip_raw_string(bytes: &[u8], r: usize) -> usize {
    let hashes = bytes[r + 1..].iter().take_while(|byte| **byte == b'#').count();
    let open = r + 1 + hashes;
    if bytes.get(open) != Some(&b'"') {
        return r + 1;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    bytes[open + 1..]
        .windows(close.len())
        .position(|window| window == close)
        .map_or(bytes.len(), |found| open + 1 + found + close.len())
}

/// How many single-character edits turn `a` into `b`.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The known name that is nearest to `name`.
pub(super) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known.min_by_key(|candidate| edit_distance(name, candidate))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        keys(text).into_iter().map(|key| key.name).collect()
    }

    #[test]
    fn only_the_outermost_names_count() {
        let text = r##"// a: 1
            ( a: "b: 2", /* c: 3 /* d: 4 */ */ e : [1, 2],
              f: RangeInclusive(start: 1, end: 2), r: r#"g: "5" "#, "h: 6": 1, i /* j */ : 7 )"##;
        assert_eq!(names(text), ["a", "e", "f", "r", "i"]);
    }

    #[test]
    fn values_are_found_behind_comments() {
        let text = "(key: // why\n  /* and */ 42)";
        assert_eq!(keys(text)[0].value_at, text.find("42").unwrap());
    }

    #[test]
    fn broken_texts_end_too() {
        for text in
            ["", "(", "(a", "(a:", "(a: \"", "(a: \"\\", "(a: r#\"", "(/*", "(r#", ")]}", "(ü: 1)"]
        {
            keys(text);
        }
        assert_eq!(names("(ü: 1)"), ["ü"]);
    }

    #[test]
    fn the_nearest_name_is_the_one_with_fewest_edits() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        let known = ["heartbeat_interval", "election_timeout_interval", "data_path"];
        assert_eq!(nearest("hartbeat_intervall", known.into_iter()), Some("heartbeat_interval"));
        assert_eq!(nearest("datapath", known.into_iter()), Some("data_path"));
    }
}
