use std::{fs, path::Path};

use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;

use super::*;
use crate::config::Sources;

fn config(max_users: u32) -> Config {
    let toml =
        format!("listen = [\"192.0.2.1:4500\"]\negress = [\"192.0.2.1\", \"192.0.2.2\"]\nmax_users = {max_users}\n");
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("relay.toml");
    fs::write(&file, toml).unwrap();
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    Config::load(&sources).unwrap().config
}

fn load(folder: &Path, max_users: u32) -> Users {
    Users::load(Store::open(folder).unwrap(), max_users).unwrap()
}

fn new(id: u64) -> NewUser {
    NewUser {
        id,
        to: "198.51.100.7:5000".parse().unwrap(),
        rate: None,
        burst: None,
        down_rate: None,
        down_burst: None,
        expires_at: None,
        expires_in: None,
    }
}

fn all(users: &Users) -> Vec<User> {
    users.iter().cloned().collect()
}

#[test]
fn users_and_blocks_are_there_again_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let config = config(10);
    let mut users = load(folder.path(), 10);
    for id in [7, 3, u64::MAX] {
        users.put(&new(id), &config).unwrap();
    }
    users.remove(3).unwrap();
    users.block("203.0.113.0/24".parse().unwrap()).unwrap();
    users.block("2001:db8:bad::/48".parse().unwrap()).unwrap();
    users.unblock("203.0.113.0/24".parse().unwrap()).unwrap();
    let before = (all(&users), users.blocked());
    drop(users);
    let users = load(folder.path(), 10);
    assert_eq!((all(&users), users.blocked()), before);
    assert_eq!(before.0.len(), 2);
    assert_eq!(before.1, ["2001:db8:bad::/48".parse::<IpNet>().unwrap()]);
}

#[test]
fn a_new_user_gets_the_lowest_free_slot_and_a_renewed_one_keeps_its_own_with_a_new_salt_and_key() {
    let folder = TempDir::new().unwrap();
    let config = config(10);
    let mut users = load(folder.path(), 10);
    let slots: Vec<_> = (0..4).map(|id| users.put(&new(id), &config).unwrap().0.slot).collect();
    assert_eq!(slots, [0, 1, 2, 3]);
    users.remove(1).unwrap();
    assert_eq!(users.put(&new(9), &config).unwrap().0.slot, 1);
    let old = users.get(2).unwrap().clone();
    let (renewed, was_there) = users.put(&new(2), &config).unwrap();
    assert!(was_there);
    assert_eq!(renewed.slot, old.slot);
    assert!(renewed.key != old.key && renewed.salt != old.salt);
}

#[test]
fn a_configuration_that_leaves_a_user_without_egress_port_is_told() {
    let folder = TempDir::new().unwrap();
    let mut config = config(10);
    let mut users = load(folder.path(), 10);
    users.put(&new(7), &config).unwrap();
    assert!(users.check(&config).is_ok());
    config.listen = vec!["[2001:db8::1]:4500".parse().unwrap()];
    assert!(users.check(&config).is_ok(), "clients may be of the other family");
    config.egress = vec!["2001:db8::1".parse().unwrap()];
    let error = users.check(&config).unwrap_err().to_string();
    assert!(
        error.starts_with("user 7 could not be served: ") && error.contains("an egress port towards IPv4"),
        "{error}"
    );
}

#[test]
fn prefixes_are_blocked_all_or_none_and_the_line_at_fault_is_told() {
    let folder = TempDir::new().unwrap();
    let mut users = load(folder.path(), 10);
    let text = "# known bad\n203.0.113.0/24\n\n198.51.100.7 # one host\n2001:db8:bad::1/48\n203.0.113.77/24\n";
    assert_eq!(users.block_all(text).unwrap(), 3);
    let blocked = users.blocked();
    let shown: Vec<String> = blocked.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["198.51.100.7/32", "203.0.113.0/24", "2001:db8:bad::/48"]);
    for (text, why) in [
        ("192.0.2.0/24\n192.0.2.0/33\n", "line 2"),
        ("192.0.2.0/24\n\n::ffff:192.0.2.0/120\n", "line 3"),
    ] {
        let error = users.block_all(text).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(users.blocked(), blocked);
    }
}

