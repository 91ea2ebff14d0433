//! VLAN tags (IEEE 802.1Q, and 802.1ad for the outer of two): four bytes each between the MAC addresses and the
//! EtherType, a kind and what is called tag control information: three bits of priority, the drop eligible indicator
//! and twelve bits of VLAN identifier.

use super::{Be16, Frame, ethernet};

/// Most tags of a frame that the relay reads.
pub const MAX_TAGS: usize = 2;
/// Bytes of one tag.
pub const TAG_BYTES: usize = 4;
/// The kind of an ordinary tag, 802.1Q.
pub const DOT1Q: Be16 = Be16::new(0x8100);
/// The kind of a provider's tag, 802.1ad.
pub const DOT1AD: Be16 = Be16::new(0x88a8);

/// Where the first tag is: in the place of the EtherType.
const FIRST: usize = ethernet::HEADER_BYTES - size_of::<Be16>();

/// Up to two tags, outer first, in 36 bits of a word: the outer one in bits 0..18, the inner one in bits 18..36. Of each,
/// bits 0..16 are its control information, 16 is set, and 17 is set if it is [`DOT1AD`].
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Tags(u64);

impl Tags {
    /// No tags.
    pub const NONE: Self = Self(0);

    const BITS: u32 = 18;
    const PRESENT: u32 = 16;
    const AD: u32 = 17;

    /// Tags of these kinds, [`DOT1Q`] or [`DOT1AD`], and with this control information, outer first; those past the
    /// second are left out.
    #[must_use]
    pub fn new(tags: &[(Be16, u16)]) -> Self {
        let tags = tags.iter().take(MAX_TAGS).enumerate();
        let of = |&(kind, control): &(Be16, u16)| Self::of((kind.get() as u32) << 16 | control as u32);
        Self(tags.fold(0, |word, (nth, tag)| word | of(tag) << (Self::BITS * nth as u32)))
    }

    /// The kind and control information of each, outer first.
    pub fn iter(self) -> impl Iterator<Item = (Be16, u16)> {
        let tags = [self.0, self.0 >> Self::BITS].into_iter();
        let present = tags.filter(|tag| tag >> Self::PRESENT & 1 != 0).map(Self::written);
        present.map(|tag| (Be16::new((tag >> 16) as u16), tag as u16))
    }

    /// A tag by its four bytes as a number.
    #[inline(always)]
    const fn of(written: u32) -> u64 {
        // The one bit that tells the two kinds apart.
        let ad = (written >> 27 & 1) as u64;
        (written & 0xffff) as u64 | 1 << Self::PRESENT | ad << Self::AD
    }

    /// The other way.
    #[inline(always)]
    const fn written(tag: u64) -> u32 {
        let kind = if tag >> Self::AD & 1 == 0 { DOT1Q } else { DOT1AD };
        (kind.get() as u32) << 16 | tag as u32 & 0xffff
    }

    /// Whether there are none.
    #[inline(always)]
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Bytes that they take in a frame.
    #[inline(always)]
    #[must_use]
    pub const fn bytes(self) -> usize {
        // Without a branch: whatever is done by a number of bytes is verified anew for each that is told apart.
        let count = (self.0 >> Self::PRESENT & 1) + (self.0 >> (Self::BITS + Self::PRESENT) & 1);
        count as usize * TAG_BYTES
    }

    /// As a word, of which bits 36..64 are 0.
    #[inline(always)]
    #[must_use]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// From bits 0..36 of such a word.
    #[inline(always)]
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        Self(word & ((1 << (2 * Self::BITS)) - 1))
    }
}

/// The EtherType behind at most two tags, and where what it is the type of starts. Behind more, the type is a tag's.
#[inline(always)]
pub fn packet<F: Frame>(frame: &F) -> Option<(Be16, usize)> {
    let mut at = FIRST;
    let mut kind = Be16::from_raw(frame.read(at)?);
    for _ in 0..MAX_TAGS {
        // Read again where it is no tag's, so that there is one way through, and the verifier goes it once.
        at += TAG_BYTES * count(frame, kind);
        kind = Be16::from_raw(frame.read(at)?);
    }
    Some((kind, at + size_of::<Be16>()))
}

/// 1 if it is a tag's kind, else 0.
#[inline(always)]
fn count<F: Frame>(frame: &F, kind: Be16) -> usize {
    let is = |known: Be16| {
        let difference = frame.unknown((kind.raw() ^ known.raw()) as usize);
        difference.wrapping_sub(1) >> (usize::BITS - 1)
    };
    is(DOT1Q) + is(DOT1AD)
}

