//! Tests of a lane with records, answers and times. They use no clock and do not wait.

use std::collections::BTreeSet;

use super::*;
use crate::service::StartingPosition;
use crate::stream::Filter;

/// The time at which records are created and read, unless a test has another one.
const START: Duration = Duration::from_secs(1_700_000_000);

fn mapping() -> StreamMapping {
    StreamMapping {
        table: "Events".to_owned(),
        batch_size: 100,
        batch_window: Duration::ZERO,
        starting_position: StartingPosition::TrimHorizon,
        maximum_retry_attempts: None,
        maximum_record_age: None,
        bisect_batch_on_function_error: false,
        parallelization_factor: 1,
        report_batch_item_failures: true,
        on_failure: None,
        filter: Filter::default(),
        enabled: true,
    }
}

fn record(number: u128) -> Record {
    Record {
        sequence_number: SequenceNumber::of(number),
        created: START,
        partition_hash: 0,
        key_hash: 0,
        json: number.to_string(),
    }
}

/// Makes a lane that has records with these numbers.
fn lane(mapping: StreamMapping, numbers: impl IntoIterator<Item = u128>) -> Lane {
    let mut lane = Lane::new(mapping);
    for number in numbers {
        lane.push(record(number), START);
    }
    lane
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Returns the records of the invocation that the lane asks for now.
#[track_caller]
fn invoked(lane: &mut Lane, now: Duration) -> Vec<u128> {
    match lane.next(now) {
        Next::Invoke(event) => serde_json::from_str::<serde_json::Value>(&event).unwrap()["Records"]
            .as_array()
            .unwrap()
            .iter()
            .map(|record| record.as_u64().unwrap().into())
            .collect(),
        next => panic!("no invocation but {next:?}"),
    }
}

#[track_caller]
fn given_up(lane: &mut Lane, now: Duration) -> (Vec<u128>, Condition, u32) {
    match lane.next(now) {
        Next::GiveUp(discarded) => {
            let numbers = discarded.records.iter().map(|record| record.json.parse().unwrap());
            (numbers.collect(), discarded.condition, discarded.invocations)
        }
        next => panic!("nothing given up but {next:?}"),
    }
}

fn done(changes: &Changes) -> Vec<SequenceNumber> {
    changes.done.clone()
}

fn numbers(numbers: impl IntoIterator<Item = u128>) -> Vec<SequenceNumber> {
    numbers.into_iter().map(SequenceNumber::of).collect()
}

/// Answers invocations by their records until the lane is idle, without waiting. Returns the invocations and the
/// records that were given up.
fn play(lane: &mut Lane, function: impl Fn(&[u128]) -> Answer) -> (Vec<Vec<u128>>, Vec<Vec<u128>>) {
    let (mut invocations, mut discards) = (Vec::new(), Vec::new());
    let mut now = START;
    for _ in 0..1000 {
        match lane.next(now) {
            Next::Invoke(event) => {
                let event: serde_json::Value = serde_json::from_str(&event).unwrap();
                let records = event["Records"].as_array().unwrap().iter();
                let records: Vec<u128> = records.map(|record| record.as_u64().unwrap().into()).collect();
                lane.answered(function(&records), now);
                invocations.push(records);
            }
            Next::GiveUp(discarded) => {
                discards.push(discarded.records.iter().map(|record| record.json.parse().unwrap()).collect());
            }
            Next::Wait(until) => now = until,
            Next::Idle => return (invocations, discards),
        }
    }
    panic!("the lane does not come to an end");
}

#[test]
fn quick_writes_come_in_full_batches_and_in_order() {
    let mut lane = lane(mapping(), 1..=250);
    assert!(lane.is_full());
    let (invocations, _) = play(&mut lane, |_| Answer::Succeeded);
    assert_eq!(invocations.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
    assert_eq!(invocations.concat(), (1..=250).collect::<Vec<_>>());
    assert!(!lane.is_full());
}

#[test]
fn the_next_batch_waits_for_the_answer_to_the_one_before() {
    let mut lane = lane(StreamMapping { batch_size: 2, ..mapping() }, 1..=3);
    assert_eq!(invoked(&mut lane, START), [1, 2]);
    assert_eq!(lane.next(START + seconds(100)), Next::Idle);
    assert_eq!(done(&lane.answered(Answer::Succeeded, START)), numbers([1, 2]));
    assert_eq!(invoked(&mut lane, START), [3]);
}

#[test]
fn a_failed_batch_is_delivered_again_before_the_next_one() {
    let mut lane = lane(StreamMapping { batch_size: 2, ..mapping() }, 1..=3);
    assert_eq!(invoked(&mut lane, START), [1, 2]);
    let changes = lane.answered(Answer::FunctionError, START);
    assert_eq!(done(&changes), []);
    assert_eq!(changes.note.unwrap(), "2 record(s) from 1 failed; they are delivered again in 250ms");
    assert_eq!(lane.next(START), Next::Wait(START + FIRST_RETRY_DELAY));
    assert_eq!(invoked(&mut lane, START + FIRST_RETRY_DELAY), [1, 2]);
    lane.answered(Answer::Succeeded, START);
    assert_eq!(invoked(&mut lane, START), [3]);
}

#[test]
fn retries_wait_longer_and_longer_up_to_a_limit() {
    let delays: Vec<_> = (1..=9).map(|failures| retry_delay(failures).as_millis()).collect();
    assert_eq!(delays, [250, 500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
    assert_eq!(retry_delay(u32::MAX), MAX_RETRY_DELAY);
}

#[test]
fn after_two_retries_the_batch_is_given_up_and_the_shard_goes_on() {
    let mut lane = lane(StreamMapping { batch_size: 2, maximum_retry_attempts: Some(2), ..mapping() }, 1..=3);
    for failures in 1..=3 {
        assert_eq!(invoked(&mut lane, START + seconds(failures)), [1, 2]);
        lane.answered(Answer::FunctionError, START + seconds(failures));
    }
    let now = START + seconds(3);
    assert_eq!(given_up(&mut lane, now), (vec![1, 2], Condition::RetryAttemptsExhausted, 3));
    assert_eq!(invoked(&mut lane, now), [3]);
}

#[test]
fn without_retries_a_failed_batch_is_given_up_at_once() {
    let mut lane = lane(StreamMapping { maximum_retry_attempts: Some(0), ..mapping() }, [1]);
    invoked(&mut lane, START);
    assert_eq!(lane.answered(Answer::FunctionError, START).note.unwrap(), "1 record(s) from 1 failed");
    assert_eq!(given_up(&mut lane, START), (vec![1], Condition::RetryAttemptsExhausted, 1));
}

#[test]
fn bisection_isolates_the_poison_without_using_up_attempts() {
    let mapping = StreamMapping { bisect_batch_on_function_error: true, maximum_retry_attempts: Some(2), ..mapping() };
    let mut lane = lane(mapping, 1..=8);
    let poison = |records: &[u128]| if records.contains(&6) { Answer::FunctionError } else { Answer::Succeeded };
    let (invocations, discards) = play(&mut lane, poison);
    let expected: [&[u128]; 9] =
        [&[1, 2, 3, 4, 5, 6, 7, 8], &[1, 2, 3, 4], &[5, 6, 7, 8], &[5, 6], &[5], &[6], &[6], &[6], &[7, 8]];
    assert_eq!(invocations, expected);
    assert_eq!(discards, [[6]]);
}

#[test]
fn a_partial_failure_continues_at_the_lowest_record_that_failed() {
    let mut lane = lane(mapping(), 1..=8);
    invoked(&mut lane, START);
    let changes = lane.answered(Answer::FailedFrom(SequenceNumber::of(3)), START);
    assert_eq!(done(&changes), numbers([1, 2]));
    assert_eq!(invoked(&mut lane, START + seconds(1)), [3, 4, 5, 6, 7, 8]);
}

#[test]
fn partial_failures_use_up_the_attempts_of_the_remaining_records() {
    let mut lane = lane(StreamMapping { maximum_retry_attempts: Some(2), ..mapping() }, 1..=3);
    let (invocations, discards) = play(&mut lane, |_| Answer::FailedFrom(SequenceNumber::of(2)));
    assert_eq!(invocations, [vec![1, 2, 3], vec![2, 3], vec![2, 3]]);
    assert_eq!(discards, [[2, 3]]);
}

#[test]
fn with_bisection_a_partial_failure_splits_at_the_record_that_failed() {
    let mapping = StreamMapping { bisect_batch_on_function_error: true, maximum_retry_attempts: Some(1), ..mapping() };
    let mut lane = lane(mapping, 1..=8);
    let poison = |records: &[u128]| match records.contains(&3) {
        true => Answer::FailedFrom(SequenceNumber::of(3)),
        false => Answer::Succeeded,
    };
    let (invocations, discards) = play(&mut lane, poison);
    let expected: [&[u128]; 7] =
        [&[1, 2, 3, 4, 5, 6, 7, 8], &[3, 4, 5, 6, 7, 8], &[3, 4, 5], &[3], &[3], &[4, 5], &[6, 7, 8]];
    assert_eq!(invocations, expected);
    assert_eq!(discards, [[3]]);
}

#[test]
fn a_reported_number_that_is_not_in_the_batch_fails_all_of_it() {
    let mut lane = lane(mapping(), 1..=3);
    invoked(&mut lane, START);
    assert_eq!(done(&lane.answered(Answer::FailedFrom(SequenceNumber::of(9)), START)), []);
    assert_eq!(invoked(&mut lane, START + seconds(1)), [1, 2, 3]);
}

#[test]
fn a_batch_window_collects_the_records_of_its_time() {
    let mut lane = Lane::new(StreamMapping { batch_window: seconds(2), ..mapping() });
    assert_eq!(lane.next(START), Next::Idle);
    for number in 1..=3 {
        let now = START + Duration::from_millis(300) * u32::try_from(number).unwrap();
        lane.push(record(number), now);
        assert_eq!(lane.next(now), Next::Wait(START + Duration::from_millis(2300)));
    }
    assert_eq!(invoked(&mut lane, START + Duration::from_millis(2300)), [1, 2, 3]);
}

#[test]
fn a_batch_window_ends_with_a_full_batch() {
    let mut lane = lane(StreamMapping { batch_window: seconds(300), batch_size: 2, ..mapping() }, 1..=3);
    assert_eq!(invoked(&mut lane, START), [1, 2]);
    lane.answered(Answer::Succeeded, START);
    assert_eq!(lane.next(START), Next::Wait(START + seconds(300)));
}

#[test]
fn a_batch_ends_before_6_mb_and_does_not_wait_for_its_window() {
    let mut lane = Lane::new(StreamMapping { batch_window: seconds(300), ..mapping() });
    let large = |number| Record { json: "1".repeat(2 * 1024 * 1024), ..record(number) };
    let length = |next| match next {
        Next::Invoke(event) => event.len(),
        next => panic!("no invocation but {next:?}"),
    };
    for number in 1..=3 {
        lane.push(large(number), START);
    }
    assert!(lane.is_full());
    // Three of them are 6 MB without the envelope.
    assert_eq!(length(lane.next(START)), 4 * 1024 * 1024 + r#"{"Records":[,]}"#.len());
    lane.answered(Answer::Succeeded, START);
    assert!(!lane.is_full());
    assert_eq!(lane.next(START), Next::Wait(START + seconds(300)));
}

#[test]
fn records_over_the_maximum_age_are_given_up_before_and_between_attempts() {
    let mapping = StreamMapping { maximum_record_age: Some(seconds(60)), ..mapping() };
    let mut lane = Lane::new(mapping);
    lane.push(Record { created: START - seconds(61), ..record(1) }, START);
    lane.push(Record { created: START - seconds(60), ..record(2) }, START);
    lane.push(record(3), START);
    assert_eq!(given_up(&mut lane, START), (vec![1], Condition::RecordAgeExceeded, 0));
    assert_eq!(invoked(&mut lane, START), [2, 3]);
    lane.answered(Answer::FunctionError, START);
    let now = START + seconds(1);
    assert_eq!(given_up(&mut lane, now), (vec![2], Condition::RecordAgeExceeded, 1));
    assert_eq!(invoked(&mut lane, now), [3]);
}

#[test]
fn by_default_a_poison_record_blocks_its_lane_until_it_is_24_h_old() {
    let mut lane = lane(StreamMapping { batch_size: 1, ..mapping() }, [1, 2]);
    let mut now = START;
    let mut attempts = 0;
    let discarded = loop {
        match lane.next(now) {
            Next::Invoke(event) => {
                assert_eq!(event, r#"{"Records":[1]}"#);
                attempts += 1;
                lane.answered(Answer::FunctionError, now);
            }
            Next::Wait(until) => now = until,
            Next::GiveUp(discarded) => break discarded,
            Next::Idle => panic!("the lane is idle"),
        }
    };
    assert_eq!((discarded.condition, discarded.invocations), (Condition::RecordAgeExceeded, attempts));
    let age = now - START;
    assert!(age > RETENTION && age <= RETENTION + MAX_RETRY_DELAY, "{age:?}");
    // The next one is as old.
    assert_eq!(given_up(&mut lane, now).0, [2]);
    assert_eq!(lane.next(now), Next::Idle);
}

#[test]
fn no_record_is_lost_or_overtaken_whatever_the_answers_are() {
    for bisect_batch_on_function_error in [false, true] {
        for seed in 0..200 {
            let random = std::cell::RefCell::new(fastrand::Rng::with_seed(seed));
            let mapping = StreamMapping {
                batch_size: 7,
                maximum_retry_attempts: Some(1),
                bisect_batch_on_function_error,
                ..mapping()
            };
            let mut lane = lane(mapping, 1..=40);
            let finished = std::cell::RefCell::new(Vec::new());
            let (invocations, discards) = play(&mut lane, |records| {
                let mut random = random.borrow_mut();
                let from = random.usize(..records.len());
                let (answer, succeeded) = match random.u8(..4) {
                    0 => (Answer::FunctionError, 0),
                    1 => (Answer::Failed, 0),
                    2 => (Answer::FailedFrom(SequenceNumber::of(records[from])), from),
                    _ => (Answer::Succeeded, records.len()),
                };
                finished.borrow_mut().extend_from_slice(&records[..succeeded]);
                answer
            });
            let finished = finished.into_inner();
            assert!(finished.is_sorted(), "seed {seed}: {invocations:?}");
            let ended: Vec<_> = finished.into_iter().chain(discards.concat()).collect();
            assert_eq!(ended.len(), 40, "seed {seed}: {invocations:?}");
            assert_eq!(ended.into_iter().collect::<BTreeSet<_>>(), (1..=40).collect(), "seed {seed}");
        }
    }
}

#[test]
fn a_throttled_batch_is_delivered_again_and_uses_up_no_attempt() {
    let mut lane = lane(StreamMapping { maximum_retry_attempts: Some(0), ..mapping() }, 1..=2);
    let mut now = START;
    for _ in 0..5 {
        assert_eq!(invoked(&mut lane, now), [1, 2]);
        assert!(done(&lane.answered(Answer::Throttled, now)).is_empty());
        now += FIRST_RETRY_DELAY;
    }
    assert_eq!(invoked(&mut lane, now), [1, 2]);
    assert_eq!(done(&lane.answered(Answer::Succeeded, now)), numbers(1..=2));
}
