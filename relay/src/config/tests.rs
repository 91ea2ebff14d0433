use proptest::prelude::*;
use rstest::rstest;

use super::*;

fn sources(text: &str) -> (tempfile::TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("relay.toml");
    fs::write(&path, text).unwrap();
    (
        folder,
        Sources {
            file: Some(path),
            ..Sources::default()
        },
    )
}

fn load(text: &str) -> Result<Checked, ConfigError> {
    let (_folder, sources) = sources(text);
    Config::load(&sources)
}

/// The faults of a file as `line:column: message`.
fn faults(text: &str) -> Vec<String> {
    match load(text) {
        Err(ConfigError::Faults(faults)) => faults
            .into_iter()
            .map(|fault| match fault.place {
                Place::File { line, column, .. } => format!("{line}:{column}: {}", fault.message),
                place => format!("{place}: {}", fault.message),
            })
            .collect(),
        other => panic!("expected faults, not {other:?}"),
    }
}

const LISTEN: &str = "listen = [\"192.0.2.1:4500\"]\n";

#[test]
fn the_documented_example_is_valid_and_says_what_it_says() {
    let checked = load(
        r#"
interface = "eth1"
listen = ["192.0.2.1:4500", "[2001:db8::1]:4500"]
egress = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]
egress_ports = "10000-59999"
relay_id = 7
max_users = 100_000
http = "127.0.0.1:9090"
admin = "/run/lumenlink/relay.sock"
state_dir = "/var/lib/lumenlink"
unmatched = "drop"
header_protection = false
carrier = ["udp"]
[limits]
packets_per_second = 20000
burst = 2000
[xdp]
mode = "native"
persist = true
[store]
kind = "redb"
"#,
    )
    .unwrap();
    assert_eq!(checked.warnings, []);
    let config = checked.config;
    assert_eq!(
        (config.relay_id, config.max_users, config.capacity()),
        (7, 100_000, 200_000)
    );
    assert_eq!((config.packets_per_second, config.burst), (20_000, 2000));
    assert_eq!((config.xdp_mode, config.xdp_persist), (XdpMode::Native, true));
    assert_eq!(config.xdp_pin_dir, Path::new("/sys/fs/bpf/lumenlink/eth1"));
    assert!(config.drop_unmatched && !config.header_protection);
}

#[test]
fn interfaces_are_one_or_several_from_wherever() {
    let of = |checked: Result<Checked, ConfigError>| checked.unwrap().config.interfaces;
    assert_eq!(of(load(LISTEN)), ["eth0"]);
    assert_eq!(of(load(&format!("interface = \"eth1\"\n{LISTEN}"))), ["eth1"]);
    let several = format!("interface = [\"eth1\", \"eth0\"]\n{LISTEN}");
    let checked = load(&several).unwrap();
    assert_eq!(checked.config.interfaces, ["eth1", "eth0"]);
    assert_eq!(checked.config.xdp_pin_dir, Path::new("/sys/fs/bpf/lumenlink/eth1"));
    let (_folder, mut given) = sources(&several);
    given
        .environment
        .insert("RELAY_INTERFACE".to_owned(), "wan, lan".to_owned());
    assert_eq!(of(Config::load(&given)), ["wan", "lan"]);
}

#[test]
fn where_the_kernel_routes_any_interface_is_one() {
    let of = |text: &str| load(text).unwrap().config.interfaces;
    let userspace = "[xdp]\nmode = \"userspace\"\n";
    assert_eq!(of(&format!("{LISTEN}{userspace}")), ["any"]);
    assert_eq!(
        of(&format!("interface = [\"a\", \"b\"]\n{LISTEN}{userspace}")),
        ["a", "b"]
    );
}

#[rstest]
#[case::twice("[\"a\", \"b\", \"a\"]", "1:1: a is there twice")]
#[case::too_many(
    "[\"a\", \"b\", \"c\", \"d\", \"e\", \"f\", \"g\", \"h\", \"i\"]",
    "1:1: 9 interfaces; a relay has at most 8"
)]
#[case::none("[]", "1:1: no interface: write at least one, or leave the key out")]
#[case::no_name("[\"\"]", "1:1: an item of `interface` is empty")]
#[case::no_text("7", "1:1: `interface` is an integer; expected a string")]
#[case::no_texts("[7]", "1:1: an item of `interface` is an integer; expected a string")]
fn interfaces_that_cannot_be_are_told(#[case] interfaces: &str, #[case] message: &str) {
    assert_eq!(faults(&format!("interface = {interfaces}\n{LISTEN}")), [message]);
}

