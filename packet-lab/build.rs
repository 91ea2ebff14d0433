//! Builds the lab's XDP programs and embeds them.

fn main() -> anyhow::Result<()> {
    bpf_build::embed(bpf_build::Object {
        package: "lab-ebpf",
        dir: "ebpf",
        bin: "lab-xdp",
        features: &["program"],
        sources: &["ebpf"],
    })
}
