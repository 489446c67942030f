//! ✦ A member's tags in Patroni's spelling: what Rhone writes with a hyphen has none there, and values have types.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

/// The flags as Patroni spells them.
const FLAGS: [&str; 4] = ["nofailover", "nosync", "noloadbalance", "clonefrom"];

/// Returns Patroni's spelling of a tag that Rhone has another one for.
fn patronis(key: &str) -> &str {
    match key {
        "no-failover" => "nofailover",
        "no-sync" => "nosync",
        "no-load-balance" => "noloadbalance",
        "clone-from" => "clonefrom",
        "replicate-from" => "replicatefrom",
        other => other,
    }
}

/// Gives the tags as Patroni's API has them. A flag that is off is left out there.
pub(super) fn as_patronis(labels: &BTreeMap<String, String>) -> Value {
    let tag = |(key, text): (&String, &String)| {
        let key = patronis(key);
        let value = if key == "replicatefrom" { Value::from(text.as_str()) } else { typed(text) };
        let off = FLAGS.contains(&key) && value != Value::Bool(true);
        (!off).then(|| (key.to_owned(), value))
    };
    Value::Object(labels.iter().filter_map(tag).collect::<Map<_, _>>())
}

/// Returns what YAML would read; as a number only what is written as JSON would write it, so that a version `1.10` or
/// `007` stays what it is.
fn typed(text: &str) -> Value {
    if let Ok(flag) = text.parse::<bool>() {
        return Value::Bool(flag);
    }
    let number = text.parse::<Number>().ok().filter(|number| number.to_string() == text);
    number.map_or_else(|| Value::from(text), Value::Number)
}

/// Says whether a check's `tag_KEY=VALUE` holds, in either spelling. A tag that this member does not have matches nothing.
pub(super) fn matches(labels: &BTreeMap<String, String>, key: &str, value: &str) -> bool {
    let wanted = patronis(key);
    labels.iter().any(|(key, text)| patronis(key) == wanted && text.eq_ignore_ascii_case(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn tags_are_spelled_and_typed_as_patronis() {
        let written = labels(&[
            ("no-failover", "true"),
            ("nosync", "true"),
            ("no-load-balance", "false"),
            ("clone-from", "true"),
            ("replicate-from", "7"),
            ("zone", "cellar"),
            ("backup", "false"),
            ("rack", "12"),
            ("weight", "0.5"),
            ("os", "1.10"),
            ("room", "007"),
        ]);
        assert_eq!(
            as_patronis(&written),
            json!({
                "nofailover": true, "nosync": true, "clonefrom": true, "replicatefrom": "7", "zone": "cellar",
                "backup": false, "rack": 12, "weight": 0.5, "os": "1.10", "room": "007",
            })
        );
        assert_eq!(as_patronis(&labels(&[("nofailover", "false")])), json!({}));
    }

    #[test]
    fn a_check_may_use_either_spelling() {
        for written in ["no-failover", "nofailover"] {
            let own = labels(&[(written, "true"), ("zone", "a")]);
            assert!(matches(&own, "nofailover", "true") && matches(&own, "no-failover", "True"), "{written}");
            assert!(!matches(&own, "nofailover", "false") && !matches(&own, "nosync", "true"), "{written}");
            assert!(matches(&own, "zone", "a") && !matches(&own, "zone", "b"), "{written}");
        }
    }
}
