//! The order in which the messages of a connection are dispatched, where a fault makes one (`--fault
//! reorder-messages=`).
//!
//! API Gateway promises none: without the fault every message is a task of its own, and the tasks run as they come.
//! With it they wait for each other, so that the same decisions make the same order. Only their invocations begin one
//! after the other; how long functions take is their own affair.

use std::time::Duration;

use tokio::sync::oneshot;

/// How long a message is held back if no other one comes. Ours.
const HOLD_TIME: Duration = Duration::from_secs(1);

/// Resolves when its other end is dropped; nothing is sent.
type Signal = oneshot::Receiver<()>;

/// The messages of a connection that are not dispatched yet: at most one is held back, others wait for their turns.
/// Dropped when the connection ends, which holds back nothing any longer.
#[derive(Debug, Default)]
pub(super) struct Order {
    /// What makes the message that is held back go, and when it has been dispatched.
    held: Option<(oneshot::Sender<()>, Signal)>,
    /// When the last of the others has been dispatched.
    last: Option<Signal>,
}

/// The place of a message in the order. Dropped once its invocation has begun, or when it has none.
#[derive(Debug)]
pub(super) struct Turn {
    /// When the message before it has been dispatched.
    before: Option<Signal>,
    /// When it is no longer held back.
    release: Option<Signal>,
    /// For the message after it.
    _dispatched: oneshot::Sender<()>,
}

impl Order {
    /// The turn of the message that has just come. `hold` decides whether it is held back, unless one is already: that
    /// one goes right after it.
    pub(super) fn turn(&mut self, hold: impl FnOnce() -> bool) -> Turn {
        if let Some((release, after_held)) = self.held.take() {
            return Turn { before: self.last.replace(after_held), release: None, _dispatched: release };
        }
        let (dispatched, signal) = oneshot::channel();
        if hold() {
            let (release, released) = oneshot::channel();
            self.held = Some((release, signal));
            Turn { before: None, release: Some(released), _dispatched: dispatched }
        } else {
            Turn { before: self.last.replace(signal), release: None, _dispatched: dispatched }
        }
    }
}

impl Turn {
    /// Waits until the message may be dispatched.
    pub(super) async fn come(&mut self) {
        // The signals' other ends are dropped, which is an error to await.
        if let Some(before) = self.before.take() {
            let _ = before.await;
        }
        if let Some(release) = self.release.take() {
            let _ = tokio::time::timeout(HOLD_TIME, release).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;

    /// Has messages dispatched by tasks of their own that begin in any order; says by number in which they were.
    async fn dispatched(holds: &[bool]) -> Vec<usize> {
        let mut order = Order::default();
        let (record, mut recorded) = mpsc::unbounded_channel();
        let turns: Vec<_> = holds.iter().map(|hold| order.turn(|| *hold)).collect();
        for (number, mut turn) in turns.into_iter().enumerate().rev() {
            let record = record.clone();
            tokio::spawn(async move {
                turn.come().await;
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
    async fn a_message_that_is_held_back_goes_right_after_the_next_one() {
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
    async fn a_message_that_is_held_back_goes_after_a_second_or_at_the_end_of_its_connection() {
        let mut order = Order::default();
        let start = Instant::now();
        order.turn(|| true).come().await;
        assert_eq!(start.elapsed(), HOLD_TIME);

        let mut order = Order::default();
        let mut turn = order.turn(|| true);
        let mut coming = std::pin::pin!(turn.come());
        assert!(poll_fn(|cx| Poll::Ready(coming.as_mut().poll(cx))).await.is_pending());
        drop(order);
        let start = Instant::now();
        coming.await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
