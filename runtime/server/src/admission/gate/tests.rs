//! Whatever comes, waits, gives up, waits for a model and leaves: the counts are right and nobody is forgotten.

use std::pin::Pin;

use futures::FutureExt;
use proptest::prelude::*;
use sandpiper_domain::Activity;

use super::*;

const RUNNING: u32 = 3;
const ALIVE: u32 = 5;
const WAITING: u32 = 4;

fn places() -> Arc<Places> {
    let bounds = Bounds {
        running: RUNNING,
        running_beside: 2,
        running_batch: 1,
        alive: ALIVE,
        waiting: WAITING,
    };
    let pressure = Arc::new(Pressure::new(2));
    Arc::new(Places { bounds, pressure, state: Mutex::default() })
}

type Resume = Pin<Box<dyn Future<Output = ()>>>;

/// A crowd at one gate, each member in the order in which it came.
struct House {
    places: Arc<Places>,
    functions: [Arc<FunctionPlaces>; 2],
    waiting: Vec<(Option<usize>, Lane, Ticket)>,
    inside: Vec<(Option<usize>, Arc<Entry>)>,
    suspended: Vec<(Option<usize>, Arc<Entry>)>,
    resuming: Vec<(Option<usize>, Arc<Entry>, Resume)>,
}

impl House {
    fn new() -> Self {
        House {
            places: places(),
            functions: [1, 3].map(|alive_max| Arc::new(FunctionPlaces::new(alive_max))),
            waiting: Vec::new(),
            inside: Vec::new(),
            suspended: Vec::new(),
            resuming: Vec::new(),
        }
    }

    fn ask(&mut self, function: Option<usize>, lane: Lane) -> Result<(), Refusal> {
        match self.places.ask(function.map(|n| &self.functions[n]), lane, Instant::now())? {
            Asked::Entered(entry) => self.inside.push((function, Arc::new(entry))),
            Asked::Waits(ticket) => self.waiting.push((function, lane, ticket)),
        }
        Ok(())
    }

    /// Everybody looks whether it is their turn.
    fn settle(&mut self) {
        let mut left_waiting: Vec<(Option<usize>, Lane)> = Vec::new();
        for (function, lane, mut ticket) in std::mem::take(&mut self.waiting) {
            if ticket.woken.try_recv().is_err() {
                left_waiting.push((function, lane));
                self.waiting.push((function, lane, ticket));
                continue;
            }
            let overtaken = left_waiting.contains(&(function, lane));
            assert!(!overtaken, "one of {lane:?} came in before its elder");
            self.inside.push((function, Arc::new(ticket.enter())));
        }
        for (function, entry, mut resume) in std::mem::take(&mut self.resuming) {
            match (&mut resume).now_or_never() {
                Some(()) => self.inside.push((function, entry)),
                None => self.resuming.push((function, entry, resume)),
            }
        }
    }

