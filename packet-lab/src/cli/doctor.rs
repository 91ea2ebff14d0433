//! `doctor`: what this environment can run.

use std::fs;

use nix::sys::utsname::uname;
use packet_lab::{
    Backend as _, World,
    backend::{host::HostBackend, kernel::KernelBackend, kernel::missing_capabilities},
};
use serde::Serialize;

use super::{Ended, Exit, json, line};

#[derive(Debug, clap::Args)]
#[command(after_help = "Ends with 0 if all backends run, else with 3.")]
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
        capabilities(),
        host_backend(),
        kernel_backend(),
    ];
    if args.json {
        json(&findings);
    } else {
        for finding in &findings {
            let word = if finding.ok { "ok" } else { "missing" };
            line(&format!("{word:<8} {:<15} {}", finding.what, finding.found));
            if let Some(fix) = finding.fix {
                line(&format!("{:25}→ {fix}", ""));
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
    match uname() {
        Ok(name) => ok("kernel", format!("Linux {}", name.release().to_string_lossy())),
        Err(error) => missing("kernel", error.to_string(), "run it on Linux"),
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

fn kernel_backend() -> Finding {
    let frame = [0; 64];
    let processed = KernelBackend::new(&World::new()).and_then(|mut kernel| kernel.process(1, &frame));
    match processed {
        Ok(_) => ok("kernel backend", "runs (BPF_PROG_TEST_RUN)".to_owned()),
        Err(error) => missing(
            "kernel backend",
            error.to_string(),
            "run as root, on Linux 5.12 or later with CONFIG_BPF_SYSCALL",
        ),
    }
}
