//! The stack's terminal: it prints whole lines, most of them with the name of the part or function that they come from.
//!
//! Every line is escaped ([`escape`]) and printed here and nowhere else.

mod escape;
mod pretty;

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use clap::ValueEnum;
use jiff::Zoned;

use self::escape::escaped;
use self::pretty::Pretty;

/// The form of a line that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Time, name, level, message and fields, in columns. Metrics are not shown.
    Pretty,
    /// `name | text`, with the JSON of a function as it wrote it.
    Json,
}

/// How lines look once [`set_up`] has run. Before, and without it, they have the form [`LogFormat::Json`].
static PRETTY: OnceLock<Pretty> = OnceLock::new();

/// Chooses the form of lines for the rest of the program. `names` are the names of functions, which decide how wide the
/// column of names is. The first call wins.
pub fn set_up<'a>(format: LogFormat, names: impl IntoIterator<Item = &'a str>) {
    if format == LogFormat::Pretty {
        // https://no-color.org: any value but an empty one turns colours off.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        PRETTY.get_or_init(|| Pretty::new(names, std::io::stdout().is_terminal() && !no_color));
    }
}

/// Prints a line of a part of the stack to standard output, in one write.
///
/// A terminal that has gone away is no reason to stop, so a failed write is ignored.
pub fn line(name: &str, text: &str) {
    match PRETTY.get() {
        Some(pretty) => print(&pretty.line(&Zoned::now(), name, text)),
        None => plain(&format!("{name} | {text}")),
    }
}

/// Prints a line that a function wrote.
pub fn function_line(name: &str, text: &str) {
    match PRETTY.get() {
        Some(pretty) => pretty.function_line(&Zoned::now(), name, text).into_iter().for_each(|line| print(&line)),
        None => plain(&format!("{name} | {text}")),
    }
}

/// Tells that a function has a new process, in the form for people only: the JSON form shows what functions write.
pub fn cold_start(name: &str, init: Duration) {
    if let Some(pretty) = PRETTY.get() {
        print(&pretty.cold_start(&Zoned::now(), name, init));
    }
}

/// Prints a line of the stack as a whole to standard output.
pub fn plain(text: &str) {
    print(&escaped(text));
}

/// Prints a line to standard error: the reason why the program ends.
pub fn error(text: &str) {
    let _ = std::io::stderr().lock().write_all(format!("{}\n", escaped(text)).as_bytes());
}

fn print(escaped_line: &str) {
    let _ = std::io::stdout().lock().write_all(format!("{escaped_line}\n").as_bytes());
}
