//! What an operator gets wrong, or finds in the way. Each has a message of its own that says what to do, and an exit
//! code of its own; nothing is attached, and what was there is as it was.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    time::Duration,
};

use nix::sys::signal::Signal;
use packet_lab::pass::PassProgram;
use redb::{Database, TableDefinition};
use veth_tests::{
    client::{Client, is_refused},
    echo::EchoServer,
    namespace::{Namespace, can_run},
    net::{Family, Trio},
    relay::Relay,
    wait,
};

use crate::exchange::wait_until_resolved;

/// Exit codes, as `lumenlink-relay --help` lists them.
mod exit {
    pub const FAILURE: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const CONFIGURATION: i32 = 3;
    pub const PERMISSION: i32 = 4;
    pub const INTERFACE: i32 = 5;
    pub const NOT_NATIVE: i32 = 6;
    pub const PINS: i32 = 7;
    pub const IN_USE: i32 = 8;
    pub const STORE: i32 = 9;
    pub const FULL: i32 = 10;
    pub const REFUSED: i32 = 11;
    pub const NO_RELAY: i32 = 12;
}

/// A namespace with a link that can run XDP, without a network around it.
fn place() -> Namespace {
    let namespace = Namespace::new("relay");
    namespace.ip("link add eth0 type veth peer name peer0");
    namespace.ip("link set eth0 up");
    namespace.ip("link set peer0 up");
    namespace.ip("address add 192.0.2.1/24 dev eth0");
    namespace.ip("address add 2001:db8::1/64 dev eth0 nodad");
    namespace
}

#[track_caller]
fn assert_nothing_attached(namespace: &Namespace) {
    let links = namespace.ip("link show");
    assert!(!links.contains("xdp"), "{links}");
}

#[test]
fn a_relay_toml_with_five_faults_has_all_five_listed_with_their_places() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    let text = "interface = \"eth0\"\n\
                listen = [\"192.0.2.1\"]\n\
                relay_id = -1\n\
                max_user = 7\n\
                unmatched = \"maybe\"\n\
                [limits]\n\
                burst = \"many\"\n";
    fs::write(relay.config_path(), text).unwrap();
    let file = relay.config_path().display().to_string();
    let places = [2, 3, 4, 5, 7].map(|line| format!("{file}:{line}:"));
    let mut words: Vec<_> = places.iter().map(String::as_str).collect();
    words.extend(["5 faults", "max_users"]);
    relay.cli(&["config", "validate"]).failed(exit::CONFIGURATION, &words);
    relay.run_to_end(&[]).failed(exit::CONFIGURATION, &words);
    assert_nothing_attached(&place);
}

#[test]
fn too_few_egress_ports_for_max_users_is_a_fault_that_says_how_many_there_is_room_for() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    relay.set("egress_ports", "10000-10099");
    relay.set("max_users", 201);
    relay.run_to_end(&[]).failed(
        exit::CONFIGURATION,
        &["max_users is 201", "room for 200 (2 × 100 ports)"],
    );
    relay.set("max_users", 100);
    relay.cli(&["config", "validate"]).succeeded();
}

#[test]
fn a_configuration_file_that_is_not_there_is_told() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    fs::remove_file(relay.config_path()).unwrap();
    let path = relay.config_path().display().to_string();
    relay
        .run_to_end(&[])
        .failed(exit::CONFIGURATION, &[&path, "No such file"]);
}

#[test]
fn an_interface_that_is_not_there_is_told_with_those_that_are() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    relay.set("interface", "nowhere0");
    relay.run_to_end(&[]).failed(exit::INTERFACE, &["nowhere0", "eth0"]);
    relay.unset("listen");
    relay.run_to_end(&[]).failed(exit::INTERFACE, &["nowhere0"]);
    assert_nothing_attached(&place);
}

#[test]
fn a_missing_capability_is_named() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    let without = [
        "setpriv",
        "--bounding-set",
        "-bpf,-perfmon,-sys_admin",
        "--inh-caps",
        "-bpf,-perfmon,-sys_admin",
    ];
    relay.run_to_end(&without).failed(exit::PERMISSION, &["CAP_BPF"]);
    assert_nothing_attached(&place);
}

