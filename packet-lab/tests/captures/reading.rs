//! The reader and the writer.

use std::{
    fs,
    path::{Path, PathBuf},
};

use packet_lab::{
    capture::{Capture, CaptureError, LinkType, Packet, Writer},
    craft::UdpFrame,
    inspect::UdpFrameView,
    world::address,
};
use rstest::rstest;

const SECOND: u64 = 1_000_000_000;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures").join(name)
}

fn read(path: &Path) -> Vec<Packet> {
    let capture = Capture::open(path).unwrap_or_else(|error| panic!("{error}"));
    capture
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{error}"))
}

/// What can be read of a capture, and what then went wrong.
fn read_up_to_error(path: &Path) -> (usize, CaptureError) {
    let mut read = 0;
    for packet in Capture::open(path).unwrap_or_else(|error| panic!("{error}")) {
        match packet {
            Ok(_) => read += 1,
            Err(error) => return (read, error),
        }
    }
    panic!("{} was read without an error", path.display());
}

/// The packets to the listeners.
fn to_listener(packets: &[Packet]) -> Vec<UdpFrameView> {
    let views = packets
        .iter()
        .filter_map(|packet| UdpFrameView::read(&packet.data).ok());
    views.filter(|view| view.to.port() == 4500).collect()
}

fn in_file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    file
}

#[rstest]
#[case::microseconds("usec.pcap", LinkType::Ethernet)]
#[case::nanoseconds("nsec.pcap", LinkType::Ethernet)]
#[case::cooked("sll.pcap", LinkType::LinuxSll)]
#[case::cooked_2("sll2.pcap", LinkType::LinuxSll2)]
#[case::raw_ip("raw.pcap", LinkType::Raw)]
#[case::dumpcap("dumpcap.pcapng", LinkType::Ethernet)]
#[case::editcap("nsec.pcapng", LinkType::Ethernet)]
#[case::comments("comments.pcapng", LinkType::Ethernet)]
fn what_a_real_tool_wrote_is_read_as_ethernet_frames(#[case] file: &str, #[case] link: LinkType) {
    let packets = read(&fixture(file));
    assert!(packets.iter().all(|packet| packet.link == link && !packet.is_cut()));
    assert!(packets.is_sorted_by_key(|packet| packet.at_ns));
    let views = to_listener(&packets);
    assert_eq!(views.len(), 4, "{views:#?}");
    assert_eq!(views[0].from, address("203.0.113.9:40000"));
    assert_eq!(views[0].to, address("192.0.2.1:4500"));
    assert_eq!(views[0].from_mac, [0x02, 0, 0, 0, 0, 0xc1]);
    assert_eq!(views[0].to_mac, [0x02, 0, 0, 0, 0, 0x01]);
    assert_eq!(&views[0].payload[24..], b"hello");
    assert_eq!(views[1].payload.len(), 24);
    assert_eq!(views[2].payload, b"no token");
    assert_eq!(views[3].from, address("[2001:db8:c::9]:40000"));
    assert!(views.iter().all(UdpFrameView::has_right_checksums), "{views:#?}");
}

#[test]
fn nanoseconds_survive_and_microseconds_are_not_taken_for_them() {
    let micro = read(&fixture("usec.pcap"));
    assert!(micro.iter().all(|packet| packet.at_ns % 1_000 == 0));
    let nano = read(&fixture("nsec.pcap"));
    assert!(nano.iter().any(|packet| packet.at_ns % 1_000 != 0));
    let years = 50 * 365 * 86_400 * SECOND..100 * 366 * 86_400 * SECOND;
    assert!(micro.iter().chain(&nano).all(|packet| years.contains(&packet.at_ns)));
    let times = |packets: &[Packet]| packets.iter().map(|packet| packet.at_ns).collect::<Vec<_>>();
    assert_eq!(times(&nano), times(&read(&fixture("nsec.pcapng"))));
}

