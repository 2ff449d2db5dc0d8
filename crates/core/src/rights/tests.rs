use serde_json::json;

use super::*;

fn pattern(text: &str) -> Pattern {
    Pattern::parse("topic", text).unwrap()
}

fn grants(subscribe: &[&str], publish: &[&str]) -> Grants {
    Grants::parse(&json!({"subscribe": subscribe, "publish": publish})).unwrap()
}

#[test]
fn a_pattern_contains_what_is_all_of_it() {
    for (pattern_text, contains, does_not) in [
        ("room.7", &["room.7"][..], &["room.77", "room.", "room.7*", "room.*", "*"][..]),
        (
            "room.*",
            &["room.7", "room.", "room.*", "room.eu.*", "room.eu.7"],
            &["room", "room*", "*", "roomy", "@room."],
        ),
        ("*", &["room.7", "*", "r*"], &["@7", "@*"]),
        ("@*", &["@7", "@*", "@7*"], &["7", "*", "room.*"]),
        ("@7", &["@7"], &["@77", "@*", "7"]),
        ("@7*", &["@7", "@77", "@7*"], &["@8", "@*"]),
    ] {
        for other in contains {
            assert!(pattern(pattern_text).contains(&pattern(other)), "{pattern_text} does not contain {other}");
        }
        for other in does_not {
            assert!(!pattern(pattern_text).contains(&pattern(other)), "{pattern_text} contains {other}");
        }
    }
}

/// The trap of wildcards: a client may listen to one channel of `default`, asks for `default/*`, and hears all of them. The
/// pattern looks like a name that a rule lets through, and some of its topics are granted.
#[test]
fn nobody_gets_default_slash_star_by_a_grant_of_less() {
    let wanted = Topic::parse("default/*").unwrap();
    for (granted, expected) in [
        (&["default/7"][..], false),
        (&["default/7*", "default/a*"], false),
        (&["default"], false),
        (&["default/", "other/*"], false),
        (&["default/*"], true),
        (&["def*"], true),
        (&["*"], true),
    ] {
        let grants = grants(granted, &[]);
        let allowed = Who::Granted.check(Act::Subscribe, &wanted, None, &grants).is_ok();
        assert_eq!(allowed, expected, "{granted:?}");
        assert_eq!(granted.iter().any(|granted| pattern(granted).contains(&pattern("default/*"))), expected);
    }
}

#[test]
fn each_right_says_what_is_missing() {
    let user = UserId::parse("userId", "1").unwrap();
    let both = grants(&["room.*"], &["room.7", "@2"]);
    let none = Grants::default();
    for (who, act, topic, user, grants, problem) in [
        (Who::Anyone, Act::Publish, "room.7", None, &none, None),
        (Who::Identified, Act::Subscribe, "room.7", Some(&user), &none, None),
        (
            Who::Identified,
            Act::Subscribe,
            "room.7",
            None,
            &both,
            Some("this connection may not subscribe to the topic `room.7`: it has no user"),
        ),
        (Who::Granted, Act::Subscribe, "room.8", None, &both, None),
        (Who::Granted, Act::Publish, "room.7", Some(&user), &both, None),
        (
            Who::Granted,
            Act::Publish,
            "room.8",
            Some(&user),
            &both,
            Some("this connection may not publish on the topic `room.8`: none of its grants contains `room.8`"),
        ),
        (Who::Granted, Act::Publish, "@2", Some(&user), &both, None),
        (
            Who::Granted,
            Act::Publish,
            "@3",
            Some(&user),
            &both,
            Some("this connection may not write to the user `3`: none of its grants contains `@3`"),
        ),
        (
            Who::Backend,
            Act::Publish,
            "room.7",
            Some(&user),
            &both,
            Some("no client may publish on the topic `room.7`: a rule leaves that to backends"),
        ),
    ] {
        let found = who.check(act, &Topic::of_event(topic).unwrap(), user, grants).err();
        assert!(found.iter().all(|error| error.code() == "forbidden_topic"));
        assert_eq!(found.map(|error| error.to_string()).as_deref(), problem);
    }
}

