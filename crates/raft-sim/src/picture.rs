//! A space-time diagram of a run: one line per machine, time from left to right, messages as arrows, leadership as
//! colours; crashes, partitions and the other faults where they happened. A page of HTML without scripts.

use std::collections::BTreeSet;

use raft_core::{RoleKind, Term};

use crate::disk::Crash;
use crate::profile::Options;
use crate::run::Watched;
use crate::tape::{Role, Sent, State, Tape, Topic};

/// Left of where time begins.
const MARGIN: f64 = 60.0;
/// Between two machines.
const ROW: f64 = 120.0;
/// Of one line of text about faults.
const LINE: f64 = 15.0;
/// Lines of text about faults.
const LINES_MAX: usize = 9;
/// Width of the diagram, in pixels, whatever happened.
const WIDTH_MAX: f64 = 16_000.0;
const WIDTH_MIN: f64 = 1_100.0;
/// What one message gets of it.
const MESSAGE_WIDTH: f64 = 22.0;
/// Of letters of the small text, about.
const LETTER: f64 = 6.0;
/// Faults below the diagram.
const LISTED_MAX: usize = 300;

/// Leaders of successive terms differ.
const TERMS: [&str; 6] = ["#2b6cb0", "#2f855a", "#6b46c1", "#b7791f", "#97266d", "#0f766e"];

/// Runs a seed and draws it, whether it fails or not: all of a short run, else its last seven hundred messages.
///
/// `command` is how to run it again, shown on the page. The page is bounded: 16,000 pixels wide, a line for each
/// machine.
#[must_use]
pub fn picture(seed: u64, options: &Options, command: &str) -> String {
    let options = Options { record: true, ..options.clone() };
    let run = Watched::run(seed, &options);
    let Some(tape) = &run.tape else { return String::new() };
    let drawing = Drawing::new(tape, run.now);
    let svg = drawing.draw(run.outcome.is_err());
    let mut page = String::from(HEAD);
    let mut line = |text: &str| {
        page.push_str(text);
        page.push('\n');
    };
    line(&format!("<title>rusty-raft: seed {seed}</title>\n<h1>Seed {seed}</h1>"));
    line(&match &run.outcome {
        Ok(()) => "<p>Nothing was violated.</p>".to_owned(),
        Err(what) => format!("<pre class=\"fails\">{}</pre>", escaped(what)),
    });
    line(&format!("<p><code>{}</code></p>", escaped(command)));
    let (begins, ends) = (seconds(drawing.begins), seconds(drawing.ends));
    let part = if tape.is_cut { "the last part of the run" } else { "the whole run" };
    line(&format!("<p>From {begins} to {ends}: {part}. {LEGEND}</p>"));
    line(&format!("<div class=\"scroll\">{svg}</div>"));
    let faults: Vec<String> = run.story.iter().map(ToString::to_string).collect();
    let listed = &faults[..faults.len().min(LISTED_MAX)];
    let more = faults.len() - listed.len();
    let more = if more > 0 { format!("\nand {more} more") } else { String::new() };
    line(&format!(
        "<h2>Faults</h2>\n<pre>number        when  what\n{}{more}</pre>",
        escaped(&listed.join("\n"))
    ));
    page
}

