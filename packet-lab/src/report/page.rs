//! What all pages share: the frame around the content.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use sha2::{Digest as _, Sha256};

const STYLE: &str = concat!(include_str!("plot.css"), include_str!("style.css"));
const SCRIPT: &str = include_str!("script.js");

/// How a run ended, in words: colour alone tells nobody.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Tone {
    Pass,
    Fail,
    Note,
}

impl Tone {
    const fn class(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Note => "note",
        }
    }

    const fn sign(self) -> &'static str {
        match self {
            Self::Pass => "✓",
            Self::Fail => "✗",
            Self::Note => "–",
        }
    }
}

/// A page.
pub(super) struct Page<'a> {
    /// What it is a report of, in a word or two.
    pub(super) kind: &'a str,
    /// The heading.
    pub(super) title: &'a str,
    /// How it ended.
    pub(super) verdict: (Tone, String),
    /// The figures that matter most, with what they are.
    pub(super) facts: Vec<(&'a str, String)>,
    /// The rest.
    pub(super) content: Markup,
}

impl Page<'_> {
    /// The whole document.
    pub(super) fn render(&self) -> String {
        let (tone, verdict) = &self.verdict;
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta http-equiv="Content-Security-Policy" content=(policy());
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    meta name="referrer" content="no-referrer";
                    title { (self.title) " · packet-lab" }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    a.skip href="#content" { "To the content" }
                    header.head {
                        div {
                            p.kind { "packet-lab · " (self.kind) }
                            h1 { (self.title) }
                            span.badge.verdict.(tone.class()) { (tone.sign()) " " (verdict) }
                            dl.facts {
                                @for (what, value) in &self.facts {
                                    div { dt { (what) } dd { (value) } }
                                }
                            }
                        }
                    }
                    main #content { (self.content) }
                    footer {
                        "packet-lab " (env!("CARGO_PKG_VERSION")) ", the laboratory of the LumenLink relay. "
                        "This page is complete: it loads nothing from anywhere."
                    }
                    script { (PreEscaped(SCRIPT)) }
                }
            }
        };
        page.into_string()
    }
}

/// Nothing is loaded, and only the page's own style and script apply, by their digests.
fn policy() -> String {
    let digest = |text: &str| BASE64_STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        digest(STYLE),
        digest(SCRIPT)
    )
}

/// A short word on a coloured ground.
pub(super) fn badge(tone: Tone, text: &str) -> Markup {
    html! { span.badge.(tone.class()) { (tone.sign()) " " (text) } }
}
