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