    fn check(&self) {
        let state = self.places.lock();
        let alive = self.inside.len() + self.suspended.len() + self.resuming.len();
        assert_eq!(state.runs() as usize, self.inside.len());
        assert_eq!(state.alive as usize, alive);
        assert!(state.runs() <= RUNNING && state.alive <= ALIVE);
        for lane in LANES {
            let waiting = self.waiting.iter().filter(|one| one.1 == lane).count();
            assert_eq!(state.waiting[lane as usize] as usize, waiting);
            assert!(waiting <= WAITING as usize);
        }
        for (number, function) in self.functions.iter().enumerate() {
            let of = |function: &Option<usize>| *function == Some(number);
            let alive = self.inside.iter().filter(|one| of(&one.0)).count()
                + self.suspended.iter().filter(|one| of(&one.0)).count()
                + self.resuming.iter().filter(|one| of(&one.0)).count();
            assert_eq!(function.lock().alive as usize, alive);
            assert!(function.lock().alive <= function.alive_max);
        }
        assert!(state.resuming.is_empty() || state.runs() == RUNNING, "one was not resumed");
        for (function, lane, _) in &self.waiting {
            let is_full = function.is_some_and(|number| self.functions[number].is_full());
            assert!(
                is_full || !self.places.may_start(&state, *lane),
                "one of {lane:?} was forgotten"
            );
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Ask(Option<usize>, Lane),
    GiveUp(usize),
    Leave(usize),
    LeaveSuspended(usize),
    Suspend(usize),
    Resume(usize),
    /// Its future is dropped while it waits to resume.
    Abandon(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let function = prop_oneof![Just(None), Just(Some(0)), Just(Some(1))];
    prop_oneof![
        5 => (function, prop::sample::select(LANES.to_vec())).prop_map(|(f, lane)| Step::Ask(f, lane)),
        1 => any::<usize>().prop_map(Step::GiveUp),
        2 => any::<usize>().prop_map(Step::Leave),
        1 => any::<usize>().prop_map(Step::LeaveSuspended),
        3 => any::<usize>().prop_map(Step::Suspend),
        3 => any::<usize>().prop_map(Step::Resume),
        1 => any::<usize>().prop_map(Step::Abandon),
    ]
}

fn take<T>(from: &mut Vec<T>, index: usize) -> Option<T> {
    (!from.is_empty()).then(|| from.remove(index % from.len()))
}

fn walk(house: &mut House, step: Step) {
    match step {
        Step::Ask(function, lane) => {
            let waiting = house.waiting.iter().filter(|one| one.1 == lane).count();
            if let Err(refusal) = house.ask(function, lane) {
                assert_eq!(refusal.cause, Cause::QueueFull);
                assert!(waiting >= WAITING as usize);
            }
        }
        Step::GiveUp(index) => drop(take(&mut house.waiting, index)),
        Step::Leave(index) => drop(take(&mut house.inside, index)),
        Step::LeaveSuspended(index) => drop(take(&mut house.suspended, index)),
        Step::Suspend(index) => {
            if let Some(one) = take(&mut house.inside, index) {
                one.1.suspend();
                house.suspended.push(one);
            }
        }
        Step::Resume(index) => {
            if let Some((function, entry)) = take(&mut house.suspended, index) {
                let waiter = entry.clone();
                let mut resume: Resume = Box::pin(async move { waiter.resume().await });
                match (&mut resume).now_or_never() {
                    Some(()) => house.inside.push((function, entry)),
                    None => house.resuming.push((function, entry, resume)),
                }
            }
        }
        Step::Abandon(index) => {
            if let Some((function, entry, resume)) = take(&mut house.resuming, index) {
                drop(resume);
                house.suspended.push((function, entry));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nobody_is_forgotten_and_no_limit_is_passed(
        steps in prop::collection::vec((step(), any::<bool>()), 1..80),
    ) {
        let mut house = House::new();
        for (step, settles) in steps {
            walk(&mut house, step);
            // Some look for their turn late: whoever has got a place and not yet taken it may still give up.
            if settles {
                house.settle();
                house.check();
            }
        }
        house.settle();
        house.check();
        while !house.inside.is_empty() || !house.suspended.is_empty() {
            house.inside.clear();
            house.suspended.clear();
            house.settle();
            house.check();
        }
        prop_assert!(house.waiting.is_empty() && house.resuming.is_empty());
        prop_assert_eq!(house.places.crowd(), Crowd::default());
    }
}

#[test]
fn one_that_waits_for_a_model_makes_room_and_comes_back_first() {
    let mut house = House::new();
    for _ in 0..4 {
        house.ask(None, Lane::Interactive).unwrap();
    }
    assert_eq!((house.inside.len(), house.waiting.len()), (3, 1));
    house.inside[0].1.suspend();
    house.settle();
    assert_eq!((house.inside.len(), house.waiting.len()), (4, 0), "its place is taken");
    house.ask(None, Lane::Interactive).unwrap();
    assert!(!house.inside[0].1.try_resume(), "it waits as well");
    let first = house.inside[0].1.clone();
    let mut resume = Box::pin(async move { first.resume().await });
    assert!((&mut resume).now_or_never().is_none());
    house.inside.pop();
    assert!(resume.now_or_never().is_some());
    house.settle();
    assert_eq!(house.waiting.len(), 1, "who is new waits on");
}

#[test]
fn jobs_leave_room_and_batches_come_last() {
    let mut house = House::new();
    house.ask(None, Lane::Batch).unwrap();
    house.ask(None, Lane::Batch).unwrap();
    assert_eq!((house.inside.len(), house.waiting.len()), (1, 1), "one batch at once");
    house.ask(None, Lane::Job).unwrap();
    house.ask(None, Lane::Job).unwrap();
    assert_eq!((house.inside.len(), house.waiting.len()), (2, 2), "a place is kept");
    house.ask(None, Lane::Interactive).unwrap();
    house.ask(None, Lane::Interactive).unwrap();
    assert_eq!((house.inside.len(), house.waiting.len()), (3, 3));
    let mut order = Vec::new();
    while !house.waiting.is_empty() {
        let before: Vec<Lane> = house.waiting.iter().map(|one| one.1).collect();
        house.inside.remove(0);
        house.settle();
        let mut after: Vec<Lane> = house.waiting.iter().map(|one| one.1).collect();
        for lane in before {
            match after.first() == Some(&lane) {
                true => drop(after.remove(0)),
                false => order.push(lane),
            }
        }
    }
    assert_eq!(order, [Lane::Interactive, Lane::Job, Lane::Batch]);
}

#[test]
fn a_function_that_is_full_holds_nobody_else_up() {
    let mut house = House::new();
    house.ask(Some(0), Lane::Interactive).unwrap();
    house.ask(Some(0), Lane::Interactive).unwrap();
    house.ask(Some(1), Lane::Job).unwrap();
    assert_eq!((house.inside.len(), house.waiting.len()), (2, 1));
    assert_eq!(house.waiting[0].0, Some(0));
}

#[test]
fn a_batch_leaves_a_core_to_those_who_wait_for_an_answer() {
    let pressure = Pressure::new(2);
    assert!(pressure.has_room_for_batch());
    pressure.add(Lane::Batch);
    assert!(pressure.has_room_for_batch());
    pressure.add(Lane::Interactive);
    assert!(!pressure.has_room_for_batch());
    pressure.remove(Lane::Batch);
    assert!(pressure.has_room_for_batch());
}

#[test]
fn who_is_turned_away_hears_how_long_the_others_take() {
    let mut house = House::new();
    house.places.lock().service_ns = 9_000_000_000;
    for _ in 0..RUNNING + WAITING {
        house.ask(None, Lane::Interactive).unwrap();
    }
    let refusal = house.ask(None, Lane::Interactive).unwrap_err();
    // Five times nine seconds, three at once.
    assert_eq!((refusal.cause, refusal.retry_after_s()), (Cause::QueueFull, 15));
}