const HEAD: &str = "<!doctype html>\n<meta charset=\"utf-8\">\n<style>
body { font: 14px system-ui, sans-serif; margin: 20px; background: #fff; color: #1a202c; }
pre { font-size: 12px; } .fails { color: #c53030; white-space: pre-wrap; }
.scroll { overflow-x: auto; border: 1px solid #e2e8f0; }
b { font-weight: 600; padding: 0 3px; }
</style>";

const LEGEND: &str = "Lines: grey follows, yellow asks before it campaigns, orange campaigns, thick and coloured leads \
    (a colour for each term), dashed is paused, dotted is down (&#10005; died, &#9889; lost power). Arrows: <b \
    style=\"color:#d97706\">votes</b> <b style=\"color:#2563eb\">entries</b> <b \
    style=\"color:#94a3b8\">heartbeats</b> <b style=\"color:#7c3aed\">snapshots</b> <b \
    style=\"color:#059669\">reads</b> <b style=\"color:#475569\">others</b> <b \
    style=\"color:#dc2626\">never arrived</b>. Green points: the commit index moves. Shaded: some links carry nothing. \
    Point at anything to read more.";

struct Drawing<'a> {
    tape: &'a Tape,
    begins: u64,
    ends: u64,
    width: f64,
    top: f64,
    faults: Vec<Label>,
}

/// A text above the diagram, on one of the lines there.
struct Label {
    x: f64,
    line: Option<usize>,
    text: String,
}

impl<'a> Drawing<'a> {
    fn new(tape: &'a Tape, now: u64) -> Self {
        let begins = tape.begins();
        let ends = now.max(begins + 1);
        let count = u32::try_from(tape.messages.len()).unwrap_or(u32::MAX);
        let width = (f64::from(count) * MESSAGE_WIDTH).clamp(WIDTH_MIN, WIDTH_MAX);
        let mut drawing = Self { tape, begins, ends, width, top: 0.0, faults: Vec::new() };
        let mut free = [0.0f64; LINES_MAX];
        for (at, number, what) in tape.faults.iter().filter(|(at, ..)| *at >= begins) {
            let (x, text) = (drawing.x(*at), format!("{number}: {what}"));
            let line = free.iter().position(|free| *free <= x);
            if let Some(line) = line {
                free[line] = x + length(&text);
            }
            drawing.faults.push(Label { x, line, text });
        }
        let lines = drawing.faults.iter().filter_map(|label| label.line).max();
        drawing.top = float(lines.map_or(0, |line| line + 1)) * LINE + 60.0;
        drawing
    }

    fn x(&self, at: u64) -> f64 {
        let part = millis(at.max(self.begins) - self.begins) / millis(self.ends - self.begins);
        MARGIN + part.min(1.0) * self.width
    }

    fn y(&self, machine: usize) -> f64 {
        self.top + float(machine) * ROW
    }

    fn draw(&self, fails: bool) -> String {
        let machines = self.tape.states.len();
        let (width, height) = (self.width + 2.0 * MARGIN, self.y(machines) - ROW / 2.0 + 20.0);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#fff\"/>\n<defs>"
        );
        for (_, color) in TOPICS {
            let id = color.trim_start_matches('#');
            append(
                &mut svg,
                &format!(
                    "<marker id=\"m{id}\" viewBox=\"0 0 8 8\" refX=\"8\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto\"><path d=\"M0 0L8 4L0 8z\" fill=\"{color}\"/></marker>"
                ),
            );
        }
        svg.push_str("</defs>\n");
        self.draw_partitions(&mut svg, height);
        self.draw_axis(&mut svg, height);
        self.draw_faults(&mut svg, height);
        for message in &self.tape.messages {
            self.draw_message(&mut svg, message);
        }
        for machine in 0..machines {
            self.draw_machine(&mut svg, machine);
        }
        if fails {
            let x = MARGIN + self.width;
            append(
                &mut svg,
                &format!(
                    "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"20\" y2=\"{height:.0}\" stroke=\"#c53030\" stroke-width=\"3\"/>\
                 <text x=\"{:.1}\" y=\"16\" fill=\"#c53030\" font-weight=\"bold\">fails</text>",
                    x - 12.0
                ),
            );
        }
        svg.push_str("</svg>");
        svg
    }

    fn draw_axis(&self, svg: &mut String, height: f64) {
        let wanted = millis(self.ends - self.begins) * 1000.0 / (self.width / 110.0);
        let mut step = 1u64;
        while millis(step) * 1000.0 < wanted {
            let first: u64 =
                step.to_string().chars().next().and_then(|c| c.to_digit(10)).map_or(1, u64::from);
            step = if first == 2 { step / 2 * 5 } else { step * 2 };
        }
        let mut at = self.begins.next_multiple_of(step);
        while at <= self.ends {
            let x = self.x(at);
            append(
                svg,
                &format!(
                    "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"20\" y2=\"{height:.0}\" stroke=\"#edf2f7\"/><text x=\"{:.1}\" y=\"14\" fill=\"#718096\">{}</text>",
                    x + 2.0,
                    seconds(at)
                ),
            );
            at += step;
        }
    }

    fn draw_partitions(&self, svg: &mut String, height: f64) {
        let ends = self.tape.links.iter().skip(1).map(|(at, _)| *at).chain([self.ends]);
        for ((at, cut), end) in self.tape.links.iter().zip(ends) {
            if cut.is_empty() || end <= self.begins {
                continue;
            }
            let (from, to) = (self.x(*at), self.x(end));
            let text = links(cut);
            append(
                svg,
                &format!(
                    "<rect x=\"{from:.1}\" y=\"22\" width=\"{:.1}\" height=\"{height:.0}\" fill=\"#fed7d7\" opacity=\"0.45\"><title>{text}</title></rect>",
                    to - from
                ),
            );
            if length(&text) < to - from {
                append(
                    svg,
                    &format!(
                        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#9b2c2c\">{text}</text>",
                        from + 3.0,
                        self.top - 28.0
                    ),
                );
            }
        }
    }

    fn draw_faults(&self, svg: &mut String, height: f64) {
        for Label { x, line, text } in &self.faults {
            let text = escaped(text);
            append(
                svg,
                &format!(
                    "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"22\" y2=\"{height:.0}\" stroke=\"#c53030\" stroke-dasharray=\"2 3\"><title>{text}</title></line>"
                ),
            );
            if let Some(line) = line {
                append(
                    svg,
                    &format!(
                        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#9b2c2c\">{text}</text>",
                        x + 3.0,
                        32.0 + float(*line) * LINE
                    ),
                );
            }
        }
    }

    fn draw_message(&self, svg: &mut String, message: &Sent) {
        let Sent { at, arrives, from, to, what, void, .. } = message;
        let color = color(what.topic);
        let lost = *void || arrives.is_none();
        let later = arrives.unwrap_or(*at).max(*at);
        let title = format!(
            "n{} to n{}: {} ({}{})",
            from + 1,
            to + 1,
            what.text,
            seconds(*at),
            if lost { ", never arrived".to_owned() } else { format!(" to {}", seconds(later)) }
        );
        let (x1, y1, y2) = (self.x(*at), self.y(*from), self.y(*to));
        let (mut x2, mut y2) = (if arrives.is_some() { self.x(later) } else { x1 + 20.0 }, y2);
        if lost {
            // As far as the middle between two lines.
            let part = ROW * 0.4 / (y2 - y1).abs().max(1.0);
            (x2, y2) = (x1 + (x2 - x1) * part, y1 + (y2 - y1) * part);
        } else if later > self.ends {
            // Still on its way when the picture ends.
            let part = millis(self.ends.saturating_sub(*at)) / millis(later - at).max(0.001);
            y2 = y1 + (y2 - y1) * part;
        }
        let title = escaped(&title);
        let thin = if what.topic == Topic::Heartbeat { "0.7" } else { "1.2" };
        if lost {
            append(
                svg,
                &format!(
                    "<g stroke=\"#dc2626\"><title>{title}</title><line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke-dasharray=\"4 3\"/>\
                 <path d=\"M{:.1} {:.1}l6 6m0 -6l-6 6\" stroke-width=\"1.6\"/></g>",
                    x2 - 3.0,
                    y2 - 3.0
                ),
            );
            return;
        }
        append(
            svg,
            &format!(
                "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\" stroke-width=\"{thin}\" marker-end=\"url(#m{})\"><title>{title}</title></line>",
                color.trim_start_matches('#')
            ),
        );
    }

    fn draw_machine(&self, svg: &mut String, machine: usize) {
        let y = self.y(machine);
        let name = format!("n{}", machine + 1);
        let mut x = 8.0;
        while x < self.width {
            append(
                svg,
                &format!(
                    "<text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"16\" font-weight=\"bold\" stroke=\"#fff\" stroke-width=\"4\" paint-order=\"stroke\">{name}</text>",
                    y - if x > MARGIN { 10.0 } else { -5.0 }
                ),
            );
            x += 1_500.0;
        }
        self.draw_roles(svg, machine, y);
        self.draw_states(svg, machine, y);
        let mut free = 0.0;
        for (at, index) in self.tape.commits[machine].iter().filter(|(at, _)| *at >= self.begins) {
            let x = self.x(*at);
            append(
                svg,
                &format!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\" fill=\"#22c55e\" stroke=\"#fff\" stroke-width=\"0.6\"><title>{name} commits {index} at {}</title></circle>",
                    seconds(*at)
                ),
            );
            if x >= free {
                append(
                    svg,
                    &format!(
                        "<text x=\"{x:.1}\" y=\"{:.1}\" fill=\"#15803d\" font-size=\"10\">{index}</text>",
                        y + 17.0
                    ),
                );
                free = x + 60.0;
            }
        }
    }

    fn draw_roles(&self, svg: &mut String, machine: usize, y: f64) {
        let roles = &self.tape.roles[machine];
        let ends = roles.iter().skip(1).map(|role| role.at).chain([self.ends]);
        let mut free = 0.0;
        for (Role { at, role, term }, end) in roles.iter().zip(ends) {
            if end < self.begins || *term == Term(0) && *role == RoleKind::Follower {
                continue;
            }
            let (from, to) = (self.x(*at), self.x(end));
            let (color, width) = match role {
                RoleKind::Follower => ("#a0aec0", 5),
                RoleKind::PreCandidate => ("#ecc94b", 7),
                RoleKind::Candidate => ("#dd6b20", 7),
                RoleKind::Leader => (term_color(*term), 11),
            };
            append(
                svg,
                &format!(
                    "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{color}\" stroke-width=\"{width}\"><title>n{}: {role:?}, term {term}, from {}</title></line>",
                    machine + 1,
                    seconds(*at)
                ),
            );
            let text = if *role == RoleKind::Leader {
                format!("leads term {term}")
            } else {
                format!("t{term}")
            };
            if from >= free {
                append(
                    svg,
                    &format!(
                        "<text x=\"{from:.1}\" y=\"{:.1}\" fill=\"#2d3748\" font-size=\"10\" stroke=\"#fff\" stroke-width=\"3\" paint-order=\"stroke\">{text}</text>",
                        y - 9.0
                    ),
                );
                free = from + length(&text);
            }
        }
    }

    fn draw_states(&self, svg: &mut String, machine: usize, y: f64) {
        let states = &self.tape.states[machine];
        let ends = states.iter().skip(1).map(|(at, _)| *at).chain([self.ends]);
        for ((at, state), end) in states.iter().zip(ends) {
            if end < self.begins {
                continue;
            }
            let (from, to, name) = (self.x(*at), self.x(end), machine + 1);
            let (says, color, dashes) = match state {
                State::Up => continue,
                State::Paused => ("is paused", "#1a202c", "6 4"),
                State::Down(Crash::Process) => ("died", "#c53030", "1 5"),
                State::Down(Crash::Power(_)) => ("lost power", "#c53030", "1 5"),
            };
            append(
                svg,
                &format!(
                    "<line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#fff\" stroke-width=\"12\"/>\
                 <line x1=\"{from:.1}\" x2=\"{to:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{color}\" stroke-width=\"3\" stroke-dasharray=\"{dashes}\"><title>n{name} {says} at {}</title></line>",
                    seconds(*at)
                ),
            );
            if let State::Down(crash) = state
                && *at >= self.begins
            {
                let sign = if *crash == Crash::Process { "&#10005;" } else { "&#9889;" };
                append(
                    svg,
                    &format!(
                        "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"18\" fill=\"#c53030\">{sign}</text>",
                        from - 6.0,
                        y + 6.0
                    ),
                );
            }
        }
    }
}