#[test]
fn a_packet_that_the_snapshot_length_cut_has_both_lengths() {
    let packets = read(&fixture("cut.pcap"));
    let cut: Vec<_> = packets.iter().filter(|packet| packet.is_cut()).collect();
    assert!(!cut.is_empty());
    assert!(cut.iter().all(|packet| packet.data.len() == 60));
    assert_eq!(packets[0].original_length, 14 + 20 + 8 + 24 + 5);
}

#[test]
fn several_interfaces_have_their_own_link_types_and_stamps() {
    let packets = read(&fixture("merged.pcapng"));
    let of = |interface| {
        let mut packets: Vec<_> = packets
            .iter()
            .filter(|packet| packet.interface == interface)
            .cloned()
            .collect();
        packets.iter_mut().for_each(|packet| packet.interface = 0);
        packets
    };
    assert_eq!(of(0), read(&fixture("nsec.pcap")));
    assert_eq!(of(1), read(&fixture("sll.pcap")));
    assert_eq!(of(2), read(&fixture("dumpcap.pcapng")));
}

#[test]
fn the_interfaces_of_a_second_section_are_others() {
    let packets = read(&fixture("sections.pcapng"));
    let first = read(&fixture("nsec.pcapng"));
    assert_eq!(packets[..first.len()], first);
    assert!(packets[first.len()..].iter().all(|packet| packet.interface == 1));
    assert_eq!(packets.len(), 2 * first.len());
}

#[test]
fn comments_come_with_their_packets() {
    let packets = read(&fixture("comments.pcapng"));
    assert_eq!(packets[0].comment.as_deref(), Some("the example of the protocol"));
    assert_eq!(packets[1].comment, None);
    assert_eq!(packets[4].comment.as_deref(), Some("no token at all"));
}

#[test]
fn raw_ip_that_is_no_ip_has_no_ethertype() {
    let arp = read(&fixture("raw.pcap"));
    assert_eq!(arp[0].data[12..14], [0xff, 0xff]);
    let udp = read(&fixture("ipv4.pcap"));
    assert_eq!((udp[0].data.len(), udp[0].original_length), (14 + 36, 14 + 36));
    assert_eq!(udp[0].link, LinkType::Ipv4);
}

#[rstest]
#[case::gzip(
    "usec.pcap.gz",
    "compressed by gzip; unpack it first, for instance with `gzip -dc FILE > capture.pcap`"
)]
#[case::zstd(
    "usec.pcap.zst",
    "compressed by zstd; unpack it first, for instance with `zstd -d FILE`"
)]
#[case::modified("modified.pcap", "the modified pcap format of Alexey Kuznetzov's patches")]
#[case::snoop("usec.snoop", "a Solaris snoop capture; convert it, for instance with `editcap")]
#[case::text("README.md", "it is text, beginning \"# Captures that real tools wrote\"")]
#[case::a_directory("", "is a directory; name a pcap or pcapng file")]
#[case::nothing("nonexistent.pcap", "nonexistent.pcap: No such file or directory")]
fn what_is_no_capture_is_refused_with_what_it_is_and_what_to_do(#[case] file: &str, #[case] message: &str) {
    let Err(error) = Capture::open(fixture(file)) else {
        panic!("{file} was opened");
    };
    assert!(error.to_string().contains(message), "{error}");
}

#[rstest]
#[case::empty(b"", "is empty (0 bytes)")]
#[case::two_bytes(b"\xd4\xc3", "begins with d4c3")]
#[case::noise(b"\x00\x01\x02\x03\x04\x05\x06\x07", "begins with 00010203")]
#[case::half_a_header(
    b"\xd4\xc3\xb2\xa1\x02\x00\x04\x00",
    "the file's header starts at byte 0 and lacks its last 16 bytes"
)]
#[case::version_9(&[0xd4, 0xc3, 0xb2, 0xa1, 9, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], "pcap version 9.4")]
#[case::no_byte_order(&[0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 1, 2, 3, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0], "byte-order magic is 0x01020304")]
fn a_beginning_that_cannot_be_is_refused(#[case] bytes: &[u8], #[case] message: &str) {
    let file = in_file(bytes);
    let Err(error) = Capture::open(file.path()) else {
        panic!("it was opened");
    };
    assert!(error.to_string().contains(message), "{error}");
}

