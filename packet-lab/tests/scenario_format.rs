//! The format of scenarios, and that all of them keep to it.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use packet_lab::scenario::{Scenario, discover, schema, to_toml};
use relay_ebpf::verdict::{Direction, Reason};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios")
}

fn all() -> Vec<Scenario> {
    let paths = discover(&folder()).unwrap();
    let load = |path: &PathBuf| Scenario::load(path).unwrap_or_else(|error| panic!("{error}"));
    paths.iter().map(load).collect()
}

#[test]
fn the_committed_schema_is_that_of_the_types() {
    let path = folder().join("schema.json");
    let committed: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert!(
        committed == schema(),
        "scenarios/schema.json is of another format: packet-lab schema > scenarios/schema.json"
    );
}

#[test]
fn every_scenario_names_the_schema_to_editors() {
    for scenario in all() {
        let text = fs::read_to_string(&scenario.path).unwrap();
        let first = text.lines().next().unwrap_or_default();
        let path = first.strip_prefix("#:schema ").unwrap_or_default();
        let named = scenario.folder.join(path);
        assert!(
            named.ends_with("schema.json") && named.is_file(),
            "{} begins with {first:?}, not with where the schema is",
            scenario.path.display()
        );
    }
}

#[test]
fn every_area_says_what_it_covers() {
    for scenario in all() {
        let area = scenario.folder.parent().unwrap();
        let told = [area, &scenario.folder]
            .iter()
            .any(|folder| folder.join("README.md").is_file());
        assert!(told, "there is no README.md in {}", area.display());
    }
}

#[test]
fn what_is_written_is_what_was_read() {
    for scenario in all() {
        let written = to_toml(&scenario.file).unwrap();
        let read = Scenario::parse(&scenario.path, &written).unwrap_or_else(|error| panic!("{error}\n{written}"));
        assert_eq!(read.file, scenario.file, "{}", scenario.path.display());
    }
}

#[test]
fn every_scenario_is_another() {
    let names: Vec<String> = all().iter().map(|scenario| scenario.file.name.clone()).collect();
    let distinct: BTreeSet<&String> = names.iter().collect();
    assert_eq!(names.len(), distinct.len(), "two scenarios promise the same");
}

/// Direction, reason and whether the sender has an IPv4 address, of everything that steps send and expect.
fn expected() -> BTreeSet<(&'static str, &'static str, bool)> {
    let mut seen = BTreeSet::new();
    for scenario in all() {
        for step in &scenario.file.steps {
            let from = step.send.as_ref().and_then(|send| send.from);
            let (Some(expect), Some(from)) = (&step.expect, from) else {
                continue;
            };
            let Some(reason) = expect.reason else { continue };
            let way = expect.direction.map_or(Direction::Uplink, |way| way.0);
            seen.insert((way.name(), reason.0.name(), SocketAddr::is_ipv4(&from)));
        }
    }
    seen
}

#[test]
fn every_reason_is_expected_in_both_families_and_in_both_directions_where_it_has_them() {
    let seen = expected();
    let downlink = [
        Reason::Relayed,
        Reason::Fragment,
        Reason::Truncated,
        Reason::RateLimited,
        Reason::TtlExpired,
        Reason::TooBig,
    ];
    for v4 in [true, false] {
        let family = if v4 { "IPv4" } else { "IPv6" };
        // Frames of scenarios always have room in front of them; errors from the path have no port that they are from.
        let not_uplink = [Reason::Unsolicited, Reason::NoHeadroom, Reason::IcmpError];
        for reason in Reason::ALL.into_iter().filter(|reason| !not_uplink.contains(reason)) {
            assert!(
                seen.contains(&("uplink", reason.name(), v4)),
                "no scenario expects {} uplink over {family}",
                reason.name()
            );
        }
        for reason in downlink.into_iter().chain([Reason::Unsolicited]) {
            assert!(
                seen.contains(&("downlink", reason.name(), v4)),
                "no scenario expects {} downlink over {family}",
                reason.name()
            );
        }
    }
}

#[test]
fn the_schema_describes_every_key() {
    fn walk(place: &str, value: &serde_json::Value, missing: &mut Vec<String>) {
        let Some(object) = value.as_object() else { return };
        if let Some(properties) = object.get("properties").and_then(serde_json::Value::as_object) {
            for (key, property) in properties {
                // Counts by reason have the reasons for keys.
                let named = Reason::ALL.into_iter().any(|reason| reason.name() == key);
                let told = named || property.get("description").is_some() || property.get("$ref").is_some();
                if !told {
                    missing.push(format!("{place}.{key}"));
                }
            }
        }
        for (key, inner) in object {
            walk(&format!("{place}/{key}"), inner, missing);
        }
    }
    let mut missing = Vec::new();
    walk("", &schema(), &mut missing);
    assert!(missing.is_empty(), "keys without a description: {missing:?}");
}
