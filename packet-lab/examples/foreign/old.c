// Sections named as they were before libbpf 1.0: one for each program, with its name after `xdp_`.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp_pass")
int passes(struct xdp_md *ctx)
{
    return XDP_PASS;
}

SEC("xdp_drop")
int drops(struct xdp_md *ctx)
{
    return XDP_DROP;
}

char _license[] SEC("license") = "Dual MIT/GPL";