#[test]
fn native_mode_where_the_driver_has_none_is_told_and_auto_falls_back_with_a_warning() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    place.ip("link add bridge0 type bridge");
    place.ip("link set bridge0 up");
    let mut relay = Relay::new(&place);
    relay.set("interface", "bridge0");
    relay
        .run_to_end(&[])
        .failed(exit::NOT_NATIVE, &["bridge0", "native", "xdp.mode = \"generic\""]);
    assert_nothing_attached(&place);

    relay.set("xdp.mode", "auto");
    relay.start();
    assert!(relay.log().contains("generic"), "{}", relay.log());
    assert!(place.ip("link show bridge0").contains("xdpgeneric"));
    assert!(relay.stop().success());
    assert_nothing_attached(&place);
}

#[test]
fn another_program_on_the_interface_is_left_alone_and_told() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let other = place.run(|| PassProgram::attach("eth0")).unwrap();
    let mut relay = Relay::new(&place);
    relay
        .run_to_end(&[])
        .failed(exit::INTERFACE, &["another XDP program", "eth0"]);
    assert!(place.ip("link show eth0").contains("xdp"), "the other program is gone");
    drop(other);
    relay.start();
}

#[test]
fn a_busy_http_port_is_told() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let other = place.run(|| TcpListener::bind("127.0.0.1:9090")).unwrap();
    let mut relay = Relay::new(&place);
    relay
        .run_to_end(&[])
        .failed(exit::IN_USE, &["127.0.0.1:9090", "another process has that port"]);
    assert_nothing_attached(&place);
    drop(other);
    relay.start();
}

#[test]
fn an_admin_socket_of_a_running_relay_is_not_taken_over_and_one_of_a_dead_relay_is() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut first = Relay::started(&place);
    let elsewhere = self::place();
    let mut second = Relay::new(&elsewhere);
    let socket = first.path("relay.sock").display().to_string();
    second.set("admin", socket.as_str());
    second.run_to_end(&[]).failed(exit::IN_USE, &[&socket]);
    assert_nothing_attached(&elsewhere);
    first.cli(&["status"]).succeeded();

    first.crash();
    second.start();
    second.cli(&["status"]).succeeded();
}

#[test]
fn a_store_that_another_relay_has_open_is_told() {
    if !can_run("starting a relay") {
        return;
    }
    let (place, elsewhere) = (place(), place());
    let first = Relay::started(&place);
    let mut second = Relay::new(&elsewhere);
    let state = first.path("state").display().to_string();
    second.set("state_dir", state.as_str());
    second
        .run_to_end(&[])
        .failed(exit::STORE, &[&state, "in use by another process"]);
    assert_nothing_attached(&elsewhere);
}

#[test]
fn a_corrupt_store_is_told_and_left_as_it_is() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::started(&place);
    relay.add_user(1, "192.0.2.3:7".parse().unwrap(), &[]);
    assert!(relay.stop().success());
    let path = relay.path("state/users.redb");
    let good = fs::read(&path).unwrap();
    let mut damages = vec![
        b"this is not a database".repeat(100),
        good[..good.len() / 3].to_vec(),
        vec![0; good.len()],
    ];
    let mut scratched = good.clone();
    scratched[4096..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    damages.push(scratched);
    for damage in damages {
        fs::write(&path, &damage).unwrap();
        relay
            .run_to_end(&[])
            .failed(exit::STORE, &[path.to_str().unwrap(), "corrupt"]);
        assert_nothing_attached(&place);
        assert!(fs::read(&path).unwrap() == damage, "the damaged store was changed");
    }
    fs::write(&path, &good).unwrap();
    relay.start();
    relay.cli(&["user", "show", "1"]).succeeded();
}