#[test]
fn a_grant_names_a_listener_of_the_destinations_family_if_there_is_one() {
    let folder = TempDir::new().unwrap();
    let mut config = config(10);
    let mut users = load(folder.path(), 10);
    let (user, _) = users.put(&new(7), &config).unwrap();
    let mut relay = |listen: &[&str]| {
        config.listen = listen.iter().map(|listener| listener.parse().unwrap()).collect();
        user.grant(&config, None).map(|grant| grant.relay.to_string())
    };
    let v6 = "[2001:db8::1]:4500";
    assert_eq!(
        relay(&[v6, "192.0.2.1:4500", "192.0.2.2:4500"]).unwrap(),
        "192.0.2.1:4500"
    );
    assert_eq!(relay(&[v6, "[2001:db8::2]:4500"]).unwrap(), v6);
    assert!(relay(&[]).unwrap_err().to_string().contains("no listener"));
}

#[test]
fn a_full_table_refuses_and_says_how_many_there_can_be() {
    let folder = TempDir::new().unwrap();
    let config = config(2);
    let mut users = load(folder.path(), 2);
    users.put(&new(0), &config).unwrap();
    users.put(&new(1), &config).unwrap();
    let error = users.put(&new(2), &config).unwrap_err();
    assert!(
        matches!(
            error,
            Refusal::Full {
                max_users: 2,
                wanted: 1
            }
        ),
        "{error}"
    );
    assert!(users.put(&new(1), &config).is_ok(), "renewing needs no slot");
    assert_eq!(users.len(), 2);
}

#[rstest]
#[case::not_json("{\"id\": 3, \"to\": }", "expected value")]
#[case::unknown_key("{\"id\": 3, \"to\": \"192.0.2.9:1\", \"rat\": 5}", "unknown field `rat`")]
#[case::no_port("{\"id\": 3, \"to\": \"192.0.2.9\"}", "invalid socket address")]
#[case::port_zero("{\"id\": 3, \"to\": \"192.0.2.9:0\"}", "no port")]
#[case::no_family("{\"id\": 3, \"to\": \"[2001:db8::1]:1\"}", "no IPv6 egress address")]
#[case::rate("{\"id\": 3, \"to\": \"192.0.2.9:1\", \"rate\": 0}", "a rate of 0")]
#[case::down_rate("{\"id\": 3, \"to\": \"192.0.2.9:1\", \"down_rate\": 0}", "a down_rate of 0")]
#[case::down_burst(
    "{\"id\": 3, \"to\": \"192.0.2.9:1\", \"down_rate\": 1, \"down_burst\": 1000001}",
    "a down_burst of 1000001 packets: write 1 to 1000000"
)]
#[case::down_burst_alone(
    "{\"id\": 3, \"to\": \"192.0.2.9:1\", \"down_burst\": 5}",
    "a down_burst without a down_rate limits nothing"
)]
#[case::twice("{\"id\": 1, \"to\": \"192.0.2.9:1\"}", "user 1 is in line 1 already")]
#[case::there_already("{\"id\": 100, \"to\": \"192.0.2.9:1\"}", "import with --renew")]
#[case::expired(
    "{\"id\": 3, \"to\": \"192.0.2.9:1\", \"expires_at\": \"2001-01-01T00:00:00Z\"}",
    "expired already"
)]
fn an_import_with_a_bad_line_in_the_middle_names_it_and_does_nothing(#[case] line: &str, #[case] message: &str) {
    let folder = TempDir::new().unwrap();
    let config = config(10);
    let mut users = load(folder.path(), 10);
    users.put(&new(100), &config).unwrap();
    let before = all(&users);
    let text = format!("{{\"id\": 1, \"to\": \"192.0.2.9:1\"}}\n\n{line}\n{{\"id\": 2, \"to\": \"192.0.2.9:2\"}}\n");
    let error = users.import(&text, false, &config).unwrap_err().to_string();
    assert!(error.starts_with("line 3: ") && error.contains(message), "{error}");
    assert_eq!(all(&users), before);
    drop(users);
    assert_eq!(all(&load(folder.path(), 10)), before);
}