#[test]
fn an_unsupported_link_type_is_named() {
    let (read, error) = read_up_to_error(&fixture("wlan.pcap"));
    assert_eq!(read, 0);
    assert!(
        error.to_string().contains("packet 1 has link type IEEE802_11 (105)"),
        "{error}"
    );
}

#[rstest]
#[case::pcap("truncated.pcap", "usec.pcap")]
#[case::pcapng("truncated.pcapng", "nsec.pcapng")]
fn what_comes_before_the_truncation_is_usable(#[case] cut: &str, #[case] whole: &str) {
    let (count, error) = read_up_to_error(&fixture(cut));
    assert!(count > 0);
    let message = format!("is truncated: packet {} starts at byte ", count + 1);
    assert!(error.to_string().contains(&message), "{error}");
    assert!(
        error
            .to_string()
            .contains(&format!("the {count} packets before it are whole")),
        "{error}"
    );
    let whole = read(&fixture(whole));
    let packets: Vec<_> = Capture::open(fixture(cut)).unwrap().map_while(Result::ok).collect();
    assert_eq!(packets, whole[..count]);
}

/// Cuts at every byte: always the packets before, then nothing or an error, and never a panic.
#[rstest]
fn a_capture_may_end_anywhere(#[values("usec.pcap", "comments.pcapng", "sll2.pcap")] name: &str) {
    let bytes = fs::read(fixture(name)).unwrap();
    let whole = read(&fixture(name));
    for length in 0..bytes.len() {
        let reader = std::io::Cursor::new(bytes[..length].to_vec());
        let Ok(capture) = Capture::read("cut", Box::new(reader)) else {
            continue;
        };
        let packets: Vec<_> = capture.map_while(Result::ok).collect();
        assert_eq!(packets, whole[..packets.len()], "cut at {length}");
    }
}

/// Every byte replaced by some others: whatever is read, it ends, without a panic and in little memory.
#[rstest]
fn no_corruption_makes_the_reader_panic_or_run_forever(
    #[values("usec.pcap", "comments.pcapng", "sll.pcap")] name: &str,
) {
    let bytes = fs::read(fixture(name)).unwrap();
    for at in 0..bytes.len() {
        for value in [0x00, 0x01, 0x7f, 0x80, 0xff] {
            let mut corrupt = bytes.clone();
            corrupt[at] = value;
            let Ok(capture) = Capture::read("corrupt", Box::new(std::io::Cursor::new(corrupt))) else {
                continue;
            };
            assert!(capture.count() <= bytes.len() / 12 + 1, "byte {at} as {value:#x}");
        }
    }
}

#[rstest]
#[case::pcap("usec.pcap", 24 + 8, "packet 1 claims 4294967295 bytes; no packet has more than 262144")]
#[case::pcapng("nsec.pcapng", 4, "a block of type 0xa0d0d0a that claims 4294967295 bytes")]
fn a_lying_length_is_corrupt(#[case] name: &str, #[case] at: usize, #[case] message: &str) {
    let mut bytes = fs::read(fixture(name)).unwrap();
    bytes[at..at + 4].fill(0xff);
    let file = in_file(&bytes);
    let error = match Capture::open(file.path()) {
        Err(error) => error,
        Ok(_) => read_up_to_error(file.path()).1,
    };
    assert!(error.to_string().contains(message), "{error}");
    assert!(error.to_string().contains("is corrupt at byte"), "{error}");
}

