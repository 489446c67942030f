//! ✦ The status page: one self-contained document, no external asset, readable on a phone and by a screen reader.
//!
//! A small script of its own puts what has changed in place; where none runs the page loads itself again.

use std::fmt::Write;
use std::time::Duration;

use crate::status::local::PeerView;
use crate::status::{HistoryEntry, LocalView, Role, State};

const STYLE: &str = "\
:root{color-scheme:light dark;--back:#ffffff;--text:#1c2024;--line:#8884;--good:#18794e;--bad:#c62a2f;--soft:#5a6169}\
body{background:var(--back);color:var(--text);font:16px/1.45 system-ui,sans-serif;max-width:60rem;margin:0 auto;padding:1rem}\
h1{font-size:1.3rem;margin:0}h2{font-size:1.05rem;margin:1.2rem 0 .4rem}p{margin:.3rem 0 1rem}\
.ok{color:var(--good)}.bad{color:var(--bad)}.soft{color:var(--soft)}\
ul{list-style:none;padding:0;display:grid;gap:.6rem;grid-template-columns:repeat(auto-fill,minmax(16rem,1fr))}\
li{border:1px solid var(--line);border-left:.35rem solid var(--soft);border-radius:.4rem;padding:.6rem .8rem}\
li.primary{border-left-color:var(--good)}li.away{border-left-color:var(--bad)}\
b{font-size:1.05rem}small{display:block;overflow-wrap:anywhere}\
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.9rem}\
th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid var(--line);white-space:nowrap}\
@media(prefers-color-scheme:dark){:root{--back:#111315;--text:#eceef0;--good:#4cc38a;--bad:#ff8589;--soft:#a1a8b0}}";

/// What keeps the page current, served beside it.
pub(super) const SCRIPT: &str = include_str!("page.js");

/// Changes of primary that the page shows.
const SHOWN_CHANGES: usize = 20;

/// Escapes text for HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Renders the page as this member sees the cluster.
pub(super) fn render(view: &LocalView, now: Duration) -> String {
    let mut out = String::with_capacity(8192);
    let name = escape(&view.scope);
    // Writing to a String cannot fail.
    let _ok = write!(
        out,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width,\
         initial-scale=1\"><noscript><meta http-equiv=refresh content=5></noscript><title>{name} · Rhone</title>\
         <style>{STYLE}</style><script defer src=ui.js></script><main><h1>{name}</h1>\
         <p id=away class=bad role=alert hidden>This member does not answer: below is what it said last.</p>\
         <div id=now aria-live=polite>"
    );
    let primary = view.members.iter().find(|m| m.status.role == Role::Primary);
    let unsure = view.cluster_unlocked || (view.role == Role::Primary && !view.is_writable_primary(now));
    let _ok = match primary {
        Some(peer) if !unsure => {
            write!(out, "<p class=ok>primary {}, epoch {}", escape(&peer.status.name), view.epoch)
        }
        Some(_) | None => write!(out, "<p class=bad>no primary accepts writes, epoch {}", view.epoch),
    };
    let paused = if view.paused { ", automatic failover is off" } else { "" };
    let _ok = write!(out, "{paused}<span class=soft> · as seen from {}</span></p></div>", escape(&view.name));
    out.push_str("<section id=members><h2>Members</h2><ul>");
    for peer in &view.members {
        member(&mut out, peer);
    }
    out.push_str("</ul></section><section id=changes>");
    history(&mut out, &view.history);
    out.push_str("</section></main></html>\n");
    out
}

fn member(out: &mut String, peer: &PeerView) {
    let status = &peer.status;
    let class = match (status.role, status.state) {
        (_, State::Unreachable | State::Crashed | State::Fenced) => "away",
        (Role::Primary, _) => "primary",
        (_, _) => "",
    };
    let _ok = write!(
        out,
        "<li class=\"{class}\"><b>{}</b> {} <span class=soft>{}</span>",
        escape(&status.name),
        status.role,
        status.state
    );
    if let (Some(timeline), Some(lsn)) = (status.timeline, status.lsn) {
        let _ok = write!(out, "<small>WAL {timeline}:{lsn}");
        if let (Role::Standby, Some(lag)) = (status.role, status.lag_bytes) {
            let _ok = write!(out, ", {lag} bytes behind");
        }
        out.push_str("</small>");
    }
    if let (Some(host), Some(port)) = (&status.host, status.port) {
        let _ok = write!(out, "<small class=soft>{}:{port}</small>", escape(host));
    }
    if let Some(note) = &status.note {
        let _ok = write!(out, "<small>{}</small>", escape(note));
    }
    out.push_str("</li>");
}

fn history(out: &mut String, entries: &[HistoryEntry]) {
    if entries.is_empty() {
        return;
    }
    out.push_str(
        "<h2>Changes of primary</h2><div class=scroll tabindex=0><table><tr><th scope=col>when<th scope=col>from\
         <th scope=col>to<th scope=col>epoch<th scope=col>reason<th scope=col>without primary<th scope=col>lost",
    );
    for entry in entries.iter().rev().take(SHOWN_CHANGES) {
        let text = |name: &Option<String>| name.as_deref().map_or_else(|| "-".to_owned(), escape);
        let _ok = write!(
            out,
            "<tr><td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}",
            entry.time.map_or_else(|| "-".to_owned(), super::super::civil::WallTime::short),
            text(&entry.from),
            text(&entry.to),
            entry.epoch,
            escape(&entry.reason),
            entry.seconds_without_primary.map_or_else(|| "-".to_owned(), |s| format!("{s:.2} s")),
            text(&entry.lost),
        );
    }
    out.push_str("</table></div>");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance, as WCAG has it.
    fn luminance(colour: &str) -> f64 {
        let part = |at: usize| {
            let value = f64::from(u8::from_str_radix(&colour[at..at + 2], 16).expect("hex")) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * part(0) + 0.7152 * part(2) + 0.0722 * part(4)
    }

    fn colour<'a>(style: &'a str, name: &str) -> &'a str {
        let (_, rest) = style.split_once(&format!("--{name}:#")).expect("a colour");
        &rest[..6]
    }

    #[test]
    fn all_text_stands_out_from_the_page() {
        let (light, dark) = STYLE.split_once("@media").expect("two sets of colours");
        for style in [light, dark] {
            for name in ["text", "good", "bad", "soft"] {
                let (text, back) = (luminance(colour(style, name)), luminance(colour(style, "back")));
                let contrast = (text.max(back) + 0.05) / (text.min(back) + 0.05);
                // WCAG 2.2, 1.4.3: text of any size.
                assert!(contrast >= 4.5, "{name}: {contrast:.2}");
            }
        }
    }
}
