//! `doctor`: what this environment can run.

use std::{fs, net::SocketAddr};

use aya::util::KernelVersion;
use nix::sys::utsname::uname;
use packet_lab::{
    Backend as _, World,
    backend::{
        host::HostBackend,
        kernel::{KernelBackend, missing_capabilities},
        oracle::OracleBackend,
        userspace::{self, UserspaceBackend},
        veth::{self, VethBackend},
    },
    bench::{self, Options},
    craft::UdpFrame,
};
use serde::Serialize;

use super::{Ended, Exit, json, line};

/// Since when the kernel has what the programs use: frames in several buffers.
const OLDEST_KERNEL: KernelVersion = KernelVersion::new(5, 18, 0);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Loads the programs and runs each once; nothing is attached to any interface \
                  but of a namespace of its own. Ends with 0 if all \
                  backends run and times mean something, else with 3.\n\n\
                  Examples:\n  \
                  packet-lab doctor\n  \
                  packet-lab doctor --json | jq '.[] | select(.ok | not)'"
)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Finding {
    what: &'static str,
    ok: bool,
    found: String,
    /// What to do about it.
    fix: Option<&'static str>,
}

pub fn execute(args: &Args) -> Ended {
    let findings = [
        kernel(),
        cpus(),
        jit(),
        statistics(),
        capabilities(),
        host_backend(),
        oracle_backend(),
        kernel_backend(),
        veth_backend(),
        userspace_backend(),
        benches(),
    ];
    if args.json {
        json(&findings);
    } else {
        for finding in &findings {
            let word = if finding.ok { "ok" } else { "missing" };
            line(&format!("{word:<8} {:<17} {}", finding.what, finding.found));
            if let Some(fix) = finding.fix {
                line(&format!("{:27}→ {fix}", ""));
            }
        }
    }
    let all = findings.iter().all(|finding| finding.ok);
    Ok(if all { Exit::Pass } else { Exit::Environment })
}

fn ok(what: &'static str, found: String) -> Finding {
    Finding {
        what,
        ok: true,
        found,
        fix: None,
    }
}

fn missing(what: &'static str, found: String, fix: &'static str) -> Finding {
    Finding {
        what,
        ok: false,
        found,
        fix: Some(fix),
    }
}

fn kernel() -> Finding {
    let what = "kernel";
    let release = match uname() {
        Ok(name) => format!("Linux {}", name.release().to_string_lossy()),
        Err(error) => return missing(what, error.to_string(), "run it on Linux"),
    };
    match KernelVersion::current() {
        Ok(version) if version < OLDEST_KERNEL => missing(
            what,
            format!("{release}: without atomic compare-and-swap in BPF programs"),
            "run it on Linux 5.18 or later",
        ),
        _ => ok(what, release),
    }
}

fn cpus() -> Finding {
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    let text = format!("{count}; with more than one, a user's packets are tried on several at once");
    ok("CPUs", text)
}

fn jit() -> Finding {
    let what = "BPF JIT";
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
        .as_deref()
        .map(str::trim)
    {
        Ok("0") => missing(
            what,
            "off: timings are of the interpreter".to_owned(),
            "sysctl net.core.bpf_jit_enable=1",
        ),
        Ok(_) => ok(what, "on".to_owned()),
        Err(error) => ok(what, format!("not shown here ({error})")),
    }
}

fn statistics() -> Finding {
    let what = "BPF statistics";
    match fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled")
        .as_deref()
        .map(str::trim)
    {
        Ok("1") => missing(
            what,
            "on: each run of a program is timed by the kernel, which more than triples what it costs".to_owned(),
            "sysctl kernel.bpf_stats_enabled=0",
        ),
        _ => ok(what, "off, as for measuring they must be".to_owned()),
    }
}

fn capabilities() -> Finding {
    let lacking = missing_capabilities();
    if lacking.is_empty() {
        return ok("capabilities", "CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON".to_owned());
    }
    missing("capabilities", format!("without {}", lacking.join(", ")), "run as root")
}

fn host_backend() -> Finding {
    let frame = [0; 64];
    let processed = HostBackend::new(&World::new()).and_then(|mut host| host.process(1, &frame));
    match processed {
        Ok(_) => ok("host backend", "runs".to_owned()),
        Err(error) => missing("host backend", error.to_string(), "report this: it needs nothing"),
    }
}

fn oracle_backend() -> Finding {
    let frame = [0; 64];
    let processed = OracleBackend::new(&World::new()).and_then(|mut oracle| oracle.process(1, &frame));
    match processed {
        Ok(_) => ok("oracle backend", "runs".to_owned()),
        Err(error) => missing("oracle backend", error.to_string(), "report this: it needs nothing"),
    }
}

fn kernel_backend() -> Finding {
    let frame = [0; 64];
    let processed = KernelBackend::new(&World::new()).and_then(|mut kernel| kernel.process(1, &frame));
    match processed {
        Ok(_) => ok("kernel backend", "runs (BPF_PROG_TEST_RUN)".to_owned()),
        Err(error) => missing(
            "kernel backend",
            error.to_string(),
            "run as root, on Linux 5.18 or later with CONFIG_BPF_SYSCALL",
        ),
    }
}

fn veth_backend() -> Finding {
    let what = "veth backend";
    let missing_here = veth::missing_capabilities();
    if !missing_here.is_empty() {
        return missing(what, format!("without {}", missing_here.join(", ")), "run as root");
    }
    let frame = [0; 64];
    match VethBackend::new(&World::new()).and_then(|mut veth| veth.process(1, &frame)) {
        Ok(_) => ok(
            what,
            "runs (native XDP on a veth pair, in a network namespace of its own)".to_owned(),
        ),
        Err(error) => missing(
            what,
            error.to_string(),
            "run as root, not in a container that withholds namespaces, on a kernel with CONFIG_VETH and CONFIG_PACKET",
        ),
    }
}

fn userspace_backend() -> Finding {
    let what = "userspace backend";
    let missing_here = userspace::missing_capabilities();
    if !missing_here.is_empty() {
        return missing(
            what,
            format!("without {}", missing_here.join(", ")),
            "run as root, or by `unshare --user --net --map-root-user packet-lab …`",
        );
    }
    let to = SocketAddr::from(([192, 0, 2, 1], 4500));
    let noise = UdpFrame::new(SocketAddr::from(([203, 0, 113, 9], 40_000)), to, [0; 64]).build();
    match UserspaceBackend::new(&World::new()).and_then(|mut userspace| userspace.process(1, &noise)) {
        Ok(_) => ok(
            what,
            "runs (the relay's sockets, in a network namespace of its own)".to_owned(),
        ),
        Err(error) => missing(
            what,
            error.to_string(),
            "run as root, not in a container that withholds namespaces, on a kernel with CONFIG_VETH and CONFIG_PACKET",
        ),
    }
}

fn benches() -> Finding {
    let least = Options {
        users: 1,
        payload_bytes: 64,
        ipv6: false,
        header_protection: true,
        packets: 1,
        rounds: 1,
    };
    match bench::run(least, &mut |_, _| {}) {
        Ok(_) => ok("bench", "runs".to_owned()),
        Err(error) => missing("bench", error.to_string(), "first mend what is missing above"),
    }
}