#[test]
fn five_faults_are_five_messages_with_their_places() {
    let found = faults(
        "interfase = \"eth0\"\nlisten = [\"192.0.2.1\"]\negress_ports = \"9-8\"\n\
         [limits]\nburst = 0\n[xdp]\nmode = \"fast\"\n",
    );
    assert_eq!(
        found,
        [
            "1:1: unknown key `interfase`; did you mean `interface`?",
            "7:1: `xdp.mode` is \"fast\"; expected \"auto\" or \"native\" or \"generic\" or \"userspace\"",
            "2:1: an item of `listen` is \"192.0.2.1\"; expected an address and port, like \"192.0.2.1:4500\"",
            "3:1: `egress_ports` is \"9-8\"; expected a range of ports, like \"10000-59999\"",
            "5:1: `limits.burst` is 0; expected an integer from 1 to 1000000",
        ]
    );
}

#[rstest]
#[case::a_syntax_error("http = \n", "1:8: ")]
#[case::a_wrong_type("relay_id = \"one\"\n", "2:1: `relay_id` is a string; expected an integer")]
#[case::a_wildcard_listener("egress = [\"0.0.0.0\"]\n", "2:1: 0.0.0.0 is not the address of a host")]
#[case::a_listener_in_the_egress_range(
    "egress_ports = \"4000-5000\"\nmax_users = 1\n",
    "2:1: the listener 192.0.2.1:4500 is inside"
)]
#[case::etcd(
    "[store]\nkind = \"etcd\"\n",
    "3:1: `store.kind` this build keeps users in redb only"
)]
#[case::an_unknown_carrier(
    "carrier = [\"udp\", \"dns\"]\n",
    "2:1: an item of `carrier` is \"dns\"; expected \"udp\" or \"ip-option\""
)]
#[case::no_carrier("carrier = []\n", "2:1: `carrier` is empty")]
#[case::no_carrier_over_ipv6(
    "carrier = [\"ip-option\"]\nlisten = [\"192.0.2.1:4500\", \"[2001:db8::1]:4500\"]\n",
    "1:1: no token reaches [2001:db8::1]:4500"
)]
#[case::options_through_sockets(
    "carrier = [\"udp\", \"ip-option\"]\n[xdp]\nmode = \"userspace\"\n",
    "2:1: \"ip-option\" needs XDP: in userspace mode sockets carry no IP options"
)]
#[case::a_sample_that_is_no_power_of_two("drop_sample = 3\n", "2:1: `drop_sample` is 3; expected a power of two")]
#[case::a_relative_path(
    "admin = \"relay.sock\"\n",
    "2:1: `admin` is \"relay.sock\"; expected an absolute path"
)]
#[case::no_egress_at_all("egress = []\n", "2:1: no egress address")]
#[case::an_address_twice("egress = [\"192.0.2.1\", \"192.0.2.1\"]\n", "2:1: 192.0.2.1 is there twice")]
#[case::too_many_users(
    "max_users = 50001\n",
    "2:1: max_users is 50001, but the egress addresses and ports have room for 50000 (1 × 50000 ports)"
)]
fn a_fault_says_where_it_is_and_what_to_write(#[case] text: &str, #[case] expected: &str) {
    let text = if text.starts_with("http") || text.contains("listen = ") {
        text.to_owned()
    } else {
        format!("{LISTEN}{text}")
    };
    let found = faults(&text);
    assert!(found.iter().any(|fault| fault.starts_with(expected)), "{found:#?}");
}

#[test]
fn a_flag_wins_over_the_environment_over_the_file_over_the_default() {
    let (_folder, mut sources) = sources(&format!("{LISTEN}relay_id = 2\nmax_users = 10\n"));
    let ids = |sources: &Sources| {
        let config = Config::load(sources).unwrap().config;
        (config.relay_id, config.max_users, config.burst)
    };
    assert_eq!(ids(&sources), (2, 10, 1000));
    sources.environment.insert("RELAY_RELAY_ID".into(), "3".into());
    sources.environment.insert("RELAY_LIMITS_BURST".into(), "2_000".into());
    assert_eq!(ids(&sources), (3, 10, 2000));
    sources.flags.insert("relay_id", "4".into());
    assert_eq!(ids(&sources), (4, 10, 2000));
    sources.environment.insert("RELAY_MAX_USERS".into(), "many".into());
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(
        error.contains("environment variable RELAY_MAX_USERS: `max_users` is \"many\""),
        "{error}"
    );
}

#[test]
fn without_max_users_there_are_as_many_as_fit() {
    assert_eq!(load(LISTEN).unwrap().config.max_users, 50_000);
    let two = load(&format!(
        "{LISTEN}egress = [\"192.0.2.1\", \"192.0.2.2\", \"192.0.2.3\"]\n"
    ))
    .unwrap();
    assert_eq!(two.config.max_users, 100_000);
}