/// The tags of a frame in which [`packet`] found the packet to start here.
#[inline(always)]
pub fn read<F: Frame>(frame: &F, packet: usize) -> Tags {
    // Of a packet behind less than two tags the first bytes are read too, and masked.
    let Some([outer, inner]) = frame.read::<[u32; MAX_TAGS]>(FIRST) else {
        return Tags::NONE;
    };
    let bits = Tags::BITS as usize * (packet - ethernet::HEADER_BYTES) / TAG_BYTES;
    let both = Tags::of(u32::from_be(outer)) | Tags::of(u32::from_be(inner)) << Tags::BITS;
    Tags(both & ((1 << bits) - 1))
}

/// Writes the tags where they belong. The EtherType follows them.
#[inline(always)]
pub fn emit<F: Frame>(frame: &mut F, tags: Tags) -> Option<()> {
    let [outer, inner] = [tags.0, tags.0 >> Tags::BITS].map(|tag| Tags::written(tag).to_be());
    match tags.bytes() / TAG_BYTES {
        0 => Some(()),
        1 => frame.write(FIRST, outer),
        _ => frame.write(FIRST, [outer, inner]),
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{vec, vec::Vec};

    use rstest::rstest;

    use super::*;
    use crate::host::HostFrame;

    const IPV4: Be16 = Be16::new(0x0800);
    const IPV6: Be16 = Be16::new(0x86dd);

    fn frame(behind_addresses: &[u8]) -> HostFrame {
        let addresses: Vec<u8> = (1..=12).collect();
        HostFrame::new([&addresses, behind_addresses].concat())
    }

    #[rstest]
    #[case::none(&[8, 0, 0x45], IPV4, vec![])]
    #[case::one(&[0x81, 0, 0, 5, 8, 0, 0x45], IPV4, vec![(DOT1Q, 5)])]
    #[case::a_providers(&[0x88, 0xa8, 0xf0, 5, 0x86, 0xdd, 0x60], IPV6, vec![(DOT1AD, 0xf005)])]
    #[case::two(&[0x88, 0xa8, 0, 1, 0x81, 0, 0, 0, 8, 0], IPV4, vec![(DOT1AD, 1), (DOT1Q, 0)])]
    #[case::the_other_way_round(&[0x81, 0, 0, 0, 0x88, 0xa8, 0, 0, 8, 6], Be16::new(0x0806), vec![(DOT1Q, 0), (DOT1AD, 0)])]
    fn tags_are_read_and_written_where_they_were(
        #[case] behind_addresses: &[u8],
        #[case] ethertype: Be16,
        #[case] expected: Vec<(Be16, u16)>,
    ) {
        let tagged = frame(&[behind_addresses, &[0; 8]].concat());
        let (found, at) = packet(&tagged).unwrap();
        let tags = read(&tagged, at);
        assert_eq!(found, ethertype);
        assert_eq!(tags.iter().collect::<Vec<_>>(), expected);
        assert_eq!((tags.bytes(), at), (4 * expected.len(), 14 + 4 * expected.len()));
        assert_eq!(tags, Tags::new(&expected));
        assert_eq!(Tags::from_word(tags.word() | 1 << 36), tags);
        let mut written = frame(&[0; 10]);
        emit(&mut written, tags).unwrap();
        assert_eq!(written.bytes[..12 + tags.bytes()], tagged.bytes[..12 + tags.bytes()]);
    }

    #[test]
    fn behind_more_than_two_tags_the_type_is_a_tags() {
        let three = frame(&[0x81, 0, 0, 1, 0x88, 0xa8, 0, 2, 0x81, 0, 0, 3, 8, 0, 0x45]);
        assert_eq!(packet(&three), Some((DOT1Q, 22)));
    }

    #[rstest]
    #[case::in_the_type(&[0x81])]
    #[case::in_the_tag(&[0x81, 0, 0])]
    #[case::behind_the_tag(&[0x81, 0, 0, 1])]
    #[case::in_the_type_behind_it(&[0x81, 0, 0, 1, 8])]
    #[case::in_the_second(&[0x81, 0, 0, 1, 0x81, 0, 0])]
    #[case::behind_the_second(&[0x81, 0, 0, 1, 0x81, 0, 0, 2])]
    fn a_frame_is_not_read_that_is_cut(#[case] behind_addresses: &[u8]) {
        assert_eq!(packet(&frame(behind_addresses)), None);
    }
}
