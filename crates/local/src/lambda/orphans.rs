//! Kills the functions' processes, and removes the files that they read, when this process ends without doing so itself.
//!
//! If this process is killed, its children are not told. A function that is handling an event keeps running, and a
//! function that is stopped at that moment stays stopped for ever. Linux can signal the death of a parent, but a child
//! has to ask for that between fork and exec, and code there is unsafe in Rust. So a shell waits for the end of this
//! process.

use std::fmt::Display;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The shell's script. It keeps a list of process groups and a folder, as standard input tells it. When the input ends, it
/// kills the groups and removes the folder.
const SCRIPT: &str = r#"
folder=
while read -r change group; do
    case $change in
    removes) folder=$group ;;
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
[ -z "$folder" ] || PATH=/usr/bin:/bin rm -rf -- "$folder"
"#;

/// The shell that kills the registered process groups when this process has ended. The folder that it must remove starts it, or
/// the first registration.
#[derive(Debug, Default)]
pub struct OrphanGuard(Mutex<Option<Child>>);

/// A registered process group. Dropping this unregisters the group; drop it when the group has ended.
#[derive(Debug)]
pub(super) struct Registration {
    guard: Arc<OrphanGuard>,
    group: u32,
}

impl OrphanGuard {
    /// Registers a process group, which has the id of its leader.
    ///
    /// # Errors
    ///
    /// When the shell cannot be started.
    pub(super) fn register(self: &Arc<Self>, group: u32) -> io::Result<Registration> {
        self.start()?;
        self.tell("starts", group);
        Ok(Registration { guard: self.clone(), group })
    }

    /// Lets the shell remove this folder at the end. It starts the shell.
    ///
    /// # Errors
    ///
    /// When the shell cannot be started.
    pub fn remove_at_the_end(&self, folder: &Path) -> io::Result<()> {
        self.start()?;
        self.tell("removes", folder.display());
        Ok(())
    }

    fn start(&self) -> io::Result<()> {
        let mut shell = self.shell();
        if shell.is_none() {
            *shell = Some(start()?);
        }
        Ok(())
    }

    /// Tells the shell about a group or a folder. If someone has ended the shell, this does nothing: then there is no guard.
    fn tell(&self, change: &str, group: impl Display) {
        if let Some(stdin) = self.shell().as_mut().and_then(|shell| shell.stdin.as_mut()) {
            // One write, so that the shell never reads half a line.
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
        // A group of its own, so that a Ctrl-C in the terminal, or another signal to the group of this process, does
        // not end the guard.
        .process_group(0)
        .spawn()
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.guard.tell("ended", self.group);
    }
}

/// Waits until the shell has killed the groups that are still registered. That takes milliseconds.
impl Drop for OrphanGuard {
    fn drop(&mut self) {
        // `wait` closes the standard input first, which ends the script.
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
    fn only_registered_groups_are_killed_and_the_folder_is_removed_at_the_end() {
        let guard = Arc::new(OrphanGuard::default());
        let above = tempfile::tempdir().unwrap();
        let folder = above.path().join("a folder");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("file"), "").unwrap();
        guard.remove_at_the_end(&folder).unwrap();
        let mut sleepers = [sleeper(), sleeper(), sleeper(), sleeper()];
        let mut registrations: Vec<_> = sleepers.iter().map(|sleeper| guard.register(sleeper.id()).unwrap()).collect();
        drop(registrations.remove(1));
        drop(registrations.remove(2));
        // Closes the shell's input, as the end of this process does.
        let shell = guard.shell().take();
        shell.unwrap().wait().unwrap();
        assert!(!folder.exists());
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
