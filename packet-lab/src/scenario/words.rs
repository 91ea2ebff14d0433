//! Steps in words.

use super::file::{Checksum, Send, Step, Token, User};
use crate::{inspect::Dissection, world::Carrier};

/// What a step does.
pub(super) fn action(step: &Step) -> String {
    if let Some(described) = &step.send {
        return send(described);
    }
    if let Some(replay) = &step.replay {
        let resigned = if replay.resign { ", its tokens sealed anew" } else { "" };
        return format!("replay of {}{resigned}", replay.pcap.display());
    }
    if let Some(added) = &step.add_user {
        return format!("user {} is added, {}", added.id, grant(added));
    }
    if let Some(renew) = &step.renew {
        return format!("the grant of user {} is renewed", renew.user);
    }
    if let Some(id) = step.remove_user {
        return format!("user {id} is removed");
    }
    if let Some(hop) = &step.next_hop {
        let to = hop.to;
        return match (hop.lost, hop.mac) {
            (true, _) => format!("the next hop to {to} is lost"),
            (false, Some(mac)) => format!("the next hop to {to} is {mac}"),
            (false, None) => format!("the next hop to {to} is found"),
        };
    }
    match step.blocklist.as_deref() {
        Some([]) => "the blocklist is emptied".to_owned(),
        Some(prefixes) => {
            let prefixes: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
            format!("the blocklist is {}", prefixes.join(", "))
        }
        None => "nothing".to_owned(),
    }
}

fn grant(user: &User) -> String {
    format!("for {}", user.to)
}

/// What a frame is.
pub(super) fn send(send: &Send) -> String {
    let mut parts = Vec::new();
    match (&send.frame, send.from, send.to) {
        (Some(frame), _, _) => parts.push(raw(&frame.to_vec())),
        (None, Some(from), Some(to)) => parts.push(format!("{from} > {to}")),
        _ => {}
    }
    for tag in &send.vlan {
        parts.push(format!("VLAN {}", tag.id));
    }
    if let Some(sealed) = &send.token {
        parts.push(token(sealed));
    }
    if send.frame.is_none() {
        let bytes = send.payload.as_ref().map_or(0, |payload| payload.to_vec().len());
        parts.push(match bytes {
            0 => "no payload".to_owned(),
            1 => "1 byte of payload".to_owned(),
            bytes => format!("{bytes} bytes of payload"),
        });
    }
    parts.extend(oddities(send));
    parts.join(", ")
}

/// A frame that is given byte by byte: its layers.
fn raw(frame: &[u8]) -> String {
    let layers: Vec<&str> = Dissection::of(frame).layers.iter().map(|layer| layer.name).collect();
    format!("a frame of {} bytes ({})", frame.len(), layers.join(", "))
}

fn token(token: &Token) -> String {
    let text = format!("token of user {} pn {}", token.user, token.pn);
    let mut odd = Vec::new();
    let mut given = |what: &str, value: Option<String>| odd.extend(value.map(|value| format!("{what}{value}")));
    given(
        "",
        (token.carrier == Some(Carrier::IpOption)).then(|| "in an IP option".to_owned()),
    );
    given("slot ", token.slot.map(|slot| slot.to_string()));
    given("salt ", token.salt.map(|salt| format!("{salt:#010x}")));
    given("another key", token.key.map(|_| String::new()));
    given("relay ", token.relay_id.map(|id| id.to_string()));
    given("another header key", token.header_key.map(|_| String::new()));
    given("for ", token.payload_len.map(|bytes| format!("{bytes} bytes")));
    given(
        "",
        token
            .protected
            .map(|on| if on { "masked" } else { "not masked" }.to_owned()),
    );
    given("bit ", token.flip_bit.map(|bit| format!("{bit} flipped")));
    given("cut to ", token.cut.map(|bytes| format!("{bytes} bytes")));
    if odd.is_empty() {
        return text;
    }
    format!("{text} ({})", odd.join(", "))
}

fn oddities(send: &Send) -> Vec<String> {
    let mut odd = Vec::new();
    let mut given = |value: Option<String>| odd.extend(value);
    given(send.ttl.map(|ttl| format!("TTL {ttl}")));
    given(send.tos.map(|tos| format!("TOS {tos:#04x}")));
    given(
        send.options
            .as_ref()
            .map(|options| format!("{} bytes of options", options.to_vec().len())),
    );
    given(send.fragment.map(|part| {
        let more = if part.more { ", more follow" } else { "" };
        format!("a fragment at {}{more}", u32::from(part.offset) * 8)
    }));
    given(send.checksum.map(|checksum| match checksum {
        Checksum::Right => "checksum right".to_owned(),
        Checksum::Zero => "checksum zero".to_owned(),
        Checksum::Wrong => "checksum wrong".to_owned(),
        Checksum::Partial => "checksum of the pseudo-header".to_owned(),
    }));
    given(send.ip_length.map(|length| format!("IP length {length}")));
    given(send.udp_length.map(|length| format!("UDP length {length}")));
    given(
        send.trailing
            .as_ref()
            .map(|bytes| format!("{} bytes behind it", bytes.to_vec().len())),
    );
    given(send.interface.map(|number| format!("by interface {number}")));
    given(send.from_mac.map(|mac| format!("from MAC {mac}")));
    given(send.to_mac.map(|mac| format!("to MAC {mac}")));
    given(send.cut.map(|bytes| format!("cut to {bytes} bytes")));
    given(send.flip_bit.map(|bit| format!("bit {bit} flipped")));
    odd
}
