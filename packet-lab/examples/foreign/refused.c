// What the verifier refuses: it reads the 14th byte of a frame that may have fewer.
#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp")
int reads_too_far(struct xdp_md *ctx)
{
    unsigned char *data = (unsigned char *)(long)ctx->data;

    return data[13] == 0 ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
