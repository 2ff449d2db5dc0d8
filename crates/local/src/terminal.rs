//! The stack's terminal: whole lines, most of them with the name of who says it.
//!
//! Much of what is printed comes from outside: paths, ids, what functions say. A terminal obeys control characters, some
//! up to the clipboard, and a newline makes a line that nobody has said. So every line is escaped here, and printed
//! nowhere else. The escapes are those of JSON, so that a function's line of JSON stays JSON with the same meaning.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::Write;

/// Prints `name | text` to standard output, as one line and in one write.
///
/// A terminal that has gone away is not worth dying for, so a failed write is ignored.
pub fn line(name: &str, text: &str) {
    plain(&format!("{name} | {text}"));
}

/// Prints a line to standard output that is of the stack as a whole.
pub fn plain(text: &str) {
    let _ = std::io::stdout().lock().write_all(format!("{}\n", escaped(text)).as_bytes());
}

/// Prints a line to standard error: why the program ends.
pub fn error(text: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{}\n", escaped(text)).as_bytes());
}

/// The text without characters that a terminal would obey.
fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match character {
            '\n' => escaped.push_str("\\n"),
            '\r' => escaped.push_str("\\r"),
            '\t' => escaped.push_str("\\t"),
            // Writing to a string does not fail.
            _ if is_obeyed(character) => drop(write!(escaped, "\\u{:04x}", u32::from(character))),
            _ => escaped.push(character),
        }
    }
    Cow::Owned(escaped)
}

/// The control characters (C0, DEL and C1), what ends lines elsewhere, and what turns the order of characters around. All
/// of them have at most four hexadecimal digits.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        let controls = (0..0x20).chain(0x7f..0xa0).filter_map(char::from_u32);
        for character in
            controls.chain("\u{61c}\u{200e}\u{200f}\u{2028}\u{2029}\u{202a}\u{202e}\u{2066}\u{2069}".chars())
        {
            let text = format!("a{character}b");
            let printed = escaped(&text);
            assert!(printed.chars().all(|printed| printed != character && !printed.is_control()), "{text:?}");
            // As JSON it means the same.
            assert_eq!(serde_json::from_str::<String>(&format!("\"{printed}\"")).unwrap(), text);
        }
        assert_eq!(escaped("\x1b]52;c;eA==\x07\n\u{202e}"), "\\u001b]52;c;eA==\\u0007\\n\\u202e");
    }

    #[test]
    fn other_characters_are_printed_as_they_are() {
        let text = "žluťoučký 🐎 {\"a\":\"\\u001b\\n\"} \u{200d}שלום";
        assert_eq!(escaped(text), text);
    }
}
