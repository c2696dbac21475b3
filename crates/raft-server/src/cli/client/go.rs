//! Text as Go writes it, because scripts take etcdctl's output apart: quoted strings, durations, sizes.

use std::fmt::Write as _;
use std::time::Duration;

/// Text as Go's `%q` writes it, with what is no UTF-8 byte by byte.
pub(super) fn quoted(text: &[u8]) -> String {
    let mut out = String::from("\"");
    for chunk in text.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\x07' => out.push_str("\\a"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x0b' => out.push_str("\\v"),
                c if c < ' ' || c == '\x7f' => {
                    push(&mut out, format_args!("\\x{:02x}", u32::from(c)))
                }
                c if is_printable(c) => out.push(c),
                c if u32::from(c) < 0x1_0000 => {
                    push(&mut out, format_args!("\\u{:04x}", u32::from(c)))
                }
                c => push(&mut out, format_args!("\\U{:08x}", u32::from(c))),
            }
        }
        for byte in chunk.invalid() {
            push(&mut out, format_args!("\\x{byte:02x}"));
        }
    }
    out.push('"');
    out
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // A String takes everything.
    out.write_fmt(text).ok();
}

fn is_printable(c: char) -> bool {
    c == ' ' || c.is_alphanumeric() || c.escape_debug().eq([c])
}

/// Reads a string in double quotes with Go's escapes at the beginning of `text`; gives what is in it and what follows.
pub(super) fn unquoted(text: &str) -> Option<(Vec<u8>, &str)> {
    let mut chars = text.strip_prefix('"')?.chars();
    let mut out = Vec::new();
    let push = |out: &mut Vec<u8>, c: char| out.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
    loop {
        match chars.next()? {
            '"' => return Some((out, chars.as_str())),
            '\n' => return None,
            '\\' => {
                let (digits, is_byte) = match chars.next()? {
                    'a' => (Err('\x07'), false),
                    'b' => (Err('\x08'), false),
                    'f' => (Err('\x0c'), false),
                    'n' => (Err('\n'), false),
                    'r' => (Err('\r'), false),
                    't' => (Err('\t'), false),
                    'v' => (Err('\x0b'), false),
                    c @ ('"' | '\\') => (Err(c), false),
                    'x' => (Ok(2), true),
                    'u' => (Ok(4), false),
                    'U' => (Ok(8), false),
                    _ => return None,
                };
                match digits {
                    Err(c) => push(&mut out, c),
                    Ok(count) => {
                        let digits = chars.as_str().get(..count)?;
                        let number = u32::from_str_radix(digits, 16).ok()?;
                        chars.nth(count - 1)?;
                        if is_byte {
                            out.push(u8::try_from(number).ok()?);
                        } else {
                            push(&mut out, char::from_u32(number)?);
                        }
                    }
                }
            }
            c => push(&mut out, c),
        }
    }
}

/// A duration as Go prints it: `1.5ms`, `2m0.25s`.
pub(super) fn duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let (unit, name): (u128, &str) = match nanos {
        0 => return String::from("0s"),
        1..1_000 => (1, "ns"),
        1_000..1_000_000 => (1_000, "µs"),
        1_000_000..1_000_000_000 => (1_000_000, "ms"),
        _ => (1_000_000_000, "s"),
    };
    let (whole, rest) = (nanos / unit, nanos % unit);
    let mut fraction = String::new();
    if rest > 0 {
        let digits = unit.ilog10().try_into().unwrap_or(0);
        fraction = format!(".{rest:0digits$}").trim_end_matches('0').to_owned();
    }
    if name != "s" || whole < 60 {
        return format!("{whole}{fraction}{name}");
    }
    let (minutes, seconds) = (whole / 60, whole % 60);
    match minutes / 60 {
        0 => format!("{minutes}m{seconds}{fraction}s"),
        hours => format!("{hours}h{}m{seconds}{fraction}s", minutes % 60),
    }
}

/// A size in powers of 1000 with two digits: `735 B`, `1.2 MB`, `25 kB`.
pub(super) fn size(bytes: i64) -> String {
    let bytes = u64::try_from(bytes).unwrap_or(0);
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut unit = 1u64;
    let mut names = ["B", "kB", "MB", "GB", "TB", "PB", "EB"].into_iter();
    let mut name = names.next().unwrap_or("B");
    while bytes / unit >= 1000 {
        unit *= 1000;
        name = names.next().unwrap_or(name);
    }
    // In tenths, rounded.
    let tenths = u64::try_from((u128::from(bytes) * 10 + u128::from(unit) / 2) / u128::from(unit));
    let tenths = tenths.unwrap_or(u64::MAX);
    if tenths < 100 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        // Go's `%.0f` rounds halves to the even neighbour.
        let (whole, rest) = (tenths / 10, tenths % 10);
        let up = rest > 5 || (rest == 5 && whole % 2 == 1);
        format!("{} {name}", whole + u64::from(up))
    }
}

/// Every byte as `\x00`: etcdctl's `--hex`.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        push(&mut out, format_args!("\\x{byte:02x}"));
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_quoted_as_go_quotes_them() {
        for (text, wanted) in [
            (&b"plain"[..], r#""plain""#),
            (b"a\"b\\c\n\t\x00\x7f", r#""a\"b\\c\n\t\x00\x7f""#),
            ("grüße €".as_bytes(), r#""grüße €""#),
            (b"\xff\xc3", r#""\xff\xc3""#),
            ("\u{feff}\u{85}".as_bytes(), r#""\ufeff\u0085""#),
        ] {
            assert_eq!(quoted(text), wanted);
            assert_eq!(unquoted(wanted), Some((text.to_vec(), "")), "{wanted}");
        }
        assert_eq!(unquoted(r#""a") = "1""#), Some((b"a".to_vec(), ") = \"1\"")));
        for bad in ["", "a", "\"a", r#""\q""#, r#""\x1""#, "\"a\nb\""] {
            assert_eq!(unquoted(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations_are_written_as_in_go() {
        for (nanos, wanted) in [
            (0, "0s"),
            (15, "15ns"),
            (1_500, "1.5µs"),
            (1_366_535, "1.366535ms"),
            (1_000_000, "1ms"),
            (2_050_000_000, "2.05s"),
            (60_000_000_000, "1m0s"),
            (3_661_500_000_000, "1h1m1.5s"),
        ] {
            assert_eq!(duration(Duration::from_nanos(nanos)), wanted);
        }
    }

    #[test]
    fn sizes_are_written_as_etcdctl_writes_them() {
        for (bytes, wanted) in [
            (0, "0 B"),
            (9, "9 B"),
            (331, "331 B"),
            (20_480, "20 kB"),
            (1_234, "1.2 kB"),
            (57_376, "57 kB"),
            (82_854_982, "83 MB"),
            (999_999, "1000 kB"),
            (-1, "0 B"),
        ] {
            assert_eq!(size(bytes), wanted);
        }
        assert_eq!(hex(b"a\xff"), r"\x61\xff");
    }
}
