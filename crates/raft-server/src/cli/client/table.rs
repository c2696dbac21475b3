//! Tables as etcdctl draws them: the head in capitals and centred, everything else to the right.

/// Draws a table; every row has as many cells as the head.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.max().unwrap_or(0).max(head.get(column).map_or(0, |cell| cell.chars().count()))
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line: String = widths.iter().map(|width| format!("+{}", "-".repeat(width + 2))).collect();
    let line = format!("{line}+\n");
    let mut text = line.clone();
    for (cell, width) in head.iter().zip(&widths) {
        let cell = cell.to_uppercase();
        let spare = width.saturating_sub(cell.chars().count());
        // Of an odd number of spaces, the greater half stands on the right.
        let left = spare / 2;
        text.push_str(&format!("| {}{cell}{} ", " ".repeat(left), " ".repeat(spare - left)));
    }
    text.push_str("|\n");
    text.push_str(&line);
    for row in rows {
        for (cell, width) in row.iter().zip(&widths) {
            text.push_str(&format!("| {cell:>width$} "));
        }
        text.push_str("|\n");
    }
    if !rows.is_empty() {
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_is_centred_and_the_rest_stands_right() {
        let rows = [vec!["127.0.0.1:1".to_owned(), "5".to_owned()]];
        let wanted = "\
+-------------+------+
|  ENDPOINT   | HASH |
+-------------+------+
| 127.0.0.1:1 |    5 |
+-------------+------+
";
        assert_eq!(table(&["endpoint", "hash"], &rows), wanted);
    }
}