#[test]
fn more_users_than_one_family_has_ports_for_are_a_warning_and_more_than_both_have_a_fault() {
    let both = "listen = [\"192.0.2.1:4500\", \"[2001:db8::1]:4500\"]\nmax_users = ";
    let checked = load(&format!("{both}100000\n")).unwrap();
    let warnings: Vec<_> = checked.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[1].contains("room for 50000 users with IPv6 destinations"),
        "{warnings:?}"
    );
    let faults = faults(&format!("{both}100001\n"));
    assert!(faults[0].contains("room for 100000 (2 × 50000 ports)"), "{faults:?}");
}

#[test]
fn a_variable_that_is_nearly_a_keys_is_a_warning() {
    let (_folder, mut sources) = sources(LISTEN);
    sources.environment.insert("RELAY_INTERFCE".into(), "eth1".into());
    sources.environment.insert("RELAY_GRANT".into(), "lumen1:".into());
    let warnings = Config::load(&sources).unwrap().warnings;
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].message.contains("did you mean RELAY_INTERFACE?"),
        "{}",
        warnings[0]
    );
}

#[test]
fn a_burst_below_one_tick_is_a_warning() {
    let checked = load(&format!("{LISTEN}[limits]\npackets_per_second = 10000000\nburst = 1\n")).unwrap();
    assert!(
        checked.warnings[0].to_string().contains("a burst of 1 is raised to"),
        "{:?}",
        checked.warnings
    );
}