#[test]
fn a_store_of_a_newer_version_is_told_and_left_as_it_is() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::started(&place);
    relay.stop();
    let path = relay.path("state/users.redb");
    {
        const FORMAT: TableDefinition<'_, &str, u64> = TableDefinition::new("format");
        let database = Database::open(&path).unwrap();
        let transaction = database.begin_write().unwrap();
        let before = transaction
            .open_table(FORMAT)
            .unwrap()
            .insert("version", 1000)
            .unwrap()
            .map(|old| old.value());
        assert_eq!(before, Some(1), "where the store keeps its version");
        transaction.commit().unwrap();
    }
    relay
        .run_to_end(&[])
        .failed(exit::STORE, &[path.to_str().unwrap(), "newer", "1000"]);
    assert_nothing_attached(&place);
}

#[test]
fn pins_of_another_configuration_are_told_and_detach_removes_them() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    relay.persist();
    relay.start();
    relay.stop();
    relay.set("max_users", 500);
    let pins = relay.path("bpf/pins").display().to_string();
    relay
        .run_to_end(&[])
        .failed(exit::PINS, &[&pins, "lumenlink-relay detach"]);
    assert!(
        place.ip("link show eth0").contains("xdp"),
        "what relayed no longer does"
    );
    relay.cli(&["detach"]).succeeded();
    assert_nothing_attached(&place);
    relay.start();
}

#[test]
fn pins_of_somebody_else_are_told_and_left_as_they_are() {
    if !can_run("starting a relay") {
        return;
    }
    let (place, elsewhere) = (place(), place());
    let mut owner = Relay::new(&place);
    owner.persist();
    owner.start();
    let mut relay = Relay::new(&elsewhere);
    relay.persist();
    let pins = owner.path("bpf/pins").display().to_string();
    relay.set("xdp.pin_dir", pins.as_str());
    relay
        .run_to_end(&[])
        .failed(exit::IN_USE, &[&pins, "another xdp.pin_dir"]);
    owner.cli(&["status"]).succeeded();
    owner.crash();
    relay
        .run_to_end(&[])
        .failed(exit::PINS, &[&pins, "another xdp.pin_dir"]);
    assert_nothing_attached(&elsewhere);
    assert!(place.ip("link show eth0").contains("xdp"));

    let stranger = relay.path("bpf/stranger");
    fs::create_dir_all(stranger.join("program")).unwrap();
    relay.set_path("xdp.pin_dir", "bpf/stranger");
    relay.run_to_end(&[]).failed(exit::PINS, &["bpf/stranger"]);
    assert!(stranger.join("program").exists());
    // Nor does detach remove what is not the relay's.
    relay.cli(&["detach"]).failed(exit::PINS, &["bpf/stranger"]);
    assert!(stranger.join("program").exists());
}

#[test]
fn pins_that_a_running_relay_uses_are_not_removed_under_it() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    relay.persist();
    relay.start();
    let pins = relay.path("bpf/pins").display().to_string();
    relay.cli(&["detach"]).failed(exit::IN_USE, &[&pins, "end it first"]);
    relay.cli(&["reload"]).succeeded();
    assert_eq!(relay.get("/ready").map(|(status, _)| status), Some(200));
    // Dead, it uses nothing any more.
    relay.crash();
    relay.cli(&["detach"]).succeeded();
    assert_nothing_attached(&place);
}

#[test]
fn a_pin_directory_that_is_on_no_bpf_file_system_is_told() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    relay.set("xdp.persist", true);
    relay.set_path("xdp.pin_dir", "plain/pins");
    relay
        .run_to_end(&[])
        .failed(exit::PINS, &["plain/pins", "mount -t bpf"]);
    assert_nothing_attached(&place);
}

#[test]
fn a_full_user_table_is_told_and_refuses_one_more() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    relay.set("max_users", 2);
    relay.start();
    let to = "192.0.2.3:7".parse().unwrap();
    let first = relay.add_user(1, to, &[]);
    relay.add_user(2, to, &[]);
    let refused = relay.cli(&["user", "add", "3", "--to", "192.0.2.3:7"]);
    refused.failed(exit::FULL, &["full", "2 slots", "max_users"]);
    assert_eq!(user_ids(&relay), [1, 2]);
    relay.cli(&["user", "remove", "1"]).succeeded();
    let third = relay.add_user(3, to, &[]);
    assert_eq!(third.slot, first.slot);
    assert_ne!((third.salt, third.key), (first.salt, first.key));
}

