//! Runs one seed: takes one event after the other from the world, and lets functions go on until their next call.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::handlers;
use crate::invariants::{Counts, Violation};
use crate::lambda::{Failed, Lambda};
use crate::protocol;
use crate::settings::Settings;
use crate::world::{Event, World};

/// What a run has shown.
#[derive(Debug)]
pub struct Outcome {
    pub violation: Option<Violation>,
    pub counts: Counts,
    pub hash: u64,
    /// One line a step, if asked for.
    pub trace: Vec<String>,
    pub steps: u64,
}

type Function = Pin<Box<dyn Future<Output = Result<(), Failed>>>>;

/// Runs one seed. Faults that are left out, by their number, do not happen.
pub fn run(seed: u64, settings: &Rc<Settings>, left_out: Vec<u64>, trace: bool) -> Outcome {
    if settings.handlers {
        return handlers::run(seed, settings, left_out, trace);
    }
    let world = Rc::new(RefCell::new(World::new(seed, settings, left_out, trace)));
    let mut functions = Vec::new();
    run_until_end(&world, &mut functions);
    if world.borrow().ledger.violation.is_none() {
        world.borrow_mut().audit();
        run_until_end(&world, &mut functions);
        world.borrow_mut().account();
    }
    drop(functions);
    world.borrow_mut().outcome()
}

fn run_until_end(world: &Rc<RefCell<World>>, functions: &mut Vec<Option<Function>>) {
    loop {
        start(world, functions);
        let event = {
            let mut world = world.borrow_mut();
            if world.ledger.violation.is_some() {
                return;
            }
            world.next()
        };
        match event {
            None => return,
            Some(Event::Wake(process)) => go_on(world, functions, process),
            Some(event) => world.borrow_mut().handle(event),
        }
        world.borrow_mut().settle_when_done();
    }
}

fn start(world: &Rc<RefCell<World>>, functions: &mut Vec<Option<Function>>) {
    let starting = world.borrow_mut().starting();
    for process in starting {
        let lambda = Lambda::new(world, process);
        let invocation = world.borrow_mut().starts(process);
        functions.resize_with(process + 1, || None);
        functions[process] = Some(Box::pin(protocol::invoke(lambda, invocation)));
    }
}

/// Lets a function run up to its next call, or ends it.
fn go_on(world: &Rc<RefCell<World>>, functions: &mut [Option<Function>], process: usize) {
    let Some(mut function) = functions[process].take() else { return };
    let death = world.borrow_mut().dies(process);
    if let Some(death) = death {
        drop(function);
        return world.borrow_mut().ended(process, Some(death));
    }
    match function.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Pending => functions[process] = Some(function),
        Poll::Ready(Ok(())) => world.borrow_mut().ended(process, None),
        Poll::Ready(Err(Failed::TimedOut)) => world.borrow_mut().ended(process, Some("fails")),
        Poll::Ready(Err(Failed::NobodyThere)) => world.borrow_mut().ended(process, None),
    }
}