/// A pcap file in the byte order that this machine does not have.
#[rstest]
#[case::microseconds(0xa1b2_c3d4, 123_456, 123_456_000)]
#[case::nanoseconds(0xa1b2_3c4d, 123_456_789, 123_456_789)]
fn big_endian_pcap_is_read(#[case] magic: u32, #[case] fraction: u32, #[case] ns: u64) {
    let frame = UdpFrame::new(address("203.0.113.9:40000"), address("192.0.2.1:4500"), *b"payload").build();
    let mut bytes = Vec::new();
    for word in [
        magic,
        0x0002_0004,
        0,
        0,
        65_535,
        1,
        1_700_000_000,
        fraction,
        frame.len() as u32,
        1_500,
    ] {
        bytes.extend_from_slice(&word.to_be_bytes());
    }
    bytes.extend_from_slice(&frame);
    let packets = read(in_file(&bytes).path());
    assert_eq!(packets.len(), 1);
    assert_eq!(packets[0].at_ns, 1_700_000_000 * SECOND + ns);
    assert_eq!((&packets[0].data, packets[0].original_length), (&frame, 1_500));
}

/// A block of a big-endian pcapng file.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padded = body.len().next_multiple_of(4);
    let length = (12 + padded) as u32;
    let mut bytes = [kind.to_be_bytes(), length.to_be_bytes()].concat();
    bytes.extend_from_slice(body);
    bytes.resize(8 + padded, 0);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

#[test]
fn big_endian_pcapng_with_simple_and_old_packets_and_odd_stamps_is_read() {
    let frame = UdpFrame::new(address("203.0.113.9:40000"), address("192.0.2.1:4500"), *b"payload!!").build();
    let length = frame.len() as u32;
    // Interface 0: stamps of 2^-10 s, 100 s before the epoch, cut at 32 bytes. Interface 1: picoseconds.
    let binary = [
        &words(&[0x0001_0000, 32, 0x0009_0001, 0x8a00_0000, 0x000e_0008])[..],
        &(-100_i64).to_be_bytes(),
        &words(&[0]),
    ]
    .concat();
    let pico = words(&[0x0001_0000, 0, 0x0009_0001, 0x0c00_0000, 0]);
    let stamp = |units: u64| [(units >> 32) as u32, units as u32];
    let [high, low] = stamp(200 * 1024 + 512);
    let [old_high, old_low] = stamp(3_000_000_000_000 + 5_999);
    let bytes = [
        block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 0x0001_0000, u32::MAX, u32::MAX])),
        block(1, &binary),
        block(1, &pico),
        block(6, &[words(&[0, high, low, 32, length]), frame[..32].to_vec()].concat()),
        block(3, &[words(&[length]), frame[..32].to_vec()].concat()),
        block(
            2,
            &[
                words(&[0x0001_0000, old_high, old_low, length, length]),
                frame.clone(),
                vec![0; 3],
            ]
            .concat(),
        ),
        block(0x0bad, b"a block that nobody knows"),
    ]
    .concat();
    let packets = read(in_file(&bytes).path());
    assert_eq!(packets.len(), 3);
    assert_eq!(packets[0].at_ns, 100 * SECOND + SECOND / 2);
    assert_eq!((packets[0].data.len(), packets[0].original_length), (32, length));
    assert_eq!((packets[1].at_ns, packets[1].data.len()), (packets[0].at_ns, 32));
    assert_eq!((packets[2].at_ns, packets[2].interface), (3 * SECOND + 5, 1));
    assert_eq!(packets[2].data, frame);
}

