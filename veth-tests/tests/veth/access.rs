//! Who may do what, who may read what, and where the relay may write.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use veth_tests::{
    client::Client,
    echo::EchoServer,
    namespace::{can_run, succeed},
    net::{Family, Trio},
    relay::Relay,
};

use crate::exchange::wait_until_resolved;

/// A folder on a file system of its own with room for a few bytes, unmounted when dropped.
struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a Path, kibibytes: u32) -> Self {
        fs::create_dir(path).unwrap();
        let size = format!("size={kibibytes}k");
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(path)
            .output();
        succeed("mount -t tmpfs", output);
        Self(path)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        // The relay may still be ending: then at once for everybody else, and for it when it ends.
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

#[test]
fn keys_are_in_no_log_and_files_and_sockets_are_for_their_owner_alone() {
    if !can_run("starting a relay") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set_environment("RUST_LOG", "trace");
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let grant = relay.add_user(1, server.address, &[]);
    let mut client = Client::new(&net.client, &grant);
    wait_until_resolved(&mut client);
    relay.cli(&["user", "list"]).succeeded();
    relay.cli(&["user", "show", "1", "--grant"]).succeeded();
    relay.cli(&["reload"]).succeeded();
    let log = relay.log();
    assert!(log.contains("TRACE"), "hardly anything is logged: {log}");
    for secret in [hex::encode(grant.key), hex::encode(grant.header_key.unwrap())] {
        assert!(!log.contains(&secret), "the key {secret} is in the log");
    }
    assert!(!log.contains("lumen1:"), "a grant is in the log");
    for (file, mode) in [
        ("relay.sock", 0o600),
        ("state", 0o700),
        ("state/users.redb", 0o600),
        ("state/header.key", 0o600),
    ] {
        let found = fs::metadata(relay.path(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found & !mode, 0, "{file} has mode {found:o}");
    }
}

#[test]
fn somebody_who_may_not_use_the_admin_socket_is_told() {
    if !can_run("starting a relay") {
        return;
    }
    let net = Trio::new();
    let relay = Relay::started(&net.relay);
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"];
    // A copy, where anybody may run it.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("lumenlink-relay");
    fs::copy(veth_tests::binary::relay(), &binary).unwrap();
    let socket = relay.path("relay.sock");
    let words: Vec<_> = nobody
        .into_iter()
        .chain([
            binary.to_str().unwrap(),
            "user",
            "list",
            "--admin",
            socket.to_str().unwrap(),
        ])
        .collect();
    let output = net.relay.try_command(&words);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{complaint}");
    assert!(complaint.contains(socket.to_str().unwrap()), "{complaint}");
}

#[test]
fn a_state_folder_that_cannot_be_written_is_told() {
    if !can_run("starting a relay") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("state_dir", "/proc/lumenlink");
    relay.run_to_end(&[]).failed(9, &["/proc/lumenlink", "state_dir"]);
    let file = relay.path("a-file");
    fs::write(&file, "").unwrap();
    relay.set_path("state_dir", "a-file");
    relay.run_to_end(&[]).failed(9, &["a-file"]);
}

#[test]
fn a_full_disk_refuses_new_users_and_harms_no_old_one() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let mut relay = Relay::new(&net.relay);
    relay.set("max_users", 50_000);
    relay.set_path("state_dir", "disk/state");
    let path = relay.path("disk");
    let disk = SmallDisk::mount(&path, 3072);
    relay.start();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    let many: String = (10..40_000)
        .map(|id| format!("{{\"id\": {id}, \"to\": \"{}\"}}\n", server.address))
        .collect();
    let file = relay.path("users.ndjson");
    fs::write(&file, many).unwrap();
    let import = ["user", "import", file.to_str().unwrap()];
    relay.cli(&import).failed(9, &["users.redb"]);
    assert_eq!(relay.cli(&["status", "--json"]).json()["users"], 1);
    client.exchange(b"as before");

    // There is room for one more; what was refused is not there, after a restart either.
    relay.add_user(2, server.address, &[]);
    relay.stop();
    relay.start();
    assert_eq!(relay.cli(&["status", "--json"]).json()["users"], 2);
    wait_until_resolved(&mut client);
    relay.stop();
    drop(disk);
}

#[test]
fn three_capabilities_are_enough_and_check_knows_it() {
    if !can_run("relaying") {
        return;
    }
    let net = Trio::new();
    let three = ["setpriv", "--bounding-set", "-all,+bpf,+net_admin,+perfmon"];
    let mut relay = Relay::new(&net.relay);
    relay.persist();
    relay.cli_with(&three, &["check"]).succeeded();
    relay.spawn(&three);
    relay.wait_until_ready();
    let server = EchoServer::new(&net.server, Family::V4, 0);
    let mut client = Client::new(&net.client, &relay.add_user(1, server.address, &[]));
    wait_until_resolved(&mut client);
    relay.cli(&["reload"]).succeeded();
    relay.crash();
    relay.spawn(&three);
    relay.wait_until_ready();
    client.exchange(b"as before");

    relay.stop();
    for (missing, name) in [
        ("bpf", "CAP_BPF"),
        ("net_admin", "CAP_NET_ADMIN"),
        ("perfmon", "CAP_PERFMON"),
    ] {
        let without = format!("-all,+bpf,+net_admin,+perfmon,-{missing}");
        let without = ["setpriv", "--bounding-set", &without];
        let ran = relay.cli_with(&without, &["check"]);
        assert_eq!(ran.code, 4, "{ran:#?}");
        assert!(ran.stdout.contains(name), "{ran:#?}");
        relay.run_to_end(&without).failed(4, &[name]);
        // The program that went on is still there.
        client.exchange(b"without a process");
    }
}
