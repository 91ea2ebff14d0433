//! Next hops that the operator gives, for destinations to which the kernel has no route that tells them.

use std::net::IpAddr;

use ipnet::IpNet;
use relay_ebpf::wire::{
    Be16, Mac,
    vlan::{DOT1AD, DOT1Q, MAX_TAGS, Tags},
};

use super::read::{self, Raw};

/// Least and most that a link takes, in bytes of an IP packet.
const MTUS: std::ops::RangeInclusive<u32> = 68..=u16::MAX as u32;
/// The largest VLAN identifier that is one.
const LAST_VLAN: u16 = 4094;

/// A next hop, instead of the one that the kernel's route leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GivenNextHop {
    /// The destinations; of several that match, the longest prefix counts.
    pub to: IpNet,
    /// Its MAC address.
    pub mac: Mac,
    /// The interface that leads to it, one of the relay's.
    pub interface: String,
    /// VLAN tags of frames to it.
    pub tags: Tags,
    /// Largest IP packet that fits, in bytes; none for what the interface takes.
    pub mtu: Option<u16>,
}

impl GivenNextHop {
    pub(super) fn read(raw: &Raw, interfaces: &[String]) -> Result<Self, String> {
        let table = raw.table(&["to", "mac", "interface", "vlan", "mtu"])?;
        let missing = |key: &str| format!("has no `{key}`");
        let inside = |key: &'static str| move |message: String| format!("has a `{key}` that {message}");
        let to = table.get("to").ok_or_else(|| missing("to"))?;
        let to = prefix(to).map_err(inside("to"))?;
        let mac = table.get("mac").ok_or_else(|| missing("mac"))?;
        let mac = mac
            .text()
            .and_then(|text| parse_mac(&text))
            .map_err(|message| inside("mac")(message) + &format!(" (to {to})"))?;
        let interface = match table.get("interface") {
            Some(name) => name.text().map_err(inside("interface"))?,
            None if interfaces.len() == 1 => interfaces[0].clone(),
            None => return Err(format!("to {to} {}: there are several", missing("interface"))),
        };
        if !interfaces.contains(&interface) {
            return Err(format!("to {to} is behind {interface}, which is not in `interface`"));
        }
        let tags = table.get("vlan").map_or(Ok(Tags::NONE), |raw| tags(raw));
        let mtu = table.get("mtu").map(|raw| raw.integer(MTUS)).transpose();
        Ok(Self {
            to,
            mac,
            interface,
            tags: tags.map_err(inside("vlan"))?,
            mtu: mtu.map_err(inside("mtu"))?.map(|mtu| mtu as u16),
        })
    }
}

fn prefix(raw: &Raw) -> Result<IpNet, String> {
    let text = raw.text()?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let prefix: IpNet = read::parsed("a prefix or an address, like \"198.51.100.0/24\"")(raw)?;
    if prefix.trunc() != prefix {
        return Err(format!(
            "is \"{text}\", which has bits behind its length; write \"{}\"",
            prefix.trunc()
        ));
    }
    Ok(prefix)
}

/// Six bytes in hexadecimal with colons between them, of one station.
fn parse_mac(text: &str) -> Result<Mac, String> {
    let byte = |text: &str| (text.len() == 2).then(|| u8::from_str_radix(text, 16).ok())?;
    let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
    let mac = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()).map(Mac::new);
    let mac = mac.filter(|mac| *mac != Mac::default() && !mac.is_group());
    mac.ok_or_else(|| format!("is \"{text}\"; expected a MAC address of one station, like \"02:00:00:00:00:01\""))
}

/// One tag, or a list of one or two, outer first.
fn tags(raw: &Raw) -> Result<Tags, String> {
    let tags = match raw {
        Raw::List(items) => items.iter().map(tag).collect::<Result<Vec<_>, _>>()?,
        one => vec![tag(one)?],
    };
    if tags.is_empty() || tags.len() > MAX_TAGS {
        return Err(format!("has {} tags; expected one or {MAX_TAGS}", tags.len()));
    }
    Ok(Tags::new(&tags))
}

/// A VLAN's number; or with a kind in front of it, and perhaps a priority behind it.
fn tag(raw: &Raw) -> Result<(Be16, u16), String> {
    if let Raw::Integer(_) = raw {
        return Ok((DOT1Q, raw.integer(0..=u32::from(LAST_VLAN))? as u16));
    }
    let text = raw.text()?;
    let expected = || {
        format!(
            "is \"{text}\"; expected a VLAN from 0 to {LAST_VLAN}, like 100, with its kind, like \"802.1ad:100\", or with a \
             priority from 0 to 7 too, like \"802.1q:100:5\""
        )
    };
    let mut parts = text.split(':');
    let kind = match parts.next() {
        Some("802.1q") => DOT1Q,
        Some("802.1ad") => DOT1AD,
        _ => return Err(expected()),
    };
    let number = |text: &str, most: u16| text.parse().ok().filter(|number: &u16| *number <= most);
    let vlan = parts.next().and_then(|text| number(text, LAST_VLAN));
    let priority = parts.next().map_or(Some(0), |text| number(text, 7));
    match (vlan, priority, parts.next()) {
        (Some(vlan), Some(priority), None) => Ok((kind, priority << 13 | vlan)),
        _ => Err(expected()),
    }
}
