#!/bin/sh
# Makes the captures in this folder with tcpdump, tshark and Wireshark's editcap, mergecap and text2pcap, from a few
# datagrams between two network namespaces of its own. Needs root; touches no interface of the machine. What it makes
# has other times and ports each time, and the tests know those that are committed.
set -eu
cd "$(dirname "$0")"
for tool in ip ethtool ping python3 tcpdump dumpcap editcap mergecap text2pcap gzip zstd; do
    command -v $tool >/dev/null || {
        echo "make.sh needs $tool: apt-get install ethtool iproute2 iputils-ping python3 tcpdump tshark wireshark-common zstd" >&2
        exit 1
    }
done
work=$(mktemp -d)
client=captures-client-$$ relay=captures-relay-$$
trap 'ip netns del $client; ip netns del $relay; rm -rf "$work"' EXIT

ip netns add $client && ip netns add $relay
ip -n $client link add c0 address 02:00:00:00:00:c1 type veth peer name r0 netns $relay address 02:00:00:00:00:01
ip -n $client addr add 203.0.113.9/32 dev c0 && ip -n $client -6 addr add 2001:db8:c::9/64 dev c0 nodad
ip -n $relay addr add 192.0.2.1/32 dev r0 && ip -n $relay -6 addr add 2001:db8::1/64 dev r0 nodad
ip -n $client link set c0 up && ip -n $relay link set r0 up
ip -n $client link set lo up && ip -n $relay link set lo up
ip -n $client route add 192.0.2.1/32 dev c0 && ip -n $client -6 route add 2001:db8::1/128 dev c0
ip -n $relay route add 203.0.113.9/32 dev r0 && ip -n $relay -6 route add 2001:db8:c::9/128 dev r0
ip netns exec $client ethtool -K c0 tx off >/dev/null && ip netns exec $relay ethtool -K r0 tx off >/dev/null

traffic() {
    # Tokens of docs/protocol.md's test vectors: the example with its payload, the ping after it; then something that is
    # no token, in both families, a ping of the kernel's, and a fragmented datagram.
    ip netns exec $client python3 - <<'PYTHON'
import socket, time
four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); four.bind(("203.0.113.9", 40000))
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); six.bind(("2001:db8:c::9", 40000))
def send(sock, to, data):
    sock.sendto(data, (to, 4500)); time.sleep(0.02)
send(four, "192.0.2.1", bytes.fromhex("c2c9c841d74e2318b838792087b5a4e4241dffdd76046c19") + b"hello")
send(four, "192.0.2.1", bytes.fromhex("12d09fb368ac787dd35fb3267f6e5296cebe47b387bbccb2"))
send(four, "192.0.2.1", b"no token")
send(six, "2001:db8::1", bytes.fromhex("c2c9c841d74e2318b838792087b5a4e4241dffdd76046c19") + b"hello")
send(four, "192.0.2.1", b"x" * 2000)
PYTHON
    ip netns exec $client ping -c 1 -W 1 192.0.2.1 >/dev/null
}

# capture FILE COMMAND…: runs COMMAND in the relay's namespace while there is traffic.
capture() {
    file=$1; shift; : >"$work/log"
    ip netns exec $relay "$@" 2>"$work/log" & pid=$!
    until grep -qiE 'listening on|Capturing on' "$work/log"; do sleep 0.05; done
    sleep 0.3; traffic; sleep 0.5; kill -INT $pid; wait $pid || true
    test -s "$file"
}

filter='host 203.0.113.9 or host 2001:db8:c::9'
capture usec.pcap tcpdump -Z root -U -i r0 -w usec.pcap "$filter"
capture nsec.pcap tcpdump -Z root -U -i r0 --time-stamp-precision=nano -w nsec.pcap "$filter"
capture cut.pcap tcpdump -Z root -U -i r0 -s 60 -w cut.pcap "$filter"
capture sll.pcap tcpdump -Z root -U -i any -y LINUX_SLL -w sll.pcap "$filter"
capture sll2.pcap tcpdump -Z root -U -i any -y LINUX_SLL2 -w sll2.pcap "$filter"
capture "$work/dumpcap.pcapng" dumpcap -q -i r0 -f "$filter" -w "$work/dumpcap.pcapng"
install -m 644 "$work/dumpcap.pcapng" dumpcap.pcapng

editcap -a 1:'the example of the protocol' -a '5:no token at all' nsec.pcap comments.pcapng
editcap -F pcapng nsec.pcap nsec.pcapng
editcap -F pcap -L -C 0:14 -T rawip usec.pcap raw.pcap
editcap -F pcap -T ieee-802-11 usec.pcap wlan.pcap
mergecap -F pcapng -I none -w merged.pcapng nsec.pcap sll.pcap dumpcap.pcapng
cat nsec.pcapng comments.pcapng >sections.pcapng
head -c 300 usec.pcap >truncated.pcap
head -c 700 nsec.pcapng >truncated.pcapng
gzip -9nc usec.pcap >usec.pcap.gz
zstd -q -19 -f usec.pcap -o usec.pcap.zst
editcap -F snoop usec.pcap usec.snoop
editcap -F modlinux usec.pcap modified.pcap 2>/dev/null || editcap -F modpcap usec.pcap modified.pcap
printf '000000  %s\n' "45 00 00 24 00 00 40 00 40 11 ac 93 cb 00 71 09 c0 00 02 01 9c 40 11 94 00 10 3b 3a 61 62 63 64 65 66 67 68" |
    text2pcap -q -F pcap -l 228 - ipv4.pcap
