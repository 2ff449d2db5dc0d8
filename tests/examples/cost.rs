//! Prints what events and three loads cost: `make cost`.

#![expect(clippy::print_stdout, reason = "it prints")]

use switchboard_tests::cost::{Bill, EVENTS, LOG_ONE_IN, Prices, direct_messages, ticker, users};

fn main() {
    let prices = Prices::read();
    println!("Prices of us-east-1 of {}, without the free tier. Dollars for a million events:\n", prices.date());
    let head = ["gateway", "Lambda", "DynamoDB", "logs", "sum", "own"];
    println!(
        "{:36}{:>9}{:>9}{:>9}{:>11}{:>9}{:>10}{:>11}{:>9}",
        "", "read", "write", "log B", head[0], head[1], head[2], head[3], head[4]
    );
    for event in EVENTS {
        let log = if event.is_logged { event.log } else { event.log / LOG_ONE_IN };
        let Bill { messages, lambda, dynamodb, logs, .. } = event.bill(&prices);
        let sum = event.bill(&prices).sum();
        let [messages, lambda, dynamodb, logs, sum] =
            [messages, lambda, dynamodb, logs, sum].map(|dollars| dollars * 1e6);
        println!(
            "{:36}{:>9}{:>9}{log:>9.1}{messages:>11.2}{lambda:>9.3}{dynamodb:>10.3}{logs:>11.4}{sum:>9.2}",
            event.name, event.read, event.write
        );
    }
    println!("\nDollars a month:\n");
    println!(
        "{:58}{:>9}{:>10}{:>9}{:>10}{:>7}{:>10}{:>10}{:>10}",
        "", "minutes", "messages", head[1], head[2], head[3], head[4], "AppSync", "Node"
    );
    for load in [direct_messages(), users(10_000.0), users(100_000.0), ticker(false), ticker(true)] {
        let bill = load.bill(&prices);
        let Bill { minutes, messages, lambda, dynamodb, logs } = bill;
        println!(
            "{:58}{minutes:>9.2}{messages:>10.2}{lambda:>9.2}{dynamodb:>10.2}{logs:>7.2}{:>10.2}{:>10.2}{:>10.2}",
            load.name,
            bill.sum(),
            load.appsync(&prices),
            load.node(&prices).sum()
        );
    }
    let own = direct_messages().bill(&prices).own();
    println!("\nA million direct messages cost {own:.3} of ours, without the gateway.");
}