#[test]
fn a_section_may_have_another_byte_order_than_the_one_before_and_an_interface_that_nobody_uses_may_be_anything() {
    let first = read(&fixture("nsec.pcapng"));
    let frame = UdpFrame::new(address("203.0.113.9:40000"), address("192.0.2.1:4500"), *b"payload!!!").build();
    let length = frame.len() as u32;
    let bytes = [
        fs::read(fixture("nsec.pcapng")).unwrap(),
        block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 0x0001_0000, u32::MAX, u32::MAX])),
        // USB, and Ethernet.
        block(1, &words(&[0x00dc_0000, 0])),
        block(1, &words(&[0x0001_0000, 0])),
        block(6, &[words(&[1, 0, 7, length, length]), frame.clone()].concat()),
        block(6, &[words(&[0, 0, 8, length, length]), frame.clone()].concat()),
    ]
    .concat();
    let file = in_file(&bytes);
    let packets: Vec<_> = Capture::open(file.path()).unwrap().collect();
    let (last, rest) = packets.split_last().unwrap();
    let rest: Vec<_> = rest.iter().map(|packet| packet.as_ref().unwrap().clone()).collect();
    assert_eq!(rest[..first.len()], first);
    assert_eq!((rest[first.len()].interface, rest[first.len()].at_ns), (2, 7_000));
    assert_eq!(rest[first.len()].data, frame);
    let error = last.as_ref().unwrap_err().to_string();
    assert!(error.contains("link type USB_LINUX_MMAPPED (220)"), "{error}");
}

#[rstest]
#[case::null_little_endian(0, [2, 0, 0, 0])]
#[case::null_big_endian(0, [0, 0, 0, 2])]
#[case::loop_back(108, [0, 0, 0, 2])]
fn loopback_captures_of_bsd_become_ethernet(#[case] link: u32, #[case] family: [u8; 4]) {
    let frame = UdpFrame::new(address("203.0.113.9:40000"), address("192.0.2.1:4500"), *b"payload").build();
    let packet = [&family, &frame[14..]].concat();
    let length = packet.len() as u32;
    let mut bytes = words(&[0xa1b2_c3d4, 0x0002_0004, 0, 0, 65_535, link, 0, 0, length, length]);
    bytes.extend_from_slice(&packet);
    let packets = read(in_file(&bytes).path());
    assert_eq!(
        (&packets[0].data, packets[0].original_length),
        (&frame, frame.len() as u32)
    );
}

#[test]
fn a_frame_check_sequence_is_no_part_of_the_frame() {
    let frame = UdpFrame::new(address("203.0.113.9:40000"), address("192.0.2.1:4500"), *b"payload").build();
    let length = frame.len() as u32 + 4;
    let mut bytes = words(&[
        0xa1b2_c3d4,
        0x0002_0004,
        0,
        0,
        65_535,
        0x2400_0001,
        0,
        0,
        length,
        length,
    ]);
    bytes.extend_from_slice(&frame);
    bytes.extend_from_slice(&[0xde, 0xad, 0xbe, 0xef]);
    let packets = read(in_file(&bytes).path());
    assert_eq!(
        (&packets[0].data, packets[0].original_length),
        (&frame, frame.len() as u32)
    );
}

#[test]
fn what_is_written_is_read_again() {
    let mut packets = read(&fixture("merged.pcapng"));
    packets.extend(read(&fixture("cut.pcap")));
    for (number, packet) in packets.iter_mut().enumerate() {
        packet.link = LinkType::Ethernet;
        packet.comment = (number % 2 == 0).then(|| format!("TX relayed, täglich {number}"));
    }
    packets.push(Packet::new(u64::MAX, vec![0xab; 61]).commented("the last moment"));
    let file = in_file(b"");
    let mut writer = Writer::create(file.path()).unwrap();
    packets.iter().for_each(|packet| writer.write(packet).unwrap());
    writer.finish().unwrap();
    assert_eq!(read(file.path()), packets);
}

#[test]
fn a_comment_longer_than_an_option_is_cut_at_a_character() {
    let file = in_file(b"");
    let mut writer = Writer::create(file.path()).unwrap();
    writer
        .write(&Packet::new(1, vec![0; 14]).commented("ü".repeat(40_000)))
        .unwrap();
    writer.finish().unwrap();
    let comment = read(file.path())[0].comment.clone().unwrap();
    assert_eq!(comment, "ü".repeat(32_766));
}

#[test]
fn a_file_that_cannot_be_made_is_named() {
    let Err(error) = Writer::create("/nonexistent/out.pcapng") else {
        panic!("it was made");
    };
    assert!(
        error
            .to_string()
            .contains("writing /nonexistent/out.pcapng: No such file"),
        "{error}"
    );
}
