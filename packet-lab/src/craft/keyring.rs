//! Many grants, found by what a token says.

use std::collections::HashMap;

use super::{Grant, Handle};

/// Grants by handle.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    by_slot: HashMap<u32, Vec<Grant>>,
    /// Those of the grants, each once.
    header_keys: Vec<Option<[u8; 16]>>,
}

impl Keyring {
    /// Whether it has no grants.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_slot.is_empty()
    }

    /// The grant whose handle a token has, and what the token says; its tag may still be wrong.
    #[must_use]
    pub fn recognize(&self, sealed: &[u8]) -> Option<(Grant, Handle)> {
        self.header_keys.iter().find_map(|header_key| {
            let handle = Handle::of(sealed, header_key.as_ref())?;
            let mut grants = self.by_slot.get(&handle.slot)?.iter();
            let grant = grants.find(|grant| grant.salt == handle.salt && grant.header_key == *header_key)?;
            Some((*grant, handle))
        })
    }
}

impl Extend<Grant> for Keyring {
    fn extend<T: IntoIterator<Item = Grant>>(&mut self, grants: T) {
        for grant in grants {
            if !self.header_keys.contains(&grant.header_key) {
                self.header_keys.push(grant.header_key);
            }
            self.by_slot.entry(grant.slot).or_default().push(grant);
        }
    }
}

impl FromIterator<Grant> for Keyring {
    fn from_iter<T: IntoIterator<Item = Grant>>(grants: T) -> Self {
        let mut keyring = Self::default();
        keyring.extend(grants);
        keyring
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_recognized_by_its_handle_under_either_header_key() {
        let grant = |slot, header_key| Grant {
            slot,
            salt: 7,
            key: [1; 16],
            header_key,
            relay_id: 1,
        };
        let (bare, masked) = (grant(1, None), grant(2, Some([9; 16])));
        let keyring: Keyring = [bare, masked].into_iter().collect();
        for known in [bare, masked] {
            let (found, handle) = keyring.recognize(&known.token(42, 0)).expect("it is there");
            assert_eq!((found, handle.pn), (known, 42));
            assert!(keyring.recognize(&known.wrong_token(42, 0)).is_some());
        }
        assert!(keyring.recognize(&grant(3, None).token(1, 0)).is_none());
        assert!(keyring.recognize(&[0; 23]).is_none());
    }
}
