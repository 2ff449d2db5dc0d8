//! `SOURCES.md` explains the codes in the rows' sources, and the rows use no other.

use std::collections::BTreeSet;

use crate::table::Row;

const TABLE: &str = include_str!("SOURCES.md");

/// The marks that `SOURCES.md` explains, alone and combined.
const MARKS: [&str; 5] = ["D", "O", "S", "I", "?"];

/// Compares the codes and marks of the rows with those of `SOURCES.md`, and says how they differ.
pub fn compare(rows: &[Row]) -> Result<(), String> {
    let explained: BTreeSet<_> = TABLE.lines().filter_map(code).collect();
    let used: BTreeSet<_> = rows.iter().flat_map(|row| row.source.split("; ")).collect();
    let unexplained: Vec<_> = used.difference(&explained).collect();
    let unused: Vec<_> = explained.difference(&used).collect();
    let is_mark = |mark: &str| mark.split('+').all(|part| MARKS.contains(&part));
    let marks: Vec<_> = rows.iter().map(|row| row.mark).filter(|mark| !is_mark(mark)).collect();
    if unexplained.is_empty() && unused.is_empty() && marks.is_empty() {
        return Ok(());
    }
    Err(format!("SOURCES.md lacks {unexplained:?}; no row uses {unused:?}; nothing explains the marks {marks:?}"))
}

/// The code in a line of a table: ``| `code` | where | what it proves |``. A line that lacks a cell counts as none.
fn code(line: &str) -> Option<&str> {
    let cells: Vec<_> = line.strip_prefix("| `")?.strip_suffix(" |")?.split(" | ").collect();
    cells[0].strip_suffix('`').filter(|_| cells.len() == 3)
}
