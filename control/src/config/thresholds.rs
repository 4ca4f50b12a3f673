//! `max_connections` and `resume_connections` of a server: LVS's upper and lower threshold.

use shunt_dataplane::thresholds::Thresholds;

use super::diagnostic::Diagnostics;
use super::raw;
use super::resolve::integer;

/// How many connections a server of `service` may have.
pub(super) fn thresholds(
    service: &str,
    typed: &raw::Server,
    diagnostics: &mut Diagnostics,
) -> Option<Thresholds> {
    let key = |key: &str| format!("service {service:?}: server {key}");
    let (max, resume) = (&typed.max_connections, &typed.resume_connections);
    if max.is_none() {
        if let Some(resume) = resume {
            diagnostics
                .error(
                    resume.span(),
                    key("resume_connections without `max_connections`"),
                    "this server is never full",
                )
                .help("add max_connections, or leave resume_connections out");
        }
        return None;
    }
    let upper: u32 = integer(&key("max_connections"), max, 1, 1..=CONNECTIONS_MAX, diagnostics);
    // As in LVS: fewer than three quarters.
    let default = upper - upper / 4;
    let lower = integer(&key("resume_connections"), resume, default, 1..=upper.into(), diagnostics);
    Some(Thresholds { upper, lower })
}

/// As many as `engine.max_connections` can be.
const CONNECTIONS_MAX: i64 = 1 << 28;