#[test]
fn an_import_adds_all_and_renews_where_it_is_told_to() {
    let folder = TempDir::new().unwrap();
    let config = config(3);
    let mut users = load(folder.path(), 3);
    users.put(&new(2), &config).unwrap();
    let text = "{\"id\": 1, \"to\": \"192.0.2.9:1\", \"rate\": 7, \"expires_in\": \"1h\"}\n{\"user\": 2, \"to\": \"192.0.2.9:2\"}";
    let added = users.import(text, true, &config).unwrap();
    assert_eq!(
        added.iter().map(|user| (user.id, user.slot)).collect::<Vec<_>>(),
        [(1, 1), (2, 0)]
    );
    assert_eq!(users.get(1).unwrap().rate, Some(7));
    let too_many = "{\"id\": 5, \"to\": \"192.0.2.9:1\"}\n{\"id\": 6, \"to\": \"192.0.2.9:2\"}";
    assert!(matches!(
        users.import(too_many, false, &config),
        Err(Refusal::Full { .. })
    ));
    assert_eq!(users.len(), 2);
}

#[test]
fn a_downlink_has_a_limit_if_its_user_was_given_one_and_still_has_it_after_a_restart() {
    let folder = TempDir::new().unwrap();
    let config = config(3);
    let mut users = load(folder.path(), 3);
    let text = "{\"id\": 1, \"to\": \"192.0.2.9:1\"}\n{\"id\": 2, \"to\": \"192.0.2.9:1\", \"down_rate\": 7}\n\
                {\"id\": 3, \"to\": \"192.0.2.9:1\", \"down_rate\": 8, \"down_burst\": 9}";
    users.import(text, false, &config).unwrap();
    let limits = |users: &Users| -> Vec<_> { users.iter().map(|user| user.published(&config).down_limit).collect() };
    let limit = |rate, burst| Some(RateLimit { rate, burst });
    let expected = [None, limit(7, config.burst), limit(8, 9)];
    assert_eq!(limits(&users), expected);
    drop(users);
    assert_eq!(limits(&load(folder.path(), 3)), expected);
}

#[test]
fn a_store_from_before_downlinks_had_limits_is_read() {
    let folder = TempDir::new().unwrap();
    drop(load(folder.path(), 10));
    let user = "{\"slot\":3,\"salt\":5,\"key\":\"000102030405060708090a0b0c0d0e0f\",\"to\":\"198.51.100.7:5000\",\
                \"rate\":null,\"burst\":20,\"expires_at\":null}";
    let older = redb::Database::create(folder.path().join("users.redb")).unwrap();
    let transaction = older.begin_write().unwrap();
    let table = redb::TableDefinition::<u64, &[u8]>::new("users");
    let mut users = transaction.open_table(table).unwrap();
    users.insert(42, user.as_bytes()).unwrap();
    drop(users);
    transaction.commit().unwrap();
    drop(older);

    let users = load(folder.path(), 10);
    let found = users.get(42).unwrap();
    assert_eq!((found.slot, found.salt, found.burst), (3, 5, Some(20)));
    assert_eq!((found.down_rate, found.down_burst), (None, None));
}