#[test]
fn grants_that_are_not_right_are_named_without_their_text() {
    let many = vec!["a"; MAX_GRANTS + 1];
    let large = vec!["x".repeat(200); 41];
    for (topics, names) in [
        (json!([]), "`topics` must be an object"),
        (json!("room.*"), "`topics` must be an object"),
        (json!(7), "`topics` must be an object"),
        (json!({"subscirbe": ["secret"]}), "no other members"),
        (json!({"subscribe": "secret"}), "`topics.subscribe` must be a list"),
        (json!({"publish": {"secret": 1}}), "`topics.publish` must be a list"),
        (json!({"publish": ["a", 7]}), "`topics.publish` must be a list"),
        (json!({"subscribe": ["a", null]}), "`topics.subscribe` must be a list"),
        (json!({"subscribe": ["a", "secret*x"]}), "`topics.subscribe[1]` may have a `*` only at its end"),
        (json!({"subscribe": ["secret**"]}), "`topics.subscribe[0]` may have a `*` only at its end"),
        (json!({"publish": [""]}), "`topics.publish[0]` must be a string of 1 to 256 bytes"),
        (json!({"publish": ["secret\n"]}), "`topics.publish[0]` must be a string of 1 to 256 bytes"),
        (json!({"publish": ["INITIAL_CONNECTION"]}), "reserved"),
        (json!({"subscribe": many}), "at most 100 patterns of 8192 bytes together, and has 101 of 101"),
        (json!({"subscribe": vec!["room.7"; 10_000]}), "has 10000 of 60000"),
        (json!({"subscribe": large}), "has 41 of 8200"),
    ] {
        let problem = Grants::parse(&topics).unwrap_err();
        assert!(problem.contains(names), "{problem}");
        assert!(!problem.contains("secret"), "{problem}");
    }
    let half = vec!["a"; MAX_GRANTS / 2];
    assert!(Grants::parse(&json!({"subscribe": half, "publish": half})).is_ok());
    for nothing in [json!(null), json!({}), json!({"subscribe": null, "publish": []})] {
        assert_eq!(Grants::parse(&nothing).unwrap(), Grants::default());
    }
}

/// Rules, the rights of a connection, and frames, all of a few short names so that they meet.
struct Dice(fastrand::Rng);

impl Dice {
    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())].clone()
    }

    fn name(&mut self) -> String {
        (0..self.0.usize(1..4)).map(|_| self.pick(&['a', 'b', '.'])).collect()
    }

    fn pattern(&mut self) -> String {
        let address = self.pick(&["", "", "", "@"]);
        let star = self.pick(&["", "*"]);
        match self.0.u8(..8) {
            0 => format!("{address}*"),
            _ => format!("{address}{}{star}", self.name()),
        }
    }

    /// A list of patterns, each with a level for both acts.
    fn rules(&mut self) -> Vec<(String, &'static str, &'static str)> {
        let levels = ["anyone", "identified", "granted"];
        let rule = |dice: &mut Self| {
            let publish = if dice.0.u8(..4) == 0 { "backend" } else { dice.pick(&levels) };
            (dice.pattern(), dice.pick(&levels), publish)
        };
        (0..self.0.usize(..5)).map(|_| rule(self)).collect()
    }

    /// The text of a frame, and what it does with which names.
    fn frame(&mut self) -> (String, Vec<(bool, String)>) {
        let own = |dice: &mut Self| if dice.0.u8(..6) == 0 { "@me".to_owned() } else { dice.name() };
        let names: std::collections::BTreeSet<String> = (0..self.0.usize(1..4)).map(|_| own(self)).collect();
        let first = names.first().unwrap().clone();
        let free = if first == "@me" { "a".to_owned() } else { first.clone() };
        let position = json!({"epoch": "k3f9xq2a", "seq": 1});
        match self.0.u8(..6) {
            0 => (json!({"type": "subscribe", "topic": first}), vec![(false, first)]),
            1 => {
                let topics: Vec<_> = names.iter().map(|name| json!({"topic": name})).collect();
                (json!({"type": "subscribe", "topics": topics}), names.into_iter().map(|name| (false, name)).collect())
            }
            2 => (json!({"type": "message", "topic": free, "message": 1}), vec![(true, free)]),
            3 => (json!({"type": "history", "topic": first}), vec![(false, first)]),
            4 => {
                let positions: serde_json::Map<_, _> =
                    names.iter().map(|name| (name.clone(), position.clone())).collect();
                (json!({"type": "ping", "positions": positions}), names.into_iter().map(|name| (false, name)).collect())
            }
            _ => (
                json!({"action": "sendMessage", "destinationUserId": free, "body": 1}),
                vec![(true, format!("@{free}"))],
            ),
        }
        .into_text()
    }
}

trait IntoText {
    fn into_text(self) -> (String, Vec<(bool, String)>);
}

impl IntoText for (Value, Vec<(bool, String)>) {
    fn into_text(self) -> (String, Vec<(bool, String)>) {
        (self.0.to_string(), self.1)
    }
}