const TOPICS: [(Topic, &str); 6] = [
    (Topic::Vote, "#d97706"),
    (Topic::Append, "#2563eb"),
    (Topic::Heartbeat, "#94a3b8"),
    (Topic::Snapshot, "#7c3aed"),
    (Topic::Read, "#059669"),
    (Topic::Other, "#475569"),
];

fn color(topic: Topic) -> &'static str {
    TOPICS.iter().find(|(found, _)| *found == topic).map_or("#000000", |(_, color)| color)
}

fn term_color(term: Term) -> &'static str {
    let nth = usize::try_from(term.0).unwrap_or_default() % TERMS.len();
    TERMS[nth]
}

/// The links that carry nothing, for people.
fn links(cut: &BTreeSet<(usize, usize)>) -> String {
    let mut text = "cut:".to_owned();
    for (from, to) in cut {
        let back = cut.contains(&(*to, *from));
        if back && from > to {
            continue;
        }
        let arrow = if back { "&#8211;" } else { "&#8594;" };
        append(&mut text, &format!(" n{}{arrow}n{}", from + 1, to + 1));
    }
    text
}

fn append(to: &mut String, text: &str) {
    to.push_str(text);
    to.push('\n');
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn seconds(micros: u64) -> String {
    format!("{}.{:06} s", micros / 1_000_000, micros % 1_000_000)
}

/// Times of a picture are hours at most: nothing that a float would round visibly.
fn millis(micros: u64) -> f64 {
    f64::from(u32::try_from(micros).unwrap_or(u32::MAX)) / 1000.0
}

fn float(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// Pixels that a text takes, about.
fn length(text: &str) -> f64 {
    float(text.chars().count()) * LETTER + 8.0
}