#[test]
fn an_import_with_a_bad_line_in_the_middle_imports_nothing_and_says_which_line() {
    if !can_run("starting a relay") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("max_users", 100);
    relay.start();
    relay.add_user(1, "192.0.2.3:7".parse().unwrap(), &[]);
    let good = |id: u64| format!("{{\"id\": {id}, \"to\": \"192.0.2.3:7\", \"rate\": 100, \"burst\": 10}}");
    let file = relay.path("users.ndjson");
    let name = file.to_str().unwrap();
    let bad_lines = [
        "{\"id\": 12, \"to\": \"192.0.2.3\"}",
        "{\"id\": 12, \"to\": \"192.0.2.3:7\", \"rate\": 0}",
        "{\"id\": 12, \"to\": \"192.0.2.3:7\", \"colour\": \"blue\"}",
        "{\"id\": 12",
        "not JSON",
        "{\"id\": 10, \"to\": \"192.0.2.3:7\"}",
        "{\"id\": 1, \"to\": \"192.0.2.3:7\"}",
        "{\"id\": -1, \"to\": \"192.0.2.3:7\"}",
    ];
    for bad in bad_lines {
        let lines = [&good(10), &good(11), bad, &good(13), &good(14)];
        fs::write(&file, lines.join("\n")).unwrap();
        relay.cli(&["user", "import", name]).failed(exit::REFUSED, &["line 3"]);
        assert_eq!(user_ids(&relay), [1], "after the line `{bad}`");
    }
    // More than there is room for: none at all.
    let many: Vec<_> = (10..200).map(good).collect();
    fs::write(&file, many.join("\n")).unwrap();
    relay.cli(&["user", "import", name]).failed(exit::FULL, &["full"]);
    assert_eq!(user_ids(&relay), [1]);

    fs::write(&file, [good(10), good(11)].join("\n")).unwrap();
    relay.cli(&["user", "import", name]).succeeded();
    assert_eq!(user_ids(&relay), [1, 10, 11]);
    relay
        .cli(&["user", "import", "/nonexistent/users.ndjson"])
        .failed(exit::FAILURE, &["/nonexistent/users.ndjson"]);
}

#[test]
fn a_request_that_makes_no_sense_is_refused_and_changes_nothing() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::new(&place);
    relay.set("listen", vec!["192.0.2.1:4500"]);
    relay.start();
    relay.add_user(1, "192.0.2.3:7".parse().unwrap(), &[]);
    let add = |id: &'static str, to: &'static str| vec!["user", "add", id, "--to", to];
    let with = |mut arguments: Vec<&'static str>, more: &[&'static str]| {
        arguments.extend(more);
        arguments
    };
    let usage = [
        add("-1", "192.0.2.3:7"),
        add("one", "192.0.2.3:7"),
        add("2", "192.0.2.3"),
        add("2", "example.org:7"),
        with(add("2", "192.0.2.3:7"), &["--rate", "fast"]),
        with(add("2", "192.0.2.3:7"), &["--colour", "blue"]),
        with(add("2", "192.0.2.3:7"), &["--down-rate", "fast"]),
        with(add("2", "192.0.2.3:7"), &["--down-burst", "5"]),
        vec!["user", "frobnicate"],
        vec!["block", "add", "everything"],
    ];
    for arguments in usage {
        let arguments: Vec<&str> = arguments;
        relay.cli(&arguments).failed(exit::USAGE, &[]);
    }
    let invalid = [
        with(add("2", "192.0.2.3:7"), &["--rate", "0"]),
        with(add("2", "192.0.2.3:7"), &["--burst", "0"]),
        with(add("2", "192.0.2.3:7"), &["--down-rate", "0"]),
        with(add("2", "192.0.2.3:7"), &["--down-rate", "5", "--down-burst", "0"]),
        with(add("2", "192.0.2.3:7"), &["--expires-in", "soon"]),
        with(add("2", "192.0.2.3:7"), &["--expires-in", "-1h"]),
        add("2", "192.0.2.3:0"),
        add("2", "224.0.0.1:7"),
        add("2", "127.0.0.1:7"),
        add("2", "[2001:db8::3]:7"),
        vec!["user", "remove", "2"],
        vec!["user", "show", "2"],
        vec!["block", "remove", "198.51.100.0/24"],
    ];
    for arguments in invalid {
        let ran = relay.cli(&arguments);
        assert!(ran.code != 0 && !ran.stderr.trim().is_empty(), "{ran:#?}");
        assert!(!ran.stderr.contains("panicked"), "{ran:#?}");
    }
    assert_eq!(user_ids(&relay), [1]);
    assert_eq!(relay.cli(&["block", "list", "--json"]).json(), serde_json::json!([]));
}

