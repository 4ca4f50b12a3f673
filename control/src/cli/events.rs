//! `shunt events`: what has happened, and with `--follow` what happens.

use std::ops::ControlFlow;
use std::path::Path;

use super::output::Output;
use super::runtime;
use crate::admin::client::lines;
use crate::events::Event;

/// How long one answer is waited for; then it is asked again. Shorter than what the client takes for silence.
const WAIT_SECONDS: u64 = 20;

pub(super) fn events(socket: &Path, follow: bool, json: bool) -> anyhow::Result<()> {
    let runtime = runtime()?;
    let mut after = 0;
    loop {
        let wait = if follow { WAIT_SECONDS } else { 0 };
        let path = format!("/v1/events?after={after}&wait={wait}");
        let mut out = Output::new();
        let mut wrong = None;
        let mut left = false;
        let show = |line: &[u8]| {
            let event: Event = match serde_json::from_slice(line) {
                Ok(event) => event,
                Err(error) => {
                    wrong = Some(error);
                    return ControlFlow::Break(());
                }
            };
            after = event.number;
            let shown = if json { line.to_vec() } else { text(&event).into_bytes() };
            // Who follows wants to see it now.
            let done = match out.write(&shown) {
                ControlFlow::Continue(()) => out.flush(),
                ControlFlow::Break(()) => ControlFlow::Break(()),
            };
            left = done.is_break();
            done
        };
        let asked = runtime.block_on(lines(socket, &path, show));
        out.finish()?;
        asked?;
        if let Some(error) = wrong {
            return Err(error.into());
        }
        if !follow || left {
            return Ok(());
        }
    }
}

fn text(event: &Event) -> String {
    format!("{} {}\n", utc(event.unix_ms), event.happened.to_string().trim_end())
}

/// A moment as RFC 3339 writes it. The day is reckoned in eras of 400 years from March on, as the Gregorian calendar
/// repeats itself.
fn utc(unix_ms: u64) -> String {
    let (seconds, millis) = (unix_ms / 1000, unix_ms % 1000);
    let (days, of_day) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Happened;

    #[test]
    fn an_event_is_a_line_with_its_time() {
        let happened = Happened::Quorum { service: "web".into(), state: "lost".into() };
        let event = Event { number: 1, unix_ms: 1_792_713_600_007, happened };
        assert_eq!(text(&event), "2026-10-23T00:00:00.007Z service web: quorum lost\n");
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, day) in [
            (0, "1970-01-01"),
            (68_169_600, "1972-02-29"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_735_689_599, "2024-12-31"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(utc(seconds * 1000)[..10], *day);
        }
    }
}
