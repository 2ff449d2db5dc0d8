//! Escapes for characters that a terminal obeys.
//!
//! Much of what is printed comes from outside: paths, ids, the lines of functions. A terminal obeys control characters;
//! some of them reach the clipboard, and a newline forges a line. The escapes are those of JSON, so that a function's
//! line of JSON stays JSON with the same meaning.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Returns the text without characters that a terminal obeys.
pub(super) fn escaped(text: &str) -> Cow<'_, str> {
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

/// Tells whether a terminal obeys the character: control characters (C0, DEL and C1), line separators of Unicode, and
/// characters that change the direction of text. All of them have at most four hexadecimal digits.
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_a_terminal_obeys_are_escaped() {
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
