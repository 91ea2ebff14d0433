// XDP programs that have nothing to do with the relay: examples of what else the lab runs.
//
// Built by `make` in this folder; the objects are kept beside their sources, so that nobody needs a compiler to use them.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define ICMP_ECHOREPLY 0
#define ICMP_ECHO 8

// linux/icmp.h wants the C library's headers for 32 bits.
struct icmphdr {
    __u8 type;
    __u8 code;
    __sum16 checksum;
    __be16 id;
    __be16 sequence;
};

struct vlan_header {
    __be16 tag;
    __be16 protocol;
};

// How often each XDP action was returned.
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, XDP_REDIRECT + 1);
    __type(key, __u32);
    __type(value, __u64);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} actions SEC(".maps");

static __always_inline int counted(__u32 action)
{
    __u64 *count = bpf_map_lookup_elem(&actions, &action);

    if (count)
        ++*count;
    return action;
}

static __always_inline void swap_macs(struct ethhdr *eth)
{
    __u8 mac[ETH_ALEN];

    __builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
    __builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
    __builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}

// Answers to ping: an ICMP echo request goes back as the reply. Everything else passes.
SEC("xdp")
int pong(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = data;
    struct iphdr *ip = (void *)(eth + 1);
    struct icmphdr *icmp = (void *)(ip + 1);
    __be32 address;
    __u32 sum;

    if ((void *)(icmp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
        return counted(XDP_PASS);
    if (ip->ihl != 5 || ip->protocol != IPPROTO_ICMP || ip->frag_off & bpf_htons(0x3fff))
        return counted(XDP_PASS);
    if (icmp->type != ICMP_ECHO || icmp->code != 0)
        return counted(XDP_PASS);
    swap_macs(eth);
    address = ip->saddr;
    ip->saddr = ip->daddr;
    ip->daddr = address;
    icmp->type = ICMP_ECHOREPLY;
    // RFC 1624: the type was 8 in the high byte of its word, and is 0.
    sum = (__u16)~icmp->checksum + (__u16)~bpf_htons(ICMP_ECHO << 8);
    sum = (sum & 0xffff) + (sum >> 16);
    icmp->checksum = ~((sum & 0xffff) + (sum >> 16));
    return counted(XDP_TX);
}

// Takes the VLAN tag out of a frame, and passes it. Drops frames that have none.
SEC("xdp")
int untag(struct xdp_md *ctx)
{
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct ethhdr *eth = data, copy;
    struct vlan_header *vlan = (void *)(eth + 1);

    if ((void *)(vlan + 1) > end || eth->h_proto != bpf_htons(ETH_P_8021Q))
        return counted(XDP_DROP);
    copy = *eth;
    copy.h_proto = vlan->protocol;
    if (bpf_xdp_adjust_head(ctx, sizeof(*vlan)))
        return counted(XDP_ABORTED);
    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    eth = data;
    if ((void *)(eth + 1) > end)
        return counted(XDP_ABORTED);
    *eth = copy;
    return counted(XDP_PASS);
}

// Puts a VLAN tag into every frame, and sends it back.
SEC("xdp")
int tag(struct xdp_md *ctx)
{
    void *data, *end;
    struct ethhdr *eth, copy;
    struct vlan_header *vlan;

    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    eth = data;
    if ((void *)(eth + 1) > end)
        return counted(XDP_ABORTED);
    copy = *eth;
    if (bpf_xdp_adjust_head(ctx, -(int)sizeof(*vlan)))
        return counted(XDP_ABORTED);
    data = (void *)(long)ctx->data;
    end = (void *)(long)ctx->data_end;
    eth = data;
    vlan = (void *)(eth + 1);
    if ((void *)(vlan + 1) > end)
        return counted(XDP_ABORTED);
    *eth = copy;
    vlan->protocol = eth->h_proto;
    vlan->tag = bpf_htons(7 << 13 | 100);
    eth->h_proto = bpf_htons(ETH_P_8021Q);
    return counted(XDP_TX);
}

// Writes something into the frame's metadata, as programs do for those after them, and passes it.
SEC("xdp")
int annotate(struct xdp_md *ctx)
{
    void *data;
    __u32 *note;

    if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*note)))
        return counted(XDP_ABORTED);
    data = (void *)(long)ctx->data;
    note = (void *)(long)ctx->data_meta;
    if ((void *)(note + 1) > data)
        return counted(XDP_ABORTED);
    *note = 0x6e6f7465;
    return counted(XDP_PASS);
}

SEC("xdp")
int give_up(struct xdp_md *ctx)
{
    return counted(XDP_ABORTED);
}

// Not for XDP: for the traffic control of an interface.
SEC("tc")
int of_another_kind(struct __sk_buff *skb)
{
    return 0;
}

char _license[] SEC("license") = "Dual MIT/GPL";
