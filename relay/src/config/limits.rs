//! `[limits]`: packets per second, and packets at once.

use std::ops::RangeInclusive;

use super::{Config, Fault, read::Reader};
use crate::datapath::{RateLimit, clock};

/// Packets per second that a user may be given.
pub const RATES: RangeInclusive<u32> = 1..=10_000_000;
/// Packets per second that all users of a destination may be given; 0 for no limit.
pub const DESTINATION_RATES: RangeInclusive<u32> = 0..=10_000_000;
/// ICMP messages per second that the relay may send.
pub const ICMP_RATES: RangeInclusive<u32> = 0..=1_000_000;
/// Packets that a user may be given to send at once.
pub const BURSTS: RangeInclusive<u32> = 1..=1_000_000;

const DEFAULT_BURST: u32 = 1000;

pub(super) fn packets_per_second(reader: &mut Reader<'_>) -> u32 {
    let rate = reader.take("limits.packets_per_second", |raw| raw.integer(RATES));
    rate.unwrap_or(10_000)
}

pub(super) fn burst(reader: &mut Reader<'_>) -> u32 {
    let burst = reader.take("limits.burst", |raw| raw.integer(BURSTS));
    burst.unwrap_or(DEFAULT_BURST)
}

pub(super) fn icmp_per_second(reader: &mut Reader<'_>) -> u32 {
    let rate = reader.take("limits.icmp_per_second", |raw| raw.integer(ICMP_RATES));
    rate.unwrap_or(1000)
}

/// The limit of all users of a destination together; none with a rate of 0.
pub(super) fn destination(reader: &mut Reader<'_>) -> Option<RateLimit> {
    let rate = reader.take("limits.destination_packets_per_second", |raw| {
        raw.integer(DESTINATION_RATES)
    });
    let burst = reader.take("limits.destination_burst", |raw| raw.integer(BURSTS));
    let limit = |rate| RateLimit {
        rate,
        burst: burst.unwrap_or(DEFAULT_BURST),
    };
    rate.filter(|rate| *rate > 0).map(limit)
}

/// Bursts that the kernel's tick makes larger.
pub(super) fn warnings(config: &Config, reader: &Reader<'_>) -> impl Iterator<Item = Fault> {
    let of_user = RateLimit {
        rate: config.packets_per_second,
        burst: config.burst,
    };
    let of_destination = config
        .destination_limit
        .map(|limit| ("limits.destination_burst", limit));
    let all = [("limits.burst", of_user)].into_iter().chain(of_destination);
    all.filter_map(move |(key, limit)| {
        Some(Fault {
            place: reader.place(key),
            message: raised_burst(limit)?,
        })
    })
}

/// What is to be said of a burst that is too small for the kernel's tick.
fn raised_burst(RateLimit { rate, burst }: RateLimit) -> Option<String> {
    let tick = clock::tick().ok()?;
    let least = (u128::from(rate) * tick.as_nanos()).div_ceil(1_000_000_000);
    (u128::from(burst) < least).then(|| {
        format!(
            "a burst of {burst} is raised to {least}: the kernel's tick here is {} ms, and {rate} packets/s are {least} in \
             that time",
            tick.as_millis(),
        )
    })
}
