//! Ends what this process leaves behind, however it ends itself.
//!
//! A process that is killed cannot end its children, and one that they have lost does not always tell them: a function
//! in the middle of an event runs on, and one that is being stopped in that moment stays stopped for ever. Linux can
//! signal the death of a parent, but that has to be asked for between fork and exec, which is unsafe in Rust.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keeps a list of process groups as it is told, and kills them when there is nobody any more who could tell.
const SCRIPT: &str = r#"
while read -r change group; do
    case $change in
    starts) set -- "$@" "$group" ;;
    ended) for other; do
        shift
        [ "$other" = "$group" ] || set -- "$@" "$other"
    done ;;
    esac
done
for group; do
    kill -s KILL -- "-$group"
done
"#;

/// A shell that outlives this process by the time that it needs to kill what is left. Started with the first group.
#[derive(Debug, Default)]
pub struct Guard(Mutex<Option<Child>>);

/// A process group that would be killed. No longer once this is dropped, which is to be done when it has ended.
#[derive(Debug)]
pub(super) struct Guarded {
    guard: Arc<Guard>,
    group: u32,
}

impl Guard {
    /// Guards a process group, which is named like its leader.
    ///
    /// # Errors
    ///
    /// When there is no shell.
    pub(super) fn guard(self: &Arc<Self>, group: u32) -> io::Result<Guarded> {
        let mut shell = self.shell();
        if shell.is_none() {
            *shell = Some(start()?);
        }
        drop(shell);
        self.tell("starts", group);
        Ok(Guarded { guard: self.clone(), group })
    }

    /// Fails when somebody has ended the shell, and then there is no guard.
    fn tell(&self, change: &str, group: u32) {
        if let Some(stdin) = self.shell().as_mut().and_then(|shell| shell.stdin.as_mut()) {
            // In one write, so that no half of a line is ever read.
            let _ = stdin.write_all(format!("{change} {group}\n").as_bytes());
        }
    }

    fn shell(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start() -> io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", SCRIPT, "guard"])
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A Ctrl-C in the terminal, and what else ends the process group of this process, is not for the guard.
        .process_group(0)
        .spawn()
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.guard.tell("ended", self.group);
    }
}

/// Waits until what is still on the list is killed, which takes milliseconds.
impl Drop for Guard {
    fn drop(&mut self) {
        // Its standard input is closed first.
        let _ = self.shell().as_mut().map(Child::wait);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep").arg("600").process_group(0).spawn().unwrap()
    }

    #[test]
    fn what_is_still_guarded_at_the_end_is_killed_and_nothing_else() {
        let guard = Arc::new(Guard::default());
        let mut sleepers = [sleeper(), sleeper(), sleeper(), sleeper()];
        let mut guarded: Vec<_> = sleepers.iter().map(|sleeper| guard.guard(sleeper.id()).unwrap()).collect();
        drop(guarded.remove(1));
        drop(guarded.remove(2));
        // As if this process had ended without a word.
        let shell = guard.shell().take();
        shell.unwrap().wait().unwrap();
        for (sleeper, killed) in sleepers.iter_mut().zip([true, false, true, false]) {
            if !killed {
                assert_eq!(sleeper.try_wait().unwrap(), None);
                sleeper.kill().unwrap();
                continue;
            }
            assert_eq!(sleeper.wait().unwrap().signal(), Some(9));
        }
    }
}