#[test]
fn destinations_have_a_limit_if_there_is_a_rate_for_them() {
    let of = |text: &str| {
        load(&format!("{LISTEN}[limits]\n{text}"))
            .unwrap()
            .config
            .destination_limit
    };
    let limit = |rate, burst| Some(RateLimit { rate, burst });
    assert_eq!(of(""), None);
    assert_eq!(of("destination_burst = 5\n"), None);
    assert_eq!(of("destination_packets_per_second = 0\n"), None);
    assert_eq!(of("destination_packets_per_second = 7\n"), limit(7, 1000));
    assert_eq!(
        of("destination_packets_per_second = 7\ndestination_burst = 5\n"),
        limit(7, 5)
    );
    let found = faults(&format!(
        "{LISTEN}[limits]\ndestination_packets_per_second = -1\ndestination_burst = 0\n"
    ));
    assert_eq!(
        found,
        [
            "3:1: `limits.destination_packets_per_second` is -1; expected an integer from 0 to 10000000",
            "4:1: `limits.destination_burst` is 0; expected an integer from 1 to 1000000",
        ]
    );
    let checked = load(&format!(
        "{LISTEN}[limits]\ndestination_packets_per_second = 10000000\ndestination_burst = 2\n"
    ));
    let warning = checked.unwrap().warnings[0].to_string();
    assert!(warning.contains("4:1: a burst of 2 is raised to"), "{warning}");
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    let mut sources = Sources {
        file: None,
        ..Sources::default()
    };
    sources.environment.insert("RELAY_INTERFACE".into(), "nosuch0".into());
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(error.contains("there is no interface `nosuch0` here"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_an_error_only_if_it_was_named() {
    let sources = Sources {
        file: Some("/nonexistent/relay.toml".into()),
        ..Sources::default()
    };
    let error = Config::load(&sources).unwrap_err().to_string();
    assert!(error.starts_with("reading /nonexistent/relay.toml"), "{error}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text: String) {
        let _either = load(&text);
    }

    #[test]
    fn no_value_makes_it_panic(key in prop::sample::select(KEYS.map(|(key, _)| key).to_vec()), value in "[\\[\\]\"a-z0-9:.,/ =-]{0,20}") {
        let (section, name) = key.split_once('.').unwrap_or(("", key));
        let header = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let _either = load(&format!("{LISTEN}{header}{name} = {value}\n"));
    }
}

const TRUNK: &str = "interface = [\"eth0\", \"eth1\"]\nlisten = [\"192.0.2.1:4500\"]\nvlan = true\n";

#[test]
fn next_hops_say_where_and_in_which_vlan() {
    let checked = load(&format!(
        r#"{TRUNK}
[[next_hop]]
to = "198.51.100.0/24"
mac = "02:00:00:00:00:d1"
interface = "eth1"
vlan = ["802.1ad:200", "802.1q:300:5"]
mtu = 1400
[[next_hop]]
to = "2001:db8:d::7"
mac = "02:00:00:00:00:D2"
interface = "eth0"
vlan = 100
"#
    ))
    .unwrap();
    let config = checked.config;
    assert!(config.vlan);
    let [first, second] = &config.next_hops[..] else {
        panic!("two next hops: {:?}", config.next_hops);
    };
    assert_eq!(
        (first.to.to_string(), first.interface.as_str(), first.mtu),
        ("198.51.100.0/24".into(), "eth1", Some(1400))
    );
    let tags = |hop: &GivenNextHop| {
        hop.tags
            .iter()
            .map(|(kind, control)| (kind.get(), control))
            .collect::<Vec<_>>()
    };
    assert_eq!(tags(first), [(0x88a8, 200), (0x8100, 5 << 13 | 300)]);
    assert_eq!(
        (second.to.to_string(), second.mac.bytes()[5], second.mtu),
        ("2001:db8:d::7/128".into(), 0xd2, None)
    );
    assert_eq!(tags(second), [(0x8100, 100)]);
}

#[rstest]
#[case::nowhere(r#"mac = "02:00:00:00:00:d1""#, "has no `to`")]
#[case::no_mac(r#"to = "198.51.100.7", interface = "eth0""#, "has no `mac`")]
#[case::of_two_interfaces(r#"to = "198.51.100.7", mac = "02:00:00:00:00:d1""#, "has no `interface`")]
#[case::elsewhere(
    r#"to = "198.51.100.7", mac = "02:00:00:00:00:d1", interface = "eth2""#,
    "behind eth2, which is not in `interface`"
)]
#[case::no_prefix(r#"to = "x""#, "expected a prefix or an address")]
#[case::bits_behind(r#"to = "198.51.100.7/24""#, "write \"198.51.100.0/24\"")]
#[case::a_groups_mac(
    r#"to = "198.51.100.7", mac = "03:00:00:00:00:d1", interface = "eth0""#,
    "MAC address of one station"
)]
#[case::half_a_mac(
    r#"to = "198.51.100.7", mac = "02:00:00", interface = "eth0""#,
    "MAC address of one station"
)]
#[case::no_vlan(
    r#"to = "198.51.100.7", mac = "02:00:00:00:00:d1", interface = "eth0", vlan = 4095"#,
    "from 0 to 4094"
)]
#[case::another_kind(
    r#"to = "198.51.100.7", mac = "02:00:00:00:00:d1", interface = "eth0", vlan = "9100:1""#,
    "802.1ad:100"
)]
#[case::three(
    r#"to = "198.51.100.7", mac = "02:00:00:00:00:d1", interface = "eth0", vlan = [1, 2, 3]"#,
    "has 3 tags"
)]
#[case::none(
    r#"to = "198.51.100.7", mac = "02:00:00:00:00:d1", interface = "eth0", vlan = []"#,
    "has 0 tags"
)]
#[case::mtu(
    r#"to = "198.51.100.7", mac = "02:00:00:00:00:d1", interface = "eth0", mtu = 67"#,
    "from 68 to 65535"
)]
#[case::unknown(r#"to = "198.51.100.7", via = "198.51.100.1""#, "unknown key `via`")]
fn a_faulty_next_hop_is_told(#[case] table: &str, #[case] expected: &str) {
    let faults = faults(&format!("{TRUNK}next_hop = [{{ {table} }}]\n"));
    assert!(faults.len() == 1 && faults[0].starts_with("4:1: "), "{faults:?}");
    assert!(faults[0].contains(expected), "{faults:?}");
}

#[test]
fn what_is_said_of_tags_must_fit_the_rest() {
    let hop = "next_hop = [{ to = \"198.51.100.7\", mac = \"02:00:00:00:00:d1\", vlan = 5 }]\n";
    assert!(faults(&format!("{LISTEN}{hop}"))[0].contains("write `vlan = true` too"));
    let twice = hop.replace("}]", "}, { to = \"198.51.100.7\", mac = \"02:00:00:00:00:d2\" }]");
    assert!(faults(&format!("{LISTEN}vlan = true\n{twice}"))[0].contains("there twice"));
    let userspace = faults(&format!("{LISTEN}vlan = true\n{hop}[xdp]\nmode = \"userspace\"\n"));
    assert!(
        userspace.iter().any(|fault| fault.contains("next_hop needs XDP")),
        "{userspace:?}"
    );
    assert!(
        userspace.iter().any(|fault| fault.contains("vlan needs XDP")),
        "{userspace:?}"
    );
    let of_environment = {
        let (_folder, mut given) = sources(LISTEN);
        given
            .environment
            .insert("RELAY_NEXT_HOP".to_owned(), "198.51.100.7".to_owned());
        Config::load(&given).unwrap_err().to_string()
    };
    assert!(of_environment.contains("expected a table"), "{of_environment}");
}