#[test]
fn a_store_of_garbage_of_a_newer_version_in_use_or_with_too_high_slots_is_told_and_left_as_it_is() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("users.redb");
    fs::write(
        &path,
        "not a database at all, but long enough to look like one".repeat(100),
    )
    .unwrap();
    let before = fs::read(&path).unwrap();
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);
    fs::remove_file(&path).unwrap();

    let store = Store::open(folder.path()).unwrap();
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error}");
    let mut users = Users::load(store, 10).unwrap();
    users.put(&new(1), &config(10)).unwrap();
    users.put(&new(2), &config(10)).unwrap();
    drop(users);
    let error = Users::load(Store::open(folder.path()).unwrap(), 1)
        .unwrap_err()
        .to_string();
    assert!(error.contains("raise it to at least 2"), "{error}");

    let newer = redb::Database::create(&path).unwrap();
    let transaction = newer.begin_write().unwrap();
    let format = redb::TableDefinition::<&str, u64>::new("format");
    transaction.open_table(format).unwrap().insert("version", 9).unwrap();
    transaction.commit().unwrap();
    drop(newer);
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 9, .. }), "{error}");
}

#[test]
fn a_store_cut_short_or_overwritten_in_part_is_corrupt_and_does_not_panic() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("users.redb");
    let mut users = load(folder.path(), 1000);
    let text: String = (0..1000)
        .map(|id| format!("{{\"id\":{id},\"to\":\"192.0.2.9:1\"}}\n"))
        .collect();
    users.import(&text, false, &config(1000)).unwrap();
    drop(users);
    let whole = fs::read(&path).unwrap();
    for length in [1, 100, 4096, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = Store::open(folder.path())
            .and_then(|store| Users::load(store, 1000))
            .unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{length} bytes: {error}");
    }
    for start in (0..whole.len()).step_by(4096) {
        let mut damaged = whole.clone();
        let end = whole.len().min(start + 4096);
        damaged[start..end].fill(0xa5);
        fs::write(&path, &damaged).unwrap();
        match Store::open(folder.path()).and_then(|store| Users::load(store, 1000)) {
            Ok(users) => assert_eq!(users.len(), 1000, "page at {start}"),
            Err(error) => assert!(matches!(error, StoreError::Corrupt { .. }), "page at {start}: {error}"),
        }
    }
}

#[test]
fn the_header_key_is_made_once_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("state");
    let key = store::header_key(&dir).unwrap();
    assert_eq!(store::header_key(&dir).unwrap(), key);
    let _store = Store::open(&dir).unwrap();
    for name in ["header.key", "users.redb"] {
        let mode = fs::metadata(dir.join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    fs::write(dir.join("header.key"), "short").unwrap();
    let error = store::header_key(&dir).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[rstest]
#[case("1h", 3600)]
#[case("90s", 90)]
#[case("1h 30m", 5400)]
#[case("7d", 7 * 86400)]
fn a_duration_is_written_as_people_do(#[case] text: &str, #[case] seconds: i64) {
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    assert_eq!(expiry(text, now).unwrap().as_second() - now.as_second(), seconds);
}

proptest! {
    #[test]
    fn no_line_makes_an_import_panic(text: String) {
        let folder = TempDir::new().unwrap();
        let _either = load(folder.path(), 4).import(&text, false, &config(4));
    }

    #[test]
    fn no_duration_makes_it_panic(text in "\\PC{0,20}|-?[0-9]{1,20}[smhdwy]") {
        let _either = expiry(&text, Timestamp::now());
    }

    #[test]
    fn slots_are_never_shared_and_never_lost(operations in prop::collection::vec((any::<bool>(), 0_u32..20), 0..60)) {
        let mut free = FreeSlots::default();
        let mut taken = BTreeSet::new();
        for (take, slot) in operations {
            if take {
                prop_assert_eq!(free.take(slot), taken.insert(slot));
            } else if taken.remove(&slot) {
                free.give_back(slot);
            }
            let expected: Vec<_> = (0..20).filter(|slot| !taken.contains(slot)).collect();
            prop_assert_eq!(free.lowest(20).collect::<Vec<_>>(), expected);
        }
    }
}
