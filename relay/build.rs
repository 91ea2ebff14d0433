//! Builds the XDP program and embeds it.

fn main() -> anyhow::Result<()> {
    bpf_build::embed(bpf_build::Object {
        package: "relay-ebpf",
        dir: "../relay-ebpf",
        bin: "relay-xdp",
        features: &["program"],
        sources: &["../relay-ebpf"],
    })
}