/// The rights as crates/REFERENCE.md words them, in another way than the code: patterns are searched as text.
fn model(
    rules: &[(String, &str, &str)],
    (user, may_subscribe, may_publish): (Option<&str>, &[String], &[String]),
    (publishes, name): &(bool, String),
) -> bool {
    let name = match (name.as_str(), user) {
        ("@me", None) => return false,
        ("@me", Some(user)) => format!("@{user}"),
        (name, _) => name.to_owned(),
    };
    let fits = |pattern: &String| {
        let same_kind = pattern.starts_with('@') == name.starts_with('@');
        *pattern == name || (same_kind && pattern.strip_suffix('*').is_some_and(|start| name.starts_with(start)))
    };
    let rule = rules.iter().find(|(pattern, ..)| fits(pattern));
    match rule.map_or("anyone", |(_, subscribe, publish)| if *publishes { publish } else { subscribe }) {
        "anyone" => true,
        "identified" => user.is_some(),
        "granted" => if *publishes { may_publish } else { may_subscribe }.iter().any(fits),
        _ => false,
    }
}

#[test]
fn a_hundred_thousand_frames_are_allowed_exactly_if_the_model_allows_them() {
    use crate::frame::Frame;
    use crate::rules::Rules;
    use crate::topic::Name;
    let mut dice = Dice(fastrand::Rng::with_seed(7));
    let (mut pairs, mut decisions) = (0, [0, 0]);
    while pairs < 100_000 {
        let written = dice.rules();
        let json: Vec<_> = written
            .iter()
            .map(|(topic, subscribe, publish)| match topic.starts_with('@') {
                true => json!({"topic": topic, "publish": publish}),
                false => json!({"topic": topic, "subscribe": subscribe, "publish": publish}),
            })
            .collect();
        // Rules that contradict each other do not start.
        let Ok(rules) = Rules::parse(&json!(json).to_string()) else { continue };
        let written: Vec<_> = written
            .into_iter()
            .map(|(topic, subscribe, publish)| {
                (topic.clone(), if topic.starts_with('@') { "anyone" } else { subscribe }, publish)
            })
            .collect();
        for _ in 0..20 {
            let user = dice.pick(&[None, Some("a"), Some("ab")]);
            let mut list = || (0..dice.0.usize(..4)).map(|_| dice.pattern()).collect::<Vec<_>>();
            let (may_subscribe, may_publish) = (list(), list());
            let grants = grants(
                &may_subscribe.iter().map(String::as_str).collect::<Vec<_>>(),
                &may_publish.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            let id = user.map(|user| UserId::parse("userId", user).unwrap());
            let (text, expected) = dice.frame();
            let frame = Frame::parse(&text).unwrap();
            let acts = match frame.request() {
                Ok(request) => request.acts(),
                Err(_) => {
                    let destination = frame.direct_message().unwrap().destination;
                    vec![(Act::Publish, Name::Topic(Topic::address(&destination)))]
                }
            };
            assert_eq!(acts.len(), expected.len(), "{text}");
            for (act, name) in &acts {
                let written_name = name.as_str().to_owned();
                let expected = expected.iter().find(|(_, name)| *name == written_name).unwrap();
                let found = rules.allow(*act, name, id.as_ref(), &grants).is_ok();
                let wanted = model(&written, (user, &may_subscribe, &may_publish), expected);
                assert_eq!(found, wanted, "{json:?} {user:?} {may_subscribe:?} {may_publish:?} {text}");
                decisions[usize::from(found)] += 1;
            }
            pairs += 1;
        }
    }
    assert!(decisions.iter().all(|count| *count > 10_000), "{decisions:?}");
}

/// Whatever else a frame says, its sender is the user of the connection.
#[test]
fn ten_thousand_forged_frames_have_their_true_sender() {
    use crate::connection::Connection;
    use crate::frame::{Frame, direct_message};
    let mut dice = Dice(fastrand::Rng::with_seed(8));
    let fields = ["senderId", "userId", "sub", "principalId", "requestContext", "connectionId", "authorizer", "cid"];
    let connection = Connection::for_tests(Some("mallory"));
    for number in 0..10_000 {
        let mut frame = json!({"destinationUserId": "bob", "body": number, "id": "m"});
        for field in fields.into_iter().filter(|_| fastrand::bool()) {
            frame[field] =
                dice.pick(&[json!("alice"), json!({"principalId": "alice", "senderId": "alice"}), json!(["alice"])]);
        }
        let text = frame.to_string();
        let frame = Frame::parse(&text).unwrap();
        let message = frame.direct_message().unwrap();
        let payloads = [message.body];
        let draft = frame.draft("body", &payloads, &connection, "w").unwrap();
        assert_eq!(draft.sender.map(UserId::as_str), Some("mallory"), "{text}");
        let heard: Value = serde_json::from_slice(&direct_message(draft.sender.unwrap(), message.body)).unwrap();
        assert_eq!(heard, json!({"senderId": "mallory", "body": number}));
    }
}