#[test]
fn a_command_without_a_running_relay_says_where_it_looked() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let relay = Relay::new(&place);
    let socket = relay.path("relay.sock").display().to_string();
    relay.cli(&["user", "list"]).failed(exit::NO_RELAY, &[&socket]);
}

#[test]
fn noise_on_the_admin_socket_and_on_http_harms_nobody() {
    if !can_run("starting a relay") {
        return;
    }
    let place = place();
    let mut relay = Relay::started(&place);
    let noises: [&[u8]; 5] = [
        b"",
        b"\0\xff\xfe",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{{{{{",
        b"POST /users HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    ];
    for noise in noises {
        let mut admin = UnixStream::connect(relay.path("relay.sock")).unwrap();
        let mut http = place.run(|| std::net::TcpStream::connect("127.0.0.1:9090")).unwrap();
        // The relay may hang up before it has read all of it.
        let _ = admin
            .write_all(noise)
            .and_then(|()| admin.shutdown(std::net::Shutdown::Write));
        let _ = http
            .write_all(noise)
            .and_then(|()| http.shutdown(std::net::Shutdown::Write));
        let mut answer = Vec::new();
        admin.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        http.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let _ = (admin.read_to_end(&mut answer), http.read_to_end(&mut answer));
    }
    assert!(relay.is_running());
    assert_eq!(user_ids(&relay), [0; 0]);
    assert_eq!(relay.get("/health").unwrap().0, 200);
    assert_eq!(relay.get("/nowhere").unwrap().0, 404);
}

#[test]
fn a_reload_of_a_faulty_configuration_keeps_what_runs_and_a_good_one_is_put_in_force() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::started(&net.relay);
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);

    relay.set("unmatched", "maybe");
    relay.signal(Signal::SIGHUP);
    wait::until("the log of the reload", Duration::from_secs(5), || {
        relay.log().contains("maybe").then_some(())
    });
    relay
        .cli(&["reload"])
        .failed(exit::CONFIGURATION, &["unmatched", "maybe"]);
    assert!(relay.is_running());
    client.exchange(b"as before");

    relay.set("unmatched", "drop");
    relay.cli(&["reload"]).succeeded();
    client.exchange(b"still as before");
    let egress = server.received()[0].from;
    let stranger = net.server.udp(Family::V4, 0);
    stranger.connect(egress).unwrap();
    let before = relay.counters();
    stranger.send(b"let me in").unwrap();
    relay.expect_moved(&before, &[("downlink", "unsolicited", 1)]);
    assert!(
        !is_refused(&stranger, Duration::from_millis(200)),
        "the host answered: it was not dropped"
    );
}

fn user_ids(relay: &Relay<'_>) -> Vec<u64> {
    let users = relay.cli(&["user", "list", "--json"]).json();
    let users = users.as_array().unwrap_or_else(|| panic!("no list: {users}"));
    users.iter().map(|user| user["id"].as_u64().unwrap()).collect()
}
