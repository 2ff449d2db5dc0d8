//! Clients that publish. Each repeats a frame until it is acknowledged.

use crate::frame::Publication;
use crate::table::{Author, Content, Ms};
use crate::world::World;

/// A frame that is not acknowledged yet.
#[derive(Debug, Clone, Copy)]
struct Pending {
    author: Author,
    content: Content,
    /// How many messages the frame has.
    count: u32,
    sent_at: Ms,
}

#[derive(Debug)]
pub struct Sender {
    user: u32,
    /// How many messages it has begun.
    begun: u32,
    pending: Option<Pending>,
    next: Ms,
    timer: u64,
}

impl Sender {
    pub fn new(user: u32) -> Self {
        Self { user, begun: 0, pending: None, next: 0, timer: 0 }
    }

    pub fn is_done(&self, world: &World) -> bool {
        self.pending.is_none() && self.begun >= world.settings.messages
    }

    /// Waits before the next message; now and then everybody waits.
    pub fn pause(&mut self, world: &mut World) {
        world.quiet_spell();
        let gap = world.random.spread(world.settings.gap);
        self.next = (world.now + gap).max(world.quiet_until + world.random.between(world.settings.call));
        self.set_timer(self.next, world);
    }

    fn set_timer(&mut self, due: Ms, world: &mut World) {
        self.timer += 1;
        world.wake_sender(self.user, self.timer, due);
    }

    pub fn wake(&mut self, timer: u64, world: &mut World) {
        if timer != self.timer {
            return;
        }
        match self.pending {
            Some(pending) => self.repeat(pending, world),
            None if self.begun < world.settings.messages => self.begin(world),
            None => {}
        }
    }

    fn begin(&mut self, world: &mut World) {
        self.begun += 1;
        if world.sends_without_id() {
            let content = world.new_content();
            world.publish(Publication { user: self.user, author: None, content, count: 1, again: false });
            return self.pause(world);
        }
        let author = Author::Frame { user: self.user, id: self.begun };
        let count = world.parts_of_frame();
        let content = world.new_contents(count);
        let pending = Pending { author, content, count, sent_at: world.now };
        world.publish(Publication { user: self.user, author: Some(author), content, count, again: false });
        self.pending = Some(pending);
        self.wait(world);
    }

    /// Waits for an ack, sometimes for less time than a function may take.
    fn wait(&mut self, world: &mut World) {
        let (soon, late) = (world.settings.patience / 4, 2 * world.settings.patience);
        let mut due = world.now + world.random.between((soon, late));
        if let Some(pending) = self.pending
            && world.waits_too_long()
        {
            due = due.max(pending.sent_at + world.late_repetition());
        }
        self.set_timer(due, world);
    }

    /// The same frame again. A sender should do that only while its binding is sure to be there. One that does it later may
    /// have two messages, and must do no other harm.
    fn repeat(&mut self, pending: Pending, world: &mut World) {
        if world.now > pending.sent_at + world.settings.repeats() && !world.waits_too_long() {
            self.pending = None;
            return self.pause(world);
        }
        let Pending { author, mut content, count, .. } = pending;
        // Another number of messages would make the functions close numbers that nobody has taken yet.
        if world.reuses_id() {
            content = world.new_contents(count);
        }
        // A client that has forgotten what it sent does not say so.
        let again = !world.repeats_needlessly();
        world.publish(Publication { user: self.user, author: Some(author), content, count, again });
        self.wait(world);
    }

    pub fn acknowledged(&mut self, author: Author, world: &mut World) {
        if let Some(pending) = self.pending
            && pending.author == author
        {
            self.pending = None;
            if world.repeats_needlessly() {
                let Pending { content, count, .. } = pending;
                world.publish(Publication { user: self.user, author: Some(author), content, count, again: true });
            }
            self.pause(world);
        }
    }
}
