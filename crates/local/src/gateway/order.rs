//! The fault `--fault reorder-messages=`: it decides the order in which messages of a connection are dispatched.
//!
//! API Gateway promises no order. Without the fault every message is a task of its own, and the tasks do not wait for
//! each other. With the fault they wait, so that the same decisions make the same order. The module orders only the
//! starts of the invocations. Functions can still finish in any order.

use std::time::Duration;

use tokio::sync::oneshot;

/// The longest time that a message is held back when no other message arrives. The value is ours.
const HOLD_TIME: Duration = Duration::from_secs(1);

/// A signal that resolves when its sender is dropped. Nothing is ever sent.
type Signal = oneshot::Receiver<()>;

/// The order of a connection's messages. At most one message is held back, and the others wait for their turns.
///
/// The connection drops the order when it ends, and this releases a held message.
#[derive(Debug, Default)]
pub(super) struct Order {
    held: Option<Held>,
    /// The signal that the last message which is not held has been dispatched.
    last: Option<Signal>,
}

/// The message that is held back.
#[derive(Debug)]
struct Held {
    /// Its drop releases the message.
    release: oneshot::Sender<()>,
    /// The signal that the message has been dispatched.
    dispatched: Signal,
}

/// The place of a message in the order. Its drop ends the turn, as [`Turn::end`] does.
#[derive(Debug)]
pub(super) struct Turn {
    /// The signal that the message before this one has been dispatched.
    before: Option<Signal>,
    /// The signal that this message is no longer held back.
    released: Option<Signal>,
    /// Its drop tells the message after this one to go.
    next: oneshot::Sender<()>,
}

impl Order {
    /// Returns the turn of a message that has just arrived.
    ///
    /// If a message is held back, it goes right after this one. Otherwise `hold` decides whether to hold this one back.
    pub(super) fn turn(&mut self, hold: impl FnOnce() -> bool) -> Turn {
        if let Some(held) = self.held.take() {
            // This message releases the held one, and later messages wait until the held one has been dispatched.
            return Turn { before: self.last.replace(held.dispatched), released: None, next: held.release };
        }
        let (next, dispatched) = oneshot::channel();
        if hold() {
            let (release, released) = oneshot::channel();
            self.held = Some(Held { release, dispatched });
            Turn { before: None, released: Some(released), next }
        } else {
            Turn { before: self.last.replace(dispatched), released: None, next }
        }
    }
}

impl Turn {
    /// Waits until the message may be dispatched.
    pub(super) async fn wait(&mut self) {
        // A dropped sender is an error for its receiver. Here it is the signal.
        if let Some(before) = self.before.take() {
            let _ = before.await;
        }
        if let Some(released) = self.released.take() {
            let _ = tokio::time::timeout(HOLD_TIME, released).await;
        }
    }

    /// Tells the message after this one to go. It must be called when the invocation has begun.
    pub(super) fn end(self) {
        drop(self.next);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;

    /// Dispatches messages from tasks that start in reverse order. Returns the numbers of the messages as dispatched.
    async fn dispatched(holds: &[bool]) -> Vec<usize> {
        let mut order = Order::default();
        let (record, mut recorded) = mpsc::unbounded_channel();
        let turns: Vec<_> = holds.iter().map(|hold| order.turn(|| *hold)).collect();
        for (number, mut turn) in turns.into_iter().enumerate().rev() {
            let record = record.clone();
            tokio::spawn(async move {
                turn.wait().await;
                record.send(number).unwrap();
            });
        }
        drop((order, record));
        let mut numbers = Vec::new();
        while let Some(number) = recorded.recv().await {
            numbers.push(number);
        }
        numbers
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_message_goes_right_after_the_next_one() {
        let start = Instant::now();
        for (holds, expected) in [
            ("", vec![]),
            ("......", vec![0, 1, 2, 3, 4, 5]),
            ("hhhhhh", vec![1, 0, 3, 2, 5, 4]),
            (".h...h.", vec![0, 2, 1, 3, 4, 6, 5]),
            (".hh..", vec![0, 2, 1, 3, 4]),
        ] {
            let holds: Vec<_> = holds.chars().map(|hold| hold == 'h').collect();
            assert_eq!(dispatched(&holds).await, expected);
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_message_goes_after_a_second_or_when_its_connection_ends() {
        let mut order = Order::default();
        let start = Instant::now();
        order.turn(|| true).wait().await;
        assert_eq!(start.elapsed(), HOLD_TIME);

        let mut order = Order::default();
        let mut turn = order.turn(|| true);
        let mut waiting = std::pin::pin!(turn.wait());
        assert!(poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx))).await.is_pending());
        drop(order);
        let start = Instant::now();
        waiting.await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
