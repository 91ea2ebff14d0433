//! Attaches an XDP program that passes every packet to the given interfaces, in native mode, until it is ended.
//!
//! A veth link accepts frames from the XDP program at one end only if the other end has a program too; this is the
//! least one.

use std::process::ExitCode;

use packet_lab::pass::PassProgram;

fn main() -> ExitCode {
    let interfaces: Vec<String> = std::env::args().skip(1).collect();
    if interfaces.is_empty() || interfaces.iter().any(|name| name.starts_with('-')) {
        eprintln!("usage: xdp-pass INTERFACE…");
        return ExitCode::from(2);
    }
    let mut attached = Vec::new();
    for interface in &interfaces {
        match PassProgram::attach(interface) {
            Ok(program) => attached.push(program),
            Err(error) => {
                eprintln!("xdp-pass: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("attached to {}", interfaces.join(", "));
    loop {
        std::thread::park();
    }
}
