//! One invocation of a function, as the function sees it: its clock, and calls that may time out.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use crate::calls::Call;
use crate::settings::{Bug, Settings};
use crate::table::Ms;
use crate::world::World;

/// How often the SDK tries a call.
const ATTEMPTS: usize = 3;

/// Why an invocation ends early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// A call has timed out too often.
    TimedOut,
    /// The gateway did not take a reply, because the client has gone. Nothing else is wrong.
    NobodyThere,
}

pub struct Lambda {
    world: Rc<RefCell<World>>,
    process: usize,
    /// How far its clock is off.
    skew: Ms,
    /// How long it is configured to keep messages.
    pub kept: Ms,
    pub settings: Rc<Settings>,
}

impl Lambda {
    pub fn new(world: &Rc<RefCell<World>>, process: usize) -> Self {
        let (skew, kept, settings) = {
            let mut world = world.borrow_mut();
            let skew = world.settings.skew;
            (world.random.between((-skew, skew)), world.kept_time(), world.settings.clone())
        };
        Self { world: world.clone(), process, skew, kept, settings }
    }

    /// What its clock says.
    pub fn now(&self) -> Ms {
        self.world.borrow().now + self.skew
    }

    /// No two invocations have the same.
    pub fn id(&self) -> u32 {
        u32::try_from(self.process).unwrap_or(u32::MAX)
    }

    pub fn has(&self, bug: Bug) -> bool {
        self.settings.has(bug)
    }

    /// Looks at the world as no function can.
    pub fn model<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.world.borrow_mut())
    }

    /// Makes a call, and repeats it as the SDK does when it times out, although it may have taken effect.
    pub async fn call<C: Call>(&self, call: C) -> Result<C::Answer, Failed> {
        for _ in 0..ATTEMPTS {
            let attempt = Attempt { lambda: self, call: call.clone(), stage: Stage::New };
            if let Some(answer) = attempt.await {
                return Ok(answer);
            }
        }
        Err(Failed::TimedOut)
    }
}

/// One try of a call: it travels, takes effect, and its answer travels back. Others run in between, and the function may
/// be killed.
struct Attempt<'a, C: Call> {
    lambda: &'a Lambda,
    call: C,
    stage: Stage<C::Answer>,
}

enum Stage<A> {
    New,
    Travelling,
    Answered(Option<A>),
}

impl<C: Call> Unpin for Attempt<'_, C> {}

impl<C: Call> Future for Attempt<'_, C> {
    /// Nothing, if the call timed out.
    type Output = Option<C::Answer>;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        let process = self.lambda.process;
        let mut world = self.lambda.world.borrow_mut();
        let next = match &mut self.stage {
            Stage::New => Stage::Travelling,
            Stage::Travelling => Stage::Answered(world.perform(process, &self.call)),
            Stage::Answered(answer) => return Poll::Ready(answer.take()),
        };
        world.wake_after_travel(process);
        drop(world);
        self.stage = next;
        Poll::Pending
    }
}
